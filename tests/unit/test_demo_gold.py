import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples.demo import gold as gold_scores
from examples.demo.gold import Gold
from rlhf.metrics import accuracy, win_rate

FACTS = {"who": "brother", "deed": "sold", "thing": "guitar", "day": "monday", "question": "sue"}


def gold(by_update: list[float], rewards: list[float], swapped_right: int = 5) -> Gold:
    return Gold(
        before=3.0,
        after=4.0,
        wins=win_rate([1.0, 2.0], [2.0, 3.0]),
        clean=accuracy([1.0] * 9 + [0.0], [0.0] * 9 + [1.0]),
        clean_swapped=accuracy([1.0] * swapped_right + [0.0] * (10 - swapped_right), [0.5] * 10),
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
    assert "ignores the post" in gold_scores.section(gold([1, 2], [0, 1], swapped_right=9), kl=1.0).body
    assert "reads the post" in gold_scores.section(gold([1, 2], [0, 1], swapped_right=8), kl=1.0).body


def test_gold_joins_by_id_and_clean_accuracy_undoes_the_label_noise(tmp_path):
    facts = {
        "a": {"facts": FACTS, "choice": 0},
        "b": {"facts": FACTS, "choice": 1},
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
        predictions_before=write("before", [{"id": "e1", "prediction": "brother"}, {"id": "e2", "prediction": ""}]),
        predictions_after=write("after", [{"id": "e2", "prediction": "sold"}, {"id": "e1", "prediction": "sister"}]),
    )
    assert found.clean.rate == 0.5
    assert found.clean_swapped.rate == 0.5
    assert (found.before, found.after) == (0.5, 0.0)
    assert (found.wins.wins, found.wins.losses) == (1, 1)
    assert found.gold_by_update == [(1, 1.0)]
