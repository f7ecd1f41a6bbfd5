"""From converted rows to canonical datasets: ids, keys that make rows comparable, and splits.

What the checks of whole datasets need of a row stands in a DuckDB database on disk, in tables `preferences`,
`prompts`, `evaluation` and `demonstrations` (`INDEX_COLUMNS`): keys in place of texts, so that millions of rows are
compared in little memory. A key is the lower half of an MD5 digest: 64 bits, the same on every machine and in every
version.
"""

import hashlib
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rlhf.data.formats import Kind
from rlhf.data.intake import TEXTS, Part
from rlhf.data.parallel import ordered_map
from rlhf.data.store import DatasetWriter, Manifest
from rlhf.data.template import Template
from rlhf.data_validation.suffix import without_marker

DATABASE_MEMORY = "400MB"  # beyond it DuckDB works on disk
ROWS_PER_INSERT = 100_000

INDEX_COLUMNS = {
    "number": "BIGINT",  # place in the dataset, from 0
    "file": "INTEGER",  # place in the source's files
    "line": "BIGINT",
    "offset_": "BIGINT",
    "annotator": "VARCHAR",
    "position": "TINYINT",  # which candidate was chosen, as laid out
    "prompt_key": "UBIGINT",  # of the prompt less its suffix and the whitespace around it
    "draw": "DOUBLE",  # in [0, 1), by the prompt and the seed alone
    "prompt_chars": "INTEGER",
    "one_key": "UBIGINT",  # chosen, completion or reference, less whitespace around it; 0 for none
    "other_key": "UBIGINT",  # rejected
    "one_chars": "INTEGER",
    "other_chars": "INTEGER",
}


def open_database(folder: Path) -> duckdb.DuckDBPyConnection:
    """A database on disk for the index of every dataset."""
    connection = duckdb.connect(str(folder / "index.duckdb"))
    connection.execute(f"set memory_limit = '{DATABASE_MEMORY}'")
    connection.execute("set preserve_insertion_order = false")
    return connection


@dataclass
class Written:
    """A canonical dataset, and what was noticed while it was written."""

    path: Path
    manifest: Manifest
    repeated_ids: int = 0
    """Rows whose own id another row already had, so that a counter was added."""
    markers_removed: int = 0
    """Texts that began with the suffix's marker, which was taken off."""


def write_canonical(
    name: str,
    kind: Kind,
    parts: Iterable[Part],
    path: str | Path,
    template: Template,
    eval_fraction: float,
    seed: int,
    database: duckdb.DuckDBPyConnection,
    pool: Executor,
    ahead: int,
) -> Written:
    """Write the rows kept as a dataset at `path`, and their index as table `name`.

    Args:
        eval_fraction: Share of the prompts whose pairs get the split "eval"; others get "train".
        seed: Draws which these are.
        pool, ahead: Threads, and blocks under way at most.
    """
    columns = ", ".join(f"{column} {kind_}" for column, kind_ in INDEX_COLUMNS.items())
    database.execute(f"create or replace table {name} ({columns})")
    writer = DatasetWriter(path, kind, template, pool)
    ids = _Ids()
    index: list[pa.Table] = []
    markers_removed = 0

    def keyed(part: Part) -> tuple[pa.Table, pa.Table, int]:
        return _with_keys(part.kept, kind, template, eval_fraction, seed)

    def insert() -> None:
        if index:
            rows = pa.concat_tables(index)
            database.from_arrow(rows).insert_into(name)
            index.clear()

    for texts, keys, removed in ordered_map(pool, keyed, parts, ahead):
        if not len(texts):
            continue
        markers_removed += removed
        numbers = pa.array(np.arange(writer.rows, writer.rows + len(texts)))
        writer.write(texts.set_column(0, "id", ids.unique(texts["id"], keys["id_key"], keys["own"])))
        keys = keys.append_column("number", numbers).select([*INDEX_COLUMNS])
        index.append(keys)
        if sum(map(len, index)) >= ROWS_PER_INSERT:
            insert()
    insert()
    return Written(Path(path), writer.finish(), ids.repeated_own, markers_removed)


def _with_keys(
    kept: pa.Table, kind: Kind, template: Template, eval_fraction: float, seed: int
) -> tuple[pa.Table, pa.Table, int]:
    """The store's columns, with an id that may not be unique yet; the index' columns; markers removed."""
    names = TEXTS[kind]
    texts, removed = {}, 0
    for name in names:
        texts[name], count = (kept[name], 0) if name == "prompt" else _less_marker(kept[name], template.suffix)
        removed += count
    others = [pc.utf8_trim_whitespace(texts[name]) for name in names[1:]]
    inputs = pa.table(
        {
            "own_id": kept["own_id"],
            "body": bodies(texts["prompt"], template),
            "one": others[0],
            "other": others[1] if len(others) > 1 else pa.nulls(len(kept), pa.string()),
        }
    )
    hashed = _duckdb().from_arrow(inputs).query("inputs", _KEYS).to_arrow_table()
    prompt_key, one_key, other_key = (hashed[name].to_numpy() for name in ("prompt_key", "one_key", "other_key"))
    id_key = _mixed(_mixed(_mixed(prompt_key) ^ one_key) ^ other_key)
    id_ = _in_hex(id_key)
    own = pc.is_valid(kept["own_id"])
    if pc.any(own).as_py():
        id_ = pc.coalesce(kept["own_id"], id_)
        id_key = np.where(own.to_numpy(), hashed["own_key"].to_numpy(), id_key)
    draw = _mixed(prompt_key ^ _mixed(np.array([seed], np.uint64))) / 2.0**64
    length = {name: pc.utf8_length(text) for name, text in texts.items()}
    index = pa.table(
        {
            "file": kept["file"],
            "line": kept["line"],
            "offset_": kept["offset"],
            "annotator": kept["annotator"],
            "position": kept["position"],
            "prompt_key": prompt_key,
            "draw": draw,
            "prompt_chars": length["prompt"],
            "one_key": one_key,
            "other_key": other_key,
            "one_chars": length[names[1]],
            "other_chars": length[names[2]] if len(names) > 2 else pa.nulls(len(kept), pa.int32()),
            "id_key": id_key,
            "own": own,
        }
    )
    columns = {"id": id_, **texts}
    if kind == "preferences":
        columns["split"] = pa.array(np.where(draw < eval_fraction, "eval", "train"), pa.string())
    return pa.table(columns), index, removed


_KEYS = """
    select md5_number_lower(body) as prompt_key, coalesce(md5_number_lower(one), 0) as one_key,
        coalesce(md5_number_lower(other), 0) as other_key, coalesce(md5_number_lower(own_id), 0) as own_key
    from inputs
"""


def _mixed(keys: np.ndarray) -> np.ndarray:
    """SplitMix64 (Steele et al. 2014): every bit of the result depends on every bit of the key."""
    keys = keys + np.uint64(0x9E3779B97F4A7C15)
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))


def _in_hex(keys: np.ndarray) -> pa.StringArray:
    """Each key as 16 hex digits."""
    digits = keys.astype(">u8").tobytes().hex().encode()
    offsets = np.arange(0, len(digits) + 1, 16, dtype=np.int32)
    return pa.StringArray.from_buffers(len(keys), pa.py_buffer(offsets), pa.py_buffer(digits))


_threads = threading.local()


def _duckdb() -> duckdb.DuckDBPyConnection:
    """A connection of this thread's own, that uses no thread besides."""
    if not hasattr(_threads, "connection"):
        _threads.connection = duckdb.connect(config={"threads": 1})
    return _threads.connection


def bodies(prompts: pa.ChunkedArray, template: Template) -> pa.ChunkedArray:
    """`Template.body` of every prompt."""
    mark = template.suffix.strip()
    trimmed = pc.utf8_trim_whitespace(prompts)
    if not mark:
        return trimmed
    ends = pc.ends_with(trimmed, mark)
    if not pc.any(ends).as_py():
        return trimmed
    cut = pc.binary_slice(trimmed.cast(pa.binary()), 0, -len(mark.encode())).cast(pa.string())
    return pc.if_else(ends, pc.utf8_trim_whitespace(cut), trimmed)


def _less_marker(texts: pa.ChunkedArray, suffix: str) -> tuple[pa.ChunkedArray, int]:
    """`without_marker` of every text, and how many it changed."""
    mark = suffix.strip()
    if not mark:
        return texts, 0
    begins = pc.fill_null(pc.starts_with(pc.utf8_ltrim_whitespace(texts), mark), False)
    rows = np.flatnonzero(begins.to_numpy())
    if not len(rows):
        return texts, 0
    values = texts.to_pylist()
    removed = 0
    for row in rows.tolist():
        text = without_marker(values[row], suffix)
        removed += text != values[row]
        values[row] = text
    return pa.chunked_array([pa.array(values, pa.string())]), removed


class _Ids:
    """Gives each row an id of its own: with a counter where another row has it."""

    def __init__(self):
        self._runs: list[np.ndarray] = []  # sorted keys of the ids in use; each at least twice as long as the next
        self._uses: dict[int, int] = {}
        self.repeated_own = 0

    def unique(self, ids: pa.ChunkedArray, keys: pa.ChunkedArray, own: pa.ChunkedArray) -> pa.Array:
        """The ids of the next rows, none of which was given before."""
        hashes = keys.to_numpy()
        fresh, first = np.unique(hashes, return_index=True)
        again = np.ones(len(hashes), bool)
        again[first[~self._given(fresh)]] = False
        self._add(fresh)
        rows = np.flatnonzero(again).tolist()
        if not rows:
            return ids
        values, own_ids = ids.to_pylist(), own.to_pylist()
        for row in rows:
            key = int(hashes[row])
            self.repeated_own += own_ids[row]
            while True:
                self._uses[key] = self._uses.get(key, 1) + 1
                candidate = f"{values[row]}-{self._uses[key]}"
                candidate_key = np.array([_key(candidate)], np.uint64)
                if not self._given(candidate_key)[0]:
                    break
            self._add(candidate_key)
            values[row] = candidate
        return pa.array(values, pa.string())

    def _given(self, keys: np.ndarray) -> np.ndarray:
        given = np.zeros(len(keys), bool)
        for run in self._runs:
            places = np.searchsorted(run, keys)
            given |= run[np.minimum(places, len(run) - 1)] == keys
        return given

    def _add(self, keys: np.ndarray) -> None:
        self._runs.append(keys)
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
            last = self._runs.pop()
            self._runs[-1] = np.union1d(self._runs[-1], last)


def _key(text: str) -> int:
    """As DuckDB's md5_number_lower."""
    return int.from_bytes(hashlib.md5(text.encode(), usedforsecurity=False).digest()[8:], "little")


def take_some(parts: Iterator[Part], rows: int) -> list[Part]:
    """The first parts, of about so many rows."""
    taken, count = [], 0
    for part in parts:
        taken.append(part)
        count += len(part.kept)
        if count >= rows:
            break
    return taken
