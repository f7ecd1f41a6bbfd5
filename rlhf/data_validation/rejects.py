"""The quarantine: rows that are used nowhere, whole, each with its place and reason."""

from collections import Counter
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rlhf.data.store import DatasetWriter, Manifest
from rlhf.data.template import Template

EXAMPLES = 2  # rows of each parameter, reason and field that are remembered


class Rejects:
    """Writes the quarantine, counts it, and remembers some of its rows."""

    def __init__(self, path: str | Path, pool: Executor):
        self._writer = DatasetWriter(path, "quarantine", Template(), pool)  # rendered by none
        self.counts: Counter[tuple[str, str, str, str]] = Counter()
        """By parameter, file, reason and field: two parameters may name one file."""
        self.examples: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        """By parameter, reason and field."""

    @property
    def rows(self) -> int:
        return self._writer.rows

    def add(self, rows: pa.Table, parameter: str) -> None:
        """Put rows of a parameter's files, with the store's columns, into quarantine."""
        if not len(rows):
            return
        self._writer.write(rows)
        counted = rows.group_by(["file", "reason", "field"], use_threads=False).aggregate([([], "count_all")])
        for row in counted.to_pylist():
            self.counts[parameter, row["file"], row["reason"], row["field"]] += row["count_all"]
            known = self.examples.setdefault((parameter, row["reason"], row["field"]), [])
            if len(known) < EXAMPLES:
                same = pc.and_(pc.equal(rows["reason"], row["reason"]), pc.equal(rows["field"], row["field"]))
                same = pc.and_(same, pc.equal(rows["file"], row["file"]))
                known += rows.filter(same).slice(0, EXAMPLES - len(known)).to_pylist()

    def finish(self) -> Manifest:
        """Make it a dataset."""
        return self._writer.finish()

    def worst(self, parameter: str) -> tuple[str, str, int]:
        """The reason and field of most of a parameter's rows, and how many these are."""
        totals: Counter[tuple[str, str]] = Counter()
        for (named, _, reason, field), count in self.counts.items():
            if named == parameter:
                totals[reason, field] += count
        ((reason, field), count) = totals.most_common(1)[0]
        return reason, field, count
