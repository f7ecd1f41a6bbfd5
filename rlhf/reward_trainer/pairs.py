"""Preferences as a reward model reads them, and their scores."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import xxhash

from rlhf.data.template import Template
from rlhf.errors import DataError, ModelError
from rlhf.progress import Progress
from rlhf.reward_trainer.findings import HeldOut

CHANGED_PAIRS = 500  # pairs whose responses are changed to see what the scores depend on

Encoded = dict[str, list[int]]


@dataclass(frozen=True)
class Pair:
    """One preference, rendered and encoded."""

    id: str
    key: int
    """The same for the same prompt."""
    prompt: str
    chosen_text: str
    rejected_text: str
    chosen: Encoded
    rejected: Encoded
    position: int | None
    margin: float | None


def encode_pairs(rows: Sequence[dict[str, Any]], template: Template, model: Any) -> tuple[list[Pair], int]:
    """Render, cut and encode canonical preferences for a `RewardModel`.

    Returns:
        The pairs, and how many prompts were cut.

    Raises:
        DataError: A pair does not fit the model's positions.
    """
    fitted: dict[tuple[str, Any], tuple[str, bool, int]] = {}
    pairs, cut = [], 0
    for row in rows:
        bare = row["prompt"], row.get("messages")
        if bare not in fitted:
            text, was_cut = template.fit(row["prompt"], model.count_tokens, row.get("messages"))
            fitted[bare] = text, was_cut, xxhash.xxh3_64_intdigest(text.encode())
        text, was_cut, key = fitted[bare]
        cut += was_cut
        try:
            chosen, rejected = (model.encode(text, row[side]) for side in ("chosen", "rejected"))
        except ModelError as error:
            raise DataError(f"preference {row['id']!r}: {error}") from error
        pairs.append(
            Pair(
                row["id"],
                key,
                text,
                row["chosen"],
                row["rejected"],
                chosen,
                rejected,
                row.get("position"),
                row.get("margin"),
            )
        )
    return pairs, cut


def score_held_out(model: Any, pairs: Sequence[Pair], batch_size: int, seed: int, stage: str) -> HeldOut:
    """Score pairs as they are, with prompts exchanged and with responses changed, and set the model's shift.

    Args:
        model: A `RewardModel`; afterwards chosen responses average 0.
        seed: Of how words are shuffled.
        stage: For progress lines.
    """
    asked = {
        "chosen": [pair.chosen for pair in pairs],
        "rejected": [pair.rejected for pair in pairs],
        **_with_prompts_exchanged(model, pairs),
    }
    for name, change in _changes(random.Random(seed)).items():
        texts = [change(pair.chosen_text) for pair in pairs[:CHANGED_PAIRS]]
        asked[name] = [
            None if text is None else _encoded(model, pair.prompt, text)
            for pair, text in zip(pairs, texts, strict=False)
        ]
    model.shift = 0.0  # that of a model trained further no longer holds
    scores: dict[str, list[float | None]] = {}
    total, done = sum(row is not None for rows in asked.values() for row in rows), 0
    with Progress(stage, total, unit="held-out text") as progress:
        for name, rows in asked.items():
            encoded = [row for row in rows if row is not None]
            found = iter(model.score_encoded(encoded, batch_size, lambda n, done=done: progress.update(done + n)))
            scores[name] = [None if row is None else next(found) for row in rows]
            done += len(encoded)
    model.shift = -sum(scores["chosen"]) / len(pairs)
    scores = {
        name: [None if score is None else score + model.shift for score in values] for name, values in scores.items()
    }
    rest = [None] * (len(pairs) - CHANGED_PAIRS)
    return HeldOut(
        ids=[pair.id for pair in pairs],
        prompts=[pair.key for pair in pairs],
        chosen=scores["chosen"],
        rejected=scores["rejected"],
        swapped_chosen=scores.get("swapped_chosen"),
        swapped_rejected=scores.get("swapped_rejected"),
        chosen_length=[model.completion_length(pair.chosen_text) for pair in pairs],
        rejected_length=[model.completion_length(pair.rejected_text) for pair in pairs],
        position=[pair.position for pair in pairs],
        margin=[pair.margin for pair in pairs],
        changed={name: scores[name] + rest for name in _changes(random.Random(seed))},
    )


def write_scores(path: str, found: HeldOut) -> None:
    """Write a row for each held-out pair: `id`, scores as they are and with prompts exchanged, lengths in tokens."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "id": found.ids,
        "score_chosen": found.chosen,
        "score_rejected": found.rejected,
        "chosen_tokens": found.chosen_length,
        "rejected_tokens": found.rejected_length,
    }
    if found.swapped_chosen is not None:
        columns |= {"swapped_chosen": found.swapped_chosen, "swapped_rejected": found.swapped_rejected}
    pq.write_table(pa.table(columns), path)


def _with_prompts_exchanged(model: Any, pairs: Sequence[Pair]) -> dict[str, list[Encoded | None]]:
    """Each pair's responses under the next pair's prompt that is another; nothing with one prompt only.

    None for a pair that fits the model's positions under no prompt but its own.
    """
    distinct = list(dict.fromkeys(pair.prompt for pair in pairs))
    if len(distinct) < 2:
        return {}
    neighbour = dict(zip(distinct, distinct[1:] + distinct[:1], strict=True))
    shortest = sorted(distinct, key=model.count_tokens)[:2]  # the second for pairs whose own is the first
    exchanged: dict[str, list[Encoded | None]] = {"swapped_chosen": [], "swapped_rejected": []}
    for pair in pairs:
        chosen = rejected = None
        for prompt in dict.fromkeys((neighbour[pair.prompt], *shortest)):
            if prompt != pair.prompt and not (chosen and rejected):
                chosen, rejected = (_encoded(model, prompt, text) for text in (pair.chosen_text, pair.rejected_text))
        fits = chosen and rejected
        exchanged["swapped_chosen"].append(chosen if fits else None)
        exchanged["swapped_rejected"].append(rejected if fits else None)
    return exchanged


def _changes(draw: random.Random) -> dict[str, Callable[[str], str | None]]:
    """Changes that make a response worse; None where one does not change it."""

    def shuffled(text: str) -> str | None:
        words = text.split()
        if len(set(words)) < 2:
            return None
        while (order := draw.sample(words, len(words))) == words:
            pass
        return " ".join(order)

    return {"emptied": lambda text: "", "shuffled": shuffled, "repeated": lambda text: f"{text.strip()} {text.strip()}"}


def _encoded(model: Any, prompt: str, text: str) -> Encoded | None:
    try:
        return model.encode(prompt, text)
    except ModelError:  # longer than the model's positions
        return None
