"""From converted rows to canonical datasets: ids, keys that make rows comparable, and splits.

A key is XXH3 of a text's bytes: 64 bits, the same on every machine and in every version.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from rlhf.data.chat import MESSAGES
from rlhf.data.formats import Kind
from rlhf.data.intake import TEXTS, Part
from rlhf.data.parallel import ordered_map
from rlhf.data.store import DatasetWriter, Manifest
from rlhf.data.template import Template
from rlhf.data_validation.index import Index
from rlhf.data_validation.suffix import without_marker


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
    index: Index,
    pool: Executor,
    ahead: int,
) -> Written:
    """Write the rows kept as a dataset at `path`, not published yet, and their index under `name`.

    Args:
        eval_fraction: Share of the prompts whose pairs get the split "eval"; others get "train".
        seed: Draws which these are.
        pool, ahead: Threads, and blocks under way at most.
    """
    writer = DatasetWriter(path, kind, template, pool)
    rows = index.writer(name)
    ids = _Ids()
    markers_removed = 0

    def keyed(part: Part) -> tuple[pa.Table, pa.Table, int]:
        return _with_keys(part.kept, kind, template, eval_fraction, seed)

    for texts, keys, removed in ordered_map(pool, keyed, parts, ahead):
        if not len(texts):
            continue
        markers_removed += removed
        numbers = pa.array(np.arange(writer.rows, writer.rows + len(texts)))
        writer.write(texts.set_column(0, "id", ids.unique(texts["id"], keys["id_key"], keys["own"])))
        rows.write(keys.append_column("number", numbers))
    rows.close()
    return Written(Path(path), writer.close(), ids.repeated_own, markers_removed)


def _with_keys(
    kept: pa.Table, kind: Kind, template: Template, eval_fraction: float, seed: int
) -> tuple[pa.Table, pa.Table, int]:
    """The store's columns, with an id that may not be unique yet; the index' columns; markers removed."""
    names = TEXTS[kind]
    column = {name: kept[name].combine_chunks() for name in kept.column_names}
    texts, removed = {"prompt": column["prompt"]}, 0
    for name in names[1:]:
        texts[name], count = _less_marker(column[name], template.suffix)
        removed += count
    bounds = [_stripped(texts[name]) for name in names[1:]]
    prompt_key = _prompt_keys(texts["prompt"], column.get(MESSAGES), template)
    one_key = _keys(texts[names[1]], *bounds[0])
    other_key = _keys(texts[names[2]], *bounds[1]) if len(names) > 2 else np.zeros(len(kept), np.uint64)
    id_key = _mixed(_mixed(_mixed(prompt_key) ^ one_key) ^ other_key)
    id_ = _in_hex(id_key)
    own = pc.is_valid(column["own_id"])
    if pc.any(own).as_py():
        id_ = pc.coalesce(column["own_id"], id_)
        own_key = _keys(column["own_id"], *_bounds(column["own_id"]))
        id_key = np.where(own.to_numpy(zero_copy_only=False), own_key, id_key)
    draw = _mixed(prompt_key ^ _mixed(np.array([seed], np.uint64))) / 2.0**64
    length = {name: pc.utf8_length(pc.utf8_trim_whitespace(texts[name])) for name in names[1:]}
    index = pa.table(
        {
            "file": kept["file"],
            "line": kept["line"],
            "offset_": kept["offset"],
            "annotator": kept["annotator"],
            "position": kept["position"],
            "margin": kept["margin"],
            "prompt_key": prompt_key,
            "draw": draw,
            "one_key": one_key,
            "other_key": other_key,
            "one_chars": length[names[1]],
            "other_chars": length[names[2]] if len(names) > 2 else pa.nulls(len(kept), pa.int32()),
            "id_key": id_key,
            "own": own,
        }
    )
    columns = {"id": id_, **texts}
    if MESSAGES in column:
        columns[MESSAGES] = column[MESSAGES]
    if kind == "preferences":
        columns["split"] = pa.array(np.where(draw < eval_fraction, "eval", "train"), pa.string())
        columns |= {"position": column["position"], "margin": column["margin"]}
    return pa.table(columns), index, removed


def _prompt_keys(prompts: pa.StringArray, messages: pa.StringArray | None, template: Template) -> np.ndarray:
    """The key of each prompt's `Template.body`."""
    keys = _keys(prompts, *_stripped(prompts, template.suffix.strip()))
    if messages is not None:
        for row in np.flatnonzero(messages.is_valid().to_numpy(zero_copy_only=False)).tolist():
            body = template.body(prompts[row].as_py(), messages[row].as_py())
            keys[row] = xxhash.xxh3_64_intdigest(body.encode())
    return keys


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


def _bounds(texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """Where each text starts and ends in its array's bytes; an absent one ends where it starts."""
    offsets = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return offsets[:-1], offsets[1:]


def _stripped(texts: pa.StringArray, mark: str = "") -> tuple[np.ndarray, np.ndarray]:
    """`_bounds` less the whitespace around each text, its mark at the end, and the whitespace before that."""
    starts, ends = _bounds(texts)
    content = np.frombuffer(texts.buffers()[2] or b"", np.uint8)
    if not len(content):
        return starts, ends
    starts, ends = _strip(content, texts, starts, ends)
    if mark:
        wanted = mark.encode()
        marked = ends - starts >= len(wanted)
        for place, byte in enumerate(wanted, -len(wanted)):
            marked &= content[ends + place] == byte
        starts, ends = _strip(content, texts, starts, ends - np.where(marked, len(wanted), 0))
    return starts, ends


def _strip(
    content: np.ndarray, texts: pa.StringArray, starts: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    starts, ends = starts.copy(), ends.copy()
    while (blank := (starts < ends) & _BLANK[content[np.minimum(starts, len(content) - 1)]]).any():
        starts += blank
    while (blank := (starts < ends) & _BLANK[content[ends - 1]]).any():
        ends -= blank
    # Whitespace of more bytes than one ends in few of all bytes, and begins with few.
    wide = (starts < ends) & (_WIDE[content[ends - 1]] | _WIDE[content[np.minimum(starts, len(content) - 1)]])
    for row in np.flatnonzero(wide).tolist():
        text = content[starts[row] : ends[row]].tobytes().decode()
        starts[row] += len(text.encode()) - len(text.lstrip().encode())
        ends[row] = starts[row] + len(text.strip().encode())
    return starts, ends


_SPACES = [character.encode() for character in map(chr, range(0x3001)) if character.isspace()]
_BLANK, _WIDE = np.zeros(256, bool), np.zeros(256, bool)
_BLANK[[space[0] for space in _SPACES if len(space) == 1]] = True
_WIDE[[byte for space in _SPACES if len(space) > 1 for byte in (space[0], space[-1])]] = True


def _keys(texts: pa.StringArray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The key of each text between its bounds; 0 for an absent text."""
    content = memoryview(texts.buffers()[2] or b"")
    key = xxhash.xxh3_64_intdigest
    keys = [key(content[start:end]) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
    keys = np.array(keys, np.uint64)
    return np.where(texts.is_valid().to_numpy(zero_copy_only=False), keys, np.uint64(0)) if texts.null_count else keys


def _less_marker(texts: pa.StringArray, suffix: str) -> tuple[pa.StringArray, int]:
    """`without_marker` of every text, and how many it changed."""
    mark = suffix.strip()
    if not mark:
        return texts, 0
    begins = pc.fill_null(pc.starts_with(pc.utf8_ltrim_whitespace(texts), mark), False)
    rows = np.flatnonzero(begins.to_numpy(zero_copy_only=False))
    if not len(rows):
        return texts, 0
    values = texts.to_pylist()
    removed = 0
    for row in rows.tolist():
        text = without_marker(values[row], suffix)
        removed += text != values[row]
        values[row] = text
    return pa.array(values, pa.string()), removed


class _Ids:
    """Gives each row an id of its own: with a counter where another row has it."""

    def __init__(self):
        self._runs: list[np.ndarray] = []  # sorted keys of the ids in use; each at least twice as long as the next
        self._uses: dict[int, int] = {}
        self.repeated_own = 0

    def unique(self, ids: pa.ChunkedArray, keys: pa.ChunkedArray, own: pa.ChunkedArray) -> pa.Array:
        """The ids of the next rows, none of which was given before."""
        hashes = keys.to_numpy()
        order = np.argsort(hashes, kind="stable")
        new = np.concatenate([[True], hashes[order][1:] != hashes[order][:-1]])
        fresh, first = hashes[order][new], order[new]
        again = np.ones(len(hashes), bool)
        unknown = ~self._given(fresh)
        again[first[unknown]] = False
        self._add(fresh[unknown])
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
                candidate_key = np.array([xxhash.xxh3_64_intdigest(candidate.encode())], np.uint64)
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
        if not len(keys):
            return
        self._runs.append(keys)
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
            last = self._runs.pop()
            self._runs[-1] = np.sort(np.concatenate([self._runs[-1], last]), kind="stable")


def take_some(parts: Iterator[Part], rows: int) -> list[Part]:
    """The first parts, of about so many rows."""
    taken, count = [], 0
    for part in parts:
        taken.append(part)
        count += len(part.kept)
        if count >= rows:
            break
    return taken
