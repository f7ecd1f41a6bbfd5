import math

import pytest

from rlhf.errors import TrainingError
from rlhf.reward_trainer.findings import examine
from tests.reward_findings import held_out, nothing_warns, ranked, scored, training  # noqa: F401


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
    return {"seen_chosen": chosen, "seen_rejected": rejected, "seen_prompts": list(range(pairs))}


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
        ({}, {"seen_chosen": [], "seen_rejected": [], "seen_prompts": []}, None, "whether it memorised is not known"),
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
        pairs=5000,
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


METRICS = {
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "accuracy_prompt_swapped",
    "accuracy_unswapped",
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


def test_pairs_that_fit_under_no_other_prompt_are_left_out_of_both_accuracies():
    pairs = held_out()
    ignored = [None] * 20 + list(pairs.chosen[20:]), [None] * 20 + list(pairs.rejected[20:])
    findings = examine(held_out(swapped_chosen=ignored[0], swapped_rejected=ignored[1]), training())
    right = [score > other for score, other in zip(pairs.chosen[20:], pairs.rejected[20:], strict=True)]
    for found in (findings.accuracy_swapped, findings.accuracy_unswapped):
        assert (found.correct, found.pairs) == (sum(right), 80)
    assert findings.ignores_prompt
    assert "Left out: 20 pairs without room for another prompt" in said(findings)[False]
    findings = examine(held_out(swapped_chosen=[None] * 100, swapped_rejected=[None] * 100), training())
    assert findings.ignores_prompt is None
    assert "No held-out pair has room for another pair's prompt in the model's positions, so" in said(findings)[None]


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
        training(seen_chosen=[], seen_rejected=[], seen_prompts=[]),
    ).metrics()
    assert set(unknown) == {"accuracy", "accuracy_low", "accuracy_high", "ece", "loss", "roc_auc"}


def few(n: int, **changes):
    """`n` pairs of one length that tie, and nothing else known."""
    return held_out(
        **{
            "ids": [str(i) for i in range(n)],
            "chosen": [0.5] * n,
            "rejected": [0.5] * n,
            "prompts": list(range(n)),
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
    findings = examine(few(n, **repeated), training(history={}, seen_chosen=[], seen_rejected=[], seen_prompts=[]))
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


def test_sentences_have_the_intervals_of_pairs_that_are_not_independent():
    chosen, rejected = ([score] * 5 for score in (0.0, -1.7))
    pairs = held_out(
        prompts=[place // 5 for place in range(100)],
        chosen=chosen * 20,
        rejected=rejected * 14 + [1.7] * 30,
    )
    findings = examine(pairs, training())
    assert findings.verdict.word == "Not usable"
    low = f"{100 * findings.accuracy.low:.0f}"
    assert int(low) < 50
    assert f"70\u00a0% (95\u00a0% interval {low}\u00a0% to" in findings.verdict.headline
    assert "The 100 held-out pairs have 20 prompts" in said(findings)[None]
