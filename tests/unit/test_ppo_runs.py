"""The PPO trainer as processes: killed and resumed, spread over processes, refused what does not fit."""

import importlib.util
import json
import random
import re
import signal
from pathlib import Path

import pytest
import torch

from rlhf.data.store import write_dataset
from rlhf.data.template import Template
from rlhf.models.card import ModelCard
from rlhf.models.scoring import TOKENS_AT_ONCE, RewardModel
from rlhf.reward_trainer.config import RewardTrainerConfig
from rlhf.tracking import read_scalars
from tests import training

OUTPUTS = {"tuned_policy": "policy", "samples": "samples.jsonl", "report": "report.html", "tensorboard": "logs"}
TEMPLATE = Template(prompt_sequence_length=48, target_sequence_length=8)
REWARD = """
def letters(prompts, completions, **columns):
    return [10.0 * text.count("o") / max(1, len(text)) for text in completions]
"""
pytestmark = pytest.mark.slow
# Not among the dependencies: it is taken where a user has installed it.
with_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
STAGE_3 = {
    "sharding": "deepspeed",
    "deepspeed": {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}},
    "engine": "transformers",
}
STAGE_3_OFFLOADED = {
    **STAGE_3,
    "deepspeed": {
        "zero_optimization": STAGE_3["deepspeed"]["zero_optimization"] | {"offload_optimizer": {"device": "cpu"}}
    },
}


@pytest.fixture
def prompts(tmp_path) -> Path:
    rows = [
        {"id": str(i), "prompt": f"My brother sold my guitar{' on monday' * (i % 4)} {i}.\nTL;DR:", "reference": None}
        for i in range(40)
    ]
    folder = tmp_path / "prompts"
    write_dataset(folder, "prompts", rows, TEMPLATE)
    return folder


@pytest.fixture
def reward(tmp_path) -> str:
    path = tmp_path / "reward.py"
    path.write_text(REWARD)
    return f"{path}:letters"


def job(folder: Path, prompts: Path, base: Path, reward: str, reward_model: Path | None = None, **options) -> Path:
    inputs = {
        "prompts": str(prompts),
        "policy": str(base),
        **({"reward_model": str(reward_model)} if reward_model else {}),
    }
    options = {
        "train_steps": 30,
        "batch_size": 8,
        "epochs": 2,
        "minibatch_size": 4,
        "learning_rate": 1e-3,
        "missing_eos_score": None,
        "reward_functions": [{"function": reward}],
        **options,
    }
    return training.write_job(folder.with_suffix(".yaml"), inputs, folder, OUTPUTS, options)


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("base", ["llama", "t5"])
def test_a_run_killed_at_ten_random_points_ends_with_the_very_same_weights(
    base, tuning, request, prompts, reward, tmp_path
):
    folder = request.getfixturevalue(f"{base}_folder")
    options = {"tuning": tuning, "kl_target": 1.0, "reward_scaling": "running", "eval_every": 7}
    training.finish(training.start("ppo_trainer", job(tmp_path / "whole", prompts, folder, reward, **options)))
    checkpoints = tmp_path / "checkpoints"
    broken = job(
        tmp_path / "broken", prompts, folder, reward, checkpoint_dir=str(checkpoints), checkpoint_every=1, **options
    )
    draw = random.Random(f"{base} {tuning}")
    for step in training.random_steps(10, 28, seed=draw.randrange(1000)):
        training.end_at_step(
            training.start("ppo_trainer", broken), checkpoints, step, signal.SIGKILL, delay=draw.uniform(0, 0.15)
        )
        assert not (tmp_path / "broken/policy").exists(), "nothing unfinished is handed on"
    output = training.finish(training.start("ppo_trainer", broken))
    assert "going on from the checkpoint of update" in output
    assert training.weights(tmp_path / "broken/policy") == training.weights(tmp_path / "whole/policy")
    whole, resumed = (training.saved_summary(tmp_path / name / "policy") for name in ("whole", "broken"))
    assert resumed == whole
    assert not list(checkpoints.glob("step-*")), "a finished run leaves no checkpoints"
    for tag in ("ppo/reward", "ppo/kl_coeff", "eval/reward"):
        curves = [read_scalars(tmp_path / name / "logs")[tag] for name in ("whole", "broken")]
        assert curves[0] == curves[1], "the curve is whole after a restart"
    said = [(tmp_path / name / "samples.jsonl").read_text() for name in ("whole", "broken")]
    assert said[0] == said[1]


def test_time_makes_checkpoints_too(prompts, reward, llama_folder, tmp_path):
    checkpoints = tmp_path / "checkpoints"
    options = {"checkpoint_dir": str(checkpoints), "checkpoint_every": 1000, "checkpoint_minutes": 1e-6}
    broken = job(tmp_path / "broken", prompts, llama_folder, reward, **options)
    training.end_at_step(training.start("ppo_trainer", broken), checkpoints, 3, signal.SIGKILL)
    assert "going on from the checkpoint of" in training.finish(training.start("ppo_trainer", broken))


def test_sigterm_leaves_a_checkpoint_and_says_so(prompts, reward, llama_folder, tmp_path):
    checkpoints = tmp_path / "checkpoints"
    broken = job(
        tmp_path / "broken", prompts, llama_folder, reward, checkpoint_dir=str(checkpoints), checkpoint_every=2
    )
    output = training.end_at_step(training.start("ppo_trainer", broken), checkpoints, 4, signal.SIGTERM)
    stopped = int(re.search(r"stopped by SIGTERM after update (\d+) of 30", output)[1])
    assert training.latest_step(checkpoints) == stopped


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="whole"),
        pytest.param({"sharding": "fsdp"}, id="spread"),
        pytest.param({"sharding": "fsdp", "tuning": "lora", "critic": "own"}, id="spread_adapters"),
        pytest.param(
            {"sharding": "deepspeed", "stop_at_update_kl": 0.5, "microbatch_tokens": 200},
            id="zero_2",
            marks=with_deepspeed,
        ),
        pytest.param({**STAGE_3, "critic": "own"}, id="zero_3", marks=with_deepspeed),
        pytest.param({**STAGE_3, "tuning": "lora"}, id="zero_3_adapters", marks=with_deepspeed),
        pytest.param(STAGE_3_OFFLOADED, id="zero_3_offloaded", marks=with_deepspeed),
    ],
)
@pytest.mark.parametrize("base", ["llama", "t5"])
def test_two_processes_do_what_one_does(base, options, request, prompts, reward, tmp_path):
    folder = request.getfixturevalue(f"{base}_folder")
    options = {"train_steps": 3, "eval_every": 2, **options}
    for processes in (1, 2):
        training.finish(
            training.start("ppo_trainer", job(tmp_path / str(processes), prompts, folder, reward, **options), processes)
        )
    one, two = (read_scalars(tmp_path / name / "logs") for name in ("1", "2"))
    assert one.keys() == two.keys()
    for tag in (tag for tag in one if "second" not in tag):
        for (update, a), (_, b) in zip(one[tag], two[tag], strict=True):
            assert b == pytest.approx(a, abs=1e-4), f"{tag} at update {update}"
    rows = [(tmp_path / name / "samples.jsonl").read_text().splitlines() for name in ("1", "2")]
    assert [json.loads(row)["completion"] for row in rows[0]] == [json.loads(row)["completion"] for row in rows[1]]
    saved = [training.tensors(tmp_path / name / "policy") for name in ("1", "2")]
    for name, value in saved[0].items():
        assert torch.allclose(saved[1][name], value, atol=1e-4), name


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"sharding": "fsdp"}, id="fsdp"),
        pytest.param({"sharding": "deepspeed"}, id="zero_2", marks=with_deepspeed),
        pytest.param(STAGE_3, id="zero_3", marks=with_deepspeed),
    ],
)
def test_a_run_whose_weights_are_spread_goes_on_where_it_was(options, prompts, reward, llama_folder, tmp_path):
    options = {"train_steps": 12, **options}
    whole = job(tmp_path / "whole", prompts, llama_folder, reward, **options)
    training.finish(training.start("ppo_trainer", whole, processes=2))
    checkpoints = tmp_path / "checkpoints"
    options |= {"checkpoint_dir": str(checkpoints), "checkpoint_every": 1}
    broken = job(tmp_path / "broken", prompts, llama_folder, reward, **options)
    process = training.start("ppo_trainer", broken, processes=2)
    training.end_at_step(process, checkpoints, 4, signal.SIGTERM, launched=True)
    assert training.latest_step(checkpoints) >= 4
    output = training.finish(training.start("ppo_trainer", broken, processes=2))
    assert "going on from the checkpoint of update" in output
    assert training.weights(tmp_path / "broken/policy") == training.weights(tmp_path / "whole/policy")


def test_a_reward_function_that_fails_ends_the_stage_and_is_named(prompts, llama_folder, tmp_path):
    (tmp_path / "bad.py").write_text("def bad(prompts, completions, **columns):\n    raise KeyError('no such word')\n")
    place = f"{tmp_path / 'bad.py'}:bad"
    output = training.finish(training.start("ppo_trainer", job(tmp_path / "out", prompts, llama_folder, place)), 1)
    assert "KeyError" in output
    assert "bad.py" in output
    assert "Traceback" not in output
    assert not (tmp_path / "out/policy").exists()


def test_a_run_without_anything_that_rewards_is_refused(prompts, reward, llama_folder, tmp_path):
    run = job(tmp_path / "out", prompts, llama_folder, reward, reward_functions=[])
    output = training.finish(training.start("ppo_trainer", run), 1)
    assert "reward_functions" in output


def test_prompts_that_leave_no_room_for_a_completion_are_refused(reward, llama_folder, tmp_path):
    row = {"id": "long", "prompt": "my guitar " * 200, "reference": None}
    write_dataset(
        tmp_path / "prompts", "prompts", [row], Template(prompt_sequence_length=2000, target_sequence_length=500)
    )
    output = training.finish(
        training.start("ppo_trainer", job(tmp_path / "out", tmp_path / "prompts", llama_folder, reward)), 1
    )
    assert "row 'long' has" in output
    assert "lower prompt_sequence_length or target_sequence_length" in output


def test_processes_that_hold_parts_of_the_policy_score_as_many_batches_as_each_needs(reward, llama_folder, tmp_path):
    template = Template(prompt_sequence_length=230, target_sequence_length=8)
    rows = [{"id": str(i), "prompt": "sold " * 228 + "\nTL;DR:", "reference": None} for i in range(17)]
    write_dataset(tmp_path / "prompts", "prompts", rows, template)
    scorer = tmp_path / "reward"
    model, trainee = RewardModel.to_train(llama_folder, template, RewardTrainerConfig(tuning="lora"))
    model.save(scorer, ModelCard(kind="reward_model", base=trainee.base, template_digest=template.digest))
    # 9 texts of one process are more than a batch, 8 of the other are one.
    assert 8 * 239 <= TOKENS_AT_ONCE["cpu"] < 9 * (model.count_tokens(rows[0]["prompt"]) + 2)
    options = {"train_steps": 1, "batch_size": 17, "tuning": "lora", "sharding": "fsdp", "held_out_prompts": 0}
    path = job(tmp_path / "run", tmp_path / "prompts", llama_folder, reward, scorer, **options)
    training.finish(training.start("ppo_trainer", path, processes=2))
