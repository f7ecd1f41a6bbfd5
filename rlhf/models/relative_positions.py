"""Relative positions of T5 and its like, put together with what is masked once a forward pass."""

from collections.abc import Callable

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

ATTENTION = "sdpa_with_shared_bias"


def share(model: PreTrainedModel) -> None:
    """Let all layers of a stack read one sum of bias and mask; transformers makes it anew in each.

    It is (rows, heads, queries, keys) large. Nothing changes for models without relative positions, for those whose
    attention is not by torch's `scaled_dot_product_attention`, and where activations are computed again.
    """
    has_bias = any(isinstance(getattr(part, "relative_attention_bias", None), nn.Embedding) for part in model.modules())
    if has_bias and model.config._attn_implementation == "sdpa":
        AttentionInterface.register(ATTENTION, _attend)
        AttentionMaskInterface.register(ATTENTION, AttentionMaskInterface()["sdpa"])
        model.set_attn_implementation(ATTENTION)


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_bias: torch.Tensor | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, None]:
    """As transformers' attention functions: (rows, heads, queries, size) to (rows, queries, heads, size)."""
    # In training, recomputation of one layer would not find what another one has made.
    if attention_mask is None or position_bias is None or module.training or torch.compiler.is_compiling():
        return _sdpa()(module, query, key, value, attention_mask, position_bias=position_bias, **kwargs)
    mask, whole = getattr(position_bias, "with_mask", (None, None))
    if mask is not attention_mask:
        bias = position_bias.contiguous()  # has its heads last in memory
        if attention_mask.dtype == torch.bool:
            whole = torch.where(attention_mask, bias, torch.finfo(bias.dtype).min)
        else:
            whole = attention_mask + bias
        position_bias.with_mask = (attention_mask, whole)
    return _sdpa()(module, query, key, value, whole, **kwargs)


def _sdpa() -> Callable[..., tuple[torch.Tensor, None]]:
    return AttentionInterface()["sdpa"]
