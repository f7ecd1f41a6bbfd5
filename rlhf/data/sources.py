"""Reading the user's files: from URIs to blocks of rows, naming what stands in a file that is not the data it says.

Nothing is parsed here beyond what tells rows apart: `rlhf.data.intake` does that.
"""

import contextlib
import glob
import gzip
import io
import json
import re
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from rlhf.data.file_systems import file_system, redacted
from rlhf.data.formats import LONGEST_ROW_BYTES
from rlhf.data.parallel import ordered_map
from rlhf.errors import DataError

BLOCK_BYTES = 6 << 20  # rows are read, parsed and checked so much at a time
LONGEST_LINE_BYTES = 256 << 20
ROWS_PER_PARQUET_BLOCK = 4096
FILES_AT_ONCE = 16  # small files fetched ahead: a store answers each after a while, however small

_EXTENSIONS = (".jsonl", ".json", ".parquet")
_UTF8_BOM = b"\xef\xbb\xbf"
_CUT_OFF = "unexpected end of data"  # what Python says of bytes that end within a character


@dataclass(frozen=True)
class Block:
    """Consecutive rows, not parsed: as JSON texts, or as columns of a Parquet file."""

    file: pa.Int32Array
    """Position in `Source.files`."""
    line: pa.Int64Array
    """From 1: the line of JSON lines, the element of a JSON array, the row of a Parquet file."""
    offset: pa.Int64Array
    """Bytes before the row in its file, unpacked; null where the file holds no lines."""
    text: pa.StringArray | None
    """Each row's JSON, perhaps with its line break; None for Parquet."""
    columns: pa.RecordBatch | None = None

    def __len__(self) -> int:
        return len(self.line)

    @cached_property
    def too_long(self) -> list[int]:
        """Rows of Parquet that are too long in memory, and as JSON; lines are measured where they are parsed."""
        if self.text is not None:
            return []
        rows = _longer_than(LONGEST_ROW_BYTES, self.columns)
        return [row for row in rows if len(self.row_text(row).encode()) > LONGEST_ROW_BYTES]

    @property
    def nbytes(self) -> int:
        """Memory of the rows."""
        return (self.columns if self.text is None else self.text).nbytes

    def row_text(self, index: int) -> str:
        """The row whole: its line, or as JSON where the file holds no lines."""
        if self.text is not None:
            return self.text[index].as_py().rstrip("\r\n")
        return as_json(self.row_value(index))

    def row_value(self, index: int) -> Any:
        """A row of Parquet as a dict."""
        return self.columns.slice(index, 1).to_pylist()[0]


@dataclass(frozen=True)
class Lines:
    """Whole lines of a file as they were read, not told apart yet."""

    source: "Source"
    file: int
    line: int
    """Of the first."""
    offset: int
    content: np.ndarray
    """(bytes,)"""
    ends: np.ndarray
    """Where each line ends, its line break included."""

    def __len__(self) -> int:
        return len(self.content)

    def block(self) -> Block:
        """Their rows.

        Raises:
            DataError: They are not UTF-8.
        """
        content, ends = self.content, self.ends
        starts = np.concatenate([[0], ends[:-1]])
        bounds = np.concatenate([starts, ends[-1:]]).astype(np.int32)
        text = pa.StringArray.from_buffers(len(ends), pa.py_buffer(bounds), pa.py_buffer(content))
        try:
            text.validate(full=True)
        except pa.ArrowInvalid as error:
            raise self._not_utf8(starts) from error
        columns = (
            pa.array(np.full(len(ends), self.file, np.int32)),
            pa.array(np.arange(self.line, self.line + len(ends))),
            pa.array(starts + self.offset),
            text,
        )
        firsts = content[starts]
        odd = np.flatnonzero((firsts <= ord(" ")) | (firsts >= 0x80))  # others are not blank
        blank = [row for row in odd.tolist() if not content[starts[row] : ends[row]].tobytes().decode().strip()]
        if blank:
            rows = pa.array(np.delete(np.arange(len(ends)), blank))
            columns = tuple(column.take(rows) for column in columns)
        return Block(*columns)

    def _not_utf8(self, starts: np.ndarray) -> DataError:
        file = self.source.files[self.file]
        for number, (start, end) in enumerate(zip(starts, self.ends, strict=True), self.line):
            try:
                self.content[start:end].tobytes().decode()
            except UnicodeDecodeError as error:
                if error.reason == _CUT_OFF and self.content[end - 1] != ord("\n"):
                    return self.source.error(f"{file}:{number}", "the file is cut off within this row; copy it again")
                what = f"is not UTF-8 text (byte {error.start + 1}); save it as UTF-8"
                return self.source.error(f"{file}:{number}", what)
        return self.source.error(f"{file}:{self.line}", "is not UTF-8 text; save it as UTF-8")


@dataclass(frozen=True)
class Piece:
    """Rows as they were read: lines of one or several files, or a block that is made already."""

    parts: Sequence[Lines | Block]

    def block(self) -> Block:
        """The rows.

        Raises:
            DataError: They are not UTF-8.
        """
        blocks = [part if isinstance(part, Block) else part.block() for part in self.parts]
        if len(blocks) == 1:
            return blocks[0]
        columns = ([getattr(block, name) for block in blocks] for name in ("file", "line", "offset", "text"))
        return Block(*(pa.concat_arrays(arrays) for arrays in columns))


class Source:
    """The files that one parameter names; `bytes_read` of their `size` bytes, as stored, were read so far."""

    def __init__(self, uris: str, parameter: str):
        """Find the files; none is opened yet.

        Args:
            uris: Paths or URIs of any protocol fsspec knows, globs among them, separated by commas.
            parameter: Whose value it is, for messages.

        Raises:
            DataError: A file does not exist or is named twice, a glob matches nothing, a name has no known extension,
                or a protocol is unknown or needs a package that is not installed.
        """
        self.parameter = parameter
        self.bytes_read = 0
        self._sizes: dict[str, int] = {}
        self._files: dict[str, tuple[Any, str]] = {}
        for uri in (part.strip() for part in uris.split(",")):
            for file, fs, path, size in self._find(uri):
                if file in self._files:
                    raise self.error(file, "is named twice, its rows would count double")
                if not file.split("?")[0].lower().removesuffix(".gz").endswith(_EXTENSIONS):
                    raise self.error(file, "unknown kind of file, expected .jsonl, .json or .parquet, each also .gz")
                self._files[file], self._sizes[file] = (fs, path), size
        self.files = list(self._files)
        """The files' names, in the order they are read."""
        self.size = sum(self._sizes.values())

    def infos(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each file's name, and what its store says of it."""
        for file, (fs, path) in self._files.items():
            yield file, fs.info(path)

    def pieces(self) -> Iterator[Piece]:
        """Every row of every file, in order; a blank line is none. Rows of small files come together in one piece.

        Raises:
            DataError: A file cannot be read, is empty, not UTF-8 (when the block is made), a web page or a git-LFS
                pointer. The message names the parameter, the file and, where there is one, the line.
        """
        few: list[Lines | Block] = []
        size = 0
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            for index, data in ordered_map(pool, self._open, enumerate(self.files), FILES_AT_ONCE):
                for part in self._parts_of(index, data):
                    if isinstance(part, Block) and part.text is None:
                        yield from [Piece(few)] if few else []
                        yield Piece([part])
                        few, size = [], 0
                        continue
                    few.append(part)
                    size += part.text.nbytes if isinstance(part, Block) else len(part)
                    if size >= BLOCK_BYTES:
                        yield Piece(few)
                        few, size = [], 0
        if few:
            yield Piece(few)
        self.bytes_read = self.size

    def texts(self, wanted: dict[str, set[int]]) -> Iterator[tuple[str, int, str]]:
        """Rows again as they stand in their files: (file, line, text) of the `wanted` {file: lines}."""
        for index, file in enumerate(self.files):
            if file in wanted:
                lines = list(wanted[file])
                for part in self._parts_of(*self._open((index, file))):
                    block = Piece([part]).block()
                    for row in np.flatnonzero(np.isin(block.line.to_numpy(), lines)).tolist():
                        yield file, block.line[row].as_py(), block.row_text(row)

    def error(self, place: str, what: str) -> DataError:
        """An error of this source, to be raised."""
        return DataError(redacted(f"{self.parameter}: {place}: {what}"))

    def _find(self, uri: str) -> list[tuple[str, Any, str, int]]:
        """Each file's name, its file system, its path there and its bytes (0 where a server does not tell)."""
        if not uri:
            raise DataError(f"{self.parameter}: found an empty name, expected paths or URIs separated by commas")
        try:
            fs, path = file_system(uri)
        except ImportError as error:
            raise self.error(
                uri, f"needs a package that is not installed where data_validation runs ({_one_line(error)})"
            ) from error
        except ValueError as error:
            raise self.error(uri, _one_line(error)) from error
        try:
            # Otherwise a web server that is gone, fails or denies is taken for one that has no such file.
            exists = fs.exists(path, strict=True) if _is_web(fs) else fs.exists(path)
            pattern = r"[*\[]" if _is_web(fs) else r"[*?\[]"
            if not exists and re.search(pattern, path):
                infos = self._matches(fs, path)
                problem = None if infos else "this pattern matches no file"
            else:
                infos = [fs.info(path)] if exists else []
                is_folder = exists and infos[0]["type"] == "directory"
                problem = f"is a folder, expected files, such as {uri.rstrip('/')}/*.jsonl" if is_folder else None
                problem = problem if exists else "no such file"
        except DataError:
            raise
        except Exception as error:  # each file system's client has exceptions of its own
            raise self.error(uri, f"cannot be listed ({type(error).__name__}: {_one_line(error)})") from error
        if problem:
            raise self.error(uri, problem)
        local = isinstance(fs, LocalFileSystem)
        return [
            (
                info["name"] if local else redacted(fs.unstrip_protocol(info["name"])),
                fs,
                info["name"],
                info.get("size") or 0,
            )
            for info in infos
        ]

    def _matches(self, fs: Any, pattern: str) -> list[dict[str, Any]]:
        """What the file system says of the files that a pattern matches; of a link, of what it points to."""
        if isinstance(fs, LocalFileSystem) and "**" not in pattern:  # fsspec's own goes into no folder that is a link
            found = {path: {} for path in glob.glob(pattern, include_hidden=True)}
        else:
            found = fs.glob(pattern, detail=True)
        infos = []
        for path, info in sorted(found.items()):
            if info.get("type") != "directory" and (info.get("type") != "file" or info.get("size") is None):
                try:
                    info = fs.info(path)
                except FileNotFoundError as error:
                    raise self.error(
                        path, "is a link to what is not there; put the file in its place, or delete the link"
                    ) from error
            if info["type"] != "directory":
                infos.append(info)
        return infos

    def _open(self, numbered: tuple[int, str]) -> tuple[int, IO[bytes]]:
        """A small file is fetched whole, a large one opened to be read as it is needed."""
        index, file = numbered
        fs, path = self._files[file]
        with self._errors(file):
            if 0 < self._sizes[file] <= BLOCK_BYTES:
                content = fs.cat_file(path)
                stored, size = io.BytesIO(content), len(content)
            elif _is_web(fs):  # a web server may tell no size, and know no ranges
                stored = tempfile.TemporaryFile()  # noqa: SIM115 - closed by whoever reads it
                fs.get_file(path, stored)
                size = stored.tell()
                stored.seek(0)
            else:
                stored = fs.open(path, "rb")
                size = getattr(stored, "size", None)
            if size is not None and size < self._sizes[file]:
                listed = f"{self._sizes[file]:,} when it was listed"
                raise self.error(file, f"has {size:,} bytes, {listed}; it was changed meanwhile, run again")
            return index, stored

    def _parts_of(self, index: int, stored: IO[bytes]) -> Iterator[Lines | Block]:
        file = self.files[index]
        before = self.bytes_read
        empty = True
        with contextlib.closing(stored), self._errors(file):
            for part in self._rows_of(index, file, stored):
                empty = empty and _is_blank(part)
                self.bytes_read = before + stored.tell()
                yield part
        if empty:
            raise self.error(file, "is empty, expected at least one row")
        self.bytes_read = before + self._sizes[file]

    @contextlib.contextmanager
    def _errors(self, file: str) -> Iterator[None]:
        try:
            yield
        except DataError:
            raise
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise self.error(file, "its gzip data is cut off or damaged; copy the file again") from error
        except pa.ArrowException as error:
            raise self.error(file, f"cannot be read as Parquet ({_one_line(error)})") from error
        except FileNotFoundError as error:
            raise self.error(file, "was there when the files were listed and is gone; run again") from error
        except Exception as error:  # each file system's client has exceptions of its own
            if isinstance(self._files[file][0], LocalFileSystem) and not isinstance(error, OSError):
                raise
            raise self.error(file, f"cannot be read ({type(error).__name__}: {_one_line(error)})") from error

    def _rows_of(self, index: int, file: str, stored: IO[bytes]) -> Iterator[Lines | Block]:
        # What a file is, its first bytes say: a server may have unpacked a .gz, and an error page may bear any name.
        data: IO[bytes] = stored
        if _peek(stored, 2) == b"\x1f\x8b":
            data = gzip.GzipFile(fileobj=io.BufferedReader(stored, BLOCK_BYTES))  # it asks for 8 KiB at a time
        head = _peek(data, 4096)
        text = head.removeprefix(_UTF8_BOM).lstrip()
        if text.startswith(b"version https://git-lfs"):
            raise self.error(file, "is a git-LFS pointer, not the data; run `git lfs pull` where it was checked out")
        if text.startswith(b"<"):
            raise self.error(f"{file}:1", "is a web page (HTML or XML), not data; download the raw file")
        if head.startswith(b"PAR1"):
            return _parquet_blocks(index, data)
        if head and file.lower().removesuffix(".gz").endswith(".parquet"):
            raise self.error(file, "is not Parquet, though named so")
        if head.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise self.error(f"{file}:1", "is UTF-16 text, expected UTF-8")
        return self._array_blocks(index, data) if text.startswith(b"[") else self._lines(index, data)

    def _lines(self, index: int, data: IO[bytes]) -> Iterator[Lines]:
        line, offset = 1, 0
        if _peek(data, 3) == _UTF8_BOM:
            offset = len(data.read(3))
        rest = np.empty(0, np.uint8)
        while True:
            buffer = np.empty(len(rest) + BLOCK_BYTES, np.uint8)
            buffer[: len(rest)] = rest
            read = data.readinto(memoryview(buffer)[len(rest) :])
            content = buffer[: len(rest) + read]
            ends = np.flatnonzero(content == ord("\n")) + 1
            if not read:
                ends = np.array([len(content)])
            if not len(content):
                return
            if not len(ends):
                rest = content
                if len(rest) > LONGEST_LINE_BYTES:
                    raise self.error(
                        f"{self.files[index]}:{line}",
                        f"a line of more than {LONGEST_LINE_BYTES:,} bytes, expected one JSON object per line",
                    )
                continue
            yield Lines(self, index, line, offset, content[: ends[-1]], ends)
            line += len(ends)
            offset += int(ends[-1])
            rest = content[ends[-1] :]

    def _array_blocks(self, index: int, data: IO[bytes]) -> Iterator[Block]:
        file = self.files[index]
        content = data.read().removeprefix(_UTF8_BOM)
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            if error.reason == _CUT_OFF:
                raise self.error(file, "a JSON array that is cut off; copy the file again") from error
            raise self.error(file, f"is not UTF-8 text (byte {error.start + 1}); save it as UTF-8") from error
        try:
            values = json.loads(text, object_pairs_hook=_with_each_field_once)
        except json.JSONDecodeError as error:
            what = f"a JSON array that is malformed or cut off ({_one_line(error)})"
            raise self.error(f"{file}:{error.lineno}", what) from error
        except (ValueError, RecursionError) as error:
            raise self.error(file, f"a JSON array that cannot be read ({_one_line(error)})") from error
        for start in range(0, len(values), ROWS_PER_PARQUET_BLOCK):
            part = values[start : start + ROWS_PER_PARQUET_BLOCK]
            yield _unlined(index, start, pa.array([as_json(value) for value in part], pa.string()))


def _with_each_field_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # A row of an array has no text of its own that could be put aside whole.
    if twice := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
        raise ValueError(f"a row has the field {twice[0]!r} twice, and one of its values would be lost")
    return dict(pairs)


def as_json(value: Any) -> str:
    """A row that stands on no line of its own, as JSON."""
    # A lone surrogate is no text; spelt out it is the JSON escape it came from.
    return json.dumps(value, ensure_ascii=False, default=str).encode(errors="backslashreplace").decode()


def _parquet_blocks(index: int, data: IO[bytes]) -> Iterator[Block]:
    whole = io.BytesIO(data.read()) if isinstance(data, gzip.GzipFile) else data  # Parquet is read from its end
    file = pq.ParquetFile(whole)
    groups = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
    row_bytes = max((group.total_byte_size / group.num_rows for group in groups if group.num_rows), default=0)
    start = 0
    for batch in file.iter_batches(_rows_per_block(row_bytes)):
        # The file says less where a text that stands in several rows is kept once.
        rows = _rows_per_block(batch.nbytes / max(1, len(batch)))
        for first in range(0, len(batch), rows):
            yield _unlined(index, start + first, None, batch.slice(first, rows))
        start += len(batch)


def _rows_per_block(row_bytes: float) -> int:
    return max(1, min(ROWS_PER_PARQUET_BLOCK, int(BLOCK_BYTES / max(1, row_bytes))))


def _longer_than(limit: int, rows: pa.RecordBatch, start: int = 0) -> list[int]:
    """Rows of more memory than `limit`, found by halves; `start` is the number of the first."""
    if rows.nbytes <= limit:
        return []
    if len(rows) == 1:
        return [start]
    half = len(rows) // 2
    return _longer_than(limit, rows.slice(0, half), start) + _longer_than(limit, rows.slice(half), start + half)


def _unlined(index: int, start: int, text: pa.StringArray | None, columns: pa.RecordBatch | None = None) -> Block:
    rows = len(columns if text is None else text)
    lines = pa.array(np.arange(start + 1, start + 1 + rows))
    return Block(pa.array(np.full(rows, index, np.int32)), lines, pa.nulls(rows, pa.int64()), text, columns)


def _is_blank(part: Lines | Block) -> bool:
    if isinstance(part, Block):
        return not len(part)
    return not (part.content[:4096].tobytes().strip() or part.content.tobytes().decode(errors="replace").strip())


def _is_web(fs: Any) -> bool:
    return "http" in fs.protocol


def _peek(data: IO[bytes], size: int) -> bytes:
    head = data.read(size)
    data.seek(0)
    return head


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or "timed out"
