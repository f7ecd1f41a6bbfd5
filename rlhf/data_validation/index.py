"""What the checks of whole datasets need of each row: where it stands, and keys in place of its texts.

A Parquet file for each dataset, that DuckDB sees as a table (a view) of the dataset's name. So millions of rows are
compared in little memory.
"""

from pathlib import Path
from typing import Any, Self

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

MEMORY = "400MB"  # beyond it DuckDB works on disk
ROWS_PER_GROUP = 100_000

SCHEMA = pa.schema(
    {
        "number": pa.int64(),  # place in the dataset, from 0
        "file": pa.int32(),  # place in the source's files
        "line": pa.int64(),
        "offset_": pa.int64(),
        "annotator": pa.string(),
        "position": pa.int8(),  # which candidate was chosen, as laid out
        "margin": pa.float32(),
        "prompt_key": pa.uint64(),  # of `Template.body`: the prompt less its suffix and the whitespace around it
        "draw": pa.float64(),  # in [0, 1), by the prompt and the seed alone
        "one_key": pa.uint64(),  # chosen, completion or reference, less whitespace around it; 0 for none
        "other_key": pa.uint64(),  # rejected
        "one_chars": pa.int32(),  # whitespace around it aside
        "other_chars": pa.int32(),
    }
)


class Index:
    """The index of every dataset, in a folder that is thrown away."""

    def __init__(self, folder: str | Path):
        self._folder = Path(folder)
        self._connection = duckdb.connect(
            config={"memory_limit": MEMORY, "temp_directory": str(folder), "preserve_insertion_order": False}
        )
        self._files = 0
        self._files_of: dict[str, Path] = {}
        self._added: dict[str, dict[str, str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._connection.close()

    def writer(self, dataset: str) -> "IndexWriter":
        """For the rows of a dataset; it is seen once the writer is closed."""
        return IndexWriter(self, dataset, self._new_file())

    def query(self, query: str, *parameters: Any) -> list[tuple]:
        """Rows of a SELECT; each dataset is a table of its name, with the columns of `SCHEMA`."""
        return self._connection.execute(query, list(parameters)).fetchall()

    def column(self, query: str, *parameters: Any) -> list[Any]:
        """The only column of a SELECT."""
        return [value for (value,) in self.query(query, *parameters)]

    def join(self, table: pa.Table, query: str) -> list[tuple]:
        """As `query`, with `table` as a table of the name `given`."""
        self._connection.register("given", table)
        try:
            return self.query(query)
        finally:
            self._connection.unregister("given")

    def replace(self, dataset: str, query: str, given: pa.Table | None = None) -> None:
        """Let a dataset be what a SELECT gives, numbered anew in the order of `number`; `given` as in `join`."""
        if given is not None:
            self._connection.register("given", given)
        path = self._new_file()
        columns = ", ".join(name for name in SCHEMA.names if name != "number")
        self._connection.execute(
            f"copy (select row_number() over (order by number) - 1 as number, {columns} from ({query})) "
            f"to '{path}' (format parquet)"
        )
        self.see(dataset, path)

    def add_column(self, dataset: str, name: str, expression: str) -> None:
        """Let a dataset have a further column, or another one of that name; also when it is replaced."""
        self._added.setdefault(dataset, {})[name] = expression
        self.see(dataset, self._files_of[dataset])

    def see(self, dataset: str, path: Path) -> None:
        """Let a dataset be a Parquet file, with the columns that were added to it."""
        self._files_of[dataset] = path
        added = "".join(f", {expression} as {name}" for name, expression in self._added.get(dataset, {}).items())
        self._connection.execute(f"create or replace view {dataset} as select *{added} from read_parquet('{path}')")

    def _new_file(self) -> Path:
        self._files += 1
        return self._folder / f"index-{self._files}.parquet"


class IndexWriter:
    """Writes the index of one dataset."""

    def __init__(self, index: Index, dataset: str, path: Path):
        self._index, self._dataset, self._path = index, dataset, path
        self._file = pq.ParquetWriter(path, SCHEMA, compression="none", use_dictionary=False)
        self._waiting: list[pa.Table] = []

    def write(self, rows: pa.Table) -> None:
        """Add rows of `SCHEMA`'s columns, others are left out."""
        self._waiting.append(pa.Table.from_arrays(rows.select(SCHEMA.names).columns, schema=SCHEMA))
        if sum(map(len, self._waiting)) >= ROWS_PER_GROUP:
            self._flush()

    def close(self) -> None:
        """Let it be seen."""
        self._flush()
        self._file.close()
        self._index.see(self._dataset, self._path)

    def _flush(self) -> None:
        if self._waiting:
            self._file.write_table(pa.concat_tables(self._waiting).combine_chunks())
            self._waiting.clear()
