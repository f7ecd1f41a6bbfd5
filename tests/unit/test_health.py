"""Health of texts: what is counted, and what is said of it."""

import math

import pytest

from rlhf.evaluator import health


def of(completions: list[str], prompts: list[str] | None = None, ended: list[bool] | None = None) -> health.Health:
    return health.health(prompts or [""] * len(completions), completions, ended or [True] * len(completions))


def test_what_is_said_again_is_repetition():
    assert of(["a b c d e f g h"]).repetition == 0
    # 4-grams of "a b c d a b c d": five, of which "a b c d" stands twice.
    assert of(["a b c d a b c d"]).repetition == pytest.approx(1 / 5)
    assert of(["no no no no no no"]).repetition == pytest.approx(2 / 3)
    assert of(["too short", ""]).repetition == 0


def test_what_stands_in_the_prompt_is_copied():
    prompt = "My brother sold my guitar on monday."
    assert of(["my brother sold my guitar"], [prompt]).copied == 1
    assert of(["he said my brother sold my"], [prompt]).copied == pytest.approx(1 / 3)
    assert of(["something else of my own"], [prompt]).copied == 0


def test_shares_of_empty_and_cut_off():
    found = of(["a", " ", "b", "c"], ended=[True, True, False, True])
    assert (found.empty, found.truncated, found.ended) == (0.25, 0.25, 0.75)


def test_distinct_words_and_their_entropy():
    found = of(["a b a b", "c d"])
    assert found.distinct_1 == pytest.approx(4 / 6)
    assert found.distinct_2 == pytest.approx(3 / 4)
    assert found.entropy == pytest.approx(2 * math.log2(3) / 3 + 2 * math.log2(6) / 6)
    assert of(["x x x"]).entropy == 0


def test_nothing_said_at_all_is_no_crash():
    found = of(["", ""])
    assert (found.words, found.empty, found.entropy, found.distinct_1) == (0, 1, 0, 0)
    assert health.remarks(found, found) == [("100\u00a0% of the tuned model's completions are empty.", True)]


def test_texts_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        health.health(["a"], ["b", "c"], [True, True])


def test_scores_beyond_what_was_trained_on():
    found = health.beyond([-2.0, 0.0, 1.0, 5.0], -1.0, 1.0)
    assert (found.hits, found.of) == (2, 4)


def test_judges_that_part_are_named():
    (text,) = health.disagreements({"ROUGE-L": -0.1, "reward model": 2.0, "judge": 0.1, "gold": 0.0})
    assert "better by reward model and judge, worse by ROUGE-L" in text
    assert health.disagreements({"ROUGE-L": 0.1, "reward model": 2.0}) == []


def test_what_got_worse_is_remarked():
    fine = of(["the cat sat on a mat today", "dogs run home when rain falls"])
    stuck = of(["no no no no no no no", "no no no no no no no"])
    said = [text for text, is_warning in health.remarks(fine, stuck) if is_warning]
    assert any("repeats itself more" in text for text in said)
    assert any("less varied" in text for text in said)
    assert health.remarks(fine, fine) == []
