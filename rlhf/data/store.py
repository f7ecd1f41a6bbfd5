"""Canonical datasets: what data_validation writes and every later stage reads.

A dataset is a folder of Parquet shards with `template.json` and `manifest.json` beside them. The manifest is
written last, in one rename, and names every shard: a folder without one is unfinished work, and is never read.
"""

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from pydantic import BaseModel, ConfigDict, ValidationError

from rlhf.data.chat import MESSAGES
from rlhf.data.template import Template
from rlhf.errors import DataError

MANIFEST_NAME = "manifest.json"
CODEC = "none"  # snappy takes a seventh of the stage's time, and saves two fifths of the bytes of real posts

_TEXT = pa.string()


def _schema(*required: str, **other: pa.Field) -> pa.Schema:
    return pa.schema([pa.field(name, _TEXT, nullable=False) for name in required] + list(other.values()))


SCHEMAS = {
    "preferences": _schema(
        *("id", "prompt", "chosen", "rejected", "split"),
        position=pa.field("position", pa.int8()),  # 0 or 1, which candidate as laid out was chosen
        margin=pa.field("margin", pa.float32()),  # by how much chosen is better
    ),
    "prompts": _schema("id", "prompt", reference=pa.field("reference", _TEXT)),
    "demonstrations": _schema("id", "prompt", "completion"),
    "quarantine": pa.schema(
        [
            pa.field("file", _TEXT, nullable=False),
            pa.field("line", pa.int64(), nullable=False),
            pa.field("offset", pa.int64()),
            pa.field("reason", _TEXT, nullable=False),
            pa.field("field", _TEXT, nullable=False),
            pa.field("row", _TEXT, nullable=False),
        ]
    ),
}


def schema_of(kind: str, template: Template) -> pa.Schema:
    """Columns of a dataset of a kind."""
    schema = SCHEMAS[kind]
    return schema.append(pa.field(MESSAGES, _TEXT)) if template.chat_template and "prompt" in schema.names else schema


class Manifest(BaseModel):
    """What a dataset folder holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    rows: int
    columns: list[str]
    digest: str
    """16 hex digits over kind, columns and every value in order; how rows are cut into shards does not matter."""
    template_digest: str
    shards: list[str]


class DatasetWriter:
    """Writes a canonical dataset table by table, in place of what was at `path`; `finish` makes it one.

    Where more is to be done before it is one, `close` takes that place, and `publish` follows.

    The folder is not renamed into place as a whole: where artifacts lie on a mounted bucket, folders cannot be.
    """

    def __init__(
        self,
        path: str | Path,
        kind: str,
        template: Template,
        pool: Executor | None = None,
        bytes_per_shard: int = 64 << 20,
    ):
        """Start; what was there is no dataset from now on.

        Args:
            path: The dataset's folder.
            kind: One of `SCHEMAS`.
            template: How the prompts are to be rendered.
            pool: Threads that compress and write the shards; None writes them at once.
            bytes_per_shard: Memory of the rows that make one Parquet file.
        """
        self.path = Path(path)
        self.rows = 0
        self._kind, self._schema, self._template = kind, schema_of(kind, template), template
        self._pool, self._bytes_per_shard = pool, bytes_per_shard
        self._digest = _Digest(kind, self._schema.names)
        self._shards: list[str] = []
        self._waiting: list[pa.Table] = []
        self._waiting_bytes = 0
        self._writing: Future | None = None
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / MANIFEST_NAME).unlink(missing_ok=True)
        for stale in self.path.glob("part-*.parquet"):
            stale.unlink()

    def write(self, table: pa.Table) -> None:
        """Add rows.

        Args:
            table: The kind's columns, others are left out.

        Raises:
            DataError: A column has a null where the kind allows none.
        """
        table = table.select(self._schema.names)
        for field in self._schema:
            if not field.nullable and (nulls := table[field.name].null_count):
                raise DataError(f"{self._kind}: column {field.name!r} has {nulls} empty values, expected none")
        table = pa.Table.from_arrays(table.columns, schema=self._schema)
        self._digest.update(table)
        self.rows += len(table)
        self._waiting.append(table)
        self._waiting_bytes += table.nbytes
        if self._waiting_bytes >= self._bytes_per_shard:
            self._flush()

    def finish(self) -> Manifest:
        """Write what is left, and the manifest."""
        manifest = self.close()
        publish(self.path, manifest)
        return manifest

    def close(self) -> Manifest:
        """Write what is left; the manifest that makes it a dataset is not written."""
        if self._waiting or not self._shards:
            self._flush()
        if self._writing is not None:
            self._writing.result()
        self._template.save(self.path)
        return Manifest(
            kind=self._kind,
            rows=self.rows,
            columns=self._schema.names,
            digest=self._digest.hex,
            template_digest=self._template.digest,
            shards=self._shards,
        )

    def _flush(self) -> None:
        table = pa.concat_tables(self._waiting or [self._schema.empty_table()])
        name = f"part-{len(self._shards):05d}.parquet"
        self._shards.append(name)
        self._waiting, self._waiting_bytes = [], 0
        if self._pool is None:
            _write_shard(table, self.path / name)
            return
        if self._writing is not None:
            self._writing.result()
        self._writing = self._pool.submit(_write_shard, table, self.path / name)


def publish(path: str | Path, manifest: Manifest) -> None:
    """Make what was written at `path` a dataset, in one rename."""
    unfinished = Path(path) / f".{MANIFEST_NAME}"
    unfinished.write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, Path(path) / MANIFEST_NAME)


def write_dataset(
    path: str | Path,
    kind: str,
    rows: Iterable[dict[str, Any]],
    template: Template,
    rows_per_shard: int = 100_000,
) -> Manifest:
    """Write rows as a canonical dataset, in place of what was at `path`.

    Args:
        path: The dataset's folder.
        kind: One of `SCHEMAS`.
        rows: Dicts of the kind's columns, and `messages` where the template has a chat template. What a row does not
            have is null.
        template: How the prompts are to be rendered.
        rows_per_shard: Rows held in memory, and written as one Parquet file.

    Raises:
        DataError: A row has a null where the kind allows none, or text that is not Unicode.
    """
    writer = DatasetWriter(path, kind, template, bytes_per_shard=0)
    iterator = iter(rows)
    while batch := list(itertools.islice(iterator, rows_per_shard)):
        writer.write(_table(batch, kind, schema_of(kind, template)))
    return writer.finish()


def read_tables(
    path: str | Path, kind: str, manifest: Manifest | None = None
) -> tuple[Iterable[pa.Table], Manifest, Template]:
    """Read a canonical dataset shard by shard.

    Args:
        path: The dataset's folder.
        kind: One of `SCHEMAS`.
        manifest: Of a dataset that is not published yet.

    Returns:
        The shards; the last is followed by the check that the rows are those the manifest was written for. The
        manifest; the template.

    Raises:
        DataError: As `read_dataset`, while the tables are read as far as it concerns them.
    """
    folder = Path(path)
    manifest = manifest or read_manifest(folder)
    columns = SCHEMAS[kind].names
    if manifest.kind != kind or [name for name in manifest.columns if name != MESSAGES] != columns:
        again = "; it was written by another version, run data_validation again" if manifest.kind == kind else ""
        raise DataError(
            f"{folder}: found a dataset of {manifest.kind} ({', '.join(manifest.columns)}), "
            f"expected {kind} ({', '.join(columns)}){again}"
        )
    template = Template.load(folder)
    if template.digest != manifest.template_digest:
        raise DataError(
            f"{folder}: template.json (digest {template.digest}) is not the one the data was written with "
            f"({manifest.template_digest}); run data_validation again"
        )
    return _shards(folder, manifest), manifest, template


def read_dataset(path: str | Path, kind: str) -> tuple[list[dict[str, Any]], Manifest, Template]:
    """Read a canonical dataset whole.

    Returns:
        Rows as dicts of the dataset's columns, in the order written; the manifest; the template.

    Raises:
        DataError: The folder is unfinished or of another kind, files are missing or unreadable, or the rows are not
            those the manifest was written for.
    """
    tables, manifest, template = read_tables(path, kind)
    return [row for table in tables for row in table.to_pylist()], manifest, template


def rewrite_dataset(
    path: str | Path, kind: str, manifest: Manifest, change: Callable[[pa.Table, int], pa.Table]
) -> Manifest:
    """Write a dataset that is not published yet again with its rows changed.

    Args:
        path: The dataset's folder.
        kind: One of `SCHEMAS`.
        manifest: Of what is there.
        change: Called with each shard and the number of rows before it; returns what is to stand there.
    """
    tables, _, template = read_tables(path, kind, manifest)
    folder = Path(path)
    staging = folder.with_name(f".{folder.name}.rewrite")
    try:
        writer = DatasetWriter(staging, kind, template)
        before = 0
        for table in tables:
            writer.write(change(table, before))
            before += len(table)
        changed = writer.close()
        for stale in folder.glob("part-*.parquet"):
            stale.unlink()
        for name in changed.shards:
            os.replace(staging / name, folder / name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return changed


def take_rows(path: str | Path, manifest: Manifest, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """Some rows of a dataset, by their place in it.

    Args:
        path: The dataset's folder.
        manifest: Of what is there.
        numbers: From 0, ascending, each less than the dataset's rows.
    """
    folder = Path(path)
    wanted = np.asarray(numbers, np.int64)
    found: list[dict[str, Any]] = []
    before = 0
    for name in manifest.shards:
        file = pq.ParquetFile(folder / name)
        rows = file.metadata.num_rows
        here = wanted[(wanted >= before) & (wanted < before + rows)] - before
        if len(here):
            found += file.read().take(pa.array(here)).to_pylist()
        before += rows
    return found


def _shards(folder: Path, manifest: Manifest) -> Iterator[pa.Table]:
    columns = manifest.columns
    digest = _Digest(manifest.kind, columns)
    rows = 0
    for name in manifest.shards:
        try:
            table = pq.read_table(folder / name, columns=columns)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{folder / name}: cannot be read as Parquet ({' '.join(str(error).split())})") from error
        digest.update(table)
        rows += len(table)
        yield table
    if digest.hex != manifest.digest:
        raise DataError(
            f"{folder}: {rows} rows with digest {digest.hex}, manifest.json says {manifest.rows} rows with "
            f"{manifest.digest}; the files were changed after data_validation wrote them, run it again"
        )


def _write_shard(table: pa.Table, path: Path) -> None:
    # Texts hardly repeat: a dictionary of them would be built and thrown away.
    pq.write_table(
        table, path, compression=CODEC, use_dictionary=False, write_statistics=False, data_page_version="2.0"
    )


def read_manifest(folder: str | Path) -> Manifest:
    """What a dataset folder holds, without reading its rows.

    Raises:
        DataError: It is no dataset of data_validation's.
    """
    folder = Path(folder)
    path = folder / MANIFEST_NAME
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        found = "a folder without one, as an unfinished run leaves it" if folder.is_dir() else "no such folder"
        raise DataError(f"{path}: {found}; expected a dataset written by data_validation") from error
    except (OSError, ValidationError) as error:
        raise DataError(f"{path}: not a dataset manifest ({' '.join(str(error).split())})") from error


def _table(rows: list[dict[str, Any]], kind: str, schema: pa.Schema) -> pa.Table:
    arrays = []
    for field in schema:
        try:
            array = pa.array([row.get(field.name) for row in rows], type=field.type)
        except (pa.ArrowException, UnicodeEncodeError) as error:
            raise DataError(f"{kind}: column {field.name!r} cannot hold a value ({error})") from error
        if array.null_count and not field.nullable:
            raise DataError(f"{kind}: column {field.name!r} has {array.null_count} empty values, expected none")
        arrays.append(array)
    return pa.Table.from_arrays(arrays, schema=schema)


class _Digest:
    """Over each column's lengths and bytes (of numbers: which are there, and their bytes), so that neither shards nor
    chunks of memory matter."""

    def __init__(self, kind: str, columns: list[str]):
        self._start = json.dumps([kind, columns])
        self._columns = [(xxhash.xxh3_128(), xxhash.xxh3_128()) for _ in columns]

    def update(self, table: pa.Table) -> None:
        for column, (lengths, content) in zip(table.columns, self._columns, strict=True):
            for chunk in column.chunks:
                values = chunk.drop_null()  # under a null there may be anything
                if pa.types.is_string(chunk.type):
                    sizes = pc.fill_null(pc.binary_length(chunk), -1)
                    offsets = np.frombuffer(values.buffers()[1], np.int32)[
                        values.offset : values.offset + len(values) + 1
                    ]
                    if offsets[-1] > offsets[0]:
                        content.update(memoryview(values.buffers()[2])[offsets[0] : offsets[-1]])
                else:
                    sizes = chunk.is_valid()
                    content.update(np.ascontiguousarray(values.to_numpy(zero_copy_only=False)).tobytes())
                lengths.update(np.ascontiguousarray(sizes.to_numpy(zero_copy_only=False)).tobytes())

    @property
    def hex(self) -> str:
        whole = xxhash.xxh3_128(self._start.encode())
        for lengths, content in self._columns:
            whole.update(lengths.digest() + content.digest())
        return whole.hexdigest()[:16]
