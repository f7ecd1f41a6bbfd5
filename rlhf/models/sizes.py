"""How large a model is, from its config alone: no weights are loaded or downloaded."""

import functools
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from rlhf.errors import ModelError
from rlhf.memory import Size
from rlhf.models.loading import Kind, kind_of, load_config
from rlhf.models.references import SHORT_NAMES, resolve

_LLAMA_2 = {"model_type": "llama", "vocab_size": 32000, "max_position_embeddings": 4096}
_LLAMA_2_7B = {**_LLAMA_2, "hidden_size": 4096, "intermediate_size": 11008}
_LLAMA_2_13B = {
    **_LLAMA_2,
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
}
_FLAN_T5 = {
    "model_type": "t5",
    "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
# Of the short names, some of whose configs are gated: so that planning needs no account and no network.
KNOWN: dict[str, dict[str, Any]] = {
    "google/flan-t5-small": {**_FLAN_T5, "d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_heads": 6},
    "google/flan-t5-large": {**_FLAN_T5, "d_model": 1024, "d_kv": 64, "d_ff": 2816, "num_layers": 24, "num_heads": 16},
    "google/flan-t5-xl": {**_FLAN_T5, "d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24, "num_heads": 32},
    "google/flan-t5-xxl": {**_FLAN_T5, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64},
    "meta-llama/Llama-2-7b-hf": _LLAMA_2_7B,
    "meta-llama/Llama-2-7b-chat-hf": _LLAMA_2_7B,
    "meta-llama/Llama-2-13b-hf": _LLAMA_2_13B,
    "meta-llama/Llama-2-13b-chat-hf": _LLAMA_2_13B,
    "meta-llama/Llama-2-70b-hf": {
        **_LLAMA_2,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
}


@functools.cache
def size_of(reference: str, scalar: bool = False) -> Size:
    """The size of a model.

    Args:
        reference: A Hugging Face id, local folder, URI or short name.
        scalar: With a score head in place of its output layer, as reward models have.

    Raises:
        ModelError: There is no model config, it cannot be had, or it is no transformer's.
    """
    name = SHORT_NAMES.get(reference.strip().lower().replace("_", "-"), reference)
    if name in KNOWN:
        options = dict(KNOWN[name])
        config = AutoConfig.for_model(options.pop("model_type"), **options)
    else:
        config = load_config(resolve(reference))
    auto = AutoModelForSeq2SeqLM if kind_of(config) is Kind.SEQ2SEQ else AutoModelForCausalLM
    if scalar:
        auto, config.num_labels = AutoModelForSequenceClassification, 1
    with torch.device("meta"):
        return measure(auto.from_config(config))


def measure(model: Any) -> Size:
    """The size of a model that is there, with or without weights.

    Raises:
        ModelError: It is no transformer.
    """
    config = model.config.get_text_config()
    output = model.get_output_embeddings()
    kinds = set(model._no_split_modules or [])
    layers = [module for module in model.modules() if type(module).__name__ in kinds and _linears(module)]
    layers = layers or [model]
    linears = [module for module in _linears(model) if module is not output and module.out_features > 1]
    if not hasattr(config, "num_attention_heads"):
        raise ModelError(f"model of type {config.model_type!r}: it has no attention heads, which memory is counted by")
    keys = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    of_head = getattr(config, "head_dim", None) or getattr(config, "d_kv", None)
    of_head = of_head or config.hidden_size // config.num_attention_heads
    caching = getattr(config, "num_decoder_layers", None) or config.num_hidden_layers
    # A decoder that also looks at an encoder's states keeps keys and values of those, in the same room for each token.
    return Size(
        kind=kind_of(model.config).value,
        parameters=_count([model]),
        layer_parameters=_count(layers),
        largest_layer=max(_count([layer]) for layer in layers),
        linear=sum(module.weight.numel() for module in linears),
        adapter_per_rank=sum(module.in_features + module.out_features for module in linears),
        layers=len(layers),
        layer_width=max(sum(m.in_features + m.out_features for m in _linears(layer)) for layer in layers),
        hidden=config.hidden_size,
        intermediate=max(module.out_features for module in _linears(layers[-1])),
        heads=config.num_attention_heads,
        cache_per_token=2 * caching * keys * of_head,
        vocabulary=config.vocab_size,
    )


def _linears(module: nn.Module) -> list[nn.Linear]:
    return [each for each in module.modules() if isinstance(each, nn.Linear)]


def _count(modules: list[nn.Module]) -> int:
    return sum(value.numel() for value in {id(p): p for module in modules for p in module.parameters()}.values())
