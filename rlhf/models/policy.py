"""A language model that answers prompts: what it reads, how it samples, and the log-probabilities of what it said."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlhf.data.template import Template
from rlhf.models import adapting
from rlhf.models.card import ModelCard
from rlhf.models.encoding import encode_chat, encode_text
from rlhf.models.loading import (
    Kind,
    Source,
    kind_of,
    load_config,
    load_generator,
    load_tokenizer,
    require_chat_template,
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
        forbidden = {i for i in tokenizer.all_special_ids if i != self.eos} | set(range(len(tokenizer), vocabulary))
        self.forbidden = sorted(i for i in forbidden if i < vocabulary)

    @classmethod
    def load(cls, folder: str | Path, template: Template | None = None, merged: bool = False) -> Self:
        """Load a Model artifact, or any Hugging Face folder, id or short name.

        Args:
            folder: Where it is.
            template: What prompts are rendered with; None for plain text.
            merged: Merge an adapter into its base, for those who need one set of weights.

        Raises:
            ModelError: There is no model, it cannot generate, or weights of it are lost.
        """
        source = Source.of(folder)
        tokenizer = load_tokenizer(source.tokenizer)
        model = adapting.load(source, _base_loader(source, tokenizer), merged)
        return cls(model, tokenizer, source.card, template)

    @classmethod
    def to_train(cls, folder: str | Path, template: Template, config: TrainerConfig) -> tuple[Self, adapting.Trainee]:
        """Load a model as in `load` and make it ready to be trained on demonstrations.

        Raises:
            ConfigError: The options cannot be met with this model.
            ModelError: As in `load`, or the model was made with another template.
        """
        source = Source.of(folder)
        if source.card is not None:
            source.card.require_template(template, folder)
        tokenizer = load_tokenizer(source.tokenizer)
        require_chat_template(tokenizer, template, folder)
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

    def count_tokens(self, text: str) -> int:
        return len(self.encode_prompt(text))

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: float,
        batch_size: int,
        on_batch: Callable[[int, int], None] = lambda prompts, tokens: None,
    ) -> list[list[int]]:
        """Sample one completion a prompt (greedy at temperature 0), in batches of prompts of similar length.

        Args:
            prompts: Token ids from `encode_prompt`.
            on_batch: Called after each batch with the prompts and tokens finished so far.
        Returns:
            Token ids of each completion in the order of the prompts, ending in EOS unless cut at `max_new_tokens`.
        """
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}
        config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            pad_token_id=self.pad,
            eos_token_id=self.eos,
            suppress_tokens=self.forbidden or None,
            decoder_start_token_id=self.model.generation_config.decoder_start_token_id,
            **sampling,
        )
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
        completions: list[list[int]] = [[] for _ in prompts]
        tokens = 0
        self.model.eval()
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            ids, mask = pad_left([prompts[i] for i in rows], self.pad, self.model.device)
            output = self.model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
            begin = ids.shape[1] if self.kind is Kind.CAUSAL else 1  # past the prompt, or past decoder_start
            for row, sampled in zip(rows, output[:, begin:].tolist(), strict=True):
                ended = sampled.index(self.eos) + 1 if self.eos in sampled else len(sampled)
                completions[row] = sampled[:ended]
                tokens += ended
            on_batch(start + len(rows), tokens)
        return completions

    def log_softmax(self, logits: torch.Tensor, temperature: float) -> torch.Tensor:
        """Log-probabilities as sampled: at the temperature, with no mass on forbidden tokens. (..., vocabulary)."""
        logits = logits.float() / temperature
        if self.forbidden:
            blocked = torch.tensor(self.forbidden, device=logits.device)
            logits = logits.index_fill(-1, blocked, float("-inf"))
        return torch.log_softmax(logits, -1)


def _base_loader(source: Source, tokenizer: PreTrainedTokenizerBase) -> adapting.LoadBase:
    return lambda in_4_bits: (load_generator(source.weights, tokenizer, in_4_bits), [])


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
