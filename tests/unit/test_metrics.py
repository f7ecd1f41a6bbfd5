import json

import pytest
from scipy.stats import binomtest

from rlhf.metrics import accuracy, ignores_prompt, late_mean, rouge, share, win_rate


@pytest.mark.parametrize("stemming", [False, True])
@pytest.mark.parametrize("model", ["tuned", "untuned"])
def test_rouge_equals_the_goldens_of_real_predictions(real_data, model, stemming):
    folder = real_data / "vertex_text"

    def column(file: str, name: str) -> list[str]:
        return [json.loads(line)[name] for line in (folder / file).read_text(encoding="utf-8").splitlines()]

    references = column("eval_with_references.jsonl", "output_text")
    predictions = column(f"eval_predictions_{model}.jsonl", "prediction")
    golden = json.loads((folder / "rouge_goldens.json").read_text())[f"{model}_vs_ref|stem={stemming}"]

    scores = rouge(predictions, references, stemming=stemming)

    assert len(scores.rows["rougeL"]) == 14
    assert scores.mean == {kind: pytest.approx(golden[kind]["f"], abs=1e-6) for kind in golden}


def test_rouge_is_per_row_and_compares_with_the_reference_of_its_own_row():
    scores = rouge(["the cat sat", "dogs run"], ["the cat sat", "fish swim"])
    assert scores.rows["rouge1"] == [1.0, 0.0]
    assert scores.mean["rouge1"] == 0.5


def test_rouge_of_an_empty_prediction_is_zero_and_of_no_rows_is_nothing():
    assert rouge([""], ["a reference"]).mean["rougeL"] == 0.0
    assert rouge([], []).mean == {}


def test_win_rate_leaves_ties_out_and_states_them_apart():
    result = win_rate([0.0, 0.0, 0.0, 1.0], [1.0, 2.0, 0.0, 0.0])
    assert (result.wins, result.losses, result.ties) == (2, 1, 1)
    assert result.rate == pytest.approx(2 / 3)
    assert "2 of 3 decided pairs" in result.in_words()
    assert "1 tie apart" in result.in_words()


def test_win_rate_has_the_wilson_interval():
    # Wilson 1927 by hand for 8 of 10: (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n), z = 1.959964
    result = win_rate([0.0] * 10, [1.0] * 8 + [-1.0] * 2)
    assert (result.low, result.high) == (pytest.approx(0.490162, abs=1e-6), pytest.approx(0.943318, abs=1e-6))


@pytest.mark.parametrize("of", [1, 2, 3, 10, 77, 1_000, 123_457])
def test_every_share_has_the_wilson_interval_as_scipy_computes_it(of):
    for hits in sorted({0, 1, of // 7, of // 2, of - 1, of}):
        found, expected = share(hits, of), binomtest(hits, of).proportion_ci(method="wilson")
        assert (found.low, found.high) == (
            pytest.approx(expected.low, abs=1e-12),
            pytest.approx(expected.high, abs=1e-12),
        )
        assert 0 <= found.low <= found.rate <= found.high <= 1


def test_without_a_decided_pair_there_is_no_win_rate_and_the_words_say_so():
    result = win_rate([1.0, 2.0], [1.0, 2.0])
    assert (result.rate, result.low, result.high) == (None, None, None)
    assert result.in_words() == "no pair is decided (2 ties), so there is no win rate"


def test_differences_within_the_tie_margin_are_ties():
    assert win_rate([0.0, 0.0], [0.1, 0.3], tie_margin=0.2).ties == 1


def test_scores_that_do_not_pair_up_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        win_rate([1.0, 2.0], [1.0])


def test_accuracy_counts_a_tie_as_wrong_and_names_it():
    result = accuracy([1.0, 1.0, 0.0, 2.0], [0.0, 1.0, 1.0, 1.0])
    assert (result.correct, result.pairs, result.ties, result.rate) == (2, 4, 1, 0.5)
    assert result.low < 0.5 < result.high
    assert accuracy([], []).rate is None


@pytest.mark.parametrize(("right", "swapped", "ignored"), [(0.83, 0.83, True), (0.83, 0.79, True), (0.83, 0.77, False)])
def test_a_reward_model_that_loses_little_with_other_prompts_ignores_them(right, swapped, ignored):
    assert ignores_prompt(right, swapped) is ignored


def test_late_mean_is_over_the_last_tenth_and_never_over_nothing():
    assert late_mean([(step, float(step)) for step in range(40)]) == pytest.approx(37.5)
    assert late_mean([(1, 2.0), (2, 5.0)]) == 5.0
