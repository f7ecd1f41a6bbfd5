import math
import warnings

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import t
from sklearn.linear_model import LogisticRegression

from rlhf.evaluator.compare import (
    Controlled,
    bradley_terry,
    length_controlled,
    outcomes_of,
    paired_difference,
    rows_needed,
)
from rlhf.metrics import share


@pytest.fixture(autouse=True)
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def simulated(rows, rate, effect, longer_by, seed=0, ties=0.0):
    """Outcomes that follow the model, and lengths: after's are `longer_by` standard deviations longer on average."""
    draw = np.random.default_rng(seed)
    before = draw.integers(50, 400, rows)
    after = before + np.rint(draw.normal(40 * longer_by, 40, rows))
    difference = after - before
    outcomes = (draw.random(rows) < expit(logit(rate) + effect * np.tanh(difference / difference.std()))).astype(float)
    outcomes[draw.random(rows) < ties] = 0.5
    return outcomes.tolist(), before.tolist(), after.tolist()


def test_an_outcome_is_a_win_a_tie_or_a_loss_and_not_known_where_a_score_is_not_finite():
    before, after = [0.0, 0.0, 0.0, 1.0, math.nan, 0.0], [1.0, 0.25, -0.25, 0.0, 1.0, math.inf]
    assert outcomes_of(before, after, tie_margin=0.25) == [1.0, 0.5, 0.5, 0.0, None, None]
    assert outcomes_of([0.0, 0.0], [0.25, 0.0]) == [1.0, 0.5]
    with pytest.raises(ValueError, match="longer"):
        outcomes_of([1.0], [1.0, 2.0])


def test_wins_that_come_from_length_alone_leave_a_rate_of_one_half():
    outcomes, before, after = simulated(3000, 0.5, effect=2.0, longer_by=1.0)
    assert np.mean(outcomes) > 0.7
    found = length_controlled(outcomes, before, after, resamples=50)
    assert found.rate == pytest.approx(0.5, abs=0.03)
    assert found.low < 0.5 < found.high
    assert found.length_effect == pytest.approx(2.0, abs=0.25)


def test_a_better_model_that_writes_less_wins_more_at_equal_lengths():
    outcomes, before, after = simulated(3000, 0.7, effect=1.5, longer_by=-1.0)
    assert np.mean(outcomes) < 0.55
    found = length_controlled(outcomes, before, after, resamples=50)
    assert found.rate == pytest.approx(0.7, abs=0.03)
    assert found.low > 0.6


def test_where_length_does_nothing_the_rate_stays_and_ties_count_half():
    outcomes, before, after = simulated(4000, 0.6, effect=0.0, longer_by=0.3, ties=0.2)
    found = length_controlled(outcomes, before, after, resamples=50)
    assert found.rate == pytest.approx(np.mean(outcomes), abs=0.02)
    assert found.length_effect == pytest.approx(0, abs=0.15)


def test_the_rate_is_that_of_an_ordinary_logistic_regression():
    outcomes, before, after = simulated(500, 0.6, effect=1.0, longer_by=0.5)
    difference = np.subtract(after, before)
    feature = np.tanh(difference / difference.std())[:, None]
    plain = LogisticRegression(C=math.inf, tol=1e-8).fit(feature, outcomes)
    found = length_controlled(outcomes, before, after, resamples=2)
    assert found.rate == pytest.approx(expit(plain.intercept_[0]), abs=1e-3)
    assert found.length_effect == pytest.approx(plain.coef_[0, 0], abs=1e-2)


def test_a_tie_is_half_a_win_and_half_a_loss():
    outcomes, before, after = simulated(300, 0.6, effect=1.0, longer_by=0.5, ties=0.3)
    twice = [(whole, b, a) for o, b, a in zip(outcomes, before, after, strict=True) for whole in (math.ceil(o), int(o))]
    found, expected = (
        length_controlled(outcomes, before, after, resamples=2),
        length_controlled(*zip(*twice, strict=True), resamples=2),
    )
    assert found.rate == pytest.approx(expected.rate, abs=1e-3)
    assert found.length_effect == pytest.approx(expected.length_effect, abs=1e-2)


@pytest.mark.parametrize("wins", [300, 600, 950])
def test_at_equal_lengths_the_interval_is_near_wilsons(wins):
    found = length_controlled([1.0] * wins + [0.0] * (1000 - wins), [9] * 1000, [9] * 1000, resamples=400)
    expected = share(wins, 1000)
    assert (found.rate, found.length_effect) == (pytest.approx(expected.rate, abs=1e-3), None)
    assert (found.low, found.high) == (pytest.approx(expected.low, abs=0.006), pytest.approx(expected.high, abs=0.006))


def test_ties_make_the_interval_narrower_for_they_vary_less():
    rows, lengths = [1.0] * 70 + [0.0] * 30, [9] * 1000
    # By hand: the mean of 1000 rows, of which 900 are 1/2, and 1.96 of its standard errors.
    mean, error = 0.52, 1.96 * math.sqrt((70 * 0.48**2 + 30 * 0.52**2 + 900 * 0.02**2) / 1000 / 1000)
    found = length_controlled(rows + [0.5] * 900, lengths, lengths, resamples=400)
    assert (found.low, found.high) == (pytest.approx(mean - error, abs=0.002), pytest.approx(mean + error, abs=0.002))


@pytest.mark.parametrize(("won", "shown"), [(1, False), (3, False), (5, False), (10, True), (100, True)])
def test_a_few_rows_that_are_all_won_show_nothing_and_more_do(won, shown):
    found = length_controlled([1.0] * won, [9] * won, [9] * won, resamples=5)
    assert (found.low > 0.5) is shown
    assert found.low < found.rate < 1


def test_rows_that_nobody_judged_are_left_out():
    outcomes, before, after = simulated(100, 0.6, effect=1.0, longer_by=0.5)
    found = length_controlled([None, *outcomes, None], [1, *before, 10**6], [10**6, *after, 1], resamples=5)
    assert found == length_controlled(outcomes, before, after, resamples=5)
    assert found.of == 100


NOTHING = Controlled(None, None, None, None, 100)


def test_of_no_row_nothing_is_said():
    assert length_controlled([], [], []) == Controlled(None, None, None, None, 0)
    assert length_controlled([None], [1], [2]) == Controlled(None, None, None, None, 0)


def test_nothing_is_said_where_equal_lengths_are_out_of_reach():
    outcomes, near = [1.0, 0.0] * 50, [10 * (row % 3) for row in range(100)]
    assert length_controlled(outcomes, [0] * 100, [50] * 100) == NOTHING
    assert length_controlled(outcomes, [0] * 100, [1000 + by for by in near]) == NOTHING
    assert length_controlled([1.0], [1], [2]).rate is None
    assert length_controlled(outcomes, [0] * 100, near, resamples=5).rate == pytest.approx(0.5, abs=0.05)


def test_when_the_longer_one_always_wins_equal_lengths_stay_open():
    found = length_controlled([1.0, 0.0] * 50, [0, 9] * 50, [9, 0] * 50, resamples=20)
    assert found.rate == pytest.approx(0.5)
    assert (found.low < 0.2, found.high > 0.8) == (True, True)
    always_longer = length_controlled([1.0] * 50, [0] * 50, list(range(1, 51)), resamples=20)
    assert always_longer.low < 0.5


def test_all_ties_are_one_half_whatever_the_lengths():
    found = length_controlled([0.5] * 50, [9] * 50, list(range(50)), resamples=5)
    assert (found.rate, found.length_effect) == (pytest.approx(0.5), pytest.approx(0, abs=1e-6))
    assert found.low < 0.5 < found.high


def test_swapping_the_models_mirrors_everything():
    outcomes, before, after = simulated(200, 0.65, effect=1.0, longer_by=0.5, ties=0.1)
    one = length_controlled(outcomes, before, after, resamples=50)
    other = length_controlled([1 - outcome for outcome in outcomes], after, before, resamples=50)
    assert (other.rate, other.low, other.high) == pytest.approx((1 - one.rate, 1 - one.high, 1 - one.low), abs=1e-3)
    assert other.length_effect == pytest.approx(one.length_effect, abs=1e-3)


def test_the_unit_of_length_does_not_matter_and_the_seed_fixes_the_interval():
    outcomes, before, after = simulated(100, 0.6, effect=1.0, longer_by=0.5)
    found = length_controlled(outcomes, before, after, resamples=20)
    fourfold = length_controlled(outcomes, [4 * n for n in before], [4 * n for n in after], resamples=20)
    assert (fourfold.rate, fourfold.low) == (pytest.approx(found.rate), pytest.approx(found.low))
    assert found == length_controlled(outcomes, before, after, resamples=20)


def test_what_is_no_outcome_is_refused():
    with pytest.raises(ValueError, match="outside 0 to 1"):
        length_controlled([2.0, 0.0], [1, 1], [1, 1])
    with pytest.raises(ValueError, match="shorter"):
        length_controlled([1.0, 0.0], [1], [1])
    with pytest.raises(ValueError, match="outside 0 to 1"):
        bradley_terry([("a", "b", math.nan)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "rate", "effect", "longer_by"), [(60, 0.6, 1.0, 0.5), (200, 0.5, 2.0, 1.0), (60, 0.95, 0.0, 0.0)]
)
def test_the_interval_covers_the_true_rate_nineteen_times_in_twenty(rows, rate, effect, longer_by):
    times = 200
    covered = 0
    for seed in range(times):
        found = length_controlled(*simulated(rows, rate, effect, longer_by, seed), seed=seed, resamples=100)
        covered += found.low <= rate <= found.high
    # Four standard errors of 200 draws below 0.95; at most all.
    assert covered / times > 0.95 - 4 * math.sqrt(0.95 * 0.05 / times)


def test_the_mean_difference_of_normal_changes_has_students_interval():
    draw = np.random.default_rng(0)
    before = draw.normal(0, 3, 400)
    change = draw.normal(0.4, 1, 400)
    found = paired_difference(before.tolist(), (before + change).tolist())
    expected = t.interval(0.95, 399, change.mean(), change.std(ddof=1) / 20)
    assert found.mean == pytest.approx(change.mean())
    assert (found.low, found.high) == pytest.approx(expected, abs=0.02)


def test_the_interval_of_skewed_changes_is_skewed():
    change = np.random.default_rng(0).exponential(1, 40)
    found = paired_difference([0.0] * 40, change.tolist())
    assert found.high - found.mean > 1.2 * (found.mean - found.low)


def test_rows_that_all_change_alike_have_no_width_and_fewer_than_two_no_interval():
    found = paired_difference([1.0, 2.0, 3.0], [1.5, 2.5, 3.5])
    assert (found.mean, found.low, found.high) == (0.5, 0.5, 0.5)
    assert paired_difference([1.0], [2.0]) is None
    assert paired_difference([], []) is None
    with pytest.raises(ValueError, match="longer"):
        paired_difference([1.0], [1.0, 2.0])


def test_many_rows_need_no_memory_of_their_square():
    change = np.random.default_rng(0).normal(0.1, 1, 20_000)
    found = paired_difference([0.0] * 20_000, change.tolist())
    error = 1.96 * change.std() / math.sqrt(20_000)
    assert (found.low, found.high) == pytest.approx((change.mean() - error, change.mean() + error), abs=0.002)


def test_rows_needed_are_those_of_the_textbook_and_symmetric():
    # (1.959964 / 2 + 0.841621 sqrt(0.6 x 0.4))² / 0.1² = 193.9
    assert rows_needed(0.6) == rows_needed(0.4) == 194
    assert rows_needed(0.5) is None
    assert rows_needed(0.6, power=0.9) > rows_needed(0.6)
    assert rows_needed(0.6, confidence=0.99) > rows_needed(0.6)
    with pytest.raises(ValueError, match=r"found 1\.2"):
        rows_needed(1.2)


def test_the_least_that_wilsons_interval_tells_from_one_half_is_four_of_four():
    assert rows_needed(1.0) == 4
    assert share(4, 4).low > 0.5 > share(3, 3).low


@pytest.mark.parametrize("rate", [0.53, 0.55, 0.6, 0.7, 0.35])
def test_so_many_rows_tell_a_rate_from_one_half_four_times_in_five(rate):
    def power(rows: int) -> float:
        wins = np.random.default_rng(0).binomial(rows, rate, 4000).tolist()
        told = {hits: (found := share(hits, rows)).low > 0.5 or found.high < 0.5 for hits in set(wins)}
        return float(np.mean([told[hits] for hits in wins]))

    rows = rows_needed(rate)
    assert power(rows) == pytest.approx(0.8, abs=0.035)
    assert power(rows // 2) < 0.6


STRENGTHS = {"base": -1.0, "sft": -0.2, "ppo": 0.4, "grpo": 0.8}


def met(rows, seed=0):
    draw = np.random.default_rng(seed)
    pairs = [tuple(draw.choice(list(STRENGTHS), 2, replace=False).tolist()) for _ in range(rows)]
    return [(a, b, float(draw.random() < expit(STRENGTHS[a] - STRENGTHS[b]))) for a, b in pairs]


def test_strengths_of_four_models_are_found_again():
    found = bradley_terry(met(4000), resamples=40)
    assert sorted(found) == sorted(STRENGTHS)
    for model, strength in STRENGTHS.items():
        assert found[model].mean == pytest.approx(strength, abs=0.15)
        assert found[model].low < strength < found[model].high
    assert sum(each.mean for each in found.values()) == pytest.approx(0, abs=1e-9)


def test_of_two_models_the_difference_is_the_log_odds():
    found = bradley_terry([("a", "b", 1.0)] * 60 + [("b", "a", 1.0)] * 30 + [("a", "b", 0.5)] * 10, resamples=200)
    assert found["a"].mean - found["b"].mean == pytest.approx(logit(0.65), abs=1e-2)
    # The log-odds' standard error by hand: variance of outcomes, less that of ties, over the slope p (1 - p) sqrt(n)
    error = 1.96 * math.sqrt(0.65 * 0.35 - 0.025) / (0.65 * 0.35 * 10)
    assert (found["a"].high - found["a"].low) / 2 == pytest.approx(error / 2, rel=0.15)


def test_the_order_in_which_two_models_are_named_does_not_matter():
    one = met(200)
    other = [(b, a, 1 - outcome) if row % 2 else (a, b, outcome) for row, (a, b, outcome) in enumerate(one)]
    first, second = bradley_terry(one, resamples=20), bradley_terry(other, resamples=20)
    for model in STRENGTHS:
        assert vars(second[model]) == pytest.approx(vars(first[model]), abs=2e-3)
    few, turned = [("a", "b", 1.0)] * 3, [("a", "b", 1.0), ("b", "a", 0.0), ("a", "b", 1.0)]
    assert bradley_terry(turned, resamples=5)["a"].low == pytest.approx(bradley_terry(few, resamples=5)["a"].low)


def test_a_model_that_was_never_beaten_is_finite_and_not_sure_after_three_rows():
    found = bradley_terry([("a", "b", 1.0)] * 3, resamples=5)["a"]
    assert found.low < 0 < found.mean < 5
    assert bradley_terry([("a", "b", 1.0)] * 30, resamples=5)["a"].low > 0


def test_models_that_never_met_are_not_told_apart():
    found = bradley_terry([("a", "b", 1.0), ("b", "a", 1.0), ("c", "d", 1.0), ("d", "c", 1.0)] * 50, resamples=5)
    assert all(each.low < -5 and each.high > 5 for each in found.values())


def test_comparisons_of_one_prompt_count_as_one_draw():
    comparisons = [each for each in met(150) for _ in range(4)]
    alone = bradley_terry(comparisons)
    together = bradley_terry(comparisons, prompts=[row // 4 for row in range(600)])
    for model in STRENGTHS:
        width, wider = (found[model].high - found[model].low for found in (alone, together))
        assert wider / width == pytest.approx(2, rel=0.2)
        assert together[model].mean == alone[model].mean


def test_of_no_comparison_there_are_no_strengths():
    assert bradley_terry([]) == {}
