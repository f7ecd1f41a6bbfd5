import json
import math
import warnings
from statistics import fmean

import numpy as np
import pytest
from scipy.stats import binomtest, spearmanr

from rlhf.errors import TrainingError
from rlhf.metrics import share
from rlhf.reward_trainer.findings import examine
from rlhf.reward_trainer.measures import baseline, by_length, by_size, calibration, pearson, spearman
from tests.reward_findings import held_out, ranked, training


@pytest.fixture(autouse=True)
def _nothing_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def said(findings) -> dict[bool | None, str]:
    """{good news or not: all that is said}"""
    return {
        good: " ".join(text for is_good, text in findings.statements() if is_good is good)
        for good in (True, False, None)
    }


PLAIN = held_out()
OVERFIT = {
    "rank_loss": [(step, 0.7 / step) for step in range(1, 101)],
    "reward_model/eval_loss": [(20, 0.6), (40, 0.5), (100, 0.9)],
}
SHORTER = {"chosen_length": [10] * 80 + [20] * 20, "rejected_length": [20] * 80 + [10] * 20}


def spoilt(change: str, falling: int) -> dict:
    """`falling` of 100 responses lose score by `change`."""
    return {"changed": {change: [-1.0] * falling + [1.0] * (100 - falling)}}


def seen(right: int, pairs: int = 100) -> dict:
    chosen, rejected = ranked(right, pairs)
    return {"seen_chosen": chosen, "seen_rejected": rejected}


def scored(right: int, sure: float) -> dict:
    chosen, rejected = ranked(right, sure=sure)
    return {"chosen": chosen, "rejected": rejected}


def test_of_a_good_model_no_bad_news_is_told():
    findings = examine(held_out(), training())
    assert said(findings)[False] == said(findings)[None] == ""
    assert findings.verdict.word == "Usable"
    assert "ranks 85\u00a0% (95\u00a0% interval 77\u00a0% to 90.7\u00a0%) of 100 held-out pairs right" in (
        findings.verdict.headline
    )


@pytest.mark.parametrize(
    ("pairs", "trained", "good", "text"),
    [
        ({}, {}, True, "The reward model reads the prompt. 85 % of the pairs"),
        (
            {"swapped_chosen": PLAIN.chosen, "swapped_rejected": PLAIN.rejected},
            {},
            False,
            "The reward model ignores the prompt: its scores say how a response looks, not whether it fits the prompt. "
            "85 % of the pairs are ranked right with their own prompts, 85 % with those of other pairs.",
        ),
        (
            {"swapped_chosen": None, "swapped_rejected": None},
            {},
            None,
            "one prompt, so whether the reward model reads it is not known",
        ),
        ({}, {}, True, 'It beats "longer wins": 85 % right against 50 %'),
        (
            {"chosen_length": [20] * 90 + [10] * 10, "rejected_length": [10] * 90 + [20] * 10},
            {},
            False,
            'It does not beat "longer wins": 85 % right against 90 %',
        ),
        (
            {"chosen_length": [20] * 82 + [10] * 18, "rejected_length": [10] * 82 + [20] * 18},
            {},
            False,
            'It does not beat "longer wins": 85 % right against 82 % for always taking the longer response, on 100 '
            "pairs of unequal length (exact McNemar test, p = 0.71). The difference may be chance.",
        ),
        (SHORTER, {}, False, 'It does not beat "shorter wins": 85 % right against 80 %'),
        (
            {"chosen_length": [10] * 100, "rejected_length": [10] * 100},
            {},
            None,
            'as long as each other, so "longer wins" decides nothing',
        ),
        ({}, {}, True, 'It beats "first wins": 85 % right against 50 %'),
        ({"position": [0] * 95 + [1] * 5}, {}, False, 'It does not beat "first wins": 85 % right against 95.0 %'),
        ({}, {}, True, "It did not memorise. After 2 passes over the training pairs"),
        (
            {},
            seen(100) | {"passes": 12.34},
            False,
            "It memorised: after 12.3 passes over the training pairs it ranks 100 % (95 % interval 96.3 % to 100 %) of "
            "the pairs that it trained on right, and 85 % (95 % interval 77 % to 90.7 %) of the held-out pairs.",
        ),
        ({}, seen(10, pairs=10), None, "It may have memorised; too few pairs"),
        ({}, {"seen_chosen": [], "seen_rejected": []}, None, "whether it memorised is not known"),
        ({}, {}, True, "An emptied response is punished: the score falls in 100 %"),
        (spoilt("emptied", 70), {}, None, "An emptied response is not always punished: the score falls in 70 %"),
        (spoilt("emptied", 50), {}, False, "An emptied response is not punished: the score falls in 50 %"),
        (spoilt("shuffled", 50), {}, False, "A response with its words shuffled is not punished"),
        (spoilt("repeated", 50), {}, False, "A response said over again is not punished"),
        ({}, {}, True, "It is about as sure as it is right: on average it is 85 % sure"),
        (
            scored(60, sure=5.0),
            {},
            False,
            "It is over-confident: on average it is 99.3 % sure of its preference, and right in 60 % (95 % interval "
            "50 % to 69 %). Its loss on held-out pairs, 2.01 nats, is above that of a coin, 0.693.",
        ),
        (scored(85, sure=0.1), {}, None, "It is under-confident: on average it is 52 % sure"),
        (
            {
                "chosen_length": [10 + (15 if i % 100 < 50 else -5) for i in range(100)],
                "rejected_length": [10] * 100,
                "chosen": [1.0] * 50 + [-1.0] * 50,
                "rejected": [0.0] * 100,
            },
            {},
            None,
            "Scores follow length: within a pair, the longer response tends to score higher",
        ),
        (
            {"chosen": [0.0, *PLAIN.chosen[1:]], "rejected": [0.0, *PLAIN.rejected[1:]]},
            {},
            None,
            "1 held-out pair scored alike, which counts as wrong",
        ),
        ({}, {"skipped_steps": 3}, False, "3 of 100 steps changed nothing, because loss or gradients were not finite"),
        (
            {},
            {"stopped_early": True, "planned_steps": 1000, "best_step": 60},
            None,
            "Training stopped early, after 100 of 1,000 steps, because the selection pairs were no longer ranked "
            "better. The model of step 60, their best, is kept.",
        ),
        ({}, {"best_step": 60}, None, "Of 100 steps, the model of step 60 is kept"),
        (
            {},
            {"history": OVERFIT, "best_step": 40},
            None,
            "Training overfitted from step 40 on: the loss on the selection pairs rose from 0.5 to 0.9 nats, while "
            "that on training batches ended at 0.007. The model that is kept, of step 40, is from before that.",
        ),
        ({}, {"history": OVERFIT}, False, "The model that is kept, of step 100, is from after that."),
        (
            {"chosen": [2.0] * 100, "rejected": [2.0] * 100},
            {},
            False,
            "Every text gets the same score: the reward model tells nothing apart.",
        ),
    ],
)
def test_each_thing_is_said_where_it_is_so_and_nowhere_else(pairs, trained, good, text):
    text = text.replace(" %", "\u00a0%")
    findings = examine(held_out(**pairs), training(**trained))
    assert text in said(findings)[good]
    if pairs or trained:
        assert text not in " ".join(said(examine(held_out(), training())).values())


def test_bad_news_come_first_and_what_is_neither_last():
    findings = examine(held_out(**spoilt("repeated", 10)), training(best_step=5))
    goods = [good for good, _ in findings.statements()]
    assert goods == sorted(goods, key=(False, True, None).index)
    assert set(goods) == {True, False, None}


@pytest.mark.parametrize(
    ("pairs", "trained", "word", "good", "headline"),
    [
        ({}, {}, "Usable", True, "85 %"),
        (
            {"swapped_chosen": PLAIN.chosen, "swapped_rejected": PLAIN.rejected} | SHORTER | spoilt("emptied", 5),
            seen(100),
            "Doubtful",
            None,
            'held-out pairs right, but it ignores the prompt, does not beat "shorter wins", memorised the pairs it '
            "trained on and does not punish an emptied response.",
        ),
        (spoilt("emptied", 70), {}, "Usable", True, "85 %"),
        (spoilt("repeated", 5), {"skipped_steps": 1}, "Usable", True, "85 %"),
        (scored(58, sure=1.7), {}, "Not usable", False, "not shown to be better than a coin: it ranks 58 %"),
        (
            {"chosen": [1e-8 * i for i in range(100)], "rejected": [0.0] * 100},
            {},
            "Not usable",
            False,
            "Every text gets the same score",
        ),
    ],
)
def test_the_verdict_follows_its_rule(pairs, trained, word, good, headline):
    verdict = examine(held_out(**pairs), training(**trained)).verdict
    assert (verdict.word, verdict.good) == (word, good)
    assert headline.replace(" %", "\u00a0%") in verdict.headline


def test_a_gap_that_chance_explains_is_not_called_memorising():
    small, large = (examine(held_out(), training(**seen(round(0.97 * n), n))) for n in (10, 400))
    assert (small.wide_gap, small.memorised) == (True, False)
    assert (large.wide_gap, large.memorised) == (True, True)


def test_a_gap_beyond_chance_but_below_ten_points_is_not_called_memorising():
    chosen, rejected = ranked(4500, pairs=5000)
    many = [0] * 5000
    pairs = held_out(
        ids=[str(i) for i in range(5000)],
        chosen=chosen,
        rejected=rejected,
        swapped_chosen=None,
        swapped_rejected=None,
        chosen_length=many,
        rejected_length=many,
        position=many,
        margin=many,
        changed={},
    )
    assert examine(pairs, training(**seen(4900, 5000))).memorised is False


def test_a_loss_on_selection_pairs_that_rises_with_the_training_loss_is_no_overfitting():
    diverged = {
        "rank_loss": [(step, step / 100) for step in range(1, 101)],
        "reward_model/eval_loss": [(20, 0.6), (100, 0.9)],
    }
    wobbled = OVERFIT | {"reward_model/eval_loss": [(40, 0.5), (100, 0.54)]}
    for history in (diverged, wobbled, {}, {"rank_loss": [(1, 0.7)]}, {"reward_model/eval_loss": [(1, 0.7)]}):
        assert examine(held_out(), training(history=history)).overfit_after is None
    assert examine(held_out(), training(history=OVERFIT)).overfit_after == 40


def test_calibration_is_that_worked_out_by_hand():
    # sigmoid(0.2) = 0.549834 is in (0.5, 0.55], sigmoid(1) = 0.731059 in (0.7, 0.75], sigmoid(1.05) = 0.740775, too.
    found = calibration(np.array([0.2, -0.2, 1.0, 1.05, -1.0, 1.0, 0.0]))
    assert [(b.right.hits, b.right.of) for b in found.bins] == [(1, 2), (3, 4)]
    assert found.bins[0].confidence == pytest.approx(0.549834, abs=1e-6)
    assert found.bins[1].confidence == pytest.approx((3 * 0.731059 + 0.740775) / 4, abs=1e-6)
    assert found.ece == pytest.approx((2 * (0.549834 - 0.5) + 4 * (0.75 - 0.733488)) / 6, abs=1e-6)
    assert found.confidence == pytest.approx((2 * 0.549834 + 4 * 0.733488) / 6, abs=1e-6)
    assert found.right == share(4, 6)  # the tie claims nothing


def test_bins_of_confidence_are_five_points_wide():
    found = calibration(np.array([0.19, 0.21, 0.39, 0.41]))  # sigmoid: 0.547, 0.552, 0.596, 0.601
    assert [b.right.of for b in found.bins] == [1, 2, 1]


def test_a_saturated_confidence_is_in_the_last_bin():
    found = calibration(np.array([800.0, -800.0]))
    assert [(b.confidence, b.right.of) for b in found.bins] == [(1.0, 2)]
    assert found.ece == 0.5


def test_the_loss_is_the_pairwise_logistic_loss():
    findings = examine(held_out(), training())
    by_hand = fmean(math.log(1 + math.exp(r - c)) for c, r in zip(PLAIN.chosen, PLAIN.rejected, strict=True))
    assert findings.loss == pytest.approx(by_hand)
    assert examine(held_out(**scored(0, sure=2000.0)), training()).loss == 2000.0


def test_mcnemar_is_the_binomial_test_of_the_pairs_where_just_one_is_right():
    right = np.array([True] * 12 + [False] * 3 + [True] * 5 + [False] * 2 + [True])
    rule = np.array([0.0] * 12 + [1.0] * 3 + [1.0] * 5 + [0.0] * 2 + [math.nan])
    found = baseline(rule, right)
    assert found.p == pytest.approx(binomtest(12, 15, 0.5).pvalue)
    assert (found.rule, found.model) == (share(8, 22), share(17, 22))  # not of the pair that the rule leaves open
    assert found.beaten
    assert not baseline(1 - rule, ~right).model.hits > 5


def test_a_rule_that_is_significantly_better_is_not_beaten():
    found = baseline(np.ones(20), np.array([False] * 15 + [True] * 5))
    assert found.p < 0.001
    assert not found.beaten


def test_a_rule_that_agrees_with_the_model_everywhere_is_not_beaten():
    found = baseline(np.array([1.0, 0.0]), np.array([True, False]))
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
    assert [(g.label, g.share.hits, g.share.of) for g in by_length(chosen, rejected, right)] == [
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
    groups = by_size(values, values > 25)
    assert sum(g.share.of for g in groups) == 100
    assert groups[0].label == "0"
    few = np.array([0.0] * 90 + [1.0] * 5 + [2.0] * 5)
    assert [(g.label, g.share.of) for g in by_size(few, few > 1)] == [("0", 90), ("1", 5), ("2", 5)]
    assert [g.share.of for g in by_size(np.arange(100.0), np.ones(100, dtype=bool))] == [25] * 4


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


METRICS = {
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "accuracy_prompt_swapped",
    "accuracy_seen",
    "longer_wins",
    "first_wins",
    "ece",
    "loss",
    "loss_seen",
    "memorised",
    "beats_longer_wins",
    "beats_first_wins",
    "ignores_prompt",
    "length_correlation",
    "emptied_falls",
    "shuffled_falls",
    "repeated_falls",
    "roc_auc",
}


def test_metrics_are_plain_numbers_and_what_is_not_known_is_absent():
    known = examine(held_out(), training()).metrics()
    assert set(known) == METRICS
    assert all(type(value) is float and math.isfinite(value) for value in known.values())
    unknown = examine(
        held_out(
            swapped_chosen=None,
            swapped_rejected=None,
            position=[None] * 100,
            changed={},
            chosen_length=[3] * 100,
            rejected_length=[3] * 100,
        ),
        training(seen_chosen=[], seen_rejected=[]),
    ).metrics()
    assert set(unknown) == {"accuracy", "accuracy_low", "accuracy_high", "ece", "loss", "roc_auc"}


def few(n: int, **changes):
    """`n` pairs of one length that tie, and nothing else known."""
    return held_out(
        **{
            "ids": [str(i) for i in range(n)],
            "chosen": [0.5] * n,
            "rejected": [0.5] * n,
            "swapped_chosen": None,
            "swapped_rejected": None,
            "chosen_length": [4] * n,
            "rejected_length": [4] * n,
            "position": [None] * n,
            "margin": [None] * n,
            "changed": {},
        }
        | changes
    )


@pytest.mark.parametrize("n", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"chosen": 1.0},
        {"chosen": 1e30},
        {"chosen_length": 9},
        {"chosen_length": 0, "rejected_length": 0},
        {"position": 1, "margin": 0.5},
        {"swapped_chosen": 0.5, "swapped_rejected": 0.5, "changed": {"emptied": 0.5, "shuffled": None}},
    ],
)
def test_little_or_uniform_data_gives_words_and_finite_numbers(n, changes):
    repeated = {
        name: {k: [v] * n for k, v in value.items()} if isinstance(value, dict) else [value] * n
        for name, value in changes.items()
    }
    findings = examine(few(n, **repeated), training(history={}, seen_chosen=[], seen_rejected=[]))
    assert all(math.isfinite(value) for value in findings.metrics().values())
    assert findings.verdict.headline
    assert "nan" not in " ".join(text for _, text in findings.statements())
    assert findings.constant == ("chosen" not in changes)


@pytest.mark.parametrize("where", ["chosen", "rejected", "swapped_chosen", "changed", "seen_chosen"])
def test_scores_that_are_not_finite_are_refused_by_name(where):
    bad = [float("nan"), math.inf] + [0.0] * 98
    pairs = held_out(
        **{where: {"emptied": [None, *bad[1:]]} if where == "changed" else bad} if where[:4] != "seen" else {}
    )
    trained = training(seen_chosen=bad) if where == "seen_chosen" else training()
    name, count = ("emptied", 1) if where == "changed" else (where, 2)
    with pytest.raises(TrainingError, match=rf"{count} of 100 scores \({name}\).* not finite.*learning rate"):
        examine(pairs, trained)


def test_entries_that_do_not_pair_up_are_refused_by_name():
    with pytest.raises(ValueError, match="margin: found 99 entries, expected one for each of 100"):
        examine(held_out(margin=[None] * 99), training())
    with pytest.raises(ValueError, match="emptied: found 1 entries"):
        examine(held_out(changed={"emptied": [0.0]}), training())
    with pytest.raises(ValueError, match="no held-out pair"):
        examine(few(0), training())
