"""What models wrote for the same prompts, and the human references, joined by id."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.data.chat import MESSAGES, prompt_of
from rlhf.data.predictions import Prediction, read_predictions
from rlhf.data.store import read_dataset
from rlhf.data.template import Template
from rlhf.errors import DataError

BEFORE, AFTER = "predictions_before", "predictions_after"
COMMON_WORDS = 0.5  # of a prompt's words that a prediction without an id has to have in its own prompt

Paths = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Pair:
    """What two models wrote for one prompt; `reference` is None where nobody wrote one."""

    id: str
    prompt: str
    """Rendered: the text that the models read, or would have with the dataset's template."""
    before: Prediction
    after: Prediction
    reference: str | None
    original: str | list[dict[str, str]]
    """The prompt as the dataset has it: text, or messages."""
    others: Mapping[str, Prediction] = field(default_factory=dict)
    """What further models wrote, by their names."""


def read_pairs(
    before: Paths, after: Paths, evaluation: str | Path, others: Mapping[str, Paths] | None = None
) -> tuple[list[Pair], Template]:
    """Join files of predictions with the evaluation dataset, in the dataset's order.

    Of several samples of a prompt the first, number 0, is taken. Predictions of the closed Vertex pipeline have no id.
    They are joined by position where there are as many as rows, each has most of its row's words, and none was plainly
    made for another row.

    Args:
        others: Files of further models by name.

    Returns:
        The pairs, and the template of the dataset.

    Raises:
        DataError: A file cannot be read, ids repeat or do not pair up, the models were given other prompts, or
            predictions were made with another template than the dataset.
    """
    rows, manifest, template = read_dataset(evaluation, "prompts")
    if not rows:
        raise DataError(f"evaluation {evaluation}: found no rows, expected at least one prompt to compare on")
    files = {BEFORE: before, AFTER: after, **(others or {})}
    _unique("evaluation", [row["id"] for row in rows])
    found: dict[str, list[Prediction]] = {}
    for name, paths in files.items():
        predictions = [prediction for prediction in read_predictions(paths) if prediction.sample == 0]
        if predictions and predictions[0].id is None:
            predictions = _by_position(name, predictions, rows)
        _require_template(name, predictions, manifest.template_digest)
        found[name] = predictions
    ids = {name: _unique(name, [p.id for p in predictions]) for name, predictions in found.items()}
    _check_same(ids | {"evaluation": {row["id"] for row in rows}})
    by_id = {name: {p.id: p for p in predictions} for name, predictions in found.items()}
    pairs = [
        Pair(
            id=row["id"],
            prompt=_prompt(by_id[BEFORE][row["id"]], row, template),
            before=by_id[BEFORE][row["id"]],
            after=by_id[AFTER][row["id"]],
            reference=(row["reference"] or "").strip() or None,
            original=prompt_of(row),
            others={name: by_id[name][row["id"]] for name in others or {}},
        )
        for row in rows
    ]
    _require_same_prompts(pairs)
    return pairs, template


def _prompt(prediction: Prediction, row: Mapping[str, Any], template: Template) -> str:
    return prediction.prompt if prediction.template_digest else template.render(row["prompt"], row.get(MESSAGES))


def _by_position(name: str, predictions: list[Prediction], rows: Sequence[Mapping[str, Any]]) -> list[Prediction]:
    """The same with the rows' ids."""
    if len(predictions) != len(rows):
        raise DataError(
            f"{name}: {len(predictions):,} predictions without ids, the evaluation dataset has {len(rows):,} rows; "
            "such predictions are joined by position, which takes one for each row (data_validation may have set "
            "rows aside: see its report)"
        )
    own, read = [_words(row["prompt"]) for row in rows], [_words(p.prompt) for p in predictions]
    few = {
        place
        for place, (expected, found) in enumerate(zip(own, read, strict=True))
        if len(set(expected) & set(found)) < COMMON_WORDS * len(set(expected))
    }
    strange = [rows[place]["id"] for place in sorted(few | _made_for_another(own, read))]
    if strange:
        raise DataError(
            f"{name}: predictions without ids are joined by position, and {len(strange):,} of {len(rows):,} were made "
            f"for another prompt than the row has ({_examples(strange)}); give them in the dataset's order"
        )
    return [p.model_copy(update={"id": row["id"]}) for row, p in zip(rows, predictions, strict=True)]


def _made_for_another(own: Sequence[Sequence[str]], read: Sequence[Sequence[str]]) -> set[int]:
    """Places of predictions that fit another row's prompt and not their own.

    What a model read is an instruction, the row's text or its beginning, and a suffix. So, what all read aside, its own
    row has all of its words; where that is not so and another row has them all, it was made for that one. Of rows with
    the same words in another order, the one fits that stands in it whole.

    Args:
        own, read: Words of the rows' prompts and of what the models read, by position.
    """
    has, shared = [set(words) for words in own], set.intersection(*map(set, read))
    special = [set(words) - shared for words in read]
    lacking = [words - known for words, known in zip(special, has, strict=True)]
    wanted = set().union(*lacking)
    with_word: dict[str, list[int]] = defaultdict(list)
    alike: dict[frozenset[str], list[int]] = defaultdict(list)
    for place, words in enumerate(has):
        alike[frozenset(words)].append(place)
        for word in words & wanted:
            with_word[word].append(place)
    strange = set()
    for place, words in enumerate(special):
        if lacking[place]:
            rare = min((with_word.get(word, []) for word in lacking[place]), key=len)
            if any(words <= has[other] for other in rare):
                strange.add(place)
        elif not _stands_in(own[place], read[place]) and any(
            _stands_in(own[other], read[place]) for other in alike[frozenset(has[place])]
        ):
            strange.add(place)
    return strange


def _stands_in(words: Sequence[str], text: Sequence[str]) -> bool:
    return f" {' '.join(words)} " in f" {' '.join(text)} "


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _require_template(name: str, predictions: Sequence[Prediction], digest: str) -> None:
    others = sorted({p.template_digest for p in predictions} - {digest, None})
    if others:
        raise DataError(
            f"{name}: made with template {', '.join(others)}, the evaluation dataset has {digest}; run bulk_inference "
            "again on this dataset"
        )


def _require_same_prompts(pairs: Sequence[Pair]) -> None:
    """Those of which a template is known; what others read has been seen to be about the same thing."""
    strange = [
        pair.id
        for pair in pairs
        if len({p.prompt for p in (pair.before, pair.after, *pair.others.values()) if p.template_digest}) > 1
    ]
    if strange:
        raise DataError(
            f"predictions_before and predictions_after: {len(strange):,} of {len(pairs):,} ids have another "
            f"prompt in each ({_examples(strange)}); run bulk_inference for both on the same dataset"
        )


def _unique(name: str, ids: Sequence[str]) -> set[str]:
    seen: set[str] = set()
    repeated = list(dict.fromkeys(i for i in ids if i in seen or seen.add(i)))
    if repeated:
        raise DataError(f"{name}: {len(repeated):,} ids stand in more than one row ({_examples(repeated)})")
    return seen


def _check_same(ids: Mapping[str, set[str]]) -> None:
    everywhere = set.intersection(*ids.values())
    missing = {name: sorted(set.union(*ids.values()) - found) for name, found in ids.items()}
    if any(missing.values()):
        raise DataError(
            f"predictions and evaluation do not pair up: {len(everywhere):,} ids are in all of them; "
            + "; ".join(f"{name} lacks {len(rows):,} ({_examples(rows)})" for name, rows in missing.items() if rows)
        )


def _examples(ids: Sequence[str]) -> str:
    return ", ".join(map(repr, ids[:3])) + (", ..." if len(ids) > 3 else "")
