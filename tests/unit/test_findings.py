"""What is found in datasets as wholes: repeated, contradicted, biased, shared between training and evaluation."""

import json
import re

import pytest

from rlhf.metrics import share
from tests.intake import write_rows
from tests.validation import pair, said, validate, verdict, written


def row(prompt: str, zero: str, one: str, choice: int = 1, **more) -> dict:
    return {"input_text": f"{prompt} [summary]: ", "candidate_0": zero, "candidate_1": one, "choice": choice} | more


def lines_of(found: dict) -> list[int]:
    return [int(example["place"].rpartition(":")[2]) for example in found["examples"]]


def in_words(hits: int, of: int) -> str:
    return share(hits, of).in_words()


# Repeated and contradicted


def test_duplicates_contradictions_and_length_are_found_whitespace_aside(options, tmp_path):
    rows = [
        pair("P", "long", "sho"),
        pair("P ", "long ", "sho"),
        pair("P [summary]:", "long", "sho"),
        pair("P", "sho", "long"),
        pair("Q", "sho", "long"),
        pair("Q", "one", "two"),
        pair("Q", "two", "one"),
    ]
    rows[2]["input_text"] = "P [summary]:"
    write_rows(tmp_path / "pairs.jsonl", rows)
    metrics = validate(options, tmp_path)
    names = ("duplicate_pairs", "contradictory_pairs", "longer_wins_share", "first_wins_share")
    assert [metrics[name] for name in names] == [2, 2, 3 / 5, 0]
    assert verdict(tmp_path, "duplicates")["value"] == pytest.approx(2 / 7)
    assert verdict(tmp_path, "contradictions")["value"] == pytest.approx(6 / 7)


def test_a_pair_is_repeated_only_by_the_same_prompt_and_the_same_candidates(options, tmp_path):
    rows = [
        pair("P", "one", "two"),
        pair("Q", "one", "two"),
        pair("P", "one", "three"),
        pair("P", "three", "two"),
        pair("P", "One", "two"),
        pair("Q", "two", "three"),
        pair("P p", "two", "one"),
    ]
    write_rows(tmp_path / "pairs.jsonl", rows)
    metrics = validate(options, tmp_path)
    assert (metrics["duplicate_pairs"], metrics["contradictory_pairs"]) == (0, 0)
    assert [verdict(tmp_path, name)["outcome"] for name in ("duplicates", "contradictions")] == ["passed"] * 2
    assert [verdict(tmp_path, name)["examples"] for name in ("duplicates", "contradictions")] == [[], []]


def test_the_pair_repeated_most_and_a_pair_labelled_both_ways_are_shown(options, tmp_path):
    rows = [pair(f"Post {i}") for i in range(20)]
    rows += [pair("Post 4"), pair("Post 9"), pair("Post 9"), pair("Post 15", "bad", "a good one")]
    write_rows(tmp_path / "pairs.jsonl", rows)
    validate(options, tmp_path)
    duplicates, contradictions = verdict(tmp_path, "duplicates"), verdict(tmp_path, "contradictions")
    assert (duplicates["text"], lines_of(duplicates)) == ("3 of 24 pairs repeat another one; they are kept.", [10, 23])
    assert duplicates["examples"][0]["text"] == "prompt: Post 9 [summary]: \n\nchosen: a good one\n\nrejected: bad"
    assert lines_of(contradictions) == [16, 24]
    assert re.search(r"labelled both ways: 1, in 2 of 24 pairs; all are kept", contradictions["text"])


def test_forty_thousand_labels_of_one_pair_are_counted(options, tmp_path):
    labels = [json.dumps(row("P", "one", "two", i % 2)) for i in range(2)] * 20_000
    write_rows(tmp_path / "pairs.jsonl", [*labels, row("Q", "one", "two")])
    metrics = validate(options, tmp_path)
    assert (metrics["duplicate_pairs"], metrics["contradictory_pairs"]) == (39_998, 1)
    assert verdict(tmp_path, "contradictions")["value"] == pytest.approx(40_000 / 40_001)


# Biases


def test_position_bias_is_of_the_candidate_laid_out_first(options, tmp_path):
    rows = [row(f"Post {i}", "one", "two", choice=int(i >= 90)) for i in range(120)]
    write_rows(tmp_path / "pairs.jsonl", rows)
    assert validate(options, tmp_path)["first_wins_share"] == 0.75
    found = verdict(tmp_path, "position_bias")
    assert (found["outcome"], found["value"]) == ("warning", 0.25)
    assert found["text"] == f"The first candidate is chosen in {in_words(90, 120)}."
    write_rows(tmp_path / "pairs.jsonl", rows[60:])
    validate(options, tmp_path)
    assert verdict(tmp_path, "position_bias")["outcome"] == "passed"


def test_few_pairs_do_not_tell_a_bias_and_many_do(options, tmp_path):
    outcomes = []
    for times in (1, 1_000):
        rows = [row(f"Post {i}", "12", "1", choice=int(i % 4 == 0)) for i in range(4 * times)]
        write_rows(tmp_path / "pairs.jsonl", rows)
        metrics = validate(options, tmp_path)
        assert (metrics["first_wins_share"], metrics["longer_wins_share"]) == (0.75, 0.75)
        found = [verdict(tmp_path, check) for check in ("position_bias", "length_bias")]
        assert [check["value"] for check in found] == [0.25, 0.25]
        outcomes.append([check["outcome"] for check in found])
    assert outcomes == [["passed", "passed"], ["warning", "warning"]]


def test_a_layout_that_names_the_chosen_one_tells_no_position(options, tmp_path):
    rows = [{"prompt": f"Post {i} [summary]: ", "chosen": "one", "rejected": "two"} for i in range(99)]
    write_rows(tmp_path / "pairs.jsonl", rows)
    assert "first_wins_share" not in validate(options, tmp_path)
    found = verdict(tmp_path, "position_bias")
    assert (found["outcome"], found["value"]) == ("passed", None)
    assert "does not tell in which order" in found["text"]


@pytest.mark.parametrize(("longer_chosen", "lines"), [(True, [7, 8]), (False, [5, 9])])
def test_length_bias_shows_the_rows_whose_lengths_differ_most_in_its_direction(options, tmp_path, longer_chosen, lines):
    rows = [row(f"Post {i}", "12345", "123", choice=int(not longer_chosen)) for i in range(60)]
    rows[6] = row("Post 6", "1" * 90, "1", choice=0)
    rows[7] = row("Post 7", "1" * 80, "1", choice=0)
    rows[4] = row("Post 4", "1" * 90, "1", choice=1)
    rows[8] = row("Post 8", "1" * 80, "1", choice=1)
    rows += [row(f"More {i}", "same", "size", choice=0) for i in range(60)]
    write_rows(tmp_path / "pairs.jsonl", rows)
    rate = 58 / 60 if longer_chosen else 2 / 60
    assert validate(options, tmp_path)["longer_wins_share"] == pytest.approx(rate)
    found = verdict(tmp_path, "length_bias")
    assert (found["outcome"], found["value"], lines_of(found)) == ("warning", pytest.approx(abs(rate - 0.5)), lines)
    assert found["text"].startswith(f"The longer candidate is chosen in {in_words(58 if longer_chosen else 2, 60)}")


def test_candidates_equal_in_length_tell_no_length_bias(options, tmp_path):
    write_rows(tmp_path / "pairs.jsonl", [row(f"Post {i}", "one", "two") for i in range(99)])
    assert validate(options, tmp_path)["longer_wins_share"] == 0.5
    assert verdict(tmp_path, "length_bias")["value"] is None


def test_length_is_counted_in_characters(options, tmp_path):
    write_rows(tmp_path / "pairs.jsonl", [row(f"Post {i}", "äöü", "1234", choice=0) for i in range(9)])
    assert validate(options, tmp_path)["longer_wins_share"] == 0


# Annotators


@pytest.mark.parametrize("name", ["worker", "annotator", "annotator_id", "rater", "labeler_id"])
def test_each_annotator_is_compared_with_the_others_about_the_same_candidates(options, tmp_path, name):
    rows = [
        row("P", "one", "two", 1, **{name: "a"}),
        row("P", "one", "two", 1, **{name: "b"}),
        row("P ", "two", "one ", 1, **{name: "c"}),  # the other way
        row("Q", "one", "two", 0, **{name: "a"}),
        row("Q", "two", "one", 1, **{name: "b"}),  # the same
        row("R", "one", "two", 1, **{name: "a"}),  # nobody else
        row("P", "one", "three", 1, **{name: "c"}),
        row("Q", "one", "two", 0, **{name: None}),
    ]
    write_rows(tmp_path / "pairs.jsonl", rows)
    validate(options, tmp_path)
    found = verdict(tmp_path, "annotator_agreement")
    # P: a-b agree, a-c and b-c do not; Q: a-b agree.
    assert (found["value"], found["outcome"]) == (0.5, "warning")
    assert f"Annotators: 3; where two saw the same candidates they agree in {in_words(2, 4)} of 4" in found["text"]
    assert annotator_rows(tmp_path) == [
        ["a", "3", in_words(2, 3), "3"],
        ["b", "2", in_words(2, 3), "3"],
        ["c", "2", in_words(0, 2), "2"],
    ]


def annotator_rows(tmp_path) -> list[list[str]]:
    page = (tmp_path / "out" / "report.html").read_text()
    body = page[page.index(">agrees with others<") :].split("</table>")[0]
    return [re.findall(r"<td[^>]*>(.*?)</td>", line) for line in body.split("<tr>")[1:]]


def test_annotators_may_be_whole_numbers(options, tmp_path):
    rows = [row("P", "one", "two", 1, worker=w) for w in (7, 12, 7)] + [row("Q", "one", "two", 0, worker="12")]
    write_rows(tmp_path / "pairs.jsonl", rows)
    validate(options, tmp_path)
    # 7 labelled P twice: both are compared with 12's.
    assert verdict(tmp_path, "annotator_agreement")["value"] == 1
    assert annotator_rows(tmp_path) == [["12", "2", in_words(2, 2), "2"], ["7", "2", in_words(2, 2), "2"]]


@pytest.mark.parametrize(
    "rows",
    [
        [row(f"Post {i}", "one", "two", worker="a") for i in range(9)] * 2,
        [row(f"Post {i}", "one", "two", worker=str(i)) for i in range(9)],
    ],
)
def test_of_one_annotator_or_of_some_who_never_meet_no_agreement_is_known(options, tmp_path, rows):
    write_rows(tmp_path / "pairs.jsonl", rows)
    validate(options, tmp_path)
    found = verdict(tmp_path, "annotator_agreement")
    assert (found["value"], found["outcome"]) == (None, "passed")
    assert found["text"].endswith("no two saw the same candidates.")
    assert all(line[2:] == ["not known", "0"] for line in annotator_rows(tmp_path))


def test_data_that_names_no_annotator_has_no_such_check(options, tmp_path):
    validate(options, tmp_path)
    assert "annotator_agreement" not in {check["check"] for check in said(tmp_path)["verdicts"]}
    assert "agrees with others" not in (tmp_path / "out" / "report.html").read_text()


def test_the_interval_of_agreement_counts_each_comparison_once(options, tmp_path):
    rows = [row(f"Post {i}", "one", "two", int(w == "b" and i < 10), worker=w) for i in range(40) for w in "ab"]
    write_rows(tmp_path / "pairs.jsonl", rows)
    validate(options, tmp_path)
    assert f"they agree in {in_words(30, 40)} of 40 comparisons" in verdict(tmp_path, "annotator_agreement")["text"]


# Shared between training and evaluation


def evaluate_on(tmp_path, *prompts: str) -> None:
    write_rows(tmp_path / "eval.jsonl", [{"input_text": prompt} for prompt in prompts])


def test_prompts_that_evaluation_shares_are_counted_once_suffix_and_whitespace_aside(options, tmp_path):
    evaluate_on(tmp_path, "Prompt 1", "Prompt 1 [summary]:", " Post 3 [summary]: ", "Prompt 2 ", "New [summary]: ")
    metrics = validate(options, tmp_path)
    names = ("shared_prompts", "shared_with_preferences", "shared_with_demonstrations")
    assert [metrics[name] for name in names] == [2, 1, 2]
    found = verdict(tmp_path, "shared_prompts", "prompts")
    assert (found["outcome"], found["value"], lines_of(found)) == ("warning", 0.5, [1, 2])
    assert found["text"] == "2 of 4 evaluation prompts are trained on, too; they are kept."
    assert found["examples"][0]["place"].startswith(str(tmp_path / "eval.jsonl"))
    assert found["examples"][0]["text"] == "prompt: Prompt 1"
    assert verdict(tmp_path, "shared_prompts", "demonstrations")["value"] == 0.5


def test_prompts_shared_with_held_out_pairs_only_are_not_trained_on(options, tmp_path):
    validate(options, tmp_path)
    sides = {
        side: [r["prompt"] for r in written(tmp_path, "preferences") if r["split"] == side]
        for side in ("train", "eval")
    }
    assert sides["eval"]
    evaluate_on(tmp_path, *sides["eval"], "New [summary]: ", *sides["train"][:2])
    held_out, of = len(sides["eval"]), len(sides["eval"]) + 3
    assert validate(options, tmp_path)["shared_with_preferences"] == held_out + 2
    found = verdict(tmp_path, "shared_prompts")
    assert (found["value"], found["outcome"]) == (2 / of, "warning")
    assert lines_of(found) == [of - 1, of]
    assert f"2 of {of} evaluation prompts are trained on, too" in found["text"]
    assert f"{held_out} more are in its held-out part" in found["text"]
    evaluate_on(tmp_path, *sides["eval"])
    validate(options, tmp_path)
    found = verdict(tmp_path, "shared_prompts")
    assert (found["value"], found["outcome"], found["examples"]) == (0, "passed", [])
    assert found["text"] == f"No evaluation prompt is trained on; {held_out} more are in its held-out part."


def test_without_demonstrations_nothing_is_said_of_them(options, tmp_path):
    validate(options | {"demonstration_dataset": ""}, tmp_path)
    assert "demonstrations" not in {check["subject"] for check in said(tmp_path)["verdicts"]}


# Nearly the same


def story(number: int, *changed: int) -> str:
    words = [f"w{number}-{place}" for place in range(80)]
    for place in changed:
        words[place] = "else"
    return " ".join(words)


def test_near_duplicates_are_counted_among_all_prompts_and_shown(options, tmp_path):
    rows = [pair(story(0)), pair(story(0, 3)), *(pair(story(i)) for i in range(1, 30)), pair(story(5))]
    write_rows(tmp_path / "pairs.jsonl", rows)
    metrics = validate(options, tmp_path)
    looked_at = 32 + 5 + 4 + 3
    assert metrics["near_duplicate_share"] == pytest.approx(2 / looked_at)
    found = verdict(tmp_path, "near_duplicates", "all prompts")
    assert found["text"].startswith(f"2 of {looked_at} prompts looked at nearly repeat another: ")
    assert "evaluation" not in found["text"]
    assert (lines_of(found), found["outcome"]) == ([1, 2], "passed")
    assert found["examples"][1]["text"] == story(0, 3)


def test_a_near_duplicate_of_an_evaluation_prompt_that_is_trained_on_is_said_and_shown_first(options, tmp_path):
    rows = [pair(story(0)), pair(story(0, 0)), *(pair(story(i)) for i in range(1, 30))]
    write_rows(tmp_path / "pairs.jsonl", rows)
    evaluate_on(tmp_path, *(story(90 + i) for i in range(5)), story(7, 30), story(90, 30))
    assert validate(options, tmp_path)["shared_with_preferences"] == 0
    found = verdict(tmp_path, "near_duplicates", "all prompts")
    assert "; 1 or more are evaluation prompts with one that is trained on." in found["text"]
    assert sorted(example["place"] for example in found["examples"]) == [
        f"{tmp_path / 'eval.jsonl'}:6",
        f"{tmp_path / 'pairs.jsonl'}:9",
    ]


def test_the_same_rows_in_another_order_give_the_same_findings(options, tmp_path):
    rows = [row(f"Post {i % 70}", "one", f"two {i % 7}", int(i % 3 > 0), worker=f"w{i % 5}") for i in range(300)]
    found = []
    for ordered in (rows, rows[::-1], sorted(rows, key=lambda r: (r["candidate_1"], r["worker"]))):
        write_rows(tmp_path / "pairs.jsonl", ordered)
        metrics = validate(options, tmp_path)
        found.append((metrics, [(v["check"], v["value"], v["text"]) for v in said(tmp_path)["verdicts"]]))
    assert found[0] == found[1] == found[2]
