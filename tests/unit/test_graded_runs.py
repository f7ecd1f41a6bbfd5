"""What stands around a run with a grader: checked early, sent along, planned, and watched."""

import json

import pytest
import torch

from rlhf.data.store import read_dataset
from rlhf.data.template import Template
from rlhf.data_validation.config import DataValidationConfig
from rlhf.data_validation.stage import run as validate
from rlhf.errors import ConfigError
from rlhf.grpo_trainer import GRPOTrainerConfig
from rlhf.grpo_trainer.alarms import ADVICE, look
from rlhf.grpo_trainer.encoder_decoder import ppo_options, renamed
from rlhf.ppo.loop import prompt_batch
from rlhf.ppo.maths import leave_one_out_advantages, standardised_advantages
from rlhf.ppo_trainer.config import PPOTrainerConfig
from rlhf.rewards.check import check_grader
from rlhf.rewards.combined import group_measures
from rlhf.rewards.config import RewardFunction
from rlhf.training.prompts import Prompt

# data_validation without preferences


@pytest.fixture
def data(tmp_path, llama_folder):
    rows = [
        {"id": str(i), "input_text": f"Post number {i} about a dog {7 * i}.\nTL;DR:", "output_text": f"dog {i}"}
        for i in range(60)
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "g.py").write_text("def grade(completions, **_): return [1.0] * len(completions)\n")
    outputs = ("preferences", "prompts", "evaluation", "demonstrations", "quarantine", "report", "findings")

    def run(**options):
        common = {"prompt_dataset": f"{tmp_path}/prompts.jsonl", "large_model_reference": str(llama_folder)}
        lengths = {"prompt_sequence_length": 64, "target_sequence_length": 16}
        config = DataValidationConfig.parse({**common, **lengths, **options}, "data_validation")
        return validate(config, **{name: tmp_path / name for name in outputs})

    run.folder = tmp_path
    return run


def test_with_a_grader_prompts_alone_are_enough(data):
    grader = {"function": f"{data.folder}/g.py"}
    metrics = data(grpo={"grader": grader, "batch_size": 16, "group_size": 4, "train_steps": 9})
    assert (metrics["rows_preferences"], metrics["pairs_train"]) == (0, 0)
    assert metrics["rows_prompts"] + metrics["rows_evaluation"] == 60
    rows, _, _ = read_dataset(data.folder / "prompts", "prompts")
    assert rows[0]["reference"].startswith("dog ")
    findings = json.loads((data.folder / "findings").read_text())
    assert findings["steps"]["grpo_trainer"]["batch_size"] == 4
    assert not any(verdict["subject"] in ("preferences", "preference_dataset") for verdict in findings["verdicts"])


def test_without_a_grader_preferences_are_needed(data):
    with pytest.raises(ConfigError, match="preference_dataset: found '', expected a URI of preferences; only a grader"):
        data()


@pytest.mark.parametrize(
    ("grpo", "expected"),
    [
        (
            {"grader": {"function": "nowhere/g.py"}},
            r"reward function nowhere/g.py:grade: there is no file .* here; correct",
        ),
        ({"grader": {"builtin": "lenght"}}, "grpo.grader: found .*builtin: found 'lenght', expected one of"),
        ({"grader": {"builtin": "length"}, "group_size": 7}, r"group_size \(7\) must divide batch_size"),
    ],
)
def test_a_wrong_grader_ends_the_first_stage(data, grpo, expected):
    with pytest.raises(ConfigError, match=expected):
        data(grpo=grpo)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def grade(:", r"is not Python \(invalid syntax, line 1\)"),
        ("def other(): ...", "there is no grade in it, which has other"),
        ("x = 1", "there is no grade in it, which has no functions"),
        ("import torch_that_is_not_here\ndef grade(): ...", None),
        ("from somewhere import grade", None),
        ("from somewhere import anything as grade", None),
        ("from somewhere import *", None),
        ("if True:\n    def grade(): ...", None),
        ("class grade: ...", None),
        ("grade = lambda **_: []", None),
        ("async def grade(): ...", None),
    ],
)
def test_a_file_is_looked_at_without_being_run(source, expected):
    config = RewardFunction(function="g.py", source=source)
    if expected is None:
        return check_grader(config)
    with pytest.raises(ConfigError, match=expected):
        check_grader(RewardFunction.parse({"sum": [{"builtin": "rouge"}, {"function": "g.py", "source": source}]}))


# Groups


def test_advantages_are_within_groups_in_their_deviations():
    rewards = torch.tensor([1.0, 2.0, 3.0, 5.0, 5.0, 7.0])
    found = standardised_advantages(rewards, [0, 0, 0, 1, 1, 2])
    assert found.tolist() == pytest.approx([-1.0, 0.0, 1.0, 0.0, 0.0, 0.0], abs=1e-3)


def test_leaving_one_out_is_the_reward_less_the_mean_of_the_others():
    rewards = torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 7.0])
    found = leave_one_out_advantages(rewards, [0, 0, 0, 1, 1, 2])
    assert found.tolist() == [1.0 - 4.0, 2.0 - 3.5, 6.0 - 1.5, 0.0, 0.0, 0.0]


def test_the_loop_for_encoder_decoders_leaves_one_out_of_rewards_less_the_kl(t5_folder):
    from tests.ppo import RESPONSE, config_of, episodes_of, learner_of, policy_of

    options = ppo_options(GRPOTrainerConfig(algorithm="rloo", batch_size=6, group_size=3, kl_coeff=0.5), Template())
    assert options.group_baseline == "leave_one_out"
    same = {"group_size": 3, "batch_size": 6, "minibatch_size": 6, "advantage": "group", "value_coeff": 0.0}
    learner = learner_of(t5_folder, group_baseline="leave_one_out", **same)
    with torch.no_grad():  # away from the reference, so that there is a KL
        for parameter in learner.networks.policy.model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    episodes = episodes_of(policy_of(t5_folder, config_of()), 6)
    rewards = torch.tensor([1.0, 2.0, 6.0, -1.0, 0.0, 4.0])
    rollout = learner.estimate(episodes, rewards, 0.5, [0, 0, 0, 1, 1, 1])
    assert rollout.log_ratio.abs().sum(1).min() > 1e-3
    assert max(len(episode.response) for episode in episodes) <= RESPONSE + 1
    earned = (rewards - 0.5 * rollout.log_ratio.sum(1)).tolist()
    by_hand = [
        earned[i] - sum(earned[j] for j in group if j != i) / 2 for group in ((0, 1, 2), (3, 4, 5)) for i in group
    ]
    for row, (episode, expected) in enumerate(zip(episodes, by_hand, strict=True)):
        said = len(episode.response)
        assert rollout.advantages[row, :said].tolist() == pytest.approx([expected] * said, abs=1e-5)
        assert not rollout.advantages[row, said:].any()


@pytest.mark.parametrize(("config", "name"), [(GRPOTrainerConfig, "grpo"), (PPOTrainerConfig, "ppo")])
def test_an_adapter_with_dropout_is_refused_where_probabilities_are_compared(config, name):
    with pytest.raises(ConfigError, match=r"lora.dropout must be 0 .* not 0.05"):
        config.parse({"tuning": "lora", "lora": {"dropout": 0.05}}, name)


def test_leaving_one_out_of_groups_of_one_is_refused():
    with pytest.raises(ConfigError, match="group_baseline 'leave_one_out' needs a group_size above 1, found 1"):
        PPOTrainerConfig.parse({"group_baseline": "leave_one_out"}, "ppo")


def test_spread_and_signal_leave_out_what_is_not_known():
    nan = float("nan")
    found = group_measures([1.0, 3.0, nan, 2.0, 2.0, nan, nan, nan, 4.0], 3)
    assert found["spread"] == pytest.approx(2**0.5 / 3)
    assert found["no_signal"] == pytest.approx(2 / 3)
    assert group_measures([nan, nan, 1.0, 3.0], 2) == {"spread": pytest.approx(2**0.5), "no_signal": 0.0}


def test_a_group_is_one_prompt_after_another():
    prompts = [Prompt(str(i), "", [1]) for i in range(5)]
    ids = [prompt.id for update in (1, 2) for prompt in prompt_batch(prompts, 6, update, 0, group_size=2)]
    assert ids[::2] == ids[1::2]
    assert len(set(ids[:10:2])) == 5, "every prompt once before any comes again"


def test_the_loop_for_encoder_decoders_is_given_the_same_options():
    config = GRPOTrainerConfig.parse(
        {"batch_size": 12, "group_size": 3, "kl_coeff": 0.0, "learning_rate": 2e-4}, "grpo"
    )
    options = ppo_options(config, Template())
    assert (options.advantage, options.group_size, options.batch_size, options.epochs) == ("group", 3, 12, 1)
    assert (options.reference, options.missing_eos_score, options.peak_learning_rate) == ("none", None, 2e-4)
    assert options.microbatch_tokens == PPOTrainerConfig().microbatch_tokens
    two = config.model_copy(update={"microbatch_size": 2})
    assert ppo_options(two, Template(prompt_sequence_length=40, target_sequence_length=8)).microbatch_tokens == 96
    logged = {"ppo/reward": [(1, 0.5)], "ppo/bad_rewards": [(1, 3.0)], "ppo/explained_variance": [(1, 1.0)]}
    assert renamed(logged, 12) == {"grpo/grade": [(1, 0.5)], "grpo/bad_grades": [(1, 0.25)]}


# Alarms


def course(*values: float) -> list[tuple[int, float]]:
    return list(enumerate(values, 1))


SOUND = {
    "grpo/grade": course(*[0.1 * i for i in range(12)]),
    "grpo/no_signal": course(*[0.2] * 12),
    "grpo/spread": course(*[1.0] * 12),
    "grpo/kl": course(*[0.5 * i for i in range(12)]),
    "grpo/length": course(*[20.0] * 12),
    "grpo/ended": course(*[0.9] * 12),
    "grpo/bad_grades": course(*[0.0] * 12),
    "eval/grade": course(0.1, 0.3, 0.5, 0.7),
    "eval/grade_error": course(*[0.01] * 4),
}
WRONG = {
    "no_signal": {"grpo/no_signal": course(*[0.2] * 6, *[0.95] * 6)},
    "spread": {"grpo/spread": course(*[1.0] * 6, *[0.05] * 6)},
    "kl": {"grpo/kl": course(*[2.0 * i for i in range(12)])},
    "length": {"grpo/length": course(*[20.0] * 6, *[45.0] * 6)},
    "cut_off": {"grpo/ended": course(*[0.01] * 12)},
    "bad_grades": {"grpo/bad_grades": course(*[0.03] * 12)},
    "held_out": {"eval/grade": course(0.1, 0.7, 0.5, 0.3)},
}


def test_a_sound_run_raises_no_alarm():
    assert look(SOUND, GRPOTrainerConfig()) == []
    assert look({}, GRPOTrainerConfig()) == []


@pytest.mark.parametrize("kind", sorted(ADVICE))
def test_what_is_wrong_raises_its_alarm_and_no_other(kind):
    (alarm,) = look(SOUND | WRONG[kind], GRPOTrainerConfig())
    assert alarm.kind == kind
    assert 1 <= alarm.update <= 12
    wild = {tag: [*points[:4], (5, 1e9), *points[5:]] for tag, points in SOUND.items() if tag.startswith("grpo/")}
    assert look(SOUND | wild, GRPOTrainerConfig()) == [], "one wild point raises nothing"
