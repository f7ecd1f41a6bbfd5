"""A reward model: scores of prompt and response."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any, Self

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from rlhf.data.template import Template
from rlhf.errors import DataError, ModelError
from rlhf.models import adapting
from rlhf.models.batching import by_length
from rlhf.models.card import ModelCard
from rlhf.models.encoding import encode_chat, encode_text
from rlhf.models.loading import (
    Kind,
    Source,
    kind_of,
    load_classifier,
    load_config,
    load_tokenizer,
    positions_of,
    require_chat_template,
    require_end,
    score_heads,
)
from rlhf.models.sparing import LastLayer
from rlhf.training.config import TrainerConfig

# Of a batch that is scored. A processor gains nothing from more, and pads less and needs less memory with few.
TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 32768}


class RewardModel:
    """A sequence classifier with one output that reads the prompt *and* the response.

    A causal model reads prompt, response and EOS as one sequence and is scored at its last token. An encoder reads
    them as a text pair, with one separator put there by its tokenizer; an encoder-decoder as two texts, EOS after
    each. A prompt that was rendered with the policy's chat template is read by a causal model as it is, and by others
    without the template's control tokens, which they do not know. Scores are shifted by a constant that is part of the
    model, so that held-out chosen responses average 0.
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
        self.shift = card.score_shift if card else 0.0
        self.kind = kind_of(model.config)
        # A tokenizer's own limit is not heeded: T5's is the length that it was trained at.
        self.max_length = positions_of(model)
        self._active: Callable[[], AbstractContextManager[None]] = nullcontext
        for name in score_heads(model):
            head = model.get_submodule(name)
            head.forward = MethodType(_in_float32, head)

    @classmethod
    def load(cls, folder: str | Path, template: Template | None = None, merged: bool = False) -> Self:
        """Load a Model artifact, or any Hugging Face folder, id or short name of a classifier with one label.

        Args:
            folder: Where it is.
            template: What prompts are rendered with; None for plain text.
            merged: Merge an adapter into its base, for those who need one set of weights.

        Raises:
            ModelError: There is no model, it has no score head or more than one label, or weights of it are lost.
        """
        source = Source.of(folder)
        if source.card is not None:
            source.card.require_kind("reward_model", folder)
        tokenizer = _tokenizer_of(source, template)
        model = adapting.load(source, partial(load_classifier, source.weights, tokenizer), merged)
        return cls(model, tokenizer, source.card, template)

    @classmethod
    def beside(cls, policy: Any, folder: str | Path, template: Template) -> Self | None:
        """Load an adapted reward model onto the base that an adapted policy stands on: one copy of its weights.

        Args:
            policy: A PEFT model around a language model, which gains the reward model's adapter.

        Returns:
            None where the two do not stand on the same base, held in the same precision.

        Raises:
            ModelError: As in `load`.
        """
        from rlhf.models import tuning

        source = Source.of(folder)
        if source.adapter is None or tuning.base_of(policy) != (source.weights, source.in_4_bits):
            return None
        trunk = policy.get_base_model()
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(load_config(source.weights, num_labels=1))
        if kind_of(model.config) is Kind.SEQ2SEQ:
            for name in ("shared", "encoder", "decoder"):
                setattr(model.base_model, name, getattr(trunk.base_model, name))
        else:
            setattr(model, model.base_model_prefix, trunk.base_model)
        rest = tuning.place_beside(policy, tuning.REWARD, source.adapter)
        for name, value in rest.items():
            module, _, parameter = name.rpartition(".")
            setattr(model.get_submodule(module), parameter, nn.Parameter(value.to(trunk.device), requires_grad=False))
        lacking = [name for name, value in model.named_parameters() if value.is_meta]
        if lacking:
            raise ModelError(
                f"reward model {str(folder)!r}: its adapter holds no {lacking[0]}, which its base lacks too"
            )
        tokenizer = _tokenizer_of(source, template)
        model.config.pad_token_id = tokenizer.pad_token_id
        shared = cls(model.eval(), tokenizer, source.card, template)
        shared._active = partial(tuning.using_adapter, policy, tuning.REWARD)
        return shared

    @classmethod
    def to_train(cls, folder: str | Path, template: Template, config: TrainerConfig) -> tuple[Self, adapting.Trainee]:
        """Load a model, with a score head or without, and make it ready to be trained as a reward model.

        A head that is new is drawn from N(0, 1 / (hidden + 1)), with bias 0, and the base model's dropout is off
        (Huang et al. 2024, details 11 and 4).

        Raises:
            ConfigError: The options cannot be met with this model.
            ModelError: As in `load`, or the model was made with another template.
        """
        source = Source.of(folder)
        if source.card is not None:
            source.card.require_template(template, folder)
        tokenizer = _tokenizer_of(source, template)
        load_base = partial(load_classifier, source.weights, tokenizer)
        trainee = adapting.prepare(source, config, load_base, "SEQ_CLS", score_heads, dropout=False)
        for name, module in trainee.model.named_modules():
            if isinstance(module, nn.Linear) and module.out_features == 1 and _is_one_of(name, trainee.new_modules):
                nn.init.normal_(module.weight, std=(module.in_features + 1) ** -0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        return cls(trainee.model, tokenizer, source.card, template), trainee

    def save(self, folder: str | Path, card: ModelCard) -> None:
        """Write a Hugging Face folder, or a PEFT adapter on `card.base`, with the tokenizer and `rlhf.json`."""
        adapting.save(self.model, folder, card.base)
        self.tokenizer.save_pretrained(folder)
        card.save(folder)

    def encode(self, prompt: str, completion: str) -> dict[str, list[int]]:
        """Token ids of one rendered prompt and one completion, with `token_type_ids` where the model uses them.

        Raises:
            ModelError: The two do not fit the model's positions.
        """
        encoded = self._encode(prompt, completion)
        if len(encoded["input_ids"]) > self.max_length:
            raise ModelError(
                f"reward model: a prompt and completion of {len(encoded['input_ids'])} tokens do not fit its "
                f"{self.max_length} positions; lower prompt_sequence_length, or take a model with more"
            )
        return encoded

    def require_room(self, row_id: str, prompt: str, response_length: int) -> None:
        """Raises DataError: a row's rendered prompt leaves no room for a completion of that many tokens."""
        taken, room = len(self._encode(prompt, "")["input_ids"]), self.max_length - response_length
        if taken > room:
            raise DataError(
                f"prompts: row {row_id!r} has {taken} tokens, expected {room} at most: the reward model has "
                f"{self.max_length} positions and a completion takes {response_length}; lower prompt_sequence_length "
                "or target_sequence_length, or take a reward model with more positions"
            )

    def _encode(self, prompt: str, completion: str) -> dict[str, list[int]]:
        if self.kind is Kind.CAUSAL:
            eos = self.tokenizer.eos_token_id
            head = self._encode_prompt(prompt)
            if head and head[-1] == eos and not self.template.chat_template:
                head = head[:-1]
            tail = encode_text(self.tokenizer, self.template.completion(prompt, completion), add_special_tokens=False)
            encoded: dict[str, list[int]] = {"input_ids": [*head, *tail["input_ids"], eos]}
        elif self.kind is Kind.SEQ2SEQ:
            answer = encode_text(self.tokenizer, completion.strip())["input_ids"]
            encoded = {"input_ids": [*self._encode_prompt(prompt.strip()), *answer]}
        else:
            prompt = self.template.without_control_tokens(prompt)
            encoded = dict(encode_text(self.tokenizer, prompt.strip(), completion.strip()))
            encoded.pop("attention_mask", None)
        return encoded

    def count_tokens(self, prompt: str) -> int:
        """Tokens of a rendered prompt, special tokens included."""
        return len(self._encode_prompt(prompt))

    def completion_length(self, completion: str) -> int:
        """Tokens of a completion, without special ones."""
        return len(encode_text(self.tokenizer, completion.strip(), add_special_tokens=False)["input_ids"])

    def _encode_prompt(self, prompt: str) -> list[int]:
        if self.template.chat_template and self.kind is Kind.CAUSAL:
            return encode_chat(self.tokenizer, prompt)
        return encode_text(self.tokenizer, self.template.without_control_tokens(prompt))["input_ids"]

    def collate(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """Pad encoded rows on the right. Values are (rows, longest)."""
        width = max(len(row["input_ids"]) for row in rows)
        fill = {"input_ids": self.tokenizer.pad_token_id}
        batch: dict[str, Any] = {
            name: torch.tensor([row[name] + [fill.get(name, 0)] * (width - len(row[name])) for row in rows])
            for name in rows[0]
        }
        batch["attention_mask"] = torch.tensor(
            [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows]
        )
        return batch

    def score(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        batch_size: int = 64,
        on_batch: Callable[[int], None] = lambda pairs: None,
    ) -> list[float]:
        """Shifted scores of rendered prompts and completions, in their order.

        Args:
            on_batch: Called after each batch with the pairs scored so far.

        Raises:
            ModelError: One does not fit the model's positions.
        """
        rows = [self.encode(p, c) for p, c in zip(prompts, completions, strict=True)]
        return self.score_encoded(rows, batch_size, on_batch)

    def score_each(self, prompts: Sequence[str], completions: Sequence[str]) -> tuple[list[float], dict[int, str]]:
        """The same, and why a row has none, in words: its score is NaN where it does not fit the model's positions."""
        rows: dict[int, dict[str, list[int]]] = {}
        faults: dict[int, str] = {}
        for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            try:
                rows[i] = self.encode(prompt, completion)
            except ModelError as error:
                faults[i] = str(error)
        found = dict(zip(rows, self.score_encoded(list(rows.values())), strict=True))
        return [found.get(i, math.nan) for i in range(len(prompts))], faults

    @torch.inference_mode()
    def score_encoded(
        self,
        rows: Sequence[dict[str, list[int]]],
        batch_size: int = 64,
        on_batch: Callable[[int], None] = lambda pairs: None,
    ) -> list[float]:
        """Shifted scores of what `encode` gave, in its order; batched by length, long texts fewer at a time."""
        scores = [0.0] * len(rows)
        was_training = self.model.training
        self.model.eval()
        done = 0
        last_layer = LastLayer(self.model) if self.kind is Kind.CAUSAL else None
        for chunk in by_length(
            [len(row["input_ids"]) for row in rows], TOKENS_AT_ONCE[self.model.device.type], batch_size
        ):
            batch = {k: v.to(self.model.device) for k, v in self.collate([rows[i] for i in chunk]).items()}
            with last_layer.read_at(_last_tokens(batch["attention_mask"])) if last_layer else nullcontext():
                found = self.forward(**batch).tolist()
            for i, score in zip(chunk, found, strict=True):
                scores[i] = score + self.shift
            done += len(chunk)
            on_batch(done)
        self.model.train(was_training)
        return scores

    def forward(self, model: nn.Module | None = None, **inputs: torch.Tensor) -> torch.Tensor:
        """Raw scores of a collated batch: (rows,), in float32.

        Args:
            model: What stands around the model while it is trained; None for the model itself.
        """
        if self.kind is Kind.CAUSAL:
            inputs["use_cache"] = False
            # It looks back only, and so never sees the padding on the right; without a mask attention is faster.
            inputs.pop("attention_mask", None)
        with self._active():
            return (model or self.model)(**inputs).logits[:, 0].float()


def _tokenizer_of(source: Source, template: Template | None) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(source.tokenizer, template)
    if kind_of(load_config(source.weights)) is Kind.CAUSAL:
        require_end(tokenizer, source.tokenizer)
        if template is not None:  # other kinds read prompts without control tokens
            require_chat_template(tokenizer, template, source.reference)
    return tokenizer


def _in_float32(head: nn.Linear, states: torch.Tensor) -> torch.Tensor:
    """A score head whose scores have all their digits where the model computes in bfloat16, which has three."""
    with torch.autocast(states.device.type, enabled=False):
        return nn.functional.linear(states.float(), head.weight, head.bias)


def _last_tokens(mask: torch.Tensor) -> torch.Tensor:
    """Places of each row's last token in a flattened batch that is padded on the right."""
    return torch.arange(len(mask), device=mask.device) * mask.shape[1] + mask.sum(1) - 1


def _is_one_of(name: str, modules: Sequence[str]) -> bool:
    """Whether PEFT's name of a module, with its wrappers in it, is that of one of `modules`."""
    return any(f".{module}." in f".{name}." for module in modules)
