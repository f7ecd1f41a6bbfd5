"""Rows of Parquet: read as columns, so many bytes at a time, and what lines would have given."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf.data import sources
from rlhf.data.columns import pick_columns
from tests.intake import VERTEX, chats, convert_source, read_source, write_rows


def test_the_columns_of_parquet_are_read_like_lines(tmp_path):
    rows = [
        VERTEX | {"choice": n % 2, "input_text": f"Post {n}.", "margin": n % 3 or None, "score": 5} for n in range(100)
    ]
    rows.append(rows[0] | {"choice": None})
    lines = read_source(write_rows(tmp_path / "a.jsonl", rows))
    texts = (pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string()))
    numbers = ((pa.int8(), pa.uint64()), (pa.float32(), pa.float16()), (pa.float64(), pa.float32()))
    schemas = [pa.schema(zip(rows[0], (*texts, *types, pa.int8()), strict=True)) for types in numbers]
    for schema in (None, *schemas):
        pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "a.parquet")
        parquet = read_source(tmp_path / "a.parquet")
        assert parquet.rows == lines.rows
        assert [(q["line"], q["offset"], q["reason"]) for q in parquet.quarantined] == [(101, None, "bad_choice")]
        assert json.loads(parquet.quarantined[0]["row"]) == rows[-1]


def test_parquet_is_read_so_many_bytes_at_a_time_however_long_its_rows_are(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BLOCK_BYTES", 1 << 16)
    rows = [VERTEX | {"input_text": f"{n} " * 3_000} for n in range(100)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    same = [VERTEX | {"input_text": "The same post. " * 1_000}] * 100  # of which the file holds one
    pq.write_table(pa.Table.from_pylist(same), tmp_path / "b.parquet")
    source = sources.Source(str(tmp_path / "*.parquet"), "preference_dataset")
    blocks = [piece.block() for piece in source.pieces()]
    assert max(block.nbytes for block in blocks) < 2 << 16
    assert len(blocks) > 20
    assert [block.line[0].as_py() for block in blocks[:2]] == [1, 1 + len(blocks[0])]
    assert sum(map(len, blocks)) == 200


@pytest.mark.parametrize("damage", [{}, {"choice": None}])
def test_a_row_of_parquet_that_is_too_long_is_put_aside_as_a_line_is(tmp_path, damage):
    long = VERTEX | {"extra": "x" * (4 << 20)} | damage
    short = VERTEX | {"extra": None}
    rows = [short, long, short | {"input_text": "x y " * (1 << 18)}, long, short]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    write_rows(tmp_path / "a.jsonl", rows)
    lines, parquet = (convert_source(tmp_path / name, "prompts") for name in ("a.jsonl", "a.parquet"))
    for read in (lines, parquet):
        assert [(q["line"], q["reason"], q["field"]) for q in read.quarantined] == [
            (2, "too_long", ""),
            (4, "too_long", ""),
        ]
        assert [row["line"] for row in read.rows] == [1, 3, 5]
    assert json.loads(parquet.quarantined[0]["row"]) == long


def test_a_dictionary_of_many_texts_does_not_make_its_rows_too_long(tmp_path):
    rows = [VERTEX | {"input_text": f"{n} " * 10_000} for n in range(300)]
    schema = pa.schema({**dict.fromkeys(VERTEX, pa.string()), "choice": pa.int8()})
    schema = schema.set(0, pa.field("input_text", pa.dictionary(pa.int32(), pa.string())))
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "a.parquet")
    assert len(convert_source(tmp_path / "a.parquet", "prompts").rows) == 300


@pytest.mark.parametrize("kind", ["preferences", "prompts", "demonstrations"])
def test_a_conversation_is_the_same_where_parquet_gives_every_message_every_field(tmp_path, kind):
    candidates = {"candidate_0": "one", "candidate_1": "zero", "choice": 0}
    rows = chats("author", **candidates)
    inside = [{"messages": [*row["messages"][:-1], {"author": "assistant", **candidates}]} for row in chats("author")]
    if kind == "preferences":
        rows = [{**row, "messages": row["messages"][:-1]} for row in rows] + inside
    for name, some in (("a", rows), ("b", inside[:1] + rows[:1])):
        lines = convert_source(write_rows(tmp_path / f"{name}.jsonl", some), kind)
        whole = [dict.fromkeys(candidates) | row for row in some]
        pq.write_table(pa.Table.from_pylist(whole), tmp_path / f"{name}.parquet")
        read = convert_source(tmp_path / f"{name}.parquet", kind)
        origin = {"offset": None}
        assert [row | origin for row in read.rows] == [row | origin for row in lines.rows]
        assert [(q["line"], q["reason"]) for q in read.quarantined] == [
            (q["line"], q["reason"]) for q in lines.quarantined
        ]
        assert lines.rows


def test_ids_of_64_bits_without_a_sign_are_read_as_columns_where_they_fit(tmp_path):
    rows = [VERTEX | {"input_text": f"Post {n}."} for n in range(20)]
    ids = pa.array(range(20), pa.uint64())
    pq.write_table(pa.Table.from_pylist(rows).append_column("id", ids), tmp_path / "a.parquet")
    (block,) = [piece.block() for piece in sources.Source(str(tmp_path / "a.parquet"), "preference_dataset").pieces()]
    found, _ = pick_columns(block, pa.schema([("id", pa.int64())]))
    assert len(found) == 20
