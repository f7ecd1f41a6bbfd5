import math
from dataclasses import replace

import pytest

from rlhf.evaluator.health import Health, beyond, disagreements, health, remarks, words


def of(*completions, prompts=None, ended=None):
    return health(prompts or [""] * len(completions), completions, ended or [True] * len(completions))


def test_words_are_runs_of_letters_and_digits_in_any_script():
    assert words("Don't, ÉTÉ 42\n") == ["don", "t", "été", "42"]
    assert words(" ... ") == []


def test_length_is_in_words_and_empty_and_cut_off_completions_are_counted():
    found = of("one two three", "four", " \n", "", ended=[True, False, True, True])
    assert found.words == 1.0
    assert (found.empty, found.ended, found.truncated) == (0.5, 0.75, 0.25)


def test_repetition_is_the_share_of_runs_of_four_words_that_were_there_before():
    # a b c d a b c d has five runs of four, of which the last repeats the first.
    assert of("a b c d a b c d").repetition == pytest.approx(1 / 5)
    assert of("a b c d e f g h").repetition == 0
    assert of("no " * 23).repetition == pytest.approx(19 / 20)


def test_repetition_is_within_a_completion_and_averaged_over_those_long_enough():
    assert of("a b c d", "a b c d").repetition == 0
    assert of("a b c d a b c d", "e f g h", "too short now").repetition == pytest.approx((1 / 5 + 0) / 2)


def test_copied_is_the_share_of_runs_of_four_words_that_stand_in_the_completions_own_prompt():
    prompts = ["My boss broke my bike on monday. Do I sue?", "Another post"]
    found = of("Boss broke my bike, so what?", "My boss broke my bike on", prompts=prompts)
    # "boss broke my bike" of three runs; nothing of the second in its own prompt.
    assert found.copied == pytest.approx((1 / 3 + 0) / 2)
    assert of(prompts[0], prompts=[prompts[0]]).copied == 1


def test_distinct_is_over_all_completions_and_per_word():
    found = of("a b c", "a b d")
    assert found.distinct_1 == pytest.approx(4 / 6)
    assert found.distinct_2 == pytest.approx(3 / 6)  # ab, bc, bd; none across completions


def test_entropy_is_in_bits():
    assert of("a b c d").entropy == pytest.approx(2)
    assert of("a a a b").entropy == pytest.approx(-(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)))
    assert math.copysign(1, of("a a").entropy) == 1


def test_of_texts_without_words_nothing_is_said_of_their_words():
    found = of("", "?!")
    assert (found.repetition, found.copied, found.distinct_1, found.distinct_2) == (None, None, None, None)
    assert (found.words, found.entropy, found.empty) == (0, 0, 0.5)


def test_completions_that_do_not_pair_up_or_are_none_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        health(["a", "b"], ["a"], [True])
    with pytest.raises(ValueError, match="found none"):
        health([], [], [])


def test_scores_beyond_the_range_of_training_are_counted_and_its_ends_are_inside():
    found = beyond([-1.0, 0.0, 2.0, 2.1, math.nan, math.inf], low=0.0, high=2.0)
    assert (found.hits, found.of) == (4, 6)
    assert beyond([], 0.0, 1.0).rate is None


def test_judges_that_agree_say_nothing():
    assert disagreements({"ROUGE-L": 0.1, "reward model": 2.0, "judge m": 0.2}) == []
    assert disagreements({"ROUGE-L": 0.0, "reward model": -2.0}) == []
    assert disagreements({}) == []


def test_judges_that_part_are_named_on_their_sides():
    said = disagreements({"ROUGE-L": -0.1, "reward model": 2.0, "judge m": 0.2})
    assert said[0] == "By the reward model and judge m the tuned model is better, by ROUGE-L it is worse."
    assert "decides nothing" in said[1]
    assert len(said) == 2


def test_a_judge_against_the_reward_model_is_believed():
    said = disagreements({"ROUGE-L": -0.1, "reward model": 2.0, "judge m": -0.2, "gold score": 0.0})
    assert said[0] == "By the reward model the tuned model is better, by ROUGE-L and judge m it is worse."
    assert "Believe the other judge" in said[1]
    assert len(said) == 2
    assert len(disagreements({"reward model": -1.0, "judge m": 0.2})) == 1


WELL = Health(
    words=30.0, ended=0.97, empty=0.0, repetition=0.01, copied=0.2, distinct_1=0.3, distinct_2=0.7, entropy=9.0
)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"empty": 0.02}, "2.0 % of the tuned model's completions are empty, 0 % before"),
        ({"ended": 0.85}, "15 % of the completions are cut off"),
        ({"repetition": 0.3}, "repeats itself"),
        ({"copied": 0.6}, "60 % stand in its prompt"),
        ({"entropy": 8.0}, "8.0 bits a word and 0.70 different pairs of words a word, against 9.0"),
        ({"distinct_2": 0.4}, "have become alike"),
    ],
)
def test_what_became_worse_is_a_warning(change, sentence):
    worse = replace(WELL, **change)
    [(said, warning)] = remarks(WELL, worse)
    assert sentence in said.replace("\u00a0", " ")
    assert warning
    assert not any(warning for _, warning in remarks(worse, WELL))


def test_another_length_is_a_remark_and_no_warning():
    [(longer, warning)] = remarks(WELL, replace(WELL, words=45.0, distinct_2=0.5))
    assert "50 % longer: 45.0 words on average, 30.0 before" in longer.replace("\u00a0", " ")
    assert not warning
    assert "shorter" in remarks(WELL, replace(WELL, words=20.0))[0][0]


def test_completions_as_healthy_as_before_are_said_to_be():
    [(said, warning)] = remarks(WELL, replace(WELL, words=31.0))
    assert said.startswith("Nothing in the completions alarms")
    assert not warning


def test_completions_without_words_are_compared_too():
    nothing = of("", "")
    assert any("empty" in said for said, _ in remarks(WELL, nothing))
    assert not any(warning for _, warning in remarks(nothing, WELL))
    assert any("repeats itself" in said for said, _ in remarks(nothing, replace(WELL, repetition=0.5)))
