"""What a causal model's last layer computes for positions that nobody reads, left out."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel


class LastLayer:
    """The feed-forward part of the last layer, which works on every position by itself.

    With few layers and long prompts it is a tenth to a fifth of all the work. Where a model's takes or gives more than
    hidden states, everything is computed.

    Args:
        model: A model, or a PEFT model around one.
    """

    def __init__(self, model: PreTrainedModel):
        self._part = None if model.config.is_encoder_decoder else _last_feed_forward(model)

    @contextmanager
    def read_at(self, at: torch.Tensor) -> Iterator[None]:
        """Within, no other hidden states but these are right.

        Args:
            at: (positions,) in the batch, flattened.
        """

        def take(module: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            nonlocal shape
            shape = inputs[0].shape
            return (inputs[0].flatten(0, 1)[at][None],)

        def put_back(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
            whole = output.new_zeros(shape.numel() // shape[-1], shape[-1])
            return whole.index_copy(0, at, output[0]).view(shape)

        shape = torch.Size()
        with self._hooked(take, put_back):
            yield

    @contextmanager
    def read_last(self) -> Iterator[None]:
        """Within, no other hidden states are right than those of each row's last position."""

        def take(module: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            nonlocal width
            width = inputs[0].shape[1]
            return (inputs[0][:, -1:],)

        def put_back(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
            return output.expand(-1, width, -1)

        width = 1
        with self._hooked(take, put_back):
            yield

    @contextmanager
    def _hooked(self, take, put_back) -> Iterator[None]:
        if self._part is None:
            yield
            return
        hooks = (self._part.register_forward_pre_hook(take), self._part.register_forward_hook(put_back))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


@torch.no_grad()
def _last_feed_forward(model: PreTrainedModel) -> nn.Module | None:
    kinds = set(model._no_split_modules or [])  # transformers' own names of layers
    layers = [module for module in model.base_model.modules() if type(module).__name__ in kinds]
    found = getattr(layers[-1], "mlp", None) if layers else None
    if found is None:
        return None
    hidden_size = model.config.get_text_config().hidden_size
    parameter = model.get_input_embeddings().weight
    try:
        output = found(torch.zeros(1, 1, hidden_size, dtype=parameter.dtype, device=parameter.device))
    except TypeError:  # it takes more than states, as Bloom's does
        return None
    return found if isinstance(output, torch.Tensor) and output.shape == (1, 1, hidden_size) else None
