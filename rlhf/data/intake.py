"""From a source's blocks to canonical columns: every row is kept or put in quarantine, and counted either way."""

from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rlhf.data.chat import MESSAGES
from rlhf.data.columns import LAYOUTS, convert_columns, fields_of, parse_texts, pick_columns
from rlhf.data.formats import (
    ANNOTATOR_FIELDS,
    FIELDS,
    Kind,
    Reason,
    Shape,
    Unfit,
    annotator,
    annotator_field,
    convert,
    is_cut_off,
    may_be_chat,
    own_id,
    parse,
    recognise,
    storable,
)
from rlhf.data.parallel import ordered_map
from rlhf.data.sources import Block, Piece, Source
from rlhf.data.store import SCHEMAS
from rlhf.data.template import Template
from rlhf.errors import DataError

LOOKED_AT = 16  # rows of a block that may name an annotator
UNKNOWN_BYTES = 64 << 20  # so much of a source without a row of known shape is held, then it is refused

_TEXT = pa.string()
TEXTS: dict[Kind, tuple[str, ...]] = {
    "preferences": ("prompt", "chosen", "rejected"),
    "prompts": ("prompt", "reference"),
    "demonstrations": ("prompt", "completion"),
}
# Where a kept row comes from, and what is said about it, before its texts; position and margin as in `convert`.
ORIGIN = pa.schema(
    {
        "file": pa.int32(),
        "line": pa.int64(),
        "offset": pa.int64(),
        "own_id": _TEXT,
        "annotator": _TEXT,
        "position": pa.int8(),
        "margin": pa.float32(),
    }
)


@dataclass
class FileCount:
    """Where a file's rows went: read = kept + quarantined."""

    read: int = 0
    kept: int = 0
    quarantined: int = 0


@dataclass(frozen=True)
class Part:
    """What became of a block: `kept` has `ORIGIN` and the kind's texts, `quarantined` the store's columns."""

    kept: pa.Table
    quarantined: pa.Table
    read: np.ndarray
    """Rows read by file (position in `Source.files`)."""


@dataclass
class Intake:
    """Reads one source. `shape` and `counts` grow while `parts` is read."""

    source: Source
    kind: Kind
    suffix: str | None
    """How prompts end, where that is known already."""
    chat: Template | None = None
    """Has the model's chat template: rows have `messages` beside their texts, and those that it refuses are none."""
    shape: Shape | None = None
    """None where no row is a JSON object."""
    counts: dict[str, FileCount] = field(default_factory=dict)
    """By file, in the order read."""

    def parts(self, pool: Executor, ahead: int) -> Iterator[Part]:
        """Every block converted, in order, in the pool's threads.

        Raises:
            DataError: A file cannot be read (see `Source.pieces`), no row has a known shape, or two shapes are mixed.
        """
        self.counts = {file: FileCount() for file in self.source.files}
        for part in ordered_map(pool, self._convert, self._after_recognition(), ahead):
            kept = self._by_file(part.kept["file"].to_numpy())
            for index in np.flatnonzero(part.read).tolist():
                count = self.counts[self.source.files[index]]
                count.read += int(part.read[index])
                count.kept += int(kept[index])
            for file in part.quarantined["file"].to_pylist():
                self.counts[file].quarantined += 1
            yield part
        for file, count in self.counts.items():
            assert count.read == count.kept + count.quarantined, f"{file}: rows were lost: {count}"

    def move_to_quarantine(self, rows: pa.Table) -> None:
        """Count rows that were kept and then put aside; `rows` has the quarantine's columns."""
        for file in rows["file"].to_pylist():
            self.counts[file].kept -= 1
            self.counts[file].quarantined += 1

    def _after_recognition(self) -> Iterator[Piece | Block]:
        """What was read, no object of it before the first row whose shape is known.

        Raises:
            DataError: There is none in `UNKNOWN_BYTES`, or in the source.
        """
        waiting: list[Block] = []
        for piece in self.source.pieces():
            if self.shape is not None:
                yield piece
                continue
            waiting.append(piece.block())
            if self._recognise(waiting[-1]):
                yield from waiting
                waiting.clear()
            elif sum(block.nbytes for block in waiting) > UNKNOWN_BYTES:
                self._refuse_unknown(waiting)
                yield from waiting  # of lines that are no objects, which need no shape to be put aside
                waiting.clear()
        if waiting:
            self._refuse_unknown(waiting)
            yield from waiting

    def _recognise(self, block: Block) -> bool:
        """By the first row that tells text from chat, else by the first."""
        first: tuple[int, dict[str, Any], Shape] | None = None
        for index in range(len(block)):
            value = _value(block, index)
            shape = recognise(value) if isinstance(value, dict) else None
            if shape is None:
                continue
            tells = may_be_chat(value, shape) is None
            if tells or first is None:
                first = index, value, shape
            if tells:
                break
        if first is None:
            return False
        index, value, shape = first
        self._first = self._place(block, index)
        self._annotator = _annotator_of(block)
        self._layout = LAYOUTS.get((shape, self.kind))
        self._id_is_number = type(value.get("id")) is int
        self.shape = shape  # last: threads may be at work on blocks without an object
        return True

    def _refuse_unknown(self, blocks: list[Block]) -> None:
        for block in blocks:
            for index in range(len(block)):
                if isinstance(value := _value(block, index), dict):
                    known = "; ".join(f"{shape}: {fields}" for shape, fields in FIELDS.items())
                    raise self.source.error(
                        self._place(block, index),
                        f"found the fields {', '.join(value) or '(none)'}, expected one of these shapes: {known}",
                    )

    def _convert(self, piece: Piece | Block) -> Part:
        block = piece if isinstance(piece, Block) else piece.block()
        tables, left = [], np.ones(len(block), bool)
        chooser, is_number = None, False
        if self.shape is not None:  # a file that names annotators may follow one that does not
            chooser, is_number = self._annotator if self._annotator[0] else _annotator_of(block)
        if self.shape is not None and self._layout is not None:
            wanted = fields_of(self.shape, self._layout, self._id_is_number, chooser, is_number)
            rows, fields = (parse_texts if block.text is not None else pick_columns)(block, wanted)
            rows, table = convert_columns(rows, fields, self._layout, chooser, self.suffix)
            left[rows] = False
            tables.append(self._with_origin(block, rows, table))
        kept, numbers, quarantined = [], [], []
        for index in np.flatnonzero(left).tolist():
            try:
                kept.append(self._convert_row(block, index, chooser))
                numbers.append(index)
            except Unfit as unfit:
                quarantined.append(
                    {
                        "file": self.source.files[block.file[index].as_py()],
                        "line": block.line[index].as_py(),
                        "offset": block.offset[index].as_py(),
                        "reason": str(unfit.reason),
                        "field": unfit.field,
                        "row": storable(block.row_text(index)),
                    }
                )
        if kept:
            given = [field for field in self._schema if field.name not in ("file", "line", "offset")]
            table = pa.Table.from_pylist(kept, pa.schema(given))
            tables.append(self._with_origin(block, np.array(numbers), table))
        merged = pa.concat_tables(tables or [self._schema.empty_table()])
        if len(tables) > 1:
            merged = merged.sort_by([("file", "ascending"), ("line", "ascending")])
        return Part(
            merged.combine_chunks(),
            pa.Table.from_pylist(quarantined, SCHEMAS["quarantine"]),
            self._by_file(block.file.to_numpy()),
        )

    def _convert_row(self, block: Block, index: int, chooser: str | None) -> dict[str, Any]:
        if index in block.too_long:
            raise Unfit(Reason.TOO_LONG)
        row = block.row_value(index) if block.text is None else self._parse(block, index)
        shape = recognise(row)
        if shape is not None and self.shape not in (shape, may_be_chat(row, shape)):
            raise DataError(
                f"{self.source.parameter}: two shapes in one source: {self.shape} at {self._first} and {shape} at "
                f"{self._place(block, index)}; convert one of them"
            )
        canonical = convert(row, self.shape, self.kind, self.suffix, keep_messages=self.chat is not None)
        if canonical.get(MESSAGES):
            try:
                self.chat.render(canonical["prompt"], canonical[MESSAGES])
            except DataError:
                raise Unfit(Reason.REFUSED_BY_TEMPLATE, MESSAGES) from None
        return {
            "own_id": own_id(row),
            "annotator": annotator(row, chooser) if chooser else None,
            **canonical,
        }

    def _parse(self, block: Block, index: int) -> dict[str, Any]:
        text = block.row_text(index)
        try:
            return parse(text)
        except Unfit as unfit:
            place = self._place(block, index)
            if unfit.reason is Reason.NOT_JSON and text.strip() == "{":
                raise self.source.error(
                    place, "a row spread over several lines, expected one JSON object per line"
                ) from None
            at_end = not block.text[index].as_py().endswith("\n")
            if unfit.reason is Reason.NOT_JSON and at_end and is_cut_off(text):
                raise self.source.error(place, "the file is cut off within this row; copy it again") from None
            raise

    def _with_origin(self, block: Block, rows: np.ndarray, table: pa.Table) -> pa.Table:
        if self.chat is not None and MESSAGES not in table.column_names:
            table = table.append_column(MESSAGES, pa.nulls(len(table), _TEXT))
        for name in ("file", "line", "offset"):
            column = getattr(block, name)
            table = table.append_column(name, column if len(rows) == len(block) else column.take(pa.array(rows)))
        return table.select(self._schema.names)

    @property
    def _schema(self) -> pa.Schema:
        """Of `Part.kept`."""
        texts = [*TEXTS[self.kind], *([MESSAGES] if self.chat is not None else [])]
        return pa.schema([*ORIGIN, *(pa.field(name, _TEXT) for name in texts)])

    def _by_file(self, files: np.ndarray) -> np.ndarray:
        return np.bincount(files, minlength=len(self.source.files))

    def _place(self, block: Block, index: int) -> str:
        return f"{self.source.files[block.file[index].as_py()]}:{block.line[index]}"


def _value(block: Block, index: int) -> dict[str, Any] | None:
    if block.text is None:
        return block.row_value(index)
    try:
        return parse(block.row_text(index))
    except Unfit:
        return None


def _annotator_of(block: Block) -> tuple[str | None, bool]:
    """The field that says who chose, and whether its first value is a number; a column of Parquet may be all null."""
    if block.text is None:
        columns = block.columns.schema
        names = [name for name in ANNOTATOR_FIELDS if name in columns.names]
        known = [np.flatnonzero(block.columns.column(name).is_valid()) for name in names]
        rows = np.unique(np.concatenate(known)) if known else np.array([], int)
    else:
        names = []
        rows = np.flatnonzero(pc.match_substring_regex(block.text, _ANNOTATOR))
    for index in rows[:LOOKED_AT].tolist():  # others' fields have such names, too, deeper in a row
        value = _value(block, index)
        if isinstance(value, dict) and (name := annotator_field(value)):
            return name, type(value[name]) is int
    return (names[0], pa.types.is_integer(columns.field(names[0]).type)) if names else (None, False)


_ANNOTATOR = rf'"({"|".join(ANNOTATOR_FIELDS)})"\s*:\s*["\d-]'
