"""What a causal model's last layer computes for positions that nobody reads, left out."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

# What the attention below is called in transformers' table of attention functions.
ATTENTION = "sdpa_where_read"


class LastLayer:
    """The last layer needs keys and values of all positions, and everything else of those alone that are read.

    With few layers and long prompts that spares a tenth to a fourth of all the work. A feed-forward part that takes or
    gives more than hidden states is computed whole; so is attention that makes queries, keys and values in one, or is
    not by torch's `scaled_dot_product_attention`.

    Args:
        model: A model, or a PEFT model around one.
    """

    def __init__(self, model: PreTrainedModel):
        layer = None if model.config.is_encoder_decoder else _last_layer(model)
        self._feed_forward = _plain_feed_forward(layer, model)
        self._attention = _plain_attention(layer)
        if self._attention is not None:
            self._config = copy.deepcopy(self._attention.config)
            self._config._attn_implementation = ATTENTION

    @contextmanager
    def read_at(self, at: torch.Tensor) -> Iterator[None]:
        """Within, no other hidden states but these are right.

        Args:
            at: (positions,) in the batch, flattened, from first to last.
        """
        with self._reading(lambda rows, width: _At(at, rows, width)):
            yield

    @contextmanager
    def read_last(self) -> Iterator[None]:
        """Within, no other hidden states are right than those of each row's last position."""
        with self._reading(lambda rows, width: _Last(width)):
            yield

    @contextmanager
    def _reading(self, in_batch: Callable[[int, int], "_Positions"]) -> Iterator[None]:
        def take(module: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            nonlocal read
            read = in_batch(*inputs[0].shape[:2])
            if attention:
                attention.positions_read = read
            return (read.of(inputs[0]),)

        def put_back(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
            return read.among_all(output)

        read: _Positions | None = None
        attention = self._attention
        parts = [self._feed_forward] + ([attention.q_proj, attention.o_proj] if attention else [])
        with ExitStack() as stack:
            for part in filter(None, parts):
                stack.callback(part.register_forward_pre_hook(take).remove)
                stack.callback(part.register_forward_hook(put_back).remove)
            if attention:
                stack.callback(setattr, attention, "config", attention.config)
                attention.config = self._config
            yield


class _Positions(ABC):
    """Positions of a batch that are read."""

    @abstractmethod
    def of(self, states: torch.Tensor) -> torch.Tensor:
        """(rows, width, size) to those of these positions, in two dimensions before the last."""

    @abstractmethod
    def among_all(self, states: torch.Tensor) -> torch.Tensor:
        """What `of` gave, back in (rows, width, size); what stands elsewhere is nothing that is meant."""

    @abstractmethod
    def attend(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: object,
    ) -> tuple[torch.Tensor, None]:
        """As transformers' attention functions: (rows, heads, width, size) to (rows, width, heads, size)."""


class _Last(_Positions):
    """The last of each row."""

    def __init__(self, width: int):
        self._width = width

    def of(self, states: torch.Tensor) -> torch.Tensor:
        return states[:, -1:]

    def among_all(self, states: torch.Tensor) -> torch.Tensor:
        return states.expand(-1, self._width, *states.shape[2:])

    def attend(self, module, query, key, value, attention_mask, **kwargs) -> tuple[torch.Tensor, None]:
        # A single query looks at all keys where there is no mask.
        mask = None if attention_mask is None else attention_mask[:, :, -1:]
        output, _ = _sdpa(module, query[:, :, -1:], key, value, mask, **kwargs)
        return self.among_all(output), None


class _At(_Positions):
    """Some of each row, as many or fewer.

    Args:
        at: (positions,) in (rows, width), flattened, from first to last.
    """

    def __init__(self, at: torch.Tensor, rows: int, width: int):
        self._at, self._rows, self._width = at, rows, width

    def of(self, states: torch.Tensor) -> torch.Tensor:
        return states.flatten(0, 1)[self._at][None]

    def among_all(self, states: torch.Tensor) -> torch.Tensor:
        return self._scatter(states[0])

    def attend(self, module, query, key, value, attention_mask, **kwargs) -> tuple[torch.Tensor, None]:
        row = self._at // self._width
        counts = row.bincount(minlength=self._rows)
        most = int(counts.max())
        # Of a triangle of keys and queries, a band is the smaller part only where it is narrow.
        if 2 * most > self._width or key.shape[2] != self._width:
            return _sdpa(module, query, key, value, attention_mask, **kwargs)
        place = torch.arange(len(self._at), device=row.device) - (counts.cumsum(0) - counts)[row]
        # (rows, most): where each is in its row; what a row has fewer is its first position, and not read
        columns = row.new_zeros(self._rows, most).index_put((row, place), self._at % self._width)
        if attention_mask is None:
            mask = (torch.arange(self._width, device=row.device) <= columns[..., None])[:, None]
        else:
            mask = attention_mask.expand(self._rows, -1, -1, -1)
            mask = mask.gather(2, columns[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
        of_queries = columns[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3])
        output, _ = _sdpa(module, query.gather(2, of_queries), key, value, mask, **kwargs)
        return self._scatter(output[row, place]), None

    def _scatter(self, states: torch.Tensor) -> torch.Tensor:
        whole = states.new_zeros(self._rows * self._width, *states.shape[1:])
        return whole.index_copy(0, self._at, states).unflatten(0, (self._rows, self._width))


def _attend(module: nn.Module, *args: object, **kwargs: object) -> tuple[torch.Tensor, None]:
    return module.positions_read.attend(module, *args, **kwargs)


def _sdpa(*args: object, **kwargs: object) -> tuple[torch.Tensor, None]:
    return AttentionInterface()["sdpa"](*args, **kwargs)


AttentionInterface.register(ATTENTION, _attend)


def _last_layer(model: PreTrainedModel) -> nn.Module | None:
    kinds = set(model._no_split_modules or [])  # transformers' own names of layers
    layers = [module for module in model.base_model.modules() if type(module).__name__ in kinds]
    return layers[-1] if layers else None


def _plain_attention(layer: nn.Module | None) -> nn.Module | None:
    found = getattr(layer, "self_attn", None)
    is_plain = all(hasattr(found, name) for name in ("config", "q_proj", "k_proj", "v_proj", "o_proj"))
    return found if is_plain and found.config._attn_implementation == "sdpa" and found.is_causal else None


@torch.no_grad()
def _plain_feed_forward(layer: nn.Module | None, model: PreTrainedModel) -> nn.Module | None:
    found = getattr(layer, "mlp", None)
    if found is None:
        return None
    hidden_size = model.config.get_text_config().hidden_size
    parameter = model.get_input_embeddings().weight
    try:
        output = found(torch.zeros(1, 1, hidden_size, dtype=parameter.dtype, device=parameter.device))
    except TypeError:  # it takes more than states, as Bloom's does
        return None
    return found if isinstance(output, torch.Tensor) and output.shape == (1, 1, hidden_size) else None
