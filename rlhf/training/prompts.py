"""Prompts that a policy is tuned on by what it answers: as it reads them, and some of them held out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.data.chat import prompt_of
from rlhf.training.held_out import hold_out

HELD_OUT_FRACTION = 0.1  # of the prompts, at most


@dataclass(frozen=True)
class Prompt:
    """A prompt as it came, as the policy reads it, and what else its row holds."""

    id: str
    text: str  # rendered, and within the configured length
    ids: list[int]
    original: str | list[dict[str, str]] = ""
    reference: str | None = None


def read_prompts(
    rows: Sequence[dict[str, Any]], template: Any, policy: Any, reward_model: Any = None
) -> tuple[list[Prompt], float]:
    """Prompts as the policy reads them, and the share that was cut.

    Args:
        reward_model: What is to score them with their completions.

    Raises:
        DataError: One is empty, or leaves no room for a completion within either model's positions.
    """
    ready, cuts = [], 0
    for row in rows:
        text, cut = template.fit(row["prompt"], policy.count_tokens, row.get("messages"))
        ids = policy.encode_prompt(text)
        policy.require_room(row["id"], ids, template.target_sequence_length)
        if reward_model is not None:
            reward_model.require_room(row["id"], text, template.target_sequence_length)
        cuts += cut
        ready.append(Prompt(row["id"], text, ids, prompt_of(row), row.get("reference")))
    return ready, cuts / len(rows)


def split_prompts(prompts: Sequence[Prompt], at_most: int) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts to train on, and so many of them at most that are held out."""
    import xxhash

    keys = [xxhash.xxh3_64_intdigest(prompt.text.encode()) for prompt in prompts]
    out = hold_out(keys, HELD_OUT_FRACTION, at_most)
    return (
        [prompt for prompt, is_out in zip(prompts, out, strict=True) if not is_out],
        [prompt for prompt, is_out in zip(prompts, out, strict=True) if is_out],
    )
