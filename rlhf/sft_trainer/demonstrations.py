"""Demonstrations as token ids: what is cut, and which tokens are learned."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import xxhash

from rlhf.data.template import Template
from rlhf.errors import DataError
from rlhf.models.loading import Kind
from rlhf.models.policy import Policy
from rlhf.training.held_out import hold_out

IGNORED = -100  # label of tokens outside the loss, as Hugging Face models take it


@dataclass(frozen=True)
class Demonstration:
    """A prompt and what a person answered, as a policy reads them."""

    id: str
    key: int
    """The same for the same prompt."""
    text: str
    """The rendered prompt, cut to fit."""
    answer: str
    prompt: list[int]
    completion: list[int]
    """With EOS at its end, unless cut."""
    prompt_cut: bool
    completion_cut: bool

    def example(self, seq2seq: bool, learn_prompt: bool) -> dict[str, list[int]]:
        """`input_ids` and `labels`: input and target of an encoder-decoder, else one sequence of both."""
        if seq2seq:
            return {"input_ids": self.prompt, "labels": self.completion}
        unlearned = self.prompt if learn_prompt else [IGNORED] * len(self.prompt)
        return {"input_ids": self.prompt + self.completion, "labels": unlearned + self.completion}


def tokenise(rows: Iterable[dict[str, Any]], template: Template, policy: Policy) -> list[Demonstration]:
    """Render, cut and encode canonical demonstrations for a `Policy`.

    Raises:
        DataError: One does not fit the model's positions; or every completion is cut, so that none shows the model
            where to end.
    """
    demonstrations = []
    for row in rows:
        text, cut = template.fit(row["prompt"], policy.count_tokens, row.get("messages"))
        prompt = policy.encode_prompt(text)
        answer = template.completion(text, row["completion"])
        completion = policy.encode_completion(answer, template.target_sequence_length)
        _require_room(row["id"], len(prompt), len(completion), policy)
        key = xxhash.xxh3_64_intdigest(template.body(row["prompt"], row.get("messages")).encode())
        demonstrations.append(
            Demonstration(row["id"], key, text, answer.strip(), prompt, completion, cut, completion[-1] != policy.eos)
        )
    if demonstrations and all(demonstration.completion_cut for demonstration in demonstrations):
        raise DataError(
            f"demonstrations: every completion is longer than target_sequence_length "
            f"({template.target_sequence_length} tokens) and was cut, so the model would not learn to end; raise it"
        )
    return demonstrations


def _require_room(id_: str, prompt: int, completion: int, policy: Policy) -> None:
    needed = prompt + completion if policy.kind is Kind.CAUSAL else max(prompt, completion)
    if needed > policy.positions:
        raise DataError(
            f"demonstration {id_!r}: its prompt of {prompt} tokens and completion of {completion} do not fit the "
            f"model's {policy.positions} positions; lower prompt_sequence_length or target_sequence_length, or take a "
            "model with more"
        )


def split(
    demonstrations: Sequence[Demonstration], fraction: float, at_most: int
) -> tuple[list[Demonstration], list[Demonstration]]:
    """To train on, and held out, in the order given; as `rlhf.training.held_out.hold_out` says."""
    sides: tuple[list[Demonstration], list[Demonstration]] = ([], [])
    keys = [demonstration.key for demonstration in demonstrations]
    for demonstration, held_out in zip(demonstrations, hold_out(keys, fraction, at_most), strict=True):
        sides[held_out].append(demonstration)
    return sides
