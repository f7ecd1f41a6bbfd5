"""What is measured of a reward model: calibration, rules that it has to beat, groups, correlations, ROC."""

import json
import math
from statistics import fmean

import numpy as np
import pytest
from scipy.stats import binomtest, spearmanr

from rlhf.metrics import independent, share
from rlhf.reward_trainer.findings import examine
from rlhf.reward_trainer.measures import (
    baseline,
    by_length,
    by_size,
    calibration,
    drop,
    pearson,
    share_of,
    spearman,
)
from tests.reward_findings import held_out, nothing_warns, ranked, scored, training  # noqa: F401


def test_calibration_is_that_worked_out_by_hand():
    # sigmoid(0.2) = 0.549834 is in (0.5, 0.55], sigmoid(1) = 0.731059 in (0.7, 0.75], sigmoid(1.05) = 0.740775, too.
    found = calibration(np.array([0.2, -0.2, 1.0, 1.05, -1.0, 1.0, 0.0]), np.arange(7))
    assert [(b.right.hits, b.right.of) for b in found.bins] == [(1, 2), (3, 4)]
    assert found.bins[0].confidence == pytest.approx(0.549834, abs=1e-6)
    assert found.bins[1].confidence == pytest.approx((3 * 0.731059 + 0.740775) / 4, abs=1e-6)
    assert found.ece == pytest.approx((2 * (0.549834 - 0.5) + 4 * (0.75 - 0.733488)) / 6, abs=1e-6)
    assert found.confidence == pytest.approx((2 * 0.549834 + 4 * 0.733488) / 6, abs=1e-6)
    assert found.right == share(4, 6)  # the tie claims nothing


def test_bins_of_confidence_are_five_points_wide():
    found = calibration(np.array([0.19, 0.21, 0.39, 0.41]), np.arange(4))  # sigmoid: 0.547, 0.552, 0.596, 0.601
    assert [b.right.of for b in found.bins] == [1, 2, 1]


def test_a_saturated_confidence_is_in_the_last_bin():
    found = calibration(np.array([800.0, -800.0]), np.arange(2))
    assert [(b.confidence, b.right.of) for b in found.bins] == [(1.0, 2)]
    assert found.ece == 0.5


def test_the_loss_is_the_pairwise_logistic_loss():
    plain = held_out()
    findings = examine(plain, training())
    by_hand = fmean(math.log(1 + math.exp(r - c)) for c, r in zip(plain.chosen, plain.rejected, strict=True))
    assert findings.loss == pytest.approx(by_hand)
    assert examine(held_out(**scored(0, sure=2000.0)), training()).loss == 2000.0


def test_mcnemar_is_the_binomial_test_of_the_pairs_where_just_one_is_right():
    right = np.array([True] * 12 + [False] * 3 + [True] * 5 + [False] * 2 + [True])
    rule = np.array([0.0] * 12 + [1.0] * 3 + [1.0] * 5 + [0.0] * 2 + [math.nan])
    found = baseline(rule, right, np.arange(rule.size))
    assert found.p == pytest.approx(binomtest(12, 15, 0.5).pvalue)
    assert (found.rule, found.model) == (share(8, 22), share(17, 22))  # not of the pair that the rule leaves open
    assert found.beaten
    assert not baseline(1 - rule, ~right, np.arange(rule.size)).model.hits > 5


def test_a_rule_that_is_significantly_better_is_not_beaten():
    found = baseline(np.ones(20), np.array([False] * 15 + [True] * 5), np.arange(20))
    assert found.p < 0.001
    assert not found.beaten


def test_a_rule_that_agrees_with_the_model_everywhere_is_not_beaten():
    found = baseline(np.array([1.0, 0.0]), np.array([True, False]), np.arange(2))
    assert (found.p, found.beaten) == (1.0, False)


def test_pairs_of_equal_length_are_left_to_neither_rule_nor_model():
    lengths = {"chosen_length": [10] * 60 + [20] * 40, "rejected_length": [10] * 100}
    found = examine(held_out(**lengths), training()).baselines["longer wins"]
    assert found.rule == share(40, 40)
    assert found.model.of == 40


@pytest.mark.parametrize("position", [[None] * 100, [0] * 100, [1] * 50 + [None] * 50])
def test_where_the_place_of_the_chosen_response_says_nothing_there_is_no_first_wins(position):
    findings = examine(held_out(position=position), training())
    assert findings.by_position == []
    assert "first wins" not in findings.baselines
    assert findings.roc is not None  # sides are drawn by a hash
    assert sum(map(sum, findings.confusion)) == 100


def test_accuracy_is_told_by_length_place_and_margin():
    right = np.array([True, False, True, True, False, True])
    chosen, rejected = np.array([10, 10, 0, 19, 15, 10]), np.array([20, 12, 0, 20, 11, 2])
    assert [(g.label, g.share.hits, g.share.of) for g in by_length(chosen, rejected, right, np.arange(right.size))] == [
        ("under ⅔ as long", 1, 1),
        ("shorter", 0, 1),
        ("about as long (±10 %)", 2, 2),
        ("longer", 0, 1),
        ("over 1.5 times as long", 1, 1),
    ]
    findings = examine(held_out(margin=[1.0] * 20 + [-2.0] * 30 + [None] * 50), training())
    assert [(g.label, g.share.of) for g in findings.by_margin] == [("−2", 30), ("1", 20)]
    assert [(g.label, g.share.of) for g in findings.by_position] == [
        ("first candidate chosen", 50),
        ("second candidate chosen", 50),
    ]
    assert [(g.label, g.share.hits, g.share.of) for g in findings.by_own_margin] == [("1.7", 85, 100)]


def test_quarters_hold_every_pair_once_whatever_is_tied():
    values = np.array([0.0] * 50 + list(range(1, 51)))
    groups = by_size(values, values > 25, np.arange(values.size))
    assert sum(g.share.of for g in groups) == 100
    assert groups[0].label == "0"
    few = np.array([0.0] * 90 + [1.0] * 5 + [2.0] * 5)
    assert [(g.label, g.share.of) for g in by_size(few, few > 1, np.arange(few.size))] == [
        ("0", 90),
        ("1", 5),
        ("2", 5),
    ]
    assert [g.share.of for g in by_size(np.arange(100.0), np.ones(100, dtype=bool), np.arange(100))] == [25] * 4


def test_rank_correlation_is_scipys_and_its_interval_covers_as_often_as_it_says():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        x, y = random.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 50).T
        found = spearman(x, y)
        covered += found.low <= 6 / math.pi * math.asin(0.3) <= found.high  # its value for two normals
    assert found.value == pytest.approx(spearmanr(x, y).statistic)
    assert 0.92 <= covered / 400 <= 0.98


@pytest.mark.parametrize("correlation", [pearson, spearman])
def test_a_correlation_of_what_does_not_vary_is_not_known(correlation):
    line = np.arange(5.0)
    assert correlation(np.ones(5), line) is correlation(line, np.ones(5)) is correlation(line[:1], line[:1]) is None
    assert correlation(line[:3], line[:3]).low is None
    assert (correlation(line, line).low, correlation(line, -line).high) == (pytest.approx(1), pytest.approx(-1))


def test_scores_and_lengths_are_correlated_over_responses_and_within_pairs():
    # Long responses belong to prompts with high scores, but within a pair the longer one scores lower.
    pairs = {
        "chosen": [10.0 * i for i in range(100)],
        "rejected": [10.0 * i - (i % 3) for i in range(100)],
        "chosen_length": [100 * i for i in range(100)],
        "rejected_length": [100 * i + i % 3 for i in range(100)],
    }
    length = examine(held_out(**pairs), training()).length
    assert length["spearman"].value > 0.9
    assert length["spearman_within"].value == pytest.approx(-1)
    assert length["pearson"].value > 0.9
    assert length["pearson_within"].value == pytest.approx(-1)


def test_sensitivity_is_of_the_responses_that_were_measured():
    findings = examine(
        held_out(changed={"emptied": [None] * 97 + [-3.0, 1.0, 0.0], "shuffled": [None] * 100}), training()
    )
    assert set(findings.sensitivity) == {"emptied"}
    assert findings.sensitivity["emptied"].mean_change == pytest.approx(-2 / 3)
    assert findings.sensitivity["emptied"].falls == share(1, 3)  # one that stays as it is does not fall


def test_classification_metrics_are_finite_and_thin():
    random = np.random.default_rng(0)
    n = 2000
    pairs = held_out(
        pairs=n,
        ids=[str(i) for i in range(n)],
        chosen=random.normal(1, 20, n).tolist(),
        rejected=random.normal(0, 20, n).tolist(),
        swapped_chosen=None,
        swapped_rejected=None,
        chosen_length=[1] * n,
        rejected_length=[1] * n,
        position=random.integers(0, 2, n).tolist(),
        margin=[None] * n,
        changed={},
    )
    findings = examine(pairs, training())
    roc = findings.roc
    assert len(roc.fpr) == len(roc.tpr) == len(roc.threshold) <= 200
    assert json.loads(json.dumps(vars(roc), allow_nan=False)) == vars(roc)
    assert (roc.fpr[0], roc.tpr[0], roc.threshold[0]) == (0, 0, 1)
    assert (roc.fpr[-1], roc.tpr[-1]) == (1, 1)
    assert all(column == sorted(column) for column in (roc.fpr, roc.tpr, roc.threshold[::-1]))
    assert (findings.confusion[0][0] + findings.confusion[1][1]) / n == findings.accuracy.rate
    assert sum(findings.confusion[0]) == pairs.position.count(0)


def test_a_model_that_knows_the_first_candidate_has_the_whole_area():
    chosen, rejected = ranked(100)
    findings = examine(held_out(chosen=chosen, rejected=rejected), training())
    assert findings.roc.area == 1.0
    assert findings.confusion == [[50, 0], [0, 50]]


def test_sides_drawn_by_a_hash_are_the_same_every_time_and_about_half():
    one, other = (examine(held_out(position=[None] * 100), training()).confusion for _ in range(2))
    assert one == other
    assert 30 <= sum(one[0]) <= 70


def test_pairs_of_one_prompt_are_worth_fewer_and_widen_every_interval():
    """Twenty prompts of five pairs each, all of a prompt right or all wrong: twenty witnesses, not a hundred."""
    right = np.repeat(np.arange(20) < 14, 5)
    prompts = np.repeat(np.arange(20), 5)
    assert independent(right.tolist(), prompts.tolist()) == pytest.approx(20, rel=0.06)
    assert independent(right.tolist(), list(range(100))) == 100
    assert independent([True] * 100, prompts.tolist()) == 20
    together, apart = share_of(right, prompts), share_of(right, np.arange(100))
    assert together.rate == apart.rate == 0.7
    assert together.low == pytest.approx(share(14, 20).low, abs=0.02)
    assert together.low < apart.low - 0.1
    rule = np.zeros(100)
    assert baseline(rule, right, prompts).p > 10 * baseline(rule, right, np.arange(100)).p
    assert calibration(np.where(right, 2.0, -2.0), prompts).right.low < 0.55


def test_the_effect_of_prompts_is_that_of_drawing_them_anew():
    """The interval is about that of a bootstrap over prompts."""
    draw = np.random.default_rng(0)
    prompts = np.repeat(np.arange(60), 6)
    right = draw.random(360) < np.repeat(draw.beta(2, 1, 60), 6)
    found = share_of(right, prompts)
    by_prompt = right.reshape(60, 6).mean(1)
    means = [by_prompt[draw.integers(60, size=60)].mean() for _ in range(2000)]
    low, high = np.quantile(means, [0.025, 0.975])
    assert found.high - found.low == pytest.approx(high - low, rel=0.12)


@pytest.mark.parametrize(
    ("own", "others", "ignores"),
    [
        (140, 90, False),  # of 200
        (140, 139, True),
        (14, 12, None),  # of 20
        (9, 7, None),  # below chance, and as likely by it
    ],
)
def test_a_drop_is_shown_or_shown_to_be_small_or_cannot_be_told(own, others, ignores):
    pairs = 200 if own > 20 else 20
    chosen, rejected = ranked(own, pairs)
    swapped = ranked(others, pairs)
    made = held_out(
        pairs=pairs, chosen=chosen, rejected=rejected, swapped_chosen=swapped[0], swapped_rejected=swapped[1]
    )
    findings = examine(made, training())
    assert findings.ignores_prompt is ignores
    said = " ".join(text for _, text in findings.statements())
    assert ("cannot be told from so few pairs" in said) == (ignores is None)


def test_the_interval_of_a_drop_holds_as_often_as_it_says():
    draw = np.random.default_rng(1)
    inside = 0
    for _ in range(400):
        before, after = draw.random(60) < 0.8, draw.random(60) < 0.7
        found = drop(before, after, np.arange(60))
        inside += found.low <= 0.1 <= found.high
    assert 0.93 <= inside / 400 <= 0.98


def test_a_drop_over_few_prompts_is_no_surer_than_over_independent_pairs():
    """Two prompts that behave alike say no more of others than their pairs would; one says nothing."""
    before = np.tile([True] * 8 + [False] * 5 + [True] * 7, 2)
    after = np.tile([False] * 8 + [True] * 5 + [True] * 7, 2)
    of_two, apart = drop(before, after, np.repeat([0, 1], 20)), drop(before, after, np.arange(40))
    assert of_two.low <= apart.low + 1e-9 < 0
    assert (drop(before, after, np.zeros(40)).low, drop(before, after, np.zeros(40)).high) == (-1.0, 1.0)
