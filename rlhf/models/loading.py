"""Loading and saving Hugging Face models and tokenizers, and what each kind of model is fed.

Three kinds of model are told apart by their config: *causal* (Llama, Pythia, Qwen), *seq2seq* (T5) and *encoder*
(BERT, DeBERTa). Policies are causal or seq2seq; reward models may be of any kind.
"""

import os
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
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

from rlhf.errors import ModelError
from rlhf.models.card import FILE_NAME, ModelCard
from rlhf.models.references import resolve

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


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
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def prepare_torch(seed: int) -> None:
    """Seed everything, ask for deterministic kernels, and use the cores this process may run on."""
    from transformers import set_seed

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.use_deterministic_algorithms(True, warn_only=True)
    # It would also fill every new buffer, which shows reads of unset memory and costs a third of TRL's SFT step.
    torch.utils.deterministic.fill_uninitialized_memory = False
    set_seed(seed)


def follow(folder: str | Path) -> tuple[str, ModelCard | None]:
    """Where the weights of a Model artifact are: its own folder, or the base model that it only refers to.

    Returns:
        Path or Hugging Face id for `from_pretrained`, and the card (None for a plain Hugging Face model).
    """
    if not (Path(folder) / FILE_NAME).exists():
        return resolve(str(folder)), None
    card = ModelCard.load(folder)
    return (resolve(card.base) if card.kind == "base" else str(folder)), card


def load_config(path: str) -> PretrainedConfig:
    """Raises ModelError: there is no loadable model config at `path`."""
    return _load(AutoConfig, path)


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer whose padding token is not its end-of-sequence token.

    A model trained with pad = EOS never sees EOS in its loss and never learns to stop. Where the tokenizer has no
    padding token of its own, its unknown token stands in (padding is masked everywhere), else `<pad>` is added.

    Raises:
        ModelError: There is no tokenizer at `path`, or it has no end-of-sequence token to stop at.
    """
    tokenizer = _load(AutoTokenizer, path)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id != tokenizer.eos_token_id:
            tokenizer.pad_token = tokenizer.unk_token
        else:
            tokenizer.add_special_tokens({"pad_token": "<pad>"})
    return tokenizer


def load_generator(path: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Load a causal or encoder-decoder language model in float32, on the accelerator if there is one.

    Raises:
        ModelError: There is no model at `path`, or it is an encoder and cannot generate.
    """
    config = load_config(path)
    if kind_of(config) is Kind.ENCODER:
        raise ModelError(
            f"model {path!r}: {config.model_type!r} is an encoder and cannot generate; a policy must be a causal or "
            "encoder-decoder model"
        )
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = _load(auto, path, dtype=torch.float32)
    start = model.generation_config.decoder_start_token_id
    if start is None:
        start = getattr(config, "decoder_start_token_id", None)
    if config.is_encoder_decoder and start is None:
        raise ModelError(f"model {path!r}: config.json names no decoder_start_token_id; add it (T5 uses the pad token)")
    # What is sampled is decided by the stage alone, never by defaults that came with the checkpoint.
    model.generation_config = GenerationConfig(decoder_start_token_id=start)
    return _fit_vocabulary(model, tokenizer).to(device())


def load_classifier(path: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Load a sequence classifier with one output; a head that the checkpoint lacks is new (drawn from torch's RNG).

    Raises:
        ModelError: There is no model at `path`, or it has more than one label.
    """
    config = load_config(path)
    trained_as_classifier = any("SequenceClassification" in name for name in config.architectures or [])
    if trained_as_classifier and config.num_labels != 1:
        raise ModelError(f"reward model {path!r}: found {config.num_labels} labels, expected 1 (a scalar score)")
    model = _load(AutoModelForSequenceClassification, path, dtype=torch.float32, num_labels=1)
    model.config.pad_token_id = tokenizer.pad_token_id
    return _fit_vocabulary(model, tokenizer).to(device())


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
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"model {path!r}: {auto.__name__} cannot load it ({reason})") from error
