"""Reads sources whole, for tests."""

import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.data.formats import Kind, Shape
from rlhf.data.intake import FileCount, Intake
from rlhf.data.sources import Source
from rlhf.data.store import publish, read_dataset
from rlhf.data.template import Template
from rlhf.data_validation.canonical import write_canonical
from rlhf.data_validation.index import Index

VERTEX = {"input_text": "A post.", "candidate_0": "the first", "candidate_1": "the second", "choice": 1}
TRL = {"prompt": "P", "chosen": "one", "rejected": "zero"}
GOOD = json.dumps(VERTEX)


@dataclass
class Read:
    rows: list[dict[str, Any]]
    quarantined: list[dict[str, Any]]
    counts: dict[str, FileCount]
    shape: Shape | None
    repeated_ids: int = 0
    digest: str = ""
    """Of the canonical dataset, where one was written."""


def read_source(uris: str | Path, kind: Kind = "preferences", suffix: str | None = None) -> Read:
    """Every row of a source, converted and written and read again, or put in quarantine."""
    intake = Intake(Source(str(uris), "preference_dataset"), kind, suffix)
    quarantined = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool, Index(folder) as index:

        def parts():
            for part in intake.parts(pool, 3):
                quarantined.extend(part.quarantined.to_pylist())
                yield part

        template = Template(suffix=suffix or "")
        written = write_canonical("rows", kind, parts(), f"{folder}/d", template, 0.1, 0, index, pool, 3)
        publish(written.path, written.manifest)
        rows, _, _ = read_dataset(f"{folder}/d", kind)
    return Read(rows, quarantined, intake.counts, intake.shape, written.repeated_ids, written.manifest.digest)


def convert_source(uris: str | Path, kind: Kind = "preferences") -> Read:
    """As `read_source`, but nothing is written: rows are without ids, and with where they come from."""
    intake = Intake(Source(str(uris), "preference_dataset"), kind, None)
    with ThreadPoolExecutor(1) as pool:
        parts = list(intake.parts(pool, 2))
    rows = [row for part in parts for row in part.kept.to_pylist()]
    quarantined = [row for part in parts for row in part.quarantined.to_pylist()]
    return Read(rows, quarantined, intake.counts, intake.shape)


def write_rows(path: Path, rows: list) -> str:
    """JSON lines of dicts, and of texts as they are; the path as text."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def chats(author: str, **more) -> list[dict]:
    """Conversations of two and of four messages; a message of the user's, then of the assistant's."""
    texts = ["Hi?", "Hello.", "And?", "Bye."]
    turns = [{author: ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
    return [{"messages": turns[:2], **more}, {"messages": turns, **more}]
