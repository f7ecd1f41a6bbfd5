"""Generation by transformers' `generate`, without what it spends on rows that are done, on copying its cache and on
hidden states that nobody reads."""

import contextlib
import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from transformers import (
    Cache,
    EncoderDecoderCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import BaseModelOutput

from rlhf.models.batching import by_length
from rlhf.models.sparing import LastLayer

GROWTH = 64  # tokens that a cache grows by
WORTH_DROPPING = 0.75  # of a batch's rows: when fewer are left, those that are done leave
# Of prompts that are read together. A processor is fastest with as much as its caches hold.
PROMPT_TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 65_536}


def generate(
    model: PreTrainedModel,
    config: GenerationConfig,
    prompts: torch.Tensor,
    mask: torch.Tensor,
    processors: Sequence["RowProcessor"] = (),
    synced: bool = False,
) -> list[list[int]]:
    """Completions as token ids, each with whatever stands behind its end.

    Args:
        model: A causal or encoder-decoder model.
        config: max_new_tokens, one eos_token_id, and what else `generate` takes.
        prompts, mask: (rows, longest), padded on the left; an encoder's on the right.
        synced: Keep step with other processes that hold parts of the model.
    """
    completions: list[list[int]] = [[] for _ in range(len(prompts))]
    left = torch.arange(len(prompts), device=prompts.device)
    with contextlib.nullcontext() if synced else LastLayer(model).read_last():
        state = _State(model, config, prompts, mask, synced)
        while len(left):
            may_leave = state.caches and not synced
            few = FewLeft(config.eos_token_id, int(WORTH_DROPPING * len(left)) if may_leave else 0)
            step = copy.copy(config)
            step.max_new_tokens = config.max_new_tokens - state.length
            if state.hidden:
                step.decoder_start_token_id = state.last_tokens
            output = model.generate(
                **state.inputs(),
                generation_config=step,
                logits_processor=LogitsProcessorList([each.of_rows(left, state.hidden) for each in processors]),
                stopping_criteria=StoppingCriteriaList([few]),
                synced_gpus=synced,
            )
            output = state.whole(output)
            done = few.done if output.shape[1] - state.begin < config.max_new_tokens else torch.ones_like(few.done)
            for row, tokens in zip(left[done].tolist(), output[done, state.begin :].tolist(), strict=True):
                completions[row] = tokens
            left = left[~done]
            state.keep(~done, output)
    return completions


class RowProcessor(LogitsProcessor, ABC):
    """A processor of logits that has something of its own for every row."""

    @abstractmethod
    def of_rows(self, rows: torch.Tensor, hidden: int) -> "RowProcessor":
        """The same for some of the rows.

        Args:
            hidden: Tokens before those that it is shown.
        """


class FewLeft(StoppingCriteria):
    """Stops when no more rows than `few` go on, so that the others can leave."""

    def __init__(self, eos: int, few: int):
        self.eos, self.few = eos, few
        self.done: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        ended = input_ids[:, -1] == self.eos
        self.done = ended if self.done is None else self.done | ended
        going_on = len(self.done) - self.done.sum()
        return torch.full_like(self.done, bool(going_on <= self.few))


class RoomyLayer(DynamicLayer):
    """A cache with room for tokens to come; DynamicLayer copies all that it holds at every token."""

    def __init__(self):
        super().__init__()
        self._rooms: dict[str, torch.Tensor] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._append("keys", self.keys, key_states)
        self.values = self._append("values", self.values, value_states)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        length = self.get_seq_length()
        if length:
            self._rooms = {name: room.index_select(0, indices) for name, room in self._rooms.items()}
            self.keys, self.values = (self._rooms[name][:, :, :length] for name in ("keys", "values"))

    def _append(self, name: str, held: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        before = held.shape[-2] if held.dim() == new.dim() else 0
        after = before + new.shape[-2]
        room = self._rooms.get(name)
        if room is None or room.shape[-2] < after:
            room = new.new_empty(*new.shape[:2], after + GROWTH, new.shape[-1])
            if before:
                room[:, :, :before] = held
            self._rooms[name] = room
        room[:, :, before:after] = new
        return room[:, :, :after]


class _State:
    """What `generate` is to go on from."""

    def __init__(
        self, model: PreTrainedModel, config: GenerationConfig, prompts: torch.Tensor, mask: torch.Tensor, synced: bool
    ):
        self._is_seq2seq = model.config.is_encoder_decoder
        self._prompts, self._mask = prompts, mask
        self._said: torch.Tensor | None = None
        self._encoded = None
        self.begin = 1 if self._is_seq2seq else prompts.shape[1]  # past decoder_start, or past the prompt
        self._cache: Cache | EncoderDecoderCache | None = None
        self.caches: list[Cache] = []
        """Of keys and values; none where a model has a state of another kind, which transformers is left to keep."""
        if _has_attention_only(model):
            self.caches = [Cache(layer_class_to_replicate=RoomyLayer)]
            self._cache = self.caches[0]
        if self._is_seq2seq:
            self.caches.append(Cache(layer_class_to_replicate=DynamicLayer))
            self._cache = EncoderDecoderCache(*self.caches)
            rows = len(prompts) if synced else max(1, PROMPT_TOKENS_AT_ONCE[prompts.device.type] // prompts.shape[1])
            self._encoded = _encode(model, prompts, mask, rows)
        elif self.caches and not synced:  # processes that keep step read all at once, as often as each other
            _read_ahead(model, config, prompts, mask, self.caches[0])

    @property
    def length(self) -> int:
        """Tokens that were generated so far."""
        return 0 if self._said is None else self._said.shape[1] - self.begin

    @property
    def hidden(self) -> int:
        """Tokens of a decoder that `generate` is not given again, for it would read them twice."""
        return self._said.shape[1] - 1 if self._is_seq2seq and self._said is not None else 0

    @property
    def last_tokens(self) -> list[int]:
        """Of each row."""
        return self._said[:, -1].tolist()

    def whole(self, output: torch.Tensor) -> torch.Tensor:
        """What `generate` gave, and the tokens before."""
        return torch.cat([self._said[:, : self.hidden], output], 1) if self.hidden else output

    def inputs(self) -> dict[str, object]:
        common = {"use_cache": True} | ({} if self._cache is None else {"past_key_values": self._cache})
        if self._is_seq2seq:
            return {**common, "encoder_outputs": self._encoded, "attention_mask": self._mask}
        if self._said is None:
            return {**common, "input_ids": self._prompts, "attention_mask": self._mask}
        new = self._mask.new_ones(len(self._said), self._said.shape[1] - self._mask.shape[1])
        return {**common, "input_ids": self._said, "attention_mask": torch.cat([self._mask, new], 1)}

    def keep(self, rows: torch.Tensor, said: torch.Tensor) -> None:
        """Go on with some of the rows.

        Args:
            said: All tokens of all rows so far.
        """
        if not rows.any():
            return
        self._said, self._mask = said[rows], self._mask[rows]
        if self._encoded is not None:
            self._encoded.last_hidden_state = self._encoded.last_hidden_state[rows]
        for cache in self.caches:
            cache.batch_select_indices(rows.nonzero()[:, 0])


def _encode(model: PreTrainedModel, prompts: torch.Tensor, mask: torch.Tensor, rows: int) -> BaseModelOutput:
    """The encoder's states of all prompts, `rows` of them at a time: its masks are (rows, heads, longest, longest)."""
    states = None
    for part in torch.arange(len(prompts), device=prompts.device).split(rows):
        longest = int(mask[part].sum(1).max())
        output = model.get_encoder()(input_ids=prompts[part, :longest], attention_mask=mask[part, :longest])
        if states is None:
            states = output.last_hidden_state.new_zeros(*prompts.shape, output.last_hidden_state.shape[-1])
        states[part, :longest] = output.last_hidden_state
    return BaseModelOutput(states)


def _read_ahead(
    model: PreTrainedModel, config: GenerationConfig, prompts: torch.Tensor, mask: torch.Tensor, cache: Cache
) -> None:
    """Put keys and values of all prompts but their last tokens into a cache; those of similar length are read together.

    Args:
        prompts, mask: (rows, longest), padded on the left.
    """
    lengths = mask.sum(1).tolist()
    step = copy.copy(config)
    step.max_new_tokens = 1
    parts = []
    for rows in by_length(lengths, PROMPT_TOKENS_AT_ONCE[prompts.device.type]):
        longest = lengths[rows[-1]]
        if longest > 1:
            part = Cache(layer_class_to_replicate=DynamicLayer)
            read = slice(-longest, -1)
            model.generate(
                input_ids=prompts[rows, read],
                attention_mask=mask[rows, read],
                past_key_values=part,
                generation_config=step,
                use_cache=True,
            )
            parts.append((rows, part.layers))
    shape = prompts.shape[0], prompts.shape[1] - 1
    for index in range(len(parts[0][1]) if parts else 0):
        taken = [(rows, layers.pop(0)) for rows, layers in parts]  # so that no layer stays twice
        keys = _together([(rows, layer.keys) for rows, layer in taken], shape)
        values = _together([(rows, layer.values) for rows, layer in taken], shape)
        cache.update(keys, values, index)


def _together(parts: Sequence[tuple[list[int], torch.Tensor]], shape: tuple[int, int]) -> torch.Tensor:
    """States of some rows each, (rows, heads, tokens, size), padded on the left to a shape of (rows, tokens)."""
    first = parts[0][1]
    whole = first.new_zeros(shape[0], first.shape[1], shape[1], first.shape[3])
    for rows, states in parts:
        whole[rows, :, -states.shape[2] :] = states
    return whole


def _has_attention_only(model: PreTrainedModel) -> bool:
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"]
    return not model._is_stateful and all(kind.endswith("attention") and "linear" not in kind for kind in kinds)
