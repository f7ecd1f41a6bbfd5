"""Canonical datasets: what data_validation writes and every later stage reads.

A dataset is a folder of Parquet shards with `template.json` and `manifest.json` beside them. The manifest is
written last, in one rename, and names every shard: a folder without one is unfinished work, and is never read.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from rlhf.data.template import Template
from rlhf.errors import DataError

MANIFEST_NAME = "manifest.json"

_TEXT = pa.string()


def _schema(*required: str, **other: pa.Field) -> pa.Schema:
    return pa.schema([pa.field(name, _TEXT, nullable=False) for name in required] + list(other.values()))


SCHEMAS = {
    "preferences": _schema("id", "prompt", "chosen", "rejected", "split"),
    "prompts": _schema("id", "prompt", reference=pa.field("reference", _TEXT)),
    "demonstrations": _schema("id", "prompt", "completion"),
    "quarantine": pa.schema(
        [
            pa.field("file", _TEXT, nullable=False),
            pa.field("line", pa.int64(), nullable=False),
            pa.field("reason", _TEXT, nullable=False),
            pa.field("field", _TEXT, nullable=False),
            pa.field("row", _TEXT, nullable=False),
        ]
    ),
}


class Manifest(BaseModel):
    """What a dataset folder holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    rows: int
    columns: list[str]
    digest: str
    """16 hex digits over kind, columns and every row in order; how rows are cut into shards does not matter."""
    template_digest: str
    shards: list[str]


def write_dataset(
    path: str | Path,
    kind: str,
    rows: Iterable[dict[str, Any]],
    template: Template,
    rows_per_shard: int = 100_000,
) -> Manifest:
    """Write rows as a canonical dataset, in place of what was at `path`.

    The folder is not renamed into place as a whole: where artifacts lie on a mounted bucket, folders cannot be.

    Args:
        path: The dataset's folder.
        kind: One of `SCHEMAS`.
        rows: Dicts with exactly the kind's columns.
        template: How the prompts are to be rendered.
        rows_per_shard: Rows held in memory, and written as one Parquet file.

    Raises:
        DataError: A row has a null where the kind allows none, or text that is not Unicode.
    """
    schema = SCHEMAS[kind]
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    for stale in folder.glob("part-*.parquet"):
        stale.unlink()

    digest = _Digest(kind, schema.names)
    shards: list[str] = []
    iterator = iter(rows)
    while (batch := list(itertools.islice(iterator, rows_per_shard))) or not shards:
        name = f"part-{len(shards):05d}.parquet"
        pq.write_table(_table(batch, kind, schema), folder / name, compression="zstd")
        digest.update(batch)
        shards.append(name)
    template.save(folder)
    manifest = Manifest(
        kind=kind,
        rows=digest.rows,
        columns=schema.names,
        digest=digest.hex,
        template_digest=template.digest,
        shards=shards,
    )
    unfinished = folder / f".{MANIFEST_NAME}"
    unfinished.write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, folder / MANIFEST_NAME)
    return manifest


def read_dataset(path: str | Path, kind: str) -> tuple[list[dict[str, Any]], Manifest, Template]:
    """Read a canonical dataset whole.

    Returns:
        Rows as dicts of the kind's columns, in the order written; the manifest; the template.

    Raises:
        DataError: The folder is unfinished or of another kind, files are missing or unreadable, or the rows are not
            those the manifest was written for.
    """
    folder = Path(path)
    manifest = _read_manifest(folder)
    columns = SCHEMAS[kind].names
    if manifest.kind != kind or manifest.columns != columns:
        raise DataError(
            f"{folder}: found a dataset of {manifest.kind} ({', '.join(manifest.columns)}), "
            f"expected {kind} ({', '.join(columns)})"
        )
    template = Template.load(folder)
    if template.digest != manifest.template_digest:
        raise DataError(
            f"{folder}: template.json (digest {template.digest}) is not the one the data was written with "
            f"({manifest.template_digest}); run data_validation again"
        )
    digest = _Digest(kind, columns)
    rows: list[dict[str, Any]] = []
    for name in manifest.shards:
        try:
            batch = pq.read_table(folder / name, columns=columns).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{folder / name}: cannot be read as Parquet ({' '.join(str(error).split())})") from error
        digest.update(batch)
        rows.extend(batch)
    if digest.hex != manifest.digest:
        raise DataError(
            f"{folder}: {digest.rows} rows with digest {digest.hex}, manifest.json says {manifest.rows} rows with "
            f"{manifest.digest}; the files were changed after data_validation wrote them, run it again"
        )
    return rows, manifest, template


def _read_manifest(folder: Path) -> Manifest:
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
            array = pa.array([row[field.name] for row in rows], type=field.type)
        except (pa.ArrowException, UnicodeEncodeError) as error:
            raise DataError(f"{kind}: column {field.name!r} cannot hold a value ({error})") from error
        if array.null_count and not field.nullable:
            raise DataError(f"{kind}: column {field.name!r} has {array.null_count} empty values, expected none")
        arrays.append(array)
    return pa.Table.from_arrays(arrays, schema=schema)


class _Digest:
    def __init__(self, kind: str, columns: list[str]):
        self.rows = 0
        self._columns = columns
        self._hash = hashlib.sha256(json.dumps([kind, columns]).encode())

    def update(self, rows: list[dict[str, Any]]) -> None:
        self.rows += len(rows)
        for row in rows:
            self._hash.update(json.dumps([row[name] for name in self._columns]).encode())

    @property
    def hex(self) -> str:
        return self._hash.hexdigest()[:16]
