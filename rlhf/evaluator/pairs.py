"""What models wrote for the same prompts, and the human references, joined by id."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.data.store import MESSAGES, read_dataset
from rlhf.data.template import Template
from rlhf.errors import DataError
from rlhf.evaluator.predictions import Prediction, read_predictions

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

    Predictions of the closed Vertex pipeline have no id. They are joined by position where there are as many as rows
    and each has most of its row's words.

    Args:
        others: Files of further models by name.

    Returns:
        The pairs, and the template of the dataset.

    Raises:
        DataError: A file cannot be read, ids repeat or do not pair up, there are several samples of a prompt, the
            models were given other prompts, or predictions were made with another template than the dataset.
    """
    rows, manifest, template = read_dataset(evaluation, "prompts")
    if not rows:
        raise DataError(f"evaluation {evaluation}: found no rows, expected at least one prompt to compare on")
    files = {BEFORE: before, AFTER: after, **(others or {})}
    _unique("evaluation", [row["id"] for row in rows])
    found: dict[str, list[Prediction]] = {}
    for name, paths in files.items():
        predictions = read_predictions(paths)
        if predictions and predictions[0].id is None:
            predictions = _by_position(name, predictions, rows)
        _require_template(name, predictions, manifest.template_digest)
        _require_one_sample(name, predictions)
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
            original=_original(row),
            others={name: by_id[name][row["id"]] for name in others or {}},
        )
        for row in rows
    ]
    _require_same_prompts(pairs)
    return pairs, template


def _prompt(prediction: Prediction, row: Mapping[str, Any], template: Template) -> str:
    return prediction.prompt if prediction.template_digest else template.render(row["prompt"], row.get(MESSAGES))


def _original(row: Mapping[str, Any]) -> str | list[dict[str, str]]:
    messages = row.get(MESSAGES)
    return json.loads(messages) if messages else row["prompt"]


def _by_position(name: str, predictions: list[Prediction], rows: Sequence[Mapping[str, Any]]) -> list[Prediction]:
    """The same with the rows' ids."""
    if len(predictions) != len(rows):
        raise DataError(
            f"{name}: {len(predictions):,} predictions without ids, the evaluation dataset has {len(rows):,} rows; "
            "such predictions are joined by position, which takes one for each row (data_validation may have set "
            "rows aside: see its report)"
        )
    strange = []
    for row, prediction in zip(rows, predictions, strict=True):
        expected = _words(row["prompt"])
        if expected and len(expected & _words(prediction.prompt)) < COMMON_WORDS * len(expected):
            strange.append(row["id"])
    if strange:
        raise DataError(
            f"{name}: predictions without ids are joined by position, and {len(strange):,} of {len(rows):,} were made "
            f"for another prompt than the row has ({_examples(strange)}); give them in the dataset's order"
        )
    return [p.model_copy(update={"id": row["id"]}) for row, p in zip(rows, predictions, strict=True)]


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def _require_template(name: str, predictions: Sequence[Prediction], digest: str) -> None:
    others = sorted({p.template_digest for p in predictions} - {digest, None})
    if others:
        raise DataError(
            f"{name}: made with template {', '.join(others)}, the evaluation dataset has {digest}; run bulk_inference "
            "again on this dataset"
        )


def _require_one_sample(name: str, predictions: Sequence[Prediction]) -> None:
    if any(p.sample for p in predictions):
        raise DataError(
            f"{name}: found {1 + max(p.sample for p in predictions)} samples of a prompt, expected one; run "
            "bulk_inference with samples 1"
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
