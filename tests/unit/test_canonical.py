"""Which texts count as the same, and on which side of a split they are: compared with the rules, one by one."""

import json
import random
import re

import pytest

from rlhf.data.store import read_dataset
from rlhf.data_validation.suffix import without_marker
from rlhf.errors import DataError
from tests.intake import write_rows
from tests.validation import pair, validate, verdict, written

SPACES = [
    "",
    " ",
    "\n",
    "\t ",
    "\r\n",
    "\x0b",
    "\x1c",
    "\x85",
    "\xa0",
    "\u2003",
    "\u2028",
    "\u3000",
    " \u3000 ",
    "\u200b",
]
MARKS = ["", " [summary]:", "[summary]: ", " [Summary]:", " [summary]: [summary]:", "[summary]:\u3000"]
WORDS = ["", "a", "ä", "🙂", "ab", "a b", "a\u3000b", "[summary]:", "x" * 300]


def randomly_spaced(rng: random.Random, text: str) -> str:
    return rng.choice(SPACES) + text + rng.choice(SPACES)


@pytest.mark.parametrize("seed", range(3))
def test_texts_are_the_same_when_they_differ_in_whitespace_around_them_and_in_the_suffix(options, tmp_path, seed):
    rng = random.Random(seed)
    rows = []
    for _ in range(1_500):
        words = [rng.choice(WORDS) + rng.choice(["", "", "é"]) for _ in range(3)]
        texts = [randomly_spaced(rng, text) for text in words]
        rows.append(pair("", texts[1], texts[2]) | {"input_text": f"{texts[0]}{rng.choice(MARKS)}{rng.choice(SPACES)}"})
    write_rows(tmp_path / "pairs.jsonl", rows)
    treated = {"contradictions": "quarantine", "duplicates": "quarantine", "checks": {"quarantined": {"limit": 0.9}}}
    options |= {"suffix": " [summary]: ", "seed": seed}
    validate(options | {"checks": treated["checks"]}, tmp_path)
    kept, _, template = read_dataset(tmp_path / "out" / "preferences", "preferences")
    assert not [r for r in kept if r["chosen"].strip() == r["rejected"].strip()]
    equal = [json.loads(q["row"]) for q in written(tmp_path, "quarantine") if q["reason"] == "equal_candidates"]
    # By the marker that was taken off, too.
    assert [r for r in equal if r["candidate_0"].strip() != r["candidate_1"].strip()]
    keys = [(template.body(r["prompt"]), r["chosen"].strip(), r["rejected"].strip()) for r in kept]
    assert 500 < len(keys) < 1_400

    distinct = set(keys)
    contradictory = [key for key in keys if (key[0], key[2], key[1]) in distinct]
    assert 0 < len(contradictory) < len(keys) > len(distinct)
    assert verdict(tmp_path, "duplicates")["value"] == pytest.approx(1 - len(distinct) / len(keys))
    assert verdict(tmp_path, "contradictions")["value"] == pytest.approx(len(contradictory) / len(keys))
    sides = {}
    for key, r in zip(keys, kept, strict=True):
        assert sides.setdefault(key[0], r["split"]) == r["split"]
    assert set(sides.values()) == {"train", "eval"}

    metrics = validate(options | treated, tmp_path)
    left = [key for key in dict.fromkeys(keys) if (key[0], key[2], key[1]) not in distinct]
    after = written(tmp_path, "preferences")
    assert [(template.body(r["prompt"]), r["chosen"].strip(), r["rejected"].strip()) for r in after] == left
    assert {r["prompt"]: r["split"] for r in after}.items() <= {r["prompt"]: r["split"] for r in kept}.items()
    lengths = [(len(chosen), len(rejected)) for _, chosen, rejected in keys]
    longer = [chosen > rejected for chosen, rejected in lengths if chosen != rejected]
    assert metrics["longer_wins_share"] == pytest.approx(sum(longer) / len(longer))


def test_a_marker_that_a_candidate_begins_with_is_taken_off_before_candidates_are_compared(options, tmp_path):
    rows = [
        pair("P", "[summary]: one", "two"),
        pair("P", " [summary]: one", "[summary]:two"),
        pair("P", "one [summary]:", "two"),
        pair("P", "two", "[summary]: \u3000one"),
        pair("Q", "1234", "[summary]:123"),
    ]
    write_rows(tmp_path / "pairs.jsonl", rows)
    references = ["[summary]: ref", "[summary]:", None]
    evaluation = [{"input_text": f"Held out {i}", "output_text": text} for i, text in enumerate(references)]
    write_rows(tmp_path / "eval.jsonl", evaluation)
    metrics = validate(options | {"suffix": " [summary]: "}, tmp_path)
    assert (metrics["duplicate_pairs"], metrics["contradictory_pairs"]) == (1, 1)
    assert verdict(tmp_path, "contradictions")["value"] == 3 / 5
    assert [r["chosen"] for r in written(tmp_path, "preferences")] == [
        without_marker(r["candidate_1"], "[summary]:") for r in rows
    ]
    # A text that is nothing but the marker keeps it, and is not counted.
    assert [r["reference"] for r in written(tmp_path, "evaluation")] == [" ref", "[summary]:", None]
    assert "6 completions began with the suffix&#39;s marker" in (tmp_path / "out" / "report.html").read_text()


def test_about_the_share_asked_for_is_held_out_whatever_the_seed(options, tmp_path):
    write_rows(tmp_path / "pairs.jsonl", [pair(f"Post {i}") for i in range(4_000)])
    held_out = []
    for seed, fraction in ((0, 0.1), (1, 0.1), (0, 0.3)):
        validate(options | {"seed": seed, "preference_eval_fraction": fraction}, tmp_path)
        held_out.append({r["prompt"] for r in written(tmp_path, "preferences") if r["split"] == "eval"})
    assert [len(prompts) for prompts in held_out] == pytest.approx([400, 400, 1_200], abs=80)
    assert held_out[0] < held_out[2]  # what a small fraction holds out a larger one does, too
    assert len(held_out[0] & held_out[1]) == pytest.approx(40, abs=25)  # a seed draws anew


def test_rows_of_the_same_content_get_the_same_id_in_every_file_and_with_every_seed(options, tmp_path):
    rows = [pair(f"Post {i}") for i in range(30)]
    write_rows(tmp_path / "pairs.jsonl", rows)
    validate(options, tmp_path)
    ids = {r["prompt"]: r["id"] for r in written(tmp_path, "preferences")}
    assert len(set(ids.values())) == 30
    write_rows(tmp_path / "pairs.jsonl", [pair("first"), *rows[::-1]])
    validate(options | {"seed": 9}, tmp_path)
    assert ids.items() <= {r["prompt"]: r["id"] for r in written(tmp_path, "preferences")}.items()


def test_swapped_candidates_and_other_prompts_make_other_ids(options, tmp_path):
    rows = [pair("P", "one", "two"), pair("P", "two", "one"), pair("Q", "one", "two"), pair("one", "P", "two")]
    write_rows(tmp_path / "pairs.jsonl", rows)
    validate(options, tmp_path)
    ids = [r["id"] for r in written(tmp_path, "preferences")]
    assert len(set(ids)) == 4
    assert not any("-" in name for name in ids)


def test_candidates_that_are_equal_but_for_the_marker_are_put_aside(options, tmp_path):
    rows = [pair(f"Post {i}") for i in range(40)] + [
        pair("P", "[summary]: one", " one"),
        pair("Q", "x", "[summary]:x "),
    ]
    write_rows(tmp_path / "pairs.jsonl", rows)
    metrics = validate(options | {"suffix": " [summary]: "}, tmp_path)
    assert [(q["line"], q["reason"]) for q in written(tmp_path, "quarantine")] == [
        (41, "equal_candidates"),
        (42, "equal_candidates"),
    ]
    assert (metrics["rows_preferences"], metrics["contradictory_pairs"]) == (40, 0)


def test_too_many_of_them_fail_the_run_as_other_rows_that_cannot_be_used_do(options, tmp_path):
    write_rows(
        tmp_path / "pairs.jsonl",
        [pair(f"Post {i}") for i in range(40)] + [pair(f"P {i}", "[summary]: one", "one") for i in range(5)],
    )
    options["suffix"] = " [summary]: "
    with pytest.raises(DataError) as error:
        validate(options, tmp_path)
    assert str(error.value).startswith(
        "preference_dataset: 5 of 45 rows (11\u00a0%) cannot be used, most often (5) because of equal_candidates"
    )
    assert re.search(r"for example .*pairs.jsonl:41: '{\"input_text", str(error.value))
    assert len(written(tmp_path, "quarantine")) == 5
    metrics = validate(options | {"checks": {"quarantined": {"limit": 0.2}}}, tmp_path)
    found = verdict(tmp_path, "quarantined", "preference_dataset")
    assert (metrics["quarantined"], found["value"]) == (5, pytest.approx(5 / 45))


def test_where_the_last_pairs_are_equal_too_the_reason_of_most_is_named(options, tmp_path):
    write_rows(
        tmp_path / "pairs.jsonl",
        [pair(f"Post {i}") | {"choice": 3} for i in range(40)]
        + [pair(f"P {i}", "[summary]: x", "x") for i in range(5)],
    )
    options["suffix"] = " [summary]: "
    with pytest.raises(DataError, match=r"45 of 45 rows .* most often \(40\) because of bad_choice.* none is left"):
        validate(options, tmp_path)
    assert len(written(tmp_path, "quarantine")) == 45
