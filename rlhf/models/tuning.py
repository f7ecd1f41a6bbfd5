"""Low-rank adapters on Hugging Face models: made, saved, loaded, merged; PEFT and bitsandbytes are used here alone.

They take a second to import, so that this module is imported where there is an adapter.
"""

import contextlib
import copy
import importlib.util
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
)
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import BitsAndBytesConfig, PreTrainedModel

from rlhf.errors import ModelError
from rlhf.models.loading import working_dtype
from rlhf.training.config import Lora

ADAPTER_FILE = "adapter_model.safetensors"
TRAINED = "default"  # PEFT's name of a model's first adapter
REFERENCE, REWARD, CRITIC = "reference", "reward", "critic"


def quantisation(device: torch.device, keep: Sequence[str]) -> BitsAndBytesConfig:
    """How a base model is held in 4 bits: NF4 with double quantisation (Dettmers et al. 2023, sec. 3).

    Args:
        device: Where it will be.
        keep: Names of modules that stay as they are: those that are trained, such as a score head.

    Raises:
        ModelError: bitsandbytes is not installed, or cannot work on the device.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError("tuning 'qlora': bitsandbytes is not installed; install it, or use tuning 'lora'")
    import bitsandbytes

    usable = sorted(bitsandbytes.supported_torch_devices)
    if device.type not in usable:
        raise ModelError(
            f"tuning 'qlora': bitsandbytes {bitsandbytes.__version__} has no 4-bit kernels for the device "
            f"{device.type!r}, only for {', '.join(usable)}; use tuning 'lora' here"
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=working_dtype("auto", device),
        llm_int8_skip_modules=list(keep) or None,
    )


def exact(model: PreTrainedModel) -> PreTrainedModel:
    """Let a model held in 4 bits compute alike in training and in evaluation.

    On CPUs with AVX512-BF16, bitsandbytes packs the weights anew at the first forward pass in evaluation mode and goes
    on in bfloat16: scores would change in their second digit.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def add_adapter(model: PreTrainedModel, task: str, lora: Lora, train_whole: Sequence[str]) -> PeftModel:
    """Freeze a model and put a low-rank adapter on its linear layers.

    Args:
        model: The base model.
        task: A name of PEFT's TaskType, such as SEQ_CLS.
        lora: The adapter's rank, scaled_alpha, dropout and target_modules (None for all linear layers).
        train_whole: Names of modules that are trained in full and saved with the adapter: a new score head, and
            whatever else the checkpoint lacked. Left out, PPO would later run against untrained weights.

    Raises:
        ModelError: No linear layer has one of the names in `lora.target_modules`.
    """
    config = LoraConfig(
        task_type=task,
        r=lora.rank,
        lora_alpha=lora.scaled_alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules or "all-linear",
    )
    _train_whole(config, model, task, train_whole)
    return _adapted(model, config)


def continue_adapter(
    model: PreTrainedModel, folder: str | Path, task: str, train_whole: Sequence[str]
) -> tuple[PeftModel, list[str]] | None:
    """Put another model's adapter on `model` and train it further: a reward model over the SFT policy's adapter.

    Both then stand on one base model, which is named and need not be copied.

    Args:
        model: The base model, with another head than the adapter was trained with.
        folder: The adapter.
        task, train_whole: As for `add_adapter`.

    Returns:
        The model, and names of the modules of `train_whole` whose weights came with the adapter; None where the
        adapter's weights have no place in this model.
    """
    config = PeftConfig.from_pretrained(folder)
    config.inference_mode, config.task_type = False, task
    saved_whole = _train_whole(config, model, task, train_whole)
    adapted = _adapted(model, config)
    state = adapted.state_dict()
    there = {name for name in state if ".lora_" in name}
    places, whole, came = {}, {}, set()
    for name, value in _tensors(folder).items():
        if ".lora_" not in name:
            inner = name.removeprefix("base_model.model.")
            module = next((module for module in saved_whole if inner.startswith(f"{module}.")), "")
            place = f"base_model.model.{module}.modules_to_save.default.{inner.removeprefix(f'{module}.')}"
            if place in state and state[place].shape == value.shape:
                whole[place] = value
                came |= {module for module in train_whole if inner.startswith(f"{module}.")}
            continue
        stem, _, kind = name.rpartition(".")
        # Classifiers of encoder-decoders keep the trunk one level down.
        for place in (name, name.replace("base_model.model.", "base_model.model.transformer.", 1)):
            stem, _, kind = place.rpartition(".")
            if (place := f"{stem}.default.{kind}") in there:
                places[place] = value
    if there != set(places):
        return None
    with torch.no_grad():
        for place, value in (places | whole).items():
            state[place].copy_(value)
    return adapted, sorted(came)


def save_adapter(model: PeftModel, folder: str | Path, base: str) -> None:
    """Write the adapter, and what was trained in full with it.

    Args:
        base: Reference of the base model, as `rlhf.models.references.resolve` takes it.
    """
    config = model.peft_config[model.active_adapter]
    config.base_model_name_or_path = base
    # A padding token that was added to the vocabulary is masked wherever it stands: its embedding is not worth keeping.
    model.save_pretrained(folder, save_embedding_layers=False, selected_adapters=[TRAINED])


def load_adapter(model: PreTrainedModel, folder: str | Path) -> PeftModel:
    """Put a saved adapter on its base model, and see that every one of its weights has arrived.

    Raises:
        ModelError: The folder holds no adapter, or one for another model.
    """
    try:
        # Otherwise the first GPU gets every process's copy.
        adapted = PeftModel.from_pretrained(model, folder, is_trainable=False, torch_device="cpu")
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"adapter {str(folder)!r}: cannot be put on its base ({_one_line(error)})") from error
    saved, loaded = _tensors(folder), get_peft_model_state_dict(adapted, save_embedding_layers=False)
    lost = sorted(
        name
        for name in saved.keys() | loaded.keys()
        if name not in saved
        or name not in loaded
        or not torch.equal(saved[name], loaded[name].cpu().to(saved[name].dtype))
    )
    if lost:
        raise ModelError(
            f"adapter {str(folder)!r}: {len(lost)} of its weights did not arrive in the base model, {lost[0]} among "
            "them; it was trained on another model, or saved by another version of peft"
        )
    return adapted


def whole_modules(folder: str | Path) -> set[str]:
    """Names of the modules that were trained in full and saved with an adapter."""
    stems = {name.rpartition(".")[0] for name in _tensors(folder) if ".lora_" not in name}
    return {stem.removeprefix("base_model.model.") for stem in stems}


def copy_adapter(model: PeftModel, name: str, of: str = TRAINED, frozen: bool = True) -> None:
    """Put a copy of an adapter beside it, on the same base."""
    _add_beside(model, name, copy.deepcopy(model.peft_config[of]))
    with torch.no_grad():
        places = dict(model.named_parameters())
        for place, value in places.items():
            if f".{of}." in place and ".lora_" in place:
                places[place.replace(f".{of}.", f".{name}.")].copy_(value)
    for place, parameter in model.named_parameters():
        if f".{name}." in place:
            parameter.requires_grad_(not frozen)


def place_beside(model: PeftModel, name: str, folder: str | Path) -> dict[str, torch.Tensor]:
    """Put another model's saved adapter beside the trained one, frozen, on the one base that both stand on.

    Returns:
        What the folder holds beside it: modules that were trained in full, by their names in that model.

    Raises:
        ModelError: The adapter is not one for this base.
    """
    config = PeftConfig.from_pretrained(folder)
    config.task_type, config.modules_to_save, config.exclude_modules = model.peft_config[TRAINED].task_type, None, None
    _add_beside(model, name, config)
    places = {place: value for place, value in model.named_parameters() if f".{name}." in place}
    rest, missing = {}, set(places)
    with torch.no_grad():
        for saved, value in _tensors(folder).items():
            if ".lora_" not in saved:
                rest[saved.removeprefix("base_model.model.")] = value
                continue
            stem, _, kind = saved.rpartition(".")
            place = f"{stem}.{name}.{kind}"
            if place not in places:  # classifiers of T5 keep the trunk one level down
                place = place.replace("base_model.model.transformer.", "base_model.model.", 1)
            if place in places and places[place].shape == value.shape:
                places[place].copy_(value)
                missing.discard(place)
            else:
                missing.add(saved)
    if missing:
        raise ModelError(
            f"adapter {str(folder)!r}: {len(missing)} of its weights have no place on the base model, "
            f"{min(missing)} among them; it was trained on another model"
        )
    for value in places.values():
        value.requires_grad_(False)
    return rest


@contextlib.contextmanager
def using_adapter(model: PeftModel, name: str | None) -> Iterator[None]:
    """Compute with another adapter than the trained one, or with none. What has gradients stays as it is.

    PEFT itself would let the active adapter, and no other, have them.
    """
    has_gradient = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def restore() -> None:
        for parameter, flag in has_gradient:
            parameter.requires_grad_(flag)

    with model.disable_adapter() if name is None else contextlib.nullcontext():
        if name is not None:
            model.set_adapter(name)
        restore()
        try:
            yield
        finally:
            if name is not None:
                model.set_adapter(TRAINED)
    restore()


def merge(model: PeftModel, plain_base: Any) -> PreTrainedModel:
    """The model with its adapter's change added to the base's weights.

    Args:
        plain_base: Makes the base model anew; called where the base is held in 4 bits, which cannot hold the sum.
            The change was fitted to the rounded weights, so it is added to those.
    """
    if not is_in_4_bits(model):
        return model.merge_and_unload()
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(model, folder, "")
        plain = plain_base()
        if getattr(plain, "is_loaded_in_4bit", False):
            plain = plain.dequantize(dtype=torch.float32)
        return load_adapter(plain, folder).merge_and_unload()


def is_in_4_bits(model: PeftModel) -> bool:
    return getattr(model.get_base_model(), "is_loaded_in_4bit", False)


def base_of(model: PeftModel) -> tuple[str, bool]:
    """Where the base model was loaded from, and whether it is held in 4 bits."""
    return model.get_base_model().name_or_path, is_in_4_bits(model)


def _train_whole(config: PeftConfig, model: PreTrainedModel, task: str, names: Sequence[str]) -> list[str]:
    """Have modules trained and saved in full, and no adapter within them.

    PEFT does so with a sequence classifier's `classifier` or `score` of itself: one that has layers, as RoBERTa's, is
    then one module, for what is saved in parts within it cannot be loaded.

    Returns:
        Names of the modules that are saved.
    """
    own = ("classifier", "score") if task == "SEQ_CLS" else ()
    whole = sorted({top if (top := name.partition(".")[0]) in own else name for name in names})
    config.modules_to_save = whole or None
    within = [n for n, _ in model.named_modules() if any(n == each or n.startswith(f"{each}.") for each in whole)]
    config.exclude_modules = within or None
    return whole


def _adapted(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"lora.target_modules: {_one_line(error)}") from error


def _add_beside(model: PeftModel, name: str, config: PeftConfig) -> None:
    has_gradient = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    config.inference_mode = True
    model.add_adapter(name, config)
    model.set_adapter(TRAINED)
    for parameter, flag in has_gradient:
        parameter.requires_grad_(flag)


def _tensors(folder: str | Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(Path(folder, ADAPTER_FILE))
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"adapter {str(folder)!r}: {ADAPTER_FILE} cannot be read ({_one_line(error)}); expected safetensors"
        ) from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
