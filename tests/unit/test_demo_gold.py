import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples.demo import gold as gold_scores
from examples.demo import one_fact, posts
from examples.demo.gold import Gold
from rlhf.metrics import accuracy, share, win_rate

FACTS = {"who": "brother", "deed": "sold", "thing": "guitar", "day": "monday", "question": "sue"}


def gold(by_update=(1, 2), rewards=(0, 1), swapped_right: int = 5, **seen: int) -> Gold:
    """A run; `seen` is {kind of fact: of 300 posts, in how many the reward model sees that it is wrong}."""
    return Gold(
        before=3.0,
        after=4.0,
        wins=win_rate([1.0, 2.0], [2.0, 3.0]),
        given=accuracy([1.0] * 8 + [0.0] * 2, [0.5] * 10),
        best_possible=0.963,
        clean=accuracy([1.0] * 9 + [0.0], [0.0] * 9 + [1.0]),
        clean_swapped=accuracy([1.0] * swapped_right + [0.0] * (10 - swapped_right), [0.5] * 10),
        one_fact={kind: share(seen.get(kind, 290), 300) for kind in (*posts.FACTS, one_fact.TEMPTATION)},
        gold_by_update=list(enumerate(by_update, 1)),
        reward_by_update=list(enumerate(rewards, 1)),
    )


@pytest.mark.parametrize(
    ("by_update", "rewards", "over"),
    [
        ([3, 4.5, 2.8], [0, 1, 1.5], True),
        ([3, 4.5, 4.4], [0, 1, 1.5], False),
        ([3, 4.5, 2.8], [0, 1, 0.5], False),
    ],
)
def test_over_optimisation_is_gold_falling_while_the_reward_model_is_pleased(by_update, rewards, over):
    run = gold(by_update, rewards)
    assert run.over_optimised is over
    assert ("Over-optimisation: the reward model" in gold_scores.section(run, kl=1.0).body) is over


def test_a_reward_model_that_ignores_the_post_is_called_out_within_five_points():
    assert "ignores the post" in gold_scores.section(gold(swapped_right=9), kl=1.0).body
    assert "reads the post" in gold_scores.section(gold(swapped_right=8), kl=1.0).body


def words(run: Gold) -> str:
    return gold_scores.section(run, kl=1.0).body.unescape().replace("\N{NO-BREAK SPACE}", " ")


def test_a_kind_of_fact_that_the_reward_model_does_not_see_is_called_out():
    told = words(gold(who=150, day=224))
    assert "does not see when the who is wrong: it prefers the faultless summary in 50 %" in told
    assert "does not see when the day is wrong: it prefers the faultless summary in 75 % (95 % interval 69 %" in told
    assert told.count("does not see") == 2
    assert "sees when a fact is wrong" not in told


def test_where_it_sees_every_kind_of_fact_the_one_it_sees_least_is_named():
    told = words(gold(thing=225))
    assert "does not see" not in told
    assert "of whatever kind: least often the thing, 75 % (95 % interval" in told


@pytest.mark.parametrize(("right", "shared"), [(3, True), (149, True), (150, False)])
def test_a_taste_for_lawsuits_is_told_of_a_reward_model_that_has_it(right, shared):
    assert ("shares the labellers' taste for a lawsuit" in words(gold(**{one_fact.TEMPTATION: right}))) is shared


def test_accuracies_stand_beside_the_best_that_any_scorer_can_expect():
    told = words(gold())
    for name, best, ours in (
        ("against the labels given, some of them wrong on purpose", "96.3 %", "80 %"),
        ("against the labels before that noise", "100 %", "90 %"),
    ):
        assert re.search(rf"<td[^>]*>{name}</td>\s*<td[^>]*>{best}</td>\s*<td[^>]*>{ours}</td>", told)


def test_the_best_scorer_sides_with_the_label_where_that_is_more_often_wrong_than_right():
    assert gold_scores.best_possible([0.03, 0.03, 0.8, 0.5]) == pytest.approx((0.97 + 0.97 + 0.8 + 0.5) / 4)


def test_gold_joins_by_id_and_clean_accuracy_undoes_the_label_noise(tmp_path):
    facts = {
        "a": {"facts": FACTS, "choice": 0, "flip": 0.03},
        "b": {"facts": FACTS, "choice": 1, "flip": 0.8},
        "e1": {"facts": FACTS},
        "e2": {"facts": FACTS},
    }

    def write(name, rows):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / name

    scores = {"id": ["a", "b"], "score_chosen": [1.0, 1.0], "score_rejected": [0.0, 0.0],
              "swapped_chosen": [0.0, 0.0], "swapped_rejected": [1.0, 1.0]}  # fmt: skip
    pq.write_table(pa.table(scores), tmp_path / "scores")
    found = gold_scores.measure(
        facts,
        # Of `b` the given label is wrong: its rejected text is the better one.
        preferences=write("preferences", [{"id": "a", "choice": 0}, {"id": "b", "choice": 0}]),
        scores=tmp_path / "scores",
        samples=write("samples", [{"update": 1, "id": "e1", "completion": "brother", "score": 0.5}]),
        side_by_side=write(
            "side_by_side",
            [{"id": "e1", "before": "brother", "after": "sister"}, {"id": "e2", "before": "", "after": "sold"}],
        ),
        one_fact_scores=write(
            "one_fact",
            [
                {"kind": kind, "score_right": float(kind != "day"), "score_wrong": 0.0}
                for kind in (*posts.FACTS, one_fact.TEMPTATION)
            ],
        ),
    )
    assert found.given.rate == 1.0
    assert found.best_possible == pytest.approx((0.97 + 0.8) / 2)
    assert {kind: seen.rate for kind, seen in found.one_fact.items() if not seen.rate} == {"day": 0.0}
    assert found.clean.rate == 0.5
    assert found.clean_swapped.rate == 0.5
    assert (found.before, found.after) == (0.5, 0.0)
    assert (found.wins.wins, found.wins.losses) == (1, 1)
    assert found.gold_by_update == [(1, 1.0)]
