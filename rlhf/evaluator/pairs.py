"""Two models' completions of the same prompts and the human references, joined by id."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from rlhf.data.store import read_dataset
from rlhf.data.template import Template
from rlhf.errors import DataError


class Prediction(BaseModel):
    """One line of bulk_inference's output."""

    model_config = ConfigDict(frozen=True, strict=True)

    id: str
    prompt: str
    """Rendered: the text that the model read."""
    prediction: str
    finish_reason: Literal["stop", "length"]
    tokens: int
    model: str
    template_digest: str


@dataclass(frozen=True)
class Pair:
    """What two models wrote for one prompt; `reference` is None where nobody wrote one."""

    before: Prediction
    after: Prediction
    reference: str | None

    @property
    def id(self) -> str:
        return self.before.id

    @property
    def prompt(self) -> str:
        return self.before.prompt


def read_pairs(before: str | Path, after: str | Path, evaluation: str | Path) -> tuple[list[Pair], Template]:
    """Join two files of predictions with the evaluation dataset, in the dataset's order.

    Returns:
        The pairs, and the template they were rendered with.

    Raises:
        DataError: A file cannot be read, ids repeat or do not pair up, the two models were given other prompts, or
            predictions were made with another template than the evaluation data.
    """
    rows, manifest, template = read_dataset(evaluation, "prompts")
    if not rows:
        raise DataError(f"evaluation {evaluation}: found no rows, expected at least one prompt to compare on")
    predictions = {"predictions_before": _read(before), "predictions_after": _read(after)}
    for name, found in predictions.items():
        others = sorted({p.template_digest for p in found} - {manifest.template_digest})
        if others:
            raise DataError(
                f"{name}: made with template {', '.join(others)}, the evaluation dataset has "
                f"{manifest.template_digest}; run bulk_inference again on this dataset"
            )
    ids = {name: _unique(name, [p.id for p in found]) for name, found in predictions.items()}
    ids["evaluation"] = _unique("evaluation", [row["id"] for row in rows])
    _check_same(ids)
    first, second = ({p.id: p for p in found} for found in predictions.values())
    pairs = [Pair(first[row["id"]], second[row["id"]], (row["reference"] or "").strip() or None) for row in rows]
    other_prompts = [pair.id for pair in pairs if pair.before.prompt != pair.after.prompt]
    if other_prompts:
        raise DataError(
            f"predictions_before and predictions_after: {len(other_prompts):,} of {len(pairs):,} ids have another "
            f"prompt in each ({_examples(other_prompts)}); run bulk_inference for both on the same dataset"
        )
    return pairs, template


def _read(path: str | Path) -> list[Prediction]:
    try:
        # Not splitlines: a text may hold U+2028 and the like, which JSON leaves as they are.
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as predictions of bulk_inference ({error})") from error
    predictions = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            predictions.append(Prediction.model_validate(json.loads(line)))
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error}), expected one prediction a line") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the row"
            raise DataError(f"{path}, line {number}: {where}: {first['msg']}") from error
    return predictions


def _unique(name: str, ids: list[str]) -> set[str]:
    seen: set[str] = set()
    repeated = list(dict.fromkeys(i for i in ids if i in seen or seen.add(i)))
    if repeated:
        raise DataError(f"{name}: {len(repeated):,} ids stand in more than one row ({_examples(repeated)})")
    return seen


def _check_same(ids: dict[str, set[str]]) -> None:
    everywhere = set.intersection(*ids.values())
    missing = {name: sorted(set.union(*ids.values()) - found) for name, found in ids.items()}
    if any(missing.values()):
        raise DataError(
            f"predictions and evaluation do not pair up: {len(everywhere):,} ids are in all three; "
            + "; ".join(f"{name} lacks {len(rows):,} ({_examples(rows)})" for name, rows in missing.items() if rows)
        )


def _examples(ids: list[str]) -> str:
    return ", ".join(map(repr, ids[:3])) + (", ..." if len(ids) > 3 else "")
