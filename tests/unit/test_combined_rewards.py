"""The reward of an episode: a weighted sum of a reward model's score and functions' rewards."""

import json
import math
from types import SimpleNamespace

import psutil
import pytest

from rlhf.errors import ConfigError, TrainingError
from rlhf.rewards.combined import Rewards, weighted_sum
from rlhf.rewards.config import RewardFunction
from rlhf.rewards.functions import FunctionReward
from rlhf.training.prompts import read_prompts

CODE = """
def length(completions, **_):
    return [len(completion) for completion in completions]

def matches(completions, reference, **_):
    return [None if r is None else float(c == r) for c, r in zip(completions, reference)]

def messages(prompts, completions, **_):
    assert completions == [[{"role": "assistant", "content": "a"}], [{"role": "assistant", "content": "bb"}]]
    return [len(prompt) for prompt in prompts]

def mixed(completions, **_):
    return [type(completion) is list for completion in completions]

def reward_model(completions, **_):
    return [100] * len(completions)

def faulty(**_):
    return "no"
"""


@pytest.fixture
def function(tmp_path):
    (tmp_path / "graders.py").write_text(CODE)
    started = []

    def start(name: str, weight: float = 1.0) -> FunctionReward:
        started.append(FunctionReward(RewardFunction(function=f"{tmp_path}/graders.py:{name}", weight=weight)))
        return started[-1]

    yield start
    for each in started:
        each.close()


class Model:
    """Scores given beforehand, and what they were asked for."""

    def __init__(self, *scores: float):
        self.scores, self.asked = list(scores), None

    def score_each(self, prompts, completions):
        self.asked = (prompts, completions)
        return self.scores, {}


def score(rewards: Rewards, prompts=("P 0", "P 1"), **columns):
    return rewards.score(["text 0", "text 1"], list(prompts), ["a", "bb"], columns)


def test_the_total_is_the_weighted_sum_of_the_parts(function):
    model = Model(1.0, -2.0)
    rewards = Rewards(model, 0.5, [function("length", weight=10.0), function("matches", weight=-1.0)])
    scored = score(rewards, reference=["a", "a"])
    assert scored.parts == {"reward_model": [1.0, -2.0], "length": [1.0, 2.0], "matches": [1.0, 0.0]}
    assert scored.total == [0.5 + 10 - 1, -1 + 20]
    assert model.asked == (["text 0", "text 1"], ["a", "bb"])


def test_a_reward_model_alone_and_a_function_alone_are_enough(function):
    assert score(Rewards(Model(1.0, 2.0), 2.0, [])).total == [2.0, 4.0]
    assert score(Rewards(None, 2.0, [function("length")])).parts == {"length": [1.0, 2.0]}


def test_a_part_that_does_not_judge_a_row_leaves_it_to_the_others(function):
    scored = score(Rewards(Model(1.0, 2.0), 1.0, [function("matches", weight=3.0)]), reference=["a", None])
    assert scored.total == [4.0, 2.0]
    assert scored.parts["matches"] == [1.0, None]


def test_a_row_that_no_part_judges_has_no_reward(function):
    total = score(Rewards(None, 1.0, [function("matches"), function("matches")]), reference=["a", None]).total
    assert total[0] == 2.0
    assert math.isnan(total[1])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_a_part_that_is_not_finite_makes_the_total_none_whatever_its_weight(bad, weight):
    assert math.isnan(weighted_sum([1.0, weight], [1.0, bad]))
    total = score(Rewards(Model(1.0, bad), 1.0, [])).total
    assert total[0] == 1.0
    assert math.isnan(total[1])


def test_weights_that_overflow_make_no_infinite_reward():
    assert math.isnan(weighted_sum([1e300], [1e300]))


def test_parts_of_one_name_are_told_apart(function):
    rewards = Rewards(Model(0.0, 0.0), 1.0, [function("length"), function("length", 2.0), function("reward_model")])
    scored = score(rewards)
    assert list(scored.parts) == ["reward_model", "length", "length_2", "reward_model_2"]
    assert scored.total == [1 + 2 + 100, 2 + 4 + 100]


def test_functions_get_completions_of_conversations_as_messages(function):
    conversation = [{"role": "user", "content": "x"}]
    model = Model(0.0, 0.0)
    rewards = Rewards(model, 1.0, [function("messages")])
    assert score(rewards, [conversation, conversation * 3]).total == [1.0, 3.0]
    assert model.asked == (["text 0", "text 1"], ["a", "bb"])
    assert score(Rewards(None, 1.0, [function("mixed")]), ["text", conversation]).total == [0.0, 1.0]


def test_conversations_of_the_dataset_reach_functions_as_messages(function):
    """As the evaluator and `rlhf grade` give them."""
    conversation = [{"role": "user", "content": "x"}]
    rows = [
        {"id": "a", "prompt": "x", "messages": json.dumps(conversation), "reference": None},
        {"id": "b", "prompt": "y", "messages": None, "reference": None},
        {"id": "c", "prompt": "z", "reference": None},
    ]
    template = SimpleNamespace(fit=lambda prompt, count, messages: (prompt, False), target_sequence_length=4)
    policy = SimpleNamespace(count_tokens=len, encode_prompt=list, require_room=lambda *_: None)
    given = [prompt.original for prompt in read_prompts(rows, template, policy)[0]]
    assert given == [conversation, "y", "z"]
    assert score(Rewards(None, 1.0, [function("mixed")]), given[:2]).total == [1.0, 0.0]


def test_nothing_that_earns_a_reward_is_refused():
    with pytest.raises(ConfigError, match=r"reward_functions: found none, and no reward model either.*give a reward"):
        Rewards(None, 1.0, [])


def test_leaving_the_context_ends_the_functions(function):
    before = set(psutil.Process().children())
    with Rewards(None, 1.0, [function("length"), function("faulty")]) as rewards:
        assert set(psutil.Process().children()) > before
        with pytest.raises(TrainingError, match="faulty"):
            score(rewards)
    assert set(psutil.Process().children()) == before
