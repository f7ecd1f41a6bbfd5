"""Loading and saving Hugging Face models and tokenizers, and what each kind of model is fed.

Three kinds of model are told apart by their config: *causal* (Llama, Pythia, Qwen), *seq2seq* (T5) and *encoder*
(BERT, DeBERTa). Policies are causal or seq2seq; reward models may be of any kind.
"""

import hashlib
import logging
import os
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from rlhf.data.chat import after_completion, is_control_shaped
from rlhf.data.template import Template
from rlhf.errors import ModelError
from rlhf.models import relative_positions
from rlhf.models.card import FILE_NAME, ModelCard
from rlhf.models.references import ADAPTER_CONFIG, resolve
from rlhf.training import processes

# bitsandbytes warns, whoever imports it, that an optional package of faster CPU kernels is not there.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

SAMPLES_OF_WEIGHTS, SAMPLE_BYTES = 64, 4096  # of each file, where one model is told from another


class Kind(StrEnum):
    CAUSAL = "causal"
    SEQ2SEQ = "seq2seq"
    ENCODER = "encoder"


def kind_of(config: PretrainedConfig) -> Kind:
    if config.is_encoder_decoder:
        return Kind.SEQ2SEQ
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        return Kind.ENCODER
    return Kind.CAUSAL


def device() -> torch.device:
    """The accelerator of this process, the first for the first process on this node, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", processes.rank_on_this_node())


def prepare_torch(seed: int) -> None:
    """Seed everything, ask for deterministic kernels, and use the cores this process may run on."""
    from accelerate.utils import set_seed  # that of transformers imports all of its Trainer

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it no product is deterministic on a GPU
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // processes.count_on_this_node()))
    torch.use_deterministic_algorithms(True, warn_only=True)
    # It would also fill every new buffer, which shows reads of unset memory and costs a third of TRL's SFT step.
    torch.utils.deterministic.fill_uninitialized_memory = False
    set_seed(seed)


@dataclass(frozen=True)
class Source:
    """Where a model's weights are."""

    reference: str
    """What the model was asked for as."""
    base: str
    """Reference of the model that an adapter stands on, or that the folder stands for; else `reference`."""
    weights: str
    """Path or Hugging Face id for `from_pretrained`: of the whole model, or of the adapter's base."""
    adapter: str | None
    """Folder of the adapter, where the model is one."""
    card: ModelCard | None
    """None for a plain Hugging Face model."""

    @classmethod
    def of(cls, reference: str | Path) -> Self:
        """Look up a Model artifact, or any Hugging Face folder, id, URI or short name.

        Raises:
            ModelError: There is no model, or an adapter that no stage wrote.
        """
        reference = str(reference)
        folder = resolve(reference)
        card = ModelCard.load(folder) if Path(folder, FILE_NAME).is_file() else None
        if Path(folder, ADAPTER_CONFIG).is_file():
            if card is None:
                raise ModelError(
                    f"model {reference!r}: found a PEFT adapter without {FILE_NAME}; merge it into its base "
                    "(merge_and_unload) and name that folder"
                )
            return cls(reference, card.base, resolve(card.base), folder, card)
        if card is None:
            return cls(reference, reference, folder, None, None)
        if card.kind == "base":
            return cls(reference, card.base, resolve(card.base), None, card)
        return cls(reference, card.base, folder, None, card)

    @property
    def is_plain(self) -> bool:
        """Whether the weights are those of a base model that others can find by its reference."""
        return self.card is None or self.card.kind == "base" or self.adapter is not None

    @property
    def fingerprint(self) -> str:
        """What tells this model from another for a run that goes on from a checkpoint, wherever the model lies."""
        if self.card is None or self.card.kind == "base":
            if os.path.isdir(self.weights):
                return _content_of(self.weights)
            return _commit_of(self.weights)
        return hashlib.sha256(self.card.model_dump_json().encode()).hexdigest()[:16]

    @property
    def tokenizer(self) -> str:
        return self.adapter or self.weights

    @property
    def in_4_bits(self) -> bool:
        """Whether the adapter was trained on a base held in 4 bits."""
        return self.adapter is not None and self.card is not None and self.card.base_in_4_bits


def _content_of(folder: str) -> str:
    """What tells a folder's model from another: its config, and names, sizes and samples of its weights.

    To read all of them would take minutes, and another training moves nearly every number.
    """
    found = hashlib.sha256()
    for path in sorted(Path(folder).iterdir()):
        if path.name == "config.json":
            found.update(path.read_bytes())
        elif path.suffix == ".safetensors":
            size = path.stat().st_size
            found.update(f"{path.name} {size} ".encode())
            with path.open("rb") as file:
                for i in range(SAMPLES_OF_WEIGHTS):
                    file.seek(size * i // SAMPLES_OF_WEIGHTS)
                    found.update(file.read(SAMPLE_BYTES))
    return found.hexdigest()[:16]


def _commit_of(model_id: str) -> str:
    """A Hugging Face id with the commit that is loaded; alone where that cannot be had, and so no model either."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return f"{model_id}@{Path(hf_hub_download(model_id, 'config.json')).parent.name}"
    except (EntryNotFoundError, OSError, ValueError):  # whoever loads the model says what is wrong with it
        return model_id


def load_config(path: str, **changes: Any) -> PretrainedConfig:
    """Raises ModelError: there is no loadable model config at `path`."""
    return _load(AutoConfig, path, **changes)


def load_tokenizer(path: str, template: Template | None = None) -> PreTrainedTokenizerBase:
    """Load a tokenizer whose end-of-sequence token ends an answer, and whose padding token is another.

    A model trained with pad = EOS never sees EOS in its loss and never learns to stop. Where the tokenizer has no
    padding token of its own, its unknown token stands in (padding is masked everywhere), or a special token that its
    vocabulary has spare, such as Llama 3's `<|reserved_special_token_0|>`; else `<pad>` is added, and embeddings grow.

    Args:
        template: Where it is the model's own chat template, what ends a turn there is the end of sequence: Gemma's is
            `<end_of_turn>`, and its tokenizer names another.

    Raises:
        ModelError: There is no tokenizer at `path`.
    """
    tokenizer = _load(AutoTokenizer, path)
    if template is not None and template.chat_template and template.chat_template == tokenizer.chat_template:
        tokenizer.eos_token = _turn_end(tokenizer, template) or tokenizer.eos_token
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id != tokenizer.eos_token_id:
            tokenizer.pad_token = tokenizer.unk_token
        else:
            tokenizer.add_special_tokens({"pad_token": _spare_token(tokenizer) or "<pad>"})
    return tokenizer


def require_end(tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Raises ModelError: the tokenizer has no end-of-sequence token, by which a model says that it is done."""
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"model {path!r}: its tokenizer has no end-of-sequence token, which completions end in; name one in its "
            "tokenizer_config.json (eos_token), or take a model that was trained with one"
        )


def _turn_end(tokenizer: PreTrainedTokenizerBase, template: Template) -> str | None:
    """The control token that the chat template puts behind an answer."""
    behind = after_completion(template.chat_template, template.special_tokens).lstrip()
    tokens = [
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if behind.startswith(token.content) and (token.special or is_control_shaped(token.content))
    ]
    return max(tokens, key=len, default=None)


def _spare_token(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A special token that no text has: one that is named for padding, or one that is reserved."""
    special = [str(token) for _, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
    return next((token for word in ("pad", "reserved", "unused") for token in special if word in token.lower()), None)


def require_chat_template(tokenizer: PreTrainedTokenizerBase, template: Template, reference: str | Path) -> None:
    """Refuse a model whose tokenizer knows nothing of the chat template that the data was prepared with.

    Raises:
        ModelError: The tokenizer's chat template is another, or it has none.
    """
    if template.chat_template and tokenizer.chat_template != template.chat_template:
        found = "another one" if tokenizer.chat_template else "none"
        raise ModelError(
            f"model {str(reference)!r}: the data was prepared with a chat template (prompt template "
            f"{template.digest}), and this model's tokenizer has {found}; run data_validation with this model, or "
            "train the model that the data was prepared for"
        )


def load_generator(
    path: str, tokenizer: PreTrainedTokenizerBase, in_4_bits: bool = False, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Load a causal or encoder-decoder language model, on the accelerator if there is one.

    Args:
        in_4_bits: Hold its linear layers in 4 bits.
        dtype: Of its weights, from the start: a whole copy in another one would take memory.

    Raises:
        ModelError: There is no model at `path`, it lacks weights, it is an encoder and cannot generate, or 4 bits
            cannot be had.
    """
    config = load_config(path)
    if kind_of(config) is Kind.ENCODER:
        raise ModelError(
            f"model {path!r}: {config.model_type!r} is an encoder and cannot generate; a policy must be a causal or "
            "encoder-decoder model"
        )
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model, found = _load(auto, path, dtype=dtype, output_loading_info=True, **_quantised(in_4_bits, ["lm_head"]))
    if found["missing_keys"]:
        raise ModelError(
            f"model {path!r}: its checkpoint has no {min(found['missing_keys'])}, which a {type(model).__name__} needs "
            f"({len(found['missing_keys'])} such weights); name a model that was trained to generate"
        )
    start = model.generation_config.decoder_start_token_id
    if start is None:
        start = getattr(config, "decoder_start_token_id", None)
    if config.is_encoder_decoder and start is None:
        raise ModelError(f"model {path!r}: config.json names no decoder_start_token_id; add it (T5 uses the pad token)")
    # What is sampled is decided by the stage alone, never by defaults that came with the checkpoint.
    model.generation_config = GenerationConfig(decoder_start_token_id=start)
    return _ready(model, tokenizer, in_4_bits)


def positions_of(model: nn.Module) -> int:
    """Tokens that a model, or a PEFT model around one, has places for; `sys.maxsize` where it counts none, as T5."""
    stated = getattr(model.config, "max_position_embeddings", None)
    if stated is None:
        return sys.maxsize
    for name, module in model.named_modules():
        # RoBERTa, and what came of it, counts from behind the id of the padding token.
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return stated - module.padding_idx - 1
    return stated


def empty_generator(path: str) -> PreTrainedModel:
    """A causal or encoder-decoder language model that has its shapes, and no weights.

    Raises:
        ModelError: There is no model config at `path`.
    """
    config = load_config(path)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        return auto.from_config(config)


def load_classifier(
    path: str, tokenizer: PreTrainedTokenizerBase, in_4_bits: bool = False
) -> tuple[PreTrainedModel, list[str]]:
    """Load a sequence classifier with one output.

    Args:
        in_4_bits: Hold its trunk's linear layers in 4 bits.

    Returns:
        The model, and the names of modules that the checkpoint lacks (a score head, an encoder's pooler) and that are
        therefore new, drawn from torch's RNG.

    Raises:
        ModelError: There is no model at `path`, it has more than one label, or 4 bits cannot be had.
    """
    config = load_config(path)
    trained_as_classifier = any("SequenceClassification" in name for name in config.architectures or [])
    if trained_as_classifier and config.num_labels != 1:
        raise ModelError(f"reward model {path!r}: found {config.num_labels} labels, expected 1 (a scalar score)")
    options = _quantised(in_4_bits, _outside_the_trunk(config) if in_4_bits else [])
    model, found = _load(
        AutoModelForSequenceClassification,
        path,
        dtype=torch.float32,
        num_labels=1,
        output_loading_info=True,
        **options,
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    new = sorted({name.rpartition(".")[0] for name in found["missing_keys"]})
    return _ready(model, tokenizer, in_4_bits), new


def score_heads(model: nn.Module) -> list[str]:
    """Names of the linear layers with one output, the score heads of a classifier."""
    return [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module.out_features == 1
    ]


def _outside_the_trunk(config: PretrainedConfig) -> list[str]:
    """Modules of a classifier that its language model does not have; they are trained, and so not held in 4 bits."""
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    trunk = model.base_model_prefix
    return [name for name, _ in model.named_children() if name != trunk] + [f"{trunk}.pooler", *score_heads(model)]


def _quantised(in_4_bits: bool, keep: list[str]) -> dict[str, Any]:
    if not in_4_bits:
        return {}
    from rlhf.models.tuning import quantisation

    where = device()
    return {"quantization_config": quantisation(where, keep), "device_map": {"": where}}


def _ready(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, in_4_bits: bool) -> PreTrainedModel:
    model = _fit_vocabulary(model, tokenizer)
    relative_positions.share(model)
    if not in_4_bits:
        return model.to(device())
    from rlhf.models.tuning import exact

    return exact(model)


def _fit_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    return model


def _load(auto: Any, path: str, **options: Any) -> Any:
    """`from_pretrained` without remote code and without pickles; every failure is one line naming the model."""
    if auto not in (AutoConfig, AutoTokenizer):
        options["use_safetensors"] = True
    try:
        return auto.from_pretrained(path, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"model {path!r}: {auto.__name__} cannot load it ({reason})") from error


def working_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """Of forward and backward passes over weights in float32.

    Args:
        wanted: float32, bfloat16, or auto for bfloat16 on a GPU that has it.
    """
    if wanted == "auto":
        has_it = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        wanted = "bfloat16" if has_it else "float32"
    return getattr(torch, wanted)


def computing_in(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    """Forward passes over weights in float32, in that precision."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
