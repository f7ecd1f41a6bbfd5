"""Scalars over training, as TensorBoard event files."""

import csv
import os
import re
import time
from pathlib import Path
from typing import Any

from rlhf.data.file_systems import file_system, redacted
from rlhf.errors import DataError
from rlhf.progress import say

_NAMED = "TensorBoard logs"  # in messages
# Of a job of Vertex AI that has a TensorBoard: what is written there is streamed to that.
MIRROR_VARIABLE = "AIP_TENSORBOARD_LOG_DIR"
MIRROR_SECONDS = 30.0
_TAG_IN_NAME = re.compile(r"-tag-(.+)$")


class Tracker:
    """Writes scalars to TensorBoard event files.

    Tags that the closed Vertex pipeline logged keep their names (`rank_loss`, `reward`, `kl_loss`, `rl_loss`,
    `learning_rate`), so that its runs and ours overlay; our own are prefixed with the stage.
    """

    def __init__(self, log_dir: str | Path | None):
        """Start; event files of an earlier try are removed, for what they hold is written again.

        Where `AIP_TENSORBOARD_LOG_DIR` names a folder or a URI, the event files are copied there too, twice a minute.

        Args:
            log_dir: Folder for the event files; None writes nothing, as in all processes of a run but one.
        """
        self._writer = None
        self._mirror = os.environ.get(MIRROR_VARIABLE, "") if log_dir is not None else ""
        self._folder, self._mirrored = Path(log_dir or "."), time.monotonic()
        if log_dir is not None:
            from torch.utils.tensorboard import SummaryWriter

            for stale in Path(log_dir).glob("events.out.tfevents.*"):
                stale.unlink()
            self._writer = SummaryWriter(str(log_dir))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        if self._writer is not None:
            for tag, value in values.items():
                self._writer.add_scalar(tag, value, step)
            if self._mirror and time.monotonic() - self._mirrored >= MIRROR_SECONDS:
                self._writer.flush()
                self._copy()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            if self._mirror:
                self._copy()

    def _copy(self) -> None:
        """Whole files, since a store cannot append: they are small, and only grow, as their reader expects.

        Training goes on where that fails; the event files are among the stage's outputs.
        """
        try:
            fs, folder = file_system(self._mirror)
            fs.makedirs(folder, exist_ok=True)
            for file in self._folder.glob("events.out.tfevents.*"):
                fs.put_file(str(file), f"{folder.rstrip('/')}/{file.name}")
        except Exception as error:
            where, why = redacted(self._mirror), redacted(str(error))
            say("tensorboard", f"{where} cannot be written to, no more is streamed: {why}")
            self._mirror = ""
        self._mirrored = time.monotonic()


def find_logs(path: str | Path) -> list[Path]:
    """What `read_scalars` reads one by one: the folders with event files at `path` and below it, or a `.csv` itself.

    Raises:
        DataError: There is nothing of the kind.
    """
    path = Path(path)
    if path.suffix == ".csv" and path.is_file():
        return [path]
    if not path.is_dir():
        what = "a file" if path.exists() else "no such folder"
        raise DataError(f"{_NAMED} {str(path)!r}: {what}, expected a folder with event files or a .csv of scalars")
    folders = sorted({file.parent for file in path.rglob("*tfevents*") if file.is_file()})
    if not folders:
        raise DataError(
            f"{_NAMED} {str(path)!r}: found no event files (events.out.tfevents.*) in it or below; "
            "name the folder that a trainer wrote them to"
        )
    return folders


def read_scalars(path: str | Path) -> dict[str, list[tuple[int, float]]]:
    """Read every scalar series of a folder of event files, or of a `.csv` of scalars.

    Args:
        path: Folder; those below it are left out. What TensorFlow 2 logs as tensors, as the Vertex pipeline did, is
            read as well. A `.csv` has the columns `step`, `tag`, `value`, or `Step`, `Value` as TensorBoard's own
            download, which has the tag in its name alone: `run-<run>-tag-<tag>.csv`.

    Returns:
        {tag: [(step, value), ...]}, in the order logged.

    Raises:
        DataError: The folder does not exist, or the file cannot be read.
    """
    path = Path(path)
    if path.suffix == ".csv":
        return _read_csv(path)
    if not path.is_dir():
        raise DataError(f"{_NAMED} {str(path)!r}: no such folder, expected one with event files")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()
    found = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags["scalars"]}
    return found | {
        tag: [(e.step, _number(e.tensor_proto)) for e in events.Tensors(tag)]
        for tag in tags["tensors"]
        if events.SummaryMetadata(tag).plugin_data.plugin_name == "scalars"
    }


def _number(tensor: Any) -> float:
    from tensorboard.util.tensor_util import make_ndarray

    return float(make_ndarray(tensor).item())


def _read_csv(path: Path) -> dict[str, list[tuple[int, float]]]:
    named = _TAG_IN_NAME.search(path.stem)
    series: dict[str, list[tuple[int, float]]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            rows.fieldnames = [name.strip().lower() for name in rows.fieldnames or ()]
            lacking = {"step", "value", *(() if named else ("tag",))} - set(rows.fieldnames)
            if lacking:
                raise DataError(
                    f"{_NAMED} {str(path)!r}: found the columns {', '.join(rows.fieldnames) or '(none)'}, "
                    f"expected {', '.join(sorted(lacking))} too"
                )
            for row in rows:
                try:
                    point = int(float(row["step"])), float(row["value"])
                except (TypeError, ValueError, OverflowError):
                    raise DataError(
                        f"{_NAMED} {str(path)!r}, line {rows.line_num}: found step {row['step']!r} and value "
                        f"{row['value']!r}, expected numbers"
                    ) from None
                series.setdefault(row["tag"] if "tag" in row else named[1], []).append(point)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{_NAMED} {str(path)!r}: cannot be read as a .csv of scalars ({error})") from error
    return series
