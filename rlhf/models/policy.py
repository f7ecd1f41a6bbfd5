"""A language model that answers prompts: what it reads, how it samples, and the log-probabilities of what it said."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhf.data.template import Template
from rlhf.errors import DataError
from rlhf.models import adapting
from rlhf.models.batching import by_length
from rlhf.models.card import ModelCard
from rlhf.models.encoding import encode_chat, encode_text
from rlhf.models.generation import RowProcessor, generate
from rlhf.models.loading import (
    Kind,
    Source,
    empty_generator,
    kind_of,
    load_config,
    load_generator,
    load_tokenizer,
    positions_of,
    require_chat_template,
    require_end,
)
from rlhf.training.config import TrainerConfig


class Policy:
    """A causal or encoder-decoder model with its tokenizer.

    Padding, beginning-of-sequence and every other special token but EOS can neither be sampled nor take probability
    mass: they are removed from generation and from log-probabilities alike.
    """

    def __init__(
        self,
        model: PreTrainedModel,  # or a PEFT model around one
        tokenizer: PreTrainedTokenizerBase,
        card: ModelCard | None,
        template: Template | None = None,
    ):
        self.model, self.tokenizer, self.card = model, tokenizer, card
        self.template = template or Template()
        self.kind = kind_of(model.config)
        self.eos = tokenizer.eos_token_id
        self.pad = tokenizer.pad_token_id
        vocabulary = model.get_output_embeddings().weight.shape[0]
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        special |= {*tokenizer.all_special_ids, *range(len(tokenizer), vocabulary)}
        self.forbidden = sorted(i for i in special if i < vocabulary and i != self.eos)
        self.positions = positions_of(model)
        self._forbidden: torch.Tensor | None = None

    @classmethod
    def load(
        cls,
        folder: str | Path,
        template: Template | None = None,
        merged: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Load a Model artifact, or any Hugging Face folder, id or short name.

        Args:
            folder: Where it is.
            template: What prompts are rendered with; None for plain text.
            merged: Merge an adapter into its base, for those who need one set of weights.
            dtype: Of a whole model's weights, and of those that an adapter was merged into; the merging is in float32.

        Raises:
            ModelError: There is no model, it cannot generate, or weights of it are lost.
        """
        source = _policy_at(folder)
        tokenizer = _tokenizer_of(source, template)
        load_base = _base_loader(source, tokenizer, torch.float32 if source.adapter else dtype)
        model = adapting.load(source, load_base, merged)
        if merged and source.adapter:
            # Not `model.to`, which would round what positions are turned by, too.
            for parameter in model.parameters():
                parameter.data = parameter.data.to(dtype)
        return cls(model, tokenizer, source.card, template)

    @classmethod
    def without_weights(cls, folder: str | Path, template: Template) -> Self:
        """What a model reads and says, for an engine that has weights of its own.

        Raises:
            ModelError: As in `load`, as far as there are no weights in it.
        """
        source = _policy_at(folder)
        tokenizer = _tokenizer_of(source, template)
        return cls(empty_generator(source.weights), tokenizer, source.card, template)

    @classmethod
    def to_train(cls, folder: str | Path, template: Template, config: TrainerConfig) -> tuple[Self, adapting.Trainee]:
        """Load a model as in `load` and make it ready to be trained on demonstrations.

        Raises:
            ConfigError: The options cannot be met with this model.
            ModelError: As in `load`, or the model was made with another template.
        """
        source = _policy_at(folder)
        if source.card is not None:
            source.card.require_template(template, folder)
        tokenizer = _tokenizer_of(source, template)
        load_base = _base_loader(source, tokenizer)
        is_seq2seq = kind_of(load_config(source.weights)) is Kind.SEQ2SEQ
        task = "SEQ_2_SEQ_LM" if is_seq2seq else "CAUSAL_LM"
        trainee = adapting.prepare(source, config, load_base, task, lambda model: [])
        return cls(trainee.model, tokenizer, source.card, template), trainee

    def save(self, folder: str | Path, card: ModelCard) -> None:
        """Write a Hugging Face folder, or a PEFT adapter on `card.base`, with the tokenizer and `rlhf.json`."""
        adapting.save(self.model, folder, card.base)
        self.tokenizer.save_pretrained(folder)
        card.save(folder)

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a rendered prompt. Encoder inputs keep their final EOS; a causal prompt must not have one.

        A chat template wrote its special tokens itself, and none is added.
        """
        if self.template.chat_template:
            ids = encode_chat(self.tokenizer, text)
            return ids if self.kind is Kind.CAUSAL else [*ids, self.eos]
        ids = encode_text(self.tokenizer, text)["input_ids"]
        if self.kind is Kind.CAUSAL and ids and ids[-1] == self.eos:
            ids = ids[:-1]
        return ids

    def encode_completion(self, text: str, max_tokens: int) -> list[int]:
        """Token ids of a completion and its EOS; one that is longer than `max_tokens` is cut and loses the EOS."""
        ids = encode_text(self.tokenizer, text, add_special_tokens=False)["input_ids"]
        return ([*ids, self.eos])[:max_tokens]

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def require_room(self, row_id: str, prompt: Sequence[int], response_length: int) -> None:
        """Raises DataError: a row's prompt is empty, or leaves no room for a completion of that many tokens."""
        if self.kind is Kind.CAUSAL:
            room = self.positions - response_length
        else:  # its decoder counts positions of its own
            room = self.positions if response_length <= self.positions else 0
        if not 1 <= len(prompt) <= room:
            raise DataError(
                f"prompts: row {row_id!r} has {len(prompt)} tokens, expected 1 to {room}: the policy has "
                f"{self.positions} positions and a completion takes {response_length}; lower prompt_sequence_length "
                "or target_sequence_length, or take a model with more positions"
            )

    def longest(self, response_length: int) -> int:
        """Tokens of a prompt and its completion, at most: what an engine's cache has to hold."""
        return min(self.positions, self.template.prompt_sequence_length + response_length)

    def count_tokens(self, text: str) -> int:
        return len(self.encode_prompt(text))

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: float,
        batch_size: int | None = None,
        *,
        draws: torch.Tensor | None = None,
        synced: bool = False,
    ) -> list[list[int]]:
        """Sample one completion a prompt (greedy at temperature 0), in batches of prompts of similar length.

        Args:
            prompts: Token ids from `encode_prompt`.
            batch_size: Prompts at once, at most; None takes all.
            draws: (prompts, max_new_tokens) uniform in [0, 1): what is sampled depends on a prompt's own numbers alone,
                and not on the batch that it is in. None draws them from torch's RNG.
            synced: Keep step with other processes that hold parts of the model.
        Returns:
            Token ids of each completion in the order of the prompts, ending in EOS unless cut at `max_new_tokens`.
        """
        if draws is None and temperature > 0:
            draws = torch.rand(len(prompts), max_new_tokens)
        config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            pad_token_id=self.pad,
            eos_token_id=self.eos,
            suppress_tokens=self.forbidden if self.forbidden and temperature == 0 else None,
            decoder_start_token_id=self.model.generation_config.decoder_start_token_id,
        )
        completions: list[list[int]] = [[] for _ in prompts]
        self.model.eval()
        for rows in by_length(list(map(len, prompts)), sys.maxsize, batch_size):
            pad = pad_left if self.kind is Kind.CAUSAL else pad_right  # an encoder may count positions from the left
            ids, mask = pad([prompts[i] for i in rows], self.pad, self.model.device)
            begin = ids.shape[1] if self.kind is Kind.CAUSAL else 1  # past the prompt, or past decoder_start
            sampling = [Sampling(self, temperature, draws[rows].to(ids.device), begin)] if temperature > 0 else []
            with torch.inference_mode(not synced):  # gathered weights are used in training too
                output = generate(self.model, config, ids, mask, sampling, synced)
            for row, sampled in zip(rows, output, strict=True):
                ended = sampled.index(self.eos) + 1 if self.eos in sampled else len(sampled)
                completions[row] = sampled[:ended]
        return completions

    def tempered(self, logits: torch.Tensor, temperature: float) -> torch.Tensor:
        """Logits of what is sampled: in float32, at the temperature, -inf on forbidden tokens. (..., vocabulary)."""
        return self.without_forbidden(logits.float() / temperature)

    def without_forbidden(self, logits: torch.Tensor) -> torch.Tensor:
        """-inf put in place of the logits of forbidden tokens, (..., vocabulary), whose gradient is 0 either way."""
        if self._forbidden is None or self._forbidden.device != logits.device:
            with torch.inference_mode(False):  # autograd is to take it too
                self._forbidden = torch.tensor(self.forbidden, dtype=torch.long, device=logits.device)
        with torch.no_grad():
            return logits.index_fill_(-1, self._forbidden, float("-inf"))


class Sampling(RowProcessor):
    """Samples by inverting the distribution function at numbers drawn beforehand; greedy search then takes the token.

    Args:
        draws: (rows, steps) uniform in [0, 1).
        begin: Tokens that stand before the first that is sampled.
    """

    def __init__(self, policy: Policy, temperature: float, draws: torch.Tensor, begin: int):
        self.policy, self.temperature, self.draws, self.begin = policy, temperature, draws.double(), begin

    def of_rows(self, rows: torch.Tensor, hidden: int) -> "Sampling":
        return Sampling(self.policy, self.temperature, self.draws[rows], self.begin - hidden)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        logits = self.policy.tempered(scores, self.temperature)
        # In double precision a number under 1 stays under the total, and so never meets a token of probability 0.
        below = torch.softmax(logits, -1).cumsum(-1, dtype=torch.float64)
        drawn = self.draws[:, input_ids.shape[1] - self.begin, None] * below[:, -1:]
        token = torch.searchsorted(below, drawn, right=True)
        return torch.full_like(logits, float("-inf")).scatter_(-1, token, 0.0)


def _policy_at(folder: str | Path) -> Source:
    source = Source.of(folder)
    if source.card is not None:
        source.card.require_kind("policy", folder)
    return source


def _tokenizer_of(source: Source, template: Template | None) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(source.tokenizer, template)
    require_end(tokenizer, source.tokenizer)
    if template is not None:
        require_chat_template(tokenizer, template, source.reference)
    return tokenizer


def _base_loader(
    source: Source, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype = torch.float32
) -> adapting.LoadBase:
    return lambda in_4_bits: (load_generator(source.weights, tokenizer, in_4_bits, dtype), [])


def pad_left(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask (1 on real tokens), both (rows, longest), padded on the left."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def pad_right(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask (1 on real tokens), both (rows, longest), padded on the right."""
    width = max(map(len, rows))
    ids = torch.tensor([list(row) + [pad] * (width - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return ids, mask
