"""Reading the user's files: from URIs to rows, naming what stands in a file that is not the data it is called."""

import contextlib
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from rlhf.errors import DataError

_EXTENSIONS = (".jsonl", ".json", ".parquet")
_UTF8_BOM = b"\xef\xbb\xbf"


class Row(NamedTuple):
    """One row as it stands in a file."""

    file: str
    line: int
    """From 1: the line of JSON lines, the element of a JSON array, the row of a Parquet file."""
    text: str
    """The row whole: its line, or as JSON where the file holds no lines."""
    value: Any
    """Parsed; None where `text` is not JSON."""


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
                    raise self._error(file, "is named twice, its rows would count double")
                if not file.split("?")[0].lower().removesuffix(".gz").endswith(_EXTENSIONS):
                    raise self._error(file, "unknown kind of file, expected .jsonl, .json or .parquet, each also .gz")
                self._files[file], self._sizes[file] = (fs, path), size
        self.size = sum(self._sizes.values())

    @property
    def files(self) -> list[str]:
        """The files' names, in the order they are read."""
        return list(self._files)

    def rows(self) -> Iterator[Row]:
        """Every row of every file; a blank line is none.

        Raises:
            DataError: A file cannot be read, is cut off, empty, not UTF-8, a web page or a git-LFS pointer. The message
                names the parameter, the file and, where there is one, the line.
        """
        before = 0
        for file, (fs, path) in self._files.items():
            with contextlib.closing(self._open(file, fs, path)) as stored:
                empty = True
                try:
                    for row in self._rows_of(file, stored):
                        empty = False
                        self.bytes_read = before + stored.tell()
                        yield row
                except (EOFError, zlib.error) as error:
                    raise self._error(file, "its gzip data is cut off or damaged; copy the file again") from error
                except pa.ArrowException as error:
                    raise self._error(file, f"cannot be read as Parquet ({_one_line(error)})") from error
                except DataError:
                    raise
                except Exception as error:  # each file system's client has exceptions of its own
                    if isinstance(fs, LocalFileSystem) and not isinstance(error, OSError):
                        raise
                    raise self._error(file, f"cannot be read ({type(error).__name__}: {_one_line(error)})") from error
                if empty:
                    raise self._error(file, "is empty, expected at least one row")
            before += self._sizes[file]
        self.bytes_read = self.size

    def _error(self, place: str, what: str) -> DataError:
        return DataError(f"{self.parameter}: {place}: {what}")

    def _find(self, uri: str) -> list[tuple[str, Any, str, int]]:
        """Each file's name, its file system, its path there and its bytes (0 where a server does not tell)."""
        if not uri:
            raise DataError(f"{self.parameter}: found an empty name, expected paths or URIs separated by commas")
        try:
            fs, path = fsspec.core.url_to_fs(uri)
        except ImportError as error:
            raise self._error(
                uri, f"needs a package that is not installed where data_validation runs ({_one_line(error)})"
            ) from error
        except ValueError as error:
            raise self._error(uri, _one_line(error)) from error
        try:
            exists = fs.exists(path)
            if not exists and re.search(r"[*?\[]", path):
                paths = [match for match in sorted(fs.glob(path)) if fs.isfile(match)]
                problem = None if paths else "this pattern matches no file"
            else:
                paths = [path]
                is_folder = exists and fs.isdir(path)
                problem = f"is a folder, expected files, such as {uri.rstrip('/')}/*.jsonl" if is_folder else None
                problem = problem if exists else "no such file"
            sizes = [] if problem else [fs.size(match) or 0 for match in paths]
        except Exception as error:  # each file system's client has exceptions of its own
            raise self._error(uri, f"cannot be listed ({type(error).__name__}: {_one_line(error)})") from error
        if problem:
            raise self._error(uri, problem)
        local = isinstance(fs, LocalFileSystem)
        names = paths if local else map(fs.unstrip_protocol, paths)
        return [(name, fs, match, size) for name, match, size in zip(names, paths, sizes, strict=True)]

    def _open(self, file: str, fs: Any, path: str) -> IO[bytes]:
        try:
            return fs.open(path, "rb")
        except Exception as error:  # each file system's client has exceptions of its own
            raise self._error(file, f"cannot be opened ({type(error).__name__}: {_one_line(error)})") from error

    def _rows_of(self, file: str, stored: IO[bytes]) -> Iterator[Row]:
        # What a file is, its first bytes say: a server may have unpacked a .gz, and an error page may bear any name.
        data: IO[bytes] = stored
        if _peek(stored, 2) == b"\x1f\x8b":
            data = gzip.GzipFile(fileobj=stored)
        head = _peek(data, 4096)
        text = head.removeprefix(_UTF8_BOM).lstrip()
        if text.startswith(b"version https://git-lfs"):
            raise self._error(file, "is a git-LFS pointer, not the data; run `git lfs pull` where it was checked out")
        if text.startswith(b"<"):
            raise self._error(f"{file}:1", "is a web page (HTML or XML), not data; download the raw file")
        if head.startswith(b"PAR1"):
            return _parquet_rows(file, data)
        if head and file.lower().removesuffix(".gz").endswith(".parquet"):
            raise self._error(file, "is not Parquet, though named so")
        if head.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise self._error(f"{file}:1", "is UTF-16 text, expected UTF-8")
        return self._array_rows(file, data) if text.startswith(b"[") else self._line_rows(file, data)

    def _line_rows(self, file: str, data: IO[bytes]) -> Iterator[Row]:
        for number, line in enumerate(io.BufferedReader(data, 1 << 20), 1):  # type: ignore[type-var]
            place = f"{file}:{number}"
            raw = line.removeprefix(_UTF8_BOM) if number == 1 else line
            text = self._decode(raw, place).rstrip("\r\n")
            if not text.strip():
                continue
            if text.strip() == "{":
                raise self._error(place, "a row spread over several lines, expected one JSON object per line")
            try:
                value = json.loads(text)
            except (ValueError, RecursionError) as error:
                at_end = isinstance(error, json.JSONDecodeError) and error.pos >= len(text.rstrip())
                if not line.endswith(b"\n") and text.startswith("{") and (at_end or not text.endswith("}")):
                    raise self._error(place, "the file is cut off within this row; copy it again") from error
                value = None
            yield Row(file, number, text, value)

    def _array_rows(self, file: str, data: IO[bytes]) -> Iterator[Row]:
        content = data.read().removeprefix(_UTF8_BOM)
        text = self._decode(content, file)
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            place = f"{file}:{error.lineno}" if isinstance(error, json.JSONDecodeError) else file
            raise self._error(place, f"a JSON array that is malformed or cut off ({_one_line(error)})") from error
        for number, value in enumerate(values, 1):
            yield Row(file, number, _as_json(value), value)

    def _decode(self, content: bytes, place: str) -> str:
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise self._error(place, f"is not UTF-8 text (byte {error.start + 1}); save it as UTF-8") from error


def _parquet_rows(file: str, data: IO[bytes]) -> Iterator[Row]:
    if isinstance(data, gzip.GzipFile):  # Parquet is read from its end
        data = io.BytesIO(data.read())
    values = (value for batch in pq.ParquetFile(data).iter_batches(10_000) for value in batch.to_pylist())
    for number, value in enumerate(values, 1):
        yield Row(file, number, _as_json(value), value)


def _as_json(value: Any) -> str:
    # A lone surrogate is no text; spelt out it is the JSON escape it came from.
    return json.dumps(value, ensure_ascii=False, default=str).encode(errors="backslashreplace").decode()


def _peek(data: IO[bytes], size: int) -> bytes:
    head = data.read(size)
    data.seek(0)
    return head


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
