"""Rows that are put in quarantine for what other rows say: whole, counted, and nothing else is touched."""

import gzip
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf.data import sources
from rlhf.data_validation.audit import TEXT_COLUMNS
from rlhf.errors import DataError
from tests.intake import write_rows
from tests.validation import pair, said, validate, verdict, written

TREATED = {"contradictions": "quarantine", "duplicates": "quarantine", "shared_prompts": "quarantine"}


def row(prompt: str, zero: str, one: str, choice: int = 1, **more) -> dict:
    return {"input_text": f"{prompt} [summary]: ", "candidate_0": zero, "candidate_1": one, "choice": choice} | more


def aside(tmp_path) -> list[tuple[str, int, str]]:
    return [(Path(q["file"]).name, q["line"], q["reason"]) for q in written(tmp_path, "quarantine")]


def counts(tmp_path) -> dict[str, tuple[int, int, int]]:
    return {Path(s["file"]).name: (s["read"], s["kept"], s["quarantined"]) for s in said(tmp_path)["sources"]}


def texts(tmp_path, name: str = "preferences") -> list[tuple]:
    return [tuple(r[column] for column in TEXT_COLUMNS if column in r) for r in written(tmp_path, name)]


def test_without_treatments_all_rows_are_kept(options, tmp_path):
    rows = [pair("P"), pair("P"), pair("P", "bad", "a good one"), *(pair(f"Post {i}") for i in range(9))]
    write_rows(tmp_path / "pairs.jsonl", rows)
    write_rows(tmp_path / "eval.jsonl", [{"input_text": "P [summary]: "}, {"input_text": "Prompt 1 [summary]: "}])
    assert validate(options, tmp_path)["rows_preferences"] == 12
    assert aside(tmp_path) == []


def test_of_pairs_that_repeat_another_the_first_is_kept(options, tmp_path):
    rows = [pair(f"Post {i}", chosen=f"good {i}") for i in range(30)]
    rows[9] = pair(" Post 4", chosen="good 4 ")
    rows[20] = pair("Post 4", chosen="good 4")
    rows[29] = pair("Post 28", chosen="good 28")
    write_rows(tmp_path / "pairs.jsonl", rows)
    metrics = validate(options | {"duplicates": "quarantine"}, tmp_path)
    assert aside(tmp_path) == [("pairs.jsonl", line, "duplicate") for line in (10, 21, 30)]
    kept = [r for number, r in enumerate(rows) if number not in (9, 20, 29)]
    assert texts(tmp_path) == [(r["input_text"], r["candidate_1"], r["candidate_0"]) for r in kept]
    assert (metrics["rows_preferences"], metrics["quarantined"], metrics["duplicate_pairs"]) == (27, 3, 3)
    assert verdict(tmp_path, "duplicates")["text"] == "3 of 30 pairs repeat another one; they are in quarantine."


def test_of_pairs_labelled_both_ways_all_are_put_aside(options, tmp_path):
    rows = [pair(f"Post {i}") for i in range(30)]
    rows[3] = pair("Post 20", "bad", "a good one")
    rows[25] = pair("Post 20")
    rows[26] = pair("Post 20", "bad", "another")
    write_rows(tmp_path / "pairs.jsonl", rows)
    validate(options | {"contradictions": "quarantine"}, tmp_path)
    assert aside(tmp_path) == [("pairs.jsonl", line, "contradictory") for line in (4, 21, 26)]
    assert verdict(tmp_path, "contradictions")["text"].endswith("; all are in quarantine.")


def test_rows_to_train_on_that_are_evaluated_on_are_put_aside_wherever_they_are(options, tmp_path):
    shared = [{"input_text": f"Prompt {i}"} for i in (1, 2)] + [{"input_text": "Post 7 [summary]:"}]
    write_rows(tmp_path / "eval.jsonl", shared)
    write_rows(tmp_path / "pairs.jsonl", [*(pair(f"Post {i}") for i in range(40)), pair("Post 7", "x", "y")])
    validate(options | {"shared_prompts": "quarantine"}, tmp_path)
    assert sorted(aside(tmp_path)) == [
        ("demos.jsonl", 2, "shared_prompt"),
        ("demos.jsonl", 3, "shared_prompt"),
        ("pairs.jsonl", 8, "shared_prompt"),
        ("pairs.jsonl", 41, "shared_prompt"),
        ("prompts.jsonl", 2, "shared_prompt"),
        ("prompts.jsonl", 3, "shared_prompt"),
    ]
    assert [t[0] for t in texts(tmp_path, "prompts")] == [f"Prompt {i} [summary]: " for i in (0, 3, 4)]
    assert [t[0] for t in texts(tmp_path, "demonstrations")] == ["Prompt 0 [summary]: "]
    assert len(texts(tmp_path, "evaluation")) == 3
    found = verdict(tmp_path, "shared_prompts")
    assert found["text"] == "1 of 3 evaluation prompts are trained on, too; they are in quarantine there."


def test_pairs_held_out_stay_though_they_are_evaluated_on(options, tmp_path):
    validate(options, tmp_path)
    before = {r["prompt"]: r["split"] for r in written(tmp_path, "preferences")}
    held_out = [prompt for prompt, split in before.items() if split == "eval"]
    trained = [prompt for prompt, split in before.items() if split == "train"]
    write_rows(tmp_path / "eval.jsonl", [{"input_text": prompt} for prompt in held_out + trained[:3]])
    metrics = validate(options | {"shared_prompts": "quarantine"}, tmp_path)
    assert {r["prompt"]: r["split"] for r in written(tmp_path, "preferences")} == {
        prompt: split for prompt, split in before.items() if prompt not in trained[:3]
    }
    assert (metrics["pairs_eval"], metrics["quarantined"]) == (len(held_out), 3)


def test_a_row_is_put_aside_once_for_the_first_reason(options, tmp_path):
    rows = [pair(f"Post {i}") for i in range(40)]
    rows[1:4] = [pair("P"), pair("P"), pair("P", "bad", "a good one")]
    rows[5:7] = [pair("Q")] * 2
    write_rows(tmp_path / "pairs.jsonl", rows)
    write_rows(tmp_path / "eval.jsonl", [{"input_text": "P [summary]:"}, {"input_text": "Q [summary]:"}])
    validate(options | TREATED | {"seed": 3}, tmp_path)
    lines = {line: reason for _, line, reason in aside(tmp_path)}
    assert lines == {
        2: "contradictory",
        3: "contradictory",
        4: "contradictory",
        6: "shared_prompt",
        7: "duplicate",
    }


def test_rows_put_aside_are_whole_with_their_line_and_byte_offset(options, tmp_path):
    lines = [json.dumps(pair(f"Pöst {i}"), ensure_ascii=False) for i in range(40)]
    lines[0] = json.dumps(pair("😀 first"), ensure_ascii=False)
    lines[6] = " " + json.dumps(pair("Pöst 3") | {"worker": 5, "extra": [1, {"a": None}]}, ensure_ascii=False) + "\t"
    lines[8] = ""
    lines[11] = lines[5]
    content = "".join(f"{line}\r\n" for line in lines).encode()
    (tmp_path / "pairs.jsonl").write_bytes(b"\xef\xbb\xbf" + content)
    validate(options | TREATED, tmp_path)
    assert aside(tmp_path) == [("pairs.jsonl", 7, "duplicate"), ("pairs.jsonl", 12, "duplicate")]
    for q, number in zip(written(tmp_path, "quarantine"), (6, 11), strict=True):
        assert q["row"] == lines[number]
        assert (b"\xef\xbb\xbf" + content)[q["offset"] :].startswith(lines[number].encode() + b"\r\n")
        assert q["file"] == str(tmp_path / "pairs.jsonl")
        assert q["field"] == ""


@pytest.mark.parametrize("kind", ["gz", "parquet", "array"])
def test_rows_of_every_kind_of_file_are_put_aside_whole(options, tmp_path, kind):
    rows = [pair(f"Post {i % 30}", chosen=f"größer {i % 30}") | {"note": i} for i in range(40)]
    if kind == "gz":
        path = tmp_path / "pairs.jsonl.gz"
        path.write_bytes(gzip.compress("".join(f"{json.dumps(r)}\n" for r in rows).encode()))
    elif kind == "array":
        path = tmp_path / "pairs.json"
        path.write_text(json.dumps(rows, indent=2))
    else:
        path = tmp_path / "pairs.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    validate(options | {"preference_dataset": str(path), "duplicates": "quarantine"}, tmp_path)
    quarantined = written(tmp_path, "quarantine")
    assert [(q["line"], json.loads(q["row"])) for q in quarantined] == [(n + 1, rows[n]) for n in range(30, 40)]
    offset = sum(len(json.dumps(r)) + 1 for r in rows[:30]) if kind == "gz" else None
    assert quarantined[0]["offset"] == offset
    assert counts(tmp_path)[path.name] == (40, 30, 10)


def test_every_row_read_is_written_or_in_quarantine_and_files_are_not_confused(options, tmp_path):
    """Random rows over three files, compared with the rules applied one by one."""
    random.seed(5)
    for name in "abc":
        rows = [
            row(
                f"Post {random.randrange(60)}",
                "one",
                f"two {random.randrange(2)}",
                random.randrange(2),
                id=f"{name}{n}",
            )
            for n in range(100)
        ]
        rows[50] = row("X", "one", "")
        write_rows(tmp_path / f"part-{name}.jsonl", rows)
    write_rows(tmp_path / "eval.jsonl", [{"input_text": f"Post {n} [summary]: "} for n in range(5)])
    options |= {"preference_dataset": f"{tmp_path}/part-*.jsonl"}
    validate(options, tmp_path)
    before = written(tmp_path, "preferences")
    metrics = validate(options | TREATED, tmp_path)

    evaluated = {f"Post {n} [summary]: " for n in range(5)}
    labels = {(r["prompt"], r["chosen"], r["rejected"]) for r in before}
    expected, reasons, seen = [], {}, set()
    for r in before:
        label = r["prompt"], r["chosen"], r["rejected"]
        if (r["prompt"], r["rejected"], r["chosen"]) in labels:
            reasons[r["id"]] = "contradictory"
        elif label in seen:
            reasons[r["id"]] = "duplicate"
        elif r["prompt"] in evaluated and r["split"] == "train":
            reasons[r["id"]] = "shared_prompt"
        else:
            expected.append(r)
        seen.add(label)
    assert set(reasons.values()) == {"contradictory", "duplicate", "shared_prompt"}
    assert written(tmp_path, "preferences") == expected
    late = [q for q in written(tmp_path, "quarantine") if q["reason"] != "blank_candidate"]
    assert {json.loads(q["row"])["id"]: q["reason"] for q in late} == reasons
    assert all(Path(q["file"]).name == f"part-{json.loads(q['row'])['id'][0]}.jsonl" for q in late)
    assert len(late) == len(reasons) == metrics["quarantined"] - 3
    for file, (read, kept, quarantined) in counts(tmp_path).items():
        in_file = [q for q in written(tmp_path, "quarantine") if q["file"].endswith(file)]
        assert (read, len(in_file)) == (kept + quarantined, quarantined)
    assert metrics["rows_preferences"] == metrics["pairs_train"] + metrics["pairs_eval"] == len(expected)
    by_reason = {}
    for q in said(tmp_path)["quarantine"]:
        by_reason[q["reason"]] = by_reason.get(q["reason"], 0) + q["rows"]
    assert by_reason == {r: list(reasons.values()).count(r) for r in set(reasons.values())} | {"blank_candidate": 3}


def test_examples_and_places_are_right_after_rows_were_put_aside(options, tmp_path):
    """What is looked at later is found by numbers that changed."""
    rows = [pair("Post 0")] * 5 + [pair(f"Post {i}", "x " * (200 if i == 8 else 1)) for i in range(1, 20)]
    write_rows(tmp_path / "pairs.jsonl", rows)
    near = " ".join(f"w{i}" for i in range(80))
    write_rows(
        tmp_path / "prompts.jsonl", [{"input_text": f"{p} [summary]: "} for p in ("Held", "A", near, near + " x")]
    )
    write_rows(tmp_path / "eval.jsonl", [{"input_text": "Held [summary]: "}, {"input_text": "Z [summary]: "}])
    validate(options | TREATED, tmp_path)
    found = verdict(tmp_path, "near_duplicates", "all prompts")
    assert [(e["place"], e["text"]) for e in found["examples"]] == [
        (f"{tmp_path / 'prompts.jsonl'}:3", near),
        (f"{tmp_path / 'prompts.jsonl'}:4", near + " x"),
    ]


def test_it_makes_no_difference_how_files_are_cut_into_blocks_and_shards(options, tmp_path, monkeypatch):
    rows = [row(f"Post {n % 90}", "one", f"two {n % 4}", n % 2) for n in range(700)]
    write_rows(tmp_path / "pairs.jsonl", rows)
    validate(options | TREATED, tmp_path)
    whole = [written(tmp_path, name) for name in ("preferences", "quarantine")]
    monkeypatch.setattr(sources, "BLOCK_BYTES", 900)
    validate(options | TREATED, tmp_path)
    assert [written(tmp_path, name) for name in ("preferences", "quarantine")] == whole


def test_the_split_holds_and_neither_side_is_emptied_by_a_treatment(options, tmp_path):
    rows = [pair(f"Post {i % 60}", chosen=f"good {i % 3}") for i in range(400)]
    write_rows(tmp_path / "pairs.jsonl", rows)
    validate(options, tmp_path)
    before = {r["prompt"]: r["split"] for r in written(tmp_path, "preferences")}
    metrics = validate(options | TREATED, tmp_path)
    assert {r["prompt"]: r["split"] for r in written(tmp_path, "preferences")} == before
    # A contradiction takes away the only prompt held out.
    held_out = next(prompt.removesuffix(" [summary]: ") for prompt, split in before.items() if split == "eval")
    trained = [prompt.removesuffix(" [summary]: ") for prompt, split in before.items() if split == "train"][:4]
    rows = [pair(prompt) for prompt in (held_out, *trained)] + [pair(held_out, "bad", "a good one")]
    write_rows(tmp_path / "pairs.jsonl", rows)
    metrics = validate(options | TREATED, tmp_path)
    assert (metrics["pairs_train"], metrics["pairs_eval"]) == (3, 1)
    splits = {r["prompt"]: r["split"] for r in written(tmp_path, "preferences")}
    assert len(splits) == 4
    assert sorted(splits.values()) == ["eval", "train", "train", "train"]


def test_prompts_held_out_are_no_reason_to_lose_the_pairs_that_measure_the_reward_model(options, tmp_path):
    """Without eval_dataset, prompts and pairs of the same texts hold out the same ones."""
    prompts = [f"Post {i}" for i in range(300)]
    write_rows(tmp_path / "prompts.jsonl", [{"input_text": f"{p} [summary]: "} for p in prompts])
    write_rows(tmp_path / "pairs.jsonl", [pair(p) for p in prompts])
    options = {name: value for name, value in options.items() if name not in ("eval_dataset", "demonstration_dataset")}
    metrics = validate(options | TREATED, tmp_path)
    assert (metrics["quarantined"], metrics["pairs_eval"]) == (0, metrics["prompts_held_out"])
    evaluated = {t[0] for t in texts(tmp_path, "evaluation")}
    assert not evaluated & {t[0] for t in texts(tmp_path, "prompts")}
    assert {r["prompt"] for r in written(tmp_path, "preferences") if r["split"] == "eval"} == evaluated


def test_demonstrations_of_prompts_held_out_are_put_aside(options, tmp_path):
    prompts = [{"input_text": f"Post {i} [summary]: ", "output_text": "x"} for i in range(100)]
    write_rows(tmp_path / "prompts.jsonl", prompts)
    write_rows(tmp_path / "demos.jsonl", prompts)
    del options["eval_dataset"]
    metrics = validate(options | TREATED, tmp_path)
    assert metrics["rows_demonstrations"] == 100 - metrics["prompts_held_out"] == metrics["rows_prompts"]
    assert not {t[0] for t in texts(tmp_path, "evaluation")} & {t[0] for t in texts(tmp_path, "demonstrations")}
    assert counts(tmp_path)["prompts.jsonl"] == (100, 100, 0)


@pytest.mark.parametrize(
    ("dataset", "says"),
    [
        ("prompts", r"^prompt_dataset: no row is left to train on, .*: 5 shared_prompt \(the prompt is also evaluated"),
        ("demonstrations", r"^demonstration_dataset: no row is left to train on, .*: 3 shared_prompt"),
        ("preferences", r"^preference_dataset: no row is left to train on, .*: \d+ shared_prompt"),
    ],
)
def test_when_nothing_is_left_to_train_on_the_run_ends_and_says_why(options, tmp_path, dataset, says):
    rows = {
        "prompts": [{"input_text": f"Prompt {i} [summary]: "} for i in range(5)],
        "demonstrations": [{"input_text": f"Prompt {i} [summary]: "} for i in range(3)],
        "preferences": [{"input_text": f"Post {i} [summary]: "} for i in range(40)],
    }
    write_rows(tmp_path / "eval.jsonl", rows[dataset])
    if dataset == "demonstrations":
        write_rows(tmp_path / "prompts.jsonl", rows["prompts"] + rows["preferences"])
    with pytest.raises(DataError, match=says):
        validate(options | TREATED, tmp_path)
    assert not list((tmp_path / "out").glob("pre*/manifest.json"))
    validate(options, tmp_path)


def test_when_all_pairs_contradict_each_other_the_run_ends_and_says_why(options, tmp_path):
    rows = [row(f"Post {i}", "one", "two", choice) for i in range(20) for choice in (0, 1)]
    write_rows(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(DataError, match=r"^preference_dataset: no row is left to train on, .*: 40 contradictory"):
        validate(options | TREATED, tmp_path)
