"""Files of predictions: those of bulk_inference, and those that the closed Vertex pipeline's bulk inferrer wrote."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from rlhf.data.file_systems import file_system, redacted
from rlhf.errors import DataError


class Prediction(BaseModel):
    """What a model wrote for one prompt."""

    model_config = ConfigDict(frozen=True, strict=True)

    id: str | None
    """None in files of the Vertex pipeline, which have none."""
    prompt: str
    """Rendered: the text that the model read."""
    prediction: str
    finish_reason: Literal["stop", "length"] | None
    """None where nobody wrote it down."""
    tokens: int | None
    """None where nobody counted them."""
    model: str
    template_digest: str | None
    sample: int = 0

    @property
    def is_cut(self) -> bool:
        return self.finish_reason == "length"


class _Inputs(BaseModel):
    inputs_pretokenized: str


class _Vertex(BaseModel):
    """One line of the bulk inferrer, nested or flat."""

    model_config = ConfigDict(strict=True)

    prediction: str
    inputs: _Inputs | None = None
    input_text: str | None = None

    def as_prediction(self, name: str) -> Prediction:
        if self.inputs is None and self.input_text is None:
            raise ValueError("found neither `inputs` nor `input_text`, expected one of them")
        return Prediction(
            id=None,
            prompt=self.inputs.inputs_pretokenized if self.inputs else self.input_text,
            prediction=self.prediction.strip(),
            finish_reason=None,
            tokens=None,
            model=name,
            template_digest=None,
        )


def read_predictions(paths: str | Path | Sequence[str | Path]) -> list[Prediction]:
    """Read a file of predictions, or the files of its shards in their order.

    Args:
        paths: Paths or URIs.

    Raises:
        DataError: A file cannot be read, a line is no prediction, or the files are of both kinds.
    """
    paths = [paths] if isinstance(paths, str | Path) else list(paths)
    found = [prediction for path in paths for prediction in _read(path)]
    if len({prediction.id is None for prediction in found}) > 1:
        raise DataError(
            f"{redacted(', '.join(map(str, paths)))}: some predictions have an `id` and some have none; give files of "
            "one kind"
        )
    return found


def _read(place: str | Path) -> list[Prediction]:
    said = redacted(str(place))
    try:
        fs, path = file_system(str(place))
        # Not splitlines: a text may hold U+2028 and the like, which JSON leaves as they are.
        lines = fs.cat_file(path).decode("utf-8").split("\n")
    except Exception as error:  # each store's client has exceptions of its own
        reason = redacted(" ".join(str(error).split()))
        raise DataError(
            f"{said}: cannot be read as predictions of bulk_inference ({type(error).__name__}: {reason})"
        ) from error
    predictions = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            predictions.append(_prediction(json.loads(line), Path(path).stem))
        except json.JSONDecodeError as error:
            raise DataError(f"{said}, line {number}: not JSON ({error}), expected one prediction a line") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the row"
            raise DataError(f"{said}, line {number}: {where}: {first['msg']}") from error
        except ValueError as error:
            raise DataError(f"{said}, line {number}: {error}") from error
    return predictions


def _prediction(row: Any, name: str) -> Prediction:
    if isinstance(row, dict) and "id" not in row and ("inputs" in row or "input_text" in row):
        return _Vertex.model_validate(row).as_prediction(name)
    return Prediction.model_validate(row)
