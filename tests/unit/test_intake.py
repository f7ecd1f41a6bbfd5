"""From files to canonical rows and the quarantine: nothing lost, nothing miscounted."""

import gzip
import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf.data import intake, sources
from rlhf.data.formats import Shape
from rlhf.data.intake import Intake
from rlhf.errors import DataError
from tests.intake import GOOD, TRL, VERTEX, chats, convert_source, read_source, write_rows


def test_nothing_is_lost_and_the_quarantine_holds_rows_whole(tmp_path):
    lines = ["{}", "no json", json.dumps(TRL), "5", '{"prompt":  "P",  "chosen": "x"}', "null", json.dumps(TRL)]
    a = write_rows(tmp_path / "a.jsonl", lines)
    b = write_rows(tmp_path / "b.jsonl", [TRL])
    result = read_source(tmp_path / "*.jsonl")
    assert {file: (c.read, c.kept, c.quarantined) for file, c in result.counts.items()} == {a: (7, 2, 5), b: (1, 1, 0)}
    assert [(q["file"], q["line"], q["reason"], q["field"], q["row"]) for q in result.quarantined] == [
        (a, 1, "missing_field", "prompt", "{}"),
        (a, 2, "not_json", "", "no json"),
        (a, 4, "not_json", "", "5"),
        (a, 5, "missing_field", "rejected", lines[4]),
        (a, 6, "not_json", "", "null"),
    ]
    content = Path(a).read_bytes()
    for q in result.quarantined:
        assert content[q["offset"] :].startswith(q["row"].encode() + b"\n")


def test_two_shapes_in_one_source_are_an_error_naming_both(tmp_path):
    rows = [TRL, TRL, VERTEX]
    with pytest.raises(
        DataError, match=r"^preference_dataset: .*TRL / CarperAI at .*a.jsonl:1 and Vertex text at .*a.jsonl:3"
    ):
        read_source(write_rows(tmp_path / "a.jsonl", rows))


def conversation(role: str, **changes) -> dict:
    """A preference of Vertex's or of TRL's; null where a field is changed to that."""
    messages = [{role: "user", "content": "Hi?"}]
    if role == "author":
        return {"messages": messages, "candidate_0": "one", "candidate_1": "zero", "choice": 0} | changes
    replies = {name: [{role: "assistant", "content": text}] for name, text in (("chosen", "one"), ("rejected", "zero"))}
    return {"prompt": messages, **replies} | changes


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(
    ("role", "damage", "field"),
    [
        ("author", {"messages": []}, "messages"),
        ("author", {"messages": None}, "messages"),
        ("author", {"messages": [{"content": "Hi?"}]}, "role"),
        ("role", {"chosen": []}, "chosen"),
        ("role", {"prompt": "Hi?", "chosen": []}, "chosen"),
        ("role", {"prompt": "Hi?", "chosen": None, "rejected": None}, "chosen"),
        ("role", {"prompt": None, "chosen": None, "rejected": None}, "chosen"),
        ("role", {"prompt": None, "rejected": []}, "rejected"),
    ],
)
def test_a_conversation_that_lacks_something_is_put_aside_and_no_other_shape(tmp_path, role, damage, field, first):
    rows = [conversation(role, **damage), conversation(role), conversation(role, id="x")]
    read = read_source(write_rows(tmp_path / "a.jsonl", rows if first else rows[::-1]))
    assert (len(read.rows), [(q["reason"], q["field"]) for q in read.quarantined]) == (2, [("missing_field", field)])


def test_prompts_alone_are_of_the_shape_of_what_stands_beside_them(tmp_path):
    alone, chat = {"prompt": "A post."}, {"prompt": [{"role": "user", "content": "Hi?"}]}
    assert read_source(write_rows(tmp_path / "a.jsonl", [alone]), "prompts").shape is Shape.TRL
    read = read_source(write_rows(tmp_path / "a.jsonl", [alone, chat]), "prompts")
    assert (read.shape, [row["prompt"] for row in read.rows]) == (
        Shape.TRL_CHAT,
        ["user: A post.\nassistant:", "user: Hi?\nassistant:"],
    )


def test_completions_labelled_undesired_are_put_aside_among_demonstrations(tmp_path):
    rows = [{"prompt": "A post.", "completion": f"answer number {n}", "label": n != 1} for n in range(3)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for source in (path, tmp_path / "a.parquet"):
        read = read_source(source, "demonstrations")
        assert [row["completion"] for row in read.rows] == ["answer number 0", "answer number 2"]
        assert [(q["line"], q["reason"], q["field"]) for q in read.quarantined] == [(2, "undesired", "label")]
        references = [row["reference"] for row in read_source(source, "prompts").rows]
        assert references == ["answer number 0", None, "answer number 2"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([None, "jane", None, "jim"], [None, "jane", None, "jim"]),
        ([None, 3, None, 12], [None, "3", None, "12"]),
        ([3.0, None, 12.0, 0.5], ["3", None, "12", None]),
        ([None, None, None, 3.0], [None, None, None, "3"]),
    ],
)
def test_annotators_may_be_missing_and_numbers_may_be_floats(tmp_path, name, given, expected):
    rows = [TRL | {"chosen": f"one {n}", "annotator": who} for n, who in enumerate(given)]
    write_rows(tmp_path / "a.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert [row["annotator"] for row in convert_source(tmp_path / name).rows] == expected


def test_an_annotator_with_half_a_character_is_kept_as_its_escape(tmp_path):
    rows = [json.dumps(TRL | {"annotator": "\ud800 b"}), json.dumps(TRL | {"chosen": "one", "annotator": "c"})]
    write_rows(tmp_path / "a.jsonl", rows)
    assert [row["annotator"] for row in convert_source(tmp_path / "a.jsonl").rows] == ["\\ud800 b", "c"]


def test_a_column_of_annotators_counts_though_the_first_block_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "ROWS_PER_PARQUET_BLOCK", 2)
    rows = [TRL | {"chosen": f"one {n}", "worker_id": None if n < 3 else n} for n in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert [row["annotator"] for row in convert_source(tmp_path / "a.parquet").rows] == [None, None, None, "3", "4"]


def test_annotators_count_though_the_first_block_names_none(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BLOCK_BYTES", 1)
    rows = [TRL | {"chosen": f"one {n}"} for n in range(4)]
    rows[3] |= {"worker": "jane"}
    files = ",".join(write_rows(tmp_path / f"{n}.jsonl", [row]) for n, row in enumerate(rows))
    assert [row["annotator"] for row in convert_source(files).rows] == [None, None, None, "jane"]


def test_a_source_of_unknown_shape_is_refused_before_it_is_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BLOCK_BYTES", 1 << 10)
    monkeypatch.setattr(intake, "UNKNOWN_BYTES", 1 << 14)
    source = sources.Source(write_rows(tmp_path / "a.jsonl", [{"question": "?" * 90}] * 10_000), "preference_dataset")
    with ThreadPoolExecutor(1) as pool, pytest.raises(DataError, match=r"a.jsonl:1: found the fields question, exp"):
        list(Intake(source, "preferences", None).parts(pool, 2))
    assert source.bytes_read < source.size / 10


def test_lines_that_are_no_rows_do_not_hide_the_shape_of_those_that_follow(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BLOCK_BYTES", 1 << 10)
    monkeypatch.setattr(intake, "UNKNOWN_BYTES", 1 << 14)
    read = convert_source(write_rows(tmp_path / "a.jsonl", ["?" * 90] * 1_000 + [TRL] * 5))
    assert (read.shape, len(read.rows), len(read.quarantined)) == (Shape.TRL, 5, 1_000)


def test_unknown_fields_are_an_error_naming_them_and_the_known_shapes(tmp_path):
    rows = ["?", {"question": "a", "answer": "b"}]
    with pytest.raises(
        DataError, match=r"a.jsonl:2: found the fields question, answer, expected .* Vertex text: .*HH-RLHF"
    ):
        read_source(write_rows(tmp_path / "a.jsonl", rows))


@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        (GOOD + "\n" + GOOD[:-1], 2, "cut off"),
        (GOOD + "\n" + GOOD[:30], 2, "cut off"),
        (GOOD + "\n" + GOOD.replace(": 1}", ": tru"), 2, "cut off"),
        (json.dumps(VERTEX, indent=1), 1, "spread over several lines"),
    ],
)
def test_a_file_that_ends_within_a_row_or_lays_rows_out_on_lines_is_an_error(tmp_path, content, line, says):
    (tmp_path / "a.jsonl").write_text(content)
    (tmp_path / "b.jsonl").write_text(GOOD)
    with pytest.raises(DataError, match=rf"^preference_dataset: .*a.jsonl:{line}: .*{says}"):
        read_source(tmp_path / "*.jsonl")


def test_ids_are_the_rows_own_or_of_the_content_and_never_twice_the_same(tmp_path):
    def ids(*rows):
        read = read_source(write_rows(tmp_path / "a.jsonl", rows))
        return [row["id"] for row in read.rows], read.repeated_ids

    given_ids, repeated = ids(
        TRL, TRL | {"id": "x"}, TRL, TRL | {"id": "x"}, TRL | {"id": " "}, TRL | {"id": [7]}, TRL | {"id": "x-2"}
    )
    content = given_ids[0]
    assert given_ids == [content, "x", f"{content}-2", "x-3", f"{content}-3", f"{content}-4", "x-2"]
    assert repeated == 1
    assert ids(*(TRL | {"id": name} for name in ("x-2", "x", "x", "x")))[0] == ["x-2", "x", "x-3", "x-4"]
    assert ids(*(TRL | {"id": name} for name in (7, 8, 7, True)))[0] == ["7", "8", "7-2", content]
    assert ids(TRL | {"chosen": "other"})[0] != [content]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([2**64 - 1, 2**63, 7], [str(2**64 - 1), str(2**63), "7"]),
        ([7, 2**64 - 1, 2**63], ["7", str(2**64 - 1), str(2**63)]),
        ([3.0, None, 12.0, 0.5], ["3", None, "12", None]),
        ([None, -3.0, float("inf"), 4.0], [None, "-3", None, "4"]),
    ],
)
def test_ids_are_whole_numbers_however_they_are_kept(tmp_path, name, given, expected):
    write_rows(tmp_path / "a.jsonl", [VERTEX | {"id": id_} for id_ in given])
    ids = pa.array(given, pa.uint64() if 2**63 in given else pa.float64())
    pq.write_table(pa.Table.from_pylist([VERTEX] * len(given)).append_column("id", ids), tmp_path / "a.parquet")
    assert [row["own_id"] for row in convert_source(tmp_path / name).rows] == expected


def test_ids_are_unique_across_blocks_and_the_same_however_blocks_are_cut(tmp_path, monkeypatch):
    path = write_rows(tmp_path / "a.jsonl", [TRL | {"rejected": f"zero {n % 50}"} for n in range(400)])
    whole = read_source(path)
    monkeypatch.setattr(sources, "BLOCK_BYTES", 700)
    cut = read_source(path)
    assert cut.rows == whole.rows
    assert len({row["id"] for row in cut.rows}) == 400


def test_messages_are_read_where_the_prompt_beside_them_is_null(tmp_path):
    rows = [row | {"prompt": None, "chosen": None, "rejected": None} for row in chats("role")]
    for kind in ("prompts", "demonstrations"):
        read = convert_source(write_rows(tmp_path / "a.jsonl", rows), kind)
        assert [row["prompt"].count("user: ") for row in read.rows] == [1, 2]


def test_fields_of_an_annotators_name_deeper_in_rows_are_looked_at_a_few_times_only(tmp_path, monkeypatch):
    rows = [TRL | {"chosen": f"one {n}", "metadata": {"worker": n}} for n in range(500)]
    looked = []
    value = intake._value
    monkeypatch.setattr(intake, "_value", lambda block, index: looked.append(index) or value(block, index))
    assert {row["annotator"] for row in convert_source(write_rows(tmp_path / "a.jsonl", rows)).rows} == {None}
    assert len(looked) < 50


# Damage, each of one kind


def damaged(line: str) -> tuple[str, str, str]:
    """Reason, field and text in quarantine of a row among good ones."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.jsonl")
        path.write_bytes(b"\n".join([GOOD.encode()] * 20 + [line.encode()] + [GOOD.encode()] * 20) + b"\n")
        read = read_source(path)
    (row,) = read.quarantined
    assert (row["line"], row["offset"]) == (21, 20 * (len(GOOD) + 1))
    assert len(read.rows) == 40
    return row["reason"], row["field"], row["row"]


@pytest.mark.parametrize(
    ("line", "reason", "field"),
    [
        ("no json", "not_json", ""),
        (GOOD[:-9], "not_json", ""),
        (GOOD + ",", "not_json", ""),
        (GOOD + GOOD, "not_json", ""),
        (f"[{GOOD}]", "not_json", ""),
        (GOOD.replace("A post.", "A \0 post."), "not_json", ""),
        (GOOD.replace("A post.", "A \t post."), "not_json", ""),
        (GOOD.replace(": 1}", ': 1, "input_text": "Another post."}'), "duplicate_field", "input_text"),
        (GOOD.replace(": 1}", ': 1, "choice": 0}'), "duplicate_field", "choice"),
        (GOOD.replace("A post.", "A \\ud800 post."), "not_text", "input_text"),
        (GOOD.replace('"A post."', "5"), "not_text", "input_text"),
        (GOOD.replace('"the first"', "5.5"), "not_text", "candidate_0"),
        (GOOD.replace('"the first"', "NaN"), "not_text", "candidate_0"),
        (GOOD.replace('"the first"', "null"), "missing_field", "candidate_0"),
        (GOOD.replace('"the first"', '["the first"]'), "not_text", "candidate_0"),
        (GOOD.replace(": 1}", ': "1"}'), "bad_choice", "choice"),
        (GOOD.replace(": 1}", ": 2}"), "bad_choice", "choice"),
        (GOOD.replace(": 1}", ": -1}"), "bad_choice", "choice"),
        (GOOD.replace(": 1}", ": 0.5}"), "bad_choice", "choice"),
        (GOOD.replace(": 1}", ": null}"), "bad_choice", "choice"),
        (GOOD.replace(": 1}", ": true}"), "bad_choice", "choice"),
        (GOOD.replace(": 1}", ": NaN}"), "bad_choice", "choice"),
        (GOOD.replace(": 1}", ": Infinity}"), "bad_choice", "choice"),
        (GOOD.replace(', "choice": 1', ""), "missing_field", "choice"),
        *(
            (GOOD.replace(": 1}", f': 1, "margin": {margin}}}'), "bad_margin", "margin")
            for margin in ("-1", "-1e-300", "NaN", "Infinity", "1e400", "1" * 400, "3.5e38", '"1"', "true", "[1]")
        ),
        (GOOD.replace(": 1}", ': 1, "margin": 1, "margin": 1}'), "duplicate_field", "margin"),
        (GOOD.replace("the first", " \u3000\u2028"), "blank_candidate", "chosen"),
        (GOOD.replace("A post.", "\xa0"), "blank_prompt", "prompt"),
        (GOOD.replace("the second", "TL;DR:"), "bare_suffix", "chosen"),
        (GOOD.replace("the second", "[größe]:"), "bare_suffix", "chosen"),
        (GOOD.replace("the second", " the first "), "equal_candidates", ""),
        (GOOD.replace("A post.", "x" * (4 << 20)), "too_long", ""),
        (GOOD.replace(": 1}", ': 2, "extra": ' + "[" * 9000 + "]" * 9000 + "}"), "not_json", ""),
    ],
)
def test_a_damaged_row_is_put_aside_alone_and_whole(line, reason, field):
    if reason == "blank_candidate":
        field = "rejected"
    assert damaged(line) == (reason, field, line)


def test_numbers_that_mean_0_and_1_are_choices(tmp_path):
    for choice, chosen in (("1", "the second"), ("1.0", "the second"), ("0", "the first"), ("-0.0", "the first")):
        path = tmp_path / "a.jsonl"
        path.write_text(GOOD.replace(": 1}", f": {choice}}}") + "\n")
        assert [row["chosen"] for row in read_source(path).rows] == [chosen]


def test_one_line_of_50_mb_is_put_aside_whole_and_what_follows_is_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(GOOD + "\n" + GOOD.replace("A post.", "x" * 50_000_000) + "\n" + GOOD + "\n")
    read = read_source(path)
    assert (len(read.rows), [(q["line"], q["reason"]) for q in read.quarantined]) == (2, [(2, "too_long")])
    assert len(read.quarantined[0]["row"]) == len(GOOD) + 50_000_000 - len("A post.")


def test_a_file_that_is_one_endless_line_is_an_error_and_not_held_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "LONGEST_LINE_BYTES", 1 << 20)
    (tmp_path / "a.jsonl").write_text(GOOD + "\n" + " " * (20 << 20))
    with pytest.raises(DataError, match=r"a.jsonl:2: a line of more than 1,048,576 bytes, expected one JSON object"):
        read_source(tmp_path / "a.jsonl")


def test_ten_thousand_tiny_shards_are_read_in_order(tmp_path):
    for n in range(10_000):
        (tmp_path / f"{n:05}.jsonl").write_text(json.dumps(VERTEX | {"input_text": f"Post {n}."}))
    read = read_source(tmp_path / "*.jsonl")
    assert [row["prompt"] for row in read.rows] == [f"Post {n}." for n in range(10_000)]
    assert all((c.read, c.kept) == (1, 1) for c in read.counts.values())


def test_a_file_that_vanishes_after_it_was_listed_is_named(tmp_path):
    write_rows(tmp_path / "a.jsonl", [VERTEX])
    gone = write_rows(tmp_path / "b.jsonl", [VERTEX])
    source = sources.Source(str(tmp_path / "*.jsonl"), "preference_dataset")
    os.remove(gone)
    with pytest.raises(DataError, match=r"^preference_dataset: .*b.jsonl: was there when the files were listed"):
        list(source.pieces())


def test_rows_can_be_read_again_by_their_lines(tmp_path):
    lines = [GOOD, "", "no json", json.dumps(TRL)]
    plain = write_rows(tmp_path / "a.jsonl", lines)
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(Path(plain).read_bytes()))
    source = sources.Source(f"{plain},{packed}", "x")
    assert list(source.texts({plain: {3}, str(packed): {1, 4}})) == [
        (plain, 3, "no json"),
        (str(packed), 1, GOOD),
        (str(packed), 4, json.dumps(TRL)),
    ]


# Real files

BLANK = {163: "blank_candidate"}
REAL = [
    ("vertex_text/preference.jsonl", "preferences", Shape.VERTEX_TEXT, 600, BLANK, "efb72951568b7abc"),
    ("vertex_text/course_preference.jsonl", "preferences", Shape.VERTEX_TEXT, 5, {}, "7f997f85118cd537"),
    ("vertex_text/course_prompt.jsonl", "prompts", Shape.VERTEX_TEXT, 6, {}, "f18f3ea7bc903623"),
    ("vertex_text/eval_with_references.jsonl", "prompts", Shape.VERTEX_TEXT, 14, {}, "9d7fe2e850c418bb"),
    ("vertex_text/eval_with_references.jsonl", "demonstrations", Shape.VERTEX_TEXT, 14, {}, "39bd8bff5bb6e7df"),
    ("carperai/comparisons.jsonl", "preferences", Shape.TRL, 50, {}, "62fc5592a61ebd3f"),
    ("carperai/tldr_train.jsonl", "demonstrations", Shape.TRL, 44, {}, "cc4387d381b827ea"),
    ("carperai/tldr_test.jsonl", "prompts", Shape.TRL, 45, {}, "f6678b06071e7737"),
    ("openai/comparisons_edit_b2.json", "preferences", Shape.OPENAI_COMPARISONS, 5, {}, "9f01ea93fe998e5a"),
]


@pytest.mark.parametrize(("file", "kind", "shape", "rows", "quarantined", "digest"), REAL)
def test_real_files_are_recognised_and_converted(real_data, file, kind, shape, rows, quarantined, digest):
    result = read_source(f"{real_data}/{file}", kind)
    assert result.shape is shape
    assert len(result.rows) == rows - len(quarantined)
    assert {q["line"]: q["reason"] for q in result.quarantined} == quarantined
    # Of every id, text, split and position: it changes with any rule that makes one of these, and then on purpose.
    assert result.digest == digest


def test_a_real_openai_post_is_laid_out_as_carperai_does(real_data):
    rows = read_source(f"{real_data}/openai/comparisons_edit_b2.json").rows
    assert rows[0]["prompt"].startswith("SUBREDDIT: r/relationships\n\nTITLE: Me [27 F] with my boyfriend")
    assert rows[0]["prompt"].endswith("his pace of talking?\n\nTL;DR:")
    assert rows[0]["chosen"].endswith("how do I deal with this?")
