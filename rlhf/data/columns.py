"""The rows of flat shapes checked and converted as columns, some ten times as fast as one by one.

`rlhf.data.formats.convert` says what a row is. Here only those rows are accepted that it surely would accept as they
stand; every other is left to it. A test compares the two on random rows and random damage.
"""

import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from rlhf.data.formats import LARGEST_MARGIN, LONGEST_ROW_BYTES, Kind, Shape
from rlhf.data.sources import Block

ROWS_AT_ONCE = 1024  # a row that cannot be parsed has so many others parsed again
FEWEST_ROWS = 16  # so few are left to the rules when they cannot be parsed

_TEXT, _NOTHING = pa.string(), pa.null()

# Fields by which a row may turn out to be of another shape; in a flat shape those must be absent or null.
_DECIDING = {
    Shape.VERTEX_TEXT: ("summaries", "prompt", "chosen", "messages"),
    Shape.TRL: ("summaries", "chosen", "rejected", "completion"),
}

# Python's whitespace (str.isspace) and all else.
_BLANK, _INK = r"[\t-\r\x1c-\x20\x{85}\p{Z}]", r"[^\t-\r\x1c-\x20\x{85}\p{Z}]"
# Texts that are neither blank nor a marker: two words, or one that is too long and does not begin with a bracket.
_ORDINARY = rf"{_INK}{_BLANK}+{_INK}|^{_BLANK}*[^\t-\r\x1c-\x20\x{{85}}\p{{Z}}\[]{_INK}{{24}}"
_PRINTABLE = r"^[ -~]*[!-~][ -~]*$"
_ERROR_ROW = re.compile(r"in row (\d+)")


@dataclass(frozen=True)
class Layout:
    """Which fields of a flat shape become what."""

    texts: dict[str, str]
    """{canonical name: field} of the texts a row must have."""
    candidates: tuple[str, str] | None = None
    """Fields of the two candidates where `choice` says which was chosen."""
    references: tuple[str, ...] = ()
    """Fields of an optional reference, of which a row may have one."""
    absent: tuple[str, ...] = ()
    """Fields with which a row is left to the rules."""

    @property
    def is_of_pairs(self) -> bool:
        """Whether the rows are preferences."""
        return self.candidates is not None or "chosen" in self.texts


LAYOUTS: dict[tuple[Shape, Kind], Layout] = {
    (Shape.VERTEX_TEXT, "preferences"): Layout({"prompt": "input_text"}, candidates=("candidate_0", "candidate_1")),
    (Shape.VERTEX_TEXT, "prompts"): Layout({"prompt": "input_text"}, references=("output_text",)),
    (Shape.VERTEX_TEXT, "demonstrations"): Layout({"prompt": "input_text", "completion": "output_text"}),
    (Shape.TRL, "preferences"): Layout({"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}),
    (Shape.TRL, "prompts"): Layout({"prompt": "prompt"}, references=("completion", "label")),
    (Shape.TRL, "demonstrations"): Layout({"prompt": "prompt", "completion": "completion"}, absent=("label",)),
}


def fields_of(
    shape: Shape, layout: Layout, id_is_number: bool, annotator: str | None, annotator_is_number: bool
) -> pa.Schema:
    """Name and type of every field that matters to a layout: a row where one is of another type is not ordinary."""
    types = dict.fromkeys([*_DECIDING[shape], *layout.absent], _NOTHING)
    types |= dict.fromkeys([*layout.texts.values(), *(layout.candidates or ()), *layout.references], _TEXT)
    if layout.candidates:
        types["choice"] = pa.float64()  # data frames write 1 as 1.0
    if layout.is_of_pairs:
        types["margin"] = pa.float64()
    types["id"] = pa.int64() if id_is_number else _TEXT
    if annotator:
        types[annotator] = pa.int64() if annotator_is_number else _TEXT
    return pa.schema(types)


def parse_texts(block: Block, fields: pa.Schema) -> tuple[np.ndarray, pa.Table]:
    """The fields of a block's JSON rows, as columns.

    Returns:
        Numbers of rows within the block, in ascending order, and their fields. Rows that are missing are not ordinary.
    """
    starts, ends = _row_bounds(block.text)
    content = np.frombuffer(block.text.buffers()[2], np.uint8)
    # A line from { to } holds whole objects, so that as many objects as lines are one object for each line.
    fits = (content[starts] == ord("{")) & (content[ends - 1] == ord("}")) & (ends - starts <= LONGEST_ROW_BYTES)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], fits, [False]]).astype(np.int8)))
    pending = [
        (piece, min(piece + ROWS_AT_ONCE, stop))
        for start, stop in edges.reshape(-1, 2).tolist()
        for piece in range(start, stop, ROWS_AT_ONCE)
    ][::-1]
    rows, tables, failures = [], [], 0
    while pending and failures <= FEWEST_ROWS + len(block) // 8:
        start, stop = pending.pop()
        bad = (start + stop) // 2
        try:
            parsed = _read_json(block.text.slice(start, stop - start), fields)
            if len(parsed) == stop - start:
                rows.append(np.arange(start, stop))
                tables.append(parsed)
                continue
        except pa.ArrowException as error:
            failures += 1
            if named := _ERROR_ROW.search(str(error)):
                bad = start + int(named[1])
        if stop - start > FEWEST_ROWS and start <= bad < stop:
            pending += [part for part in ((bad + 1, stop), (start, bad)) if part[0] < part[1]]
    table = pa.concat_tables(tables).combine_chunks() if tables else fields.empty_table()
    return np.concatenate([*rows, np.array([], int)]), table


def pick_columns(block: Block, fields: pa.Schema) -> tuple[np.ndarray, pa.Table]:
    """The fields of a block of Parquet, as `parse_texts` gives them; no row where a column has another type.

    Rows that are too long are missing, too.
    """
    arrays = []
    for field in fields:
        index = block.columns.schema.get_field_index(field.name)
        column = pa.nulls(len(block), field.type) if index < 0 else block.columns.column(index)
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
            column = column.cast(_TEXT)
        if field.type == pa.float64() and (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            column = column.cast(pa.float64(), safe=False)
        if field.type == pa.int64() and pa.types.is_integer(column.type):
            try:
                column = column.cast(pa.int64())
            except pa.ArrowInvalid:  # beyond 2^63
                return np.array([], int), fields.empty_table()
        if column.null_count == len(column):
            column = pa.nulls(len(block), field.type)
        if column.type != field.type:
            return np.array([], int), fields.empty_table()
        arrays.append(column)
    rows, table = np.delete(np.arange(len(block)), block.too_long), pa.Table.from_arrays(arrays, schema=fields)
    return rows, table if len(rows) == len(block) else table.take(pa.array(rows))


def convert_columns(
    rows: np.ndarray, fields: pa.Table, layout: Layout, annotator: str | None, suffix: str | None
) -> tuple[np.ndarray, pa.Table]:
    """Canonical columns of those rows that are ordinary.

    Args:
        rows: Numbers of the rows.
        fields: Their fields, as `fields_of` names them.
        annotator: The field that says who chose.
        suffix: How prompts end, where that is known already: a text that is nothing else is not ordinary.

    Returns:
        Their numbers; own_id, annotator, position, margin and the texts.
    """
    ordinary = None
    texts = {name: fields.column(field) for name, field in layout.texts.items()}
    position, margin = pa.nulls(len(rows), pa.int8()), pa.nulls(len(rows), pa.float32())
    if layout.candidates:
        first, second = (fields.column(field) for field in layout.candidates)
        choice = fields.column("choice")
        ordinary = pc.or_(pc.equal(choice, 0.0), pc.equal(choice, 1.0))
        second_chosen = pc.equal(choice, 1.0)
        texts |= {
            "chosen": pc.if_else(second_chosen, second, first),
            "rejected": pc.if_else(second_chosen, first, second),
        }
        position = pc.if_else(second_chosen, pa.scalar(1, pa.int8()), pa.scalar(0, pa.int8()))
    for text in texts.values():
        ordinary = _and(ordinary, pc.match_substring_regex(text, _ORDINARY))
    if layout.is_of_pairs:
        trimmed = [pc.utf8_trim_whitespace(texts[name]) for name in ("chosen", "rejected")]
        ordinary = _and(ordinary, pc.not_equal(*trimmed))
        given = fields.column("margin")
        good = pc.and_(pc.greater_equal(given, 0.0), pc.less_equal(given, LARGEST_MARGIN))
        ordinary = _and(ordinary, pc.fill_null(good, True))
        margin = pc.abs(given).cast(pa.float32())
    mark = (suffix or "").strip()
    if mark and re.search(r"\s|.{24}", mark):  # others are markers for the pattern above
        for text in texts.values():
            ordinary = _and(ordinary, pc.not_equal(pc.utf8_trim_whitespace(text), mark))
    if layout.references:
        given = [fields.column(field) for field in layout.references]
        for column in given:
            ordinary = _and(ordinary, pc.fill_null(pc.match_substring_regex(column, _INK), True))
        # `label` counts where `completion` is not there.
        texts["reference"] = pc.coalesce(*given) if len(given) > 1 else given[0]
    own_id = fields.column("id")
    if own_id.type == _TEXT:
        ordinary = _and(ordinary, pc.fill_null(pc.match_substring_regex(own_id, _PRINTABLE), True))
    else:
        own_id = own_id.cast(_TEXT)
    who = pa.nulls(len(rows), _TEXT) if annotator is None else fields.column(annotator).cast(_TEXT)
    table = pa.table({"own_id": own_id, "annotator": who, "position": position, "margin": margin, **texts})
    kept = pc.fill_null(ordinary, False)
    if pc.all(kept).as_py():
        return rows, table
    return rows[kept.to_numpy()], table.filter(kept)


def _and(one: pa.ChunkedArray | None, other: pa.ChunkedArray) -> pa.ChunkedArray:
    return other if one is None else pc.and_(one, other)


def _row_bounds(text: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """Where each row starts and ends in the text's buffer, its line break aside."""
    offsets = np.frombuffer(text.buffers()[1], np.int32)[text.offset : text.offset + len(text) + 1]
    content = np.frombuffer(text.buffers()[2], np.uint8)
    starts, ends = offsets[:-1], offsets[1:].copy()
    for mark in (ord("\n"), ord("\r")):
        ends -= (content[ends - 1] == mark) & (ends > starts)
    # An empty row cannot be; were there one, its bounds would be its neighbours' bytes, which is no { ... }.
    return starts, np.maximum(ends, starts + 1)


def _read_json(text: pa.StringArray, fields: pa.Schema) -> pa.Table:
    offsets = np.frombuffer(text.buffers()[1], np.int32)
    start, end = int(offsets[text.offset]), int(offsets[text.offset + len(text)])
    return pj.read_json(
        pa.BufferReader(text.buffers()[2].slice(start, end - start)),
        read_options=pj.ReadOptions(use_threads=False, block_size=end - start + 1),
        parse_options=pj.ParseOptions(explicit_schema=fields, unexpected_field_behavior="ignore"),
    )
