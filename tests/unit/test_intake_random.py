"""Random rows and random damage: columns say what the rules say row by row, and nothing crashes."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.data.columns import FEWEST_ROWS, LAYOUTS
from rlhf.data.formats import Shape, Unfit, convert, own_id, parse, recognise
from rlhf.data.intake import Intake
from rlhf.errors import DataError
from tests.intake import GOOD, TRL, VERTEX, convert_source, write_rows

texts = st.text(max_size=30) | st.sampled_from(["TL;DR:", " ", "a b", "[x]:", "größe:", "\ud800", "\0", "x" * 40, ":"])
margins = st.sampled_from([1, 0.1, 16_777_217, 0, -0.0, 1e-46, 1e39, "1"]) | st.integers() | st.floats() | st.none()
junk = st.none() | st.booleans() | st.integers() | st.floats() | texts | st.lists(texts, max_size=2) | st.just({"a": 1})
rows = st.fixed_dictionaries(
    {
        "input_text": texts | junk,
        "candidate_0": texts,
        "candidate_1": texts,
        "choice": st.sampled_from([0, 1, 1.0]) | junk,
    },
    optional={
        "id": texts | st.integers(),
        "worker": texts | st.integers(-9, 9),
        "output_text": texts | junk,
        "chosen": st.none() | texts,
        "margin": margins,
        "extra": junk,
    },
)
trl_rows = st.fixed_dictionaries(
    {"prompt": texts, "chosen": texts | junk, "rejected": texts},
    optional={
        "completion": texts | junk,
        "label": texts | junk,
        "choice": st.integers(0, 1) | junk,
        "id": texts | st.integers(),
        "margin": margins,
        "extra": junk,
    },
)


@st.composite
def damaged_lines(draw, kind):
    lines = []
    for row in draw(st.lists(kind, min_size=1, max_size=3 * FEWEST_ROWS)):
        line = json.dumps(row, ensure_ascii=draw(st.booleans())).encode(errors="replace").decode()
        damage = draw(st.integers(0, 9))
        place = draw(st.integers(0, len(line)))
        if damage == 0:
            line = line[:place] + draw(st.text(max_size=3)) + line[place:]
        elif damage == 1:
            line = line[:place] + line[place + 1 :]
        elif damage == 2:
            line = f" {line} \t"
        lines.append(line.encode(errors="replace").decode().replace("\n", " ").replace("\r", " "))
    return lines


def by_row(lines, kind, shape):
    """What the rules say of each line, one by one: (line, texts) of those kept, (line, reason, field) of others."""
    kept, aside = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = parse(line)
            if recognise(row) not in (None, shape):
                return None
            canonical = convert(row, shape, kind)
            if canonical.get("margin") is not None:
                canonical["margin"] = float(np.float32(canonical["margin"]))
            kept.append((number, own_id(row), canonical))
        except Unfit as unfit:
            aside.append((number, str(unfit.reason), unfit.field))
    return kept, aside


@settings(max_examples=300, deadline=None)
@given(st.data())
@pytest.mark.parametrize("shape", [Shape.VERTEX_TEXT, Shape.TRL])
@pytest.mark.parametrize("kind", ["preferences", "prompts", "demonstrations"])
def test_columns_say_of_random_rows_and_damage_what_the_rules_say_row_by_row(shape, kind, data):
    assert (shape, kind) in LAYOUTS
    first = VERTEX | {"output_text": "x y"} if shape is Shape.VERTEX_TEXT else TRL | {"completion": "x y"}
    drawn = data.draw(damaged_lines(rows if shape is Shape.VERTEX_TEXT else trl_rows))
    lines = [json.dumps(first), *drawn, json.dumps(first)]
    expected = by_row(lines, kind, shape)
    with tempfile.TemporaryDirectory() as folder:
        path = write_rows(Path(folder, "a.jsonl"), lines)
        if expected is None:
            with pytest.raises(DataError, match="two shapes"):
                convert_source(path, kind)
            return
        kept, aside = expected
        read = convert_source(path, kind)
    assert [(q["line"], q["reason"], q["field"]) for q in read.quarantined] == aside
    assert [{name: row[name] for name in canonical} for row, (*_, canonical) in zip(read.rows, kept, strict=True)] == [
        canonical for *_, canonical in kept
    ]
    (count,) = read.counts.values()
    assert (count.read, count.kept) == (len(kept) + len(aside), len(kept))
    for row, (_, own, *_) in zip(read.rows, kept, strict=True):
        assert row["own_id"] == own


SPELT = [
    *("1", "0", "-0", "-0.0", "0.1", "1e-46", "16777217", "9007199254740993", "3.4028234663852886e38", "3.4028235e38"),
    *("1e39", "1e400", "-1", "-1e-300", "NaN", "-NaN", "Infinity", "Inf", "nan", "01", ".5", "1."),
    *("true", "null", '"1"', "[1]", "{}"),
]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(SPELT) | st.floats().map(json.dumps) | st.integers().map(str), min_size=1))
@pytest.mark.parametrize(
    "row", [VERTEX | {"candidate_0": "the first"}, TRL | {"prompt": "a post", "chosen": "the one"}]
)
def test_columns_say_of_margins_however_they_are_spelt_what_the_rules_say_row_by_row(row, spelt):
    lines = [f'{json.dumps(row)[:-1]}, "margin": {margin}}}' for margin in ("1", *spelt)]
    kept, aside = by_row(lines, "preferences", recognise(row))
    with tempfile.TemporaryDirectory() as folder:
        read = convert_source(write_rows(Path(folder, "a.jsonl"), lines))
    assert [(q["line"], q["reason"], q["field"]) for q in read.quarantined] == aside
    # As text, for -0.0 equals 0.0 and is another in the digest.
    assert [(r["line"], str(r["margin"])) for r in read.rows] == [(line, str(c["margin"])) for line, _, c in kept]


@pytest.mark.parametrize("row", [VERTEX, TRL | {"prompt": "a post", "chosen": "the one", "rejected": "the other"}])
def test_ordinary_rows_with_margins_are_left_to_the_columns(row, tmp_path, monkeypatch):
    monkeypatch.setattr(Intake, "_convert_row", lambda *_: pytest.fail("left to the slow rules"))
    rows = [row | {"margin": margin} for margin in (None, 0.5, 1, 0, None)]
    write_rows(tmp_path / "a.jsonl", rows)
    table = pa.Table.from_pylist(rows)
    pq.write_table(table.set_column(len(row), "margin", table["margin"].cast(pa.float32())), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        assert [r["margin"] for r in convert_source(tmp_path / name).rows] == [None, 0.5, 1, 0, None]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 400))
def test_random_bytes_are_read_or_refused_with_one_line_and_never_crash(content, place):
    good = (GOOD + "\n").encode() * 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.jsonl")
        path.write_bytes(good[:place] + content + good[place:])
        said, read = "preference_dataset: ", None
        try:
            read = convert_source(path)
        except DataError as error:
            said = str(error)
    assert said.startswith("preference_dataset: ")
    assert "\n" not in said
    if read is not None:
        (count,) = read.counts.values()
        assert count.read == count.kept + count.quarantined
        assert (count.kept, count.quarantined) == (len(read.rows), len(read.quarantined))
