"""The reward trainer as processes: killed and resumed, spread over processes, saved and loaded elsewhere."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from rlhf.errors import ConfigError
from rlhf.reward_trainer import RewardTrainerConfig, stage
from rlhf.tracking import read_scalars
from rlhf.training.launch import launch
from tests import reward, training

pytestmark = pytest.mark.slow


@pytest.fixture
def preferences(tmp_path) -> Path:
    return reward.write_preferences(tmp_path, reward.rows())


def job(folder: Path, preferences: Path, base: Path, **options) -> Path:
    inputs = {"preferences": str(preferences), "policy": str(base)}
    options = {"train_steps": 40, "batch_size": 16, "learning_rate": 1e-3, "tokens_per_forward": 400, **options}
    return training.write_job(folder.with_suffix(".yaml"), inputs, folder, reward.OUTPUTS, options)


@pytest.mark.parametrize(
    ("base", "tuning", "numbers"),
    [
        ("llama", "full", [signal.SIGKILL] * 3),
        ("llama", "lora", [signal.SIGTERM] * 3),
        ("t5", "lora", [signal.SIGKILL, signal.SIGTERM]),
        ("bert", "full", [signal.SIGTERM, signal.SIGKILL]),
    ],
)
def test_a_run_that_was_killed_ends_with_the_very_same_weights(base, tuning, numbers, request, preferences, tmp_path):
    folder = request.getfixturevalue(f"{base}_folder")
    options = {"tuning": tuning, "lora": {"rank": 4, "dropout": 0.1}, "eval_every": 7}
    training.finish(training.start("reward_trainer", job(tmp_path / "whole", preferences, folder, **options)))
    checkpoints = tmp_path / "checkpoints"
    broken = job(
        tmp_path / "broken", preferences, folder, checkpoint_dir=str(checkpoints), checkpoint_every=2, **options
    )
    for step, number in zip(training.random_steps(len(numbers), 36, seed=len(base)), numbers, strict=True):
        output = training.end_at_step(training.start("reward_trainer", broken), checkpoints, step, number)
        assert not (tmp_path / "broken/reward_model").exists(), "nothing unfinished is handed on"
        if number == signal.SIGTERM:
            assert "stopped by SIGTERM after step" in output
    output = training.finish(training.start("reward_trainer", broken))
    assert "going on from the checkpoint of step" in output
    assert training.weights(tmp_path / "broken/reward_model") == training.weights(tmp_path / "whole/reward_model")
    whole, resumed = (training.saved_summary(tmp_path / name / "reward_model") for name in ("whole", "broken"))
    assert resumed == whole
    assert not list(checkpoints.glob("step-*")), "a finished run leaves no checkpoints"
    curves = [read_scalars(tmp_path / name / "logs")["learning_rate"] for name in ("whole", "broken")]
    assert curves[0] == curves[1], "the curve is whole after a restart"


def test_two_processes_learn_what_one_does(preferences, llama_folder, tmp_path):
    for name, processes in (("one", 1), ("two", 2)):
        training.finish(training.start("reward_trainer", job(tmp_path / name, preferences, llama_folder), processes))
    one, two = (read_scalars(tmp_path / name / "logs") for name in ("one", "two"))
    for tag in ("rank_loss", "reward_model/accuracy", "reward_model/eval_loss", "reward_model/eval_accuracy"):
        steps = range(1, 41) if "eval" not in tag else range(4, 41, 4)
        assert [step for step, _ in one[tag]] == [step for step, _ in two[tag]] == list(steps), tag
        assert [value for _, value in two[tag]] == pytest.approx([value for _, value in one[tag]], abs=1e-4), tag


def test_a_machine_with_several_devices_gets_a_process_for_each(preferences, llama_folder, tmp_path, monkeypatch):
    found = {}
    for processes in ("1", "2"):
        out = tmp_path / processes
        out.mkdir()
        monkeypatch.setenv("RLHF_PROCESSES", processes)
        found[processes] = launch(
            "reward_trainer",
            stage.run,
            RewardTrainerConfig(train_steps=6, batch_size=16, learning_rate=2e-5),  # json.dumps writes 2e-05
            preferences=str(preferences),
            policy=str(llama_folder),
            **{name: str(out / file) for name, file in reward.OUTPUTS.items()},
        )
    assert found["2"] == pytest.approx(found["1"], abs=1e-4)


def test_a_process_that_fails_ends_the_stage(preferences, llama_folder, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("RLHF_PROCESSES", "2")
    outputs = {name: str(tmp_path / file) for name, file in reward.OUTPUTS.items()}
    config = RewardTrainerConfig(train_steps=6, batch_size=15)
    with pytest.raises(SystemExit) as end:
        launch("reward_trainer", stage.run, config, preferences=str(preferences), policy=str(llama_folder), **outputs)
    assert end.value.code == 1
    assert "error: batch_size: found 15, expected a multiple of the 2 processes" in capfd.readouterr().out
    monkeypatch.setenv("RLHF_PROCESSES", "many")
    with pytest.raises(ConfigError, match="RLHF_PROCESSES: found 'many'"):
        launch("reward_trainer", stage.run, config)
    monkeypatch.setenv("RLHF_PROCESSES", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="RLHF_PROCESSES: found 3, but there are 2 GPUs here"):
        launch("reward_trainer", stage.run, config)


LAUNCH = """
import sys, yaml
from rlhf.job import stage_errors
from rlhf.reward_trainer import RewardTrainerConfig
from rlhf.reward_trainer.stage import run
from rlhf.training.launch import launch
job = yaml.safe_load(open(sys.argv[1]))
with stage_errors("reward_trainer"):
    launch("reward_trainer", run, RewardTrainerConfig.parse(job["options"]), **job["inputs"], **job["outputs"])
"""


def test_sigterm_reaches_every_process_and_they_agree_on_the_step(preferences, llama_folder, tmp_path):
    checkpoints = tmp_path / "checkpoints"
    lora = {"tuning": "lora", "lora": {"rank": 4, "dropout": 0.3}, "train_steps": 60}
    options = {"checkpoint_dir": str(checkpoints), "checkpoint_every": 2, **lora}
    command = [sys.executable, "-c", LAUNCH, str(job(tmp_path / "out", preferences, llama_folder, **options))]
    environment = {**os.environ, "RLHF_PROCESSES": "2"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, env=environment, **pipes)
    output = training.end_at_step(process, checkpoints, 4, signal.SIGTERM)
    assert "stopped by SIGTERM after step" in output
    assert training.latest_step(checkpoints) >= 4
    output = training.finish(subprocess.Popen(command, env=environment, **pipes))
    assert "going on from the checkpoint of step" in output
    whole = [*command[:-1], str(job(tmp_path / "whole", preferences, llama_folder, **lora))]
    training.finish(subprocess.Popen(whole, env=environment, **pipes))
    folders = [tmp_path / name / "reward_model" for name in ("out", "whole")]
    assert training.weights(folders[0]) == training.weights(folders[1]), "each process goes on with its own dropout"


SCORE = """
import json, sys
from rlhf.models.loading import prepare_torch
from rlhf.models.scoring import RewardModel
prompts, completions = json.loads(sys.argv[1])
for folder in sys.argv[2:]:
    prepare_torch(7)  # another seed than in training: new weights would be others
    print(json.dumps(RewardModel.load(folder).score(prompts, completions)))
"""
TUNINGS = {
    "full": {"tuning": "full"},
    "lora": {"tuning": "lora"},
    "lora, merged": {"tuning": "lora", "lora": "rank-16", "save": "merged"},
    "qlora": {"tuning": "qlora"},
    "qlora, merged": {"tuning": "qlora", "save": "merged"},
}


@pytest.mark.parametrize("base", ["llama", "pythia", "qwen", "bert", "roberta", "deberta", "t5"])
def test_a_saved_model_scores_alike_in_another_process(base, request, preferences, tmp_path):
    folder = request.getfixturevalue(f"{base}_folder")
    for name, options in TUNINGS.items():
        reward.train(preferences, folder, tmp_path / name, train_steps=6, **{"learning_rate": 3e-3, **options})
        is_adapter = (tmp_path / name / "reward_model/adapter_config.json").exists()
        assert is_adapter == (name in ("lora", "qlora"))
    rows = [row for row in reward.rows() if row["split"] == "eval"]
    asked = json.dumps([[reward.TEMPLATE.render(row["prompt"]) for row in rows], [row["chosen"] for row in rows]])
    saved = [str(tmp_path / name / "reward_model") for name in TUNINGS]
    done = subprocess.run([sys.executable, "-c", SCORE, asked, *saved], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    scored = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    for name, scores in zip(TUNINGS, scored, strict=True):
        told = pq.read_table(tmp_path / name / "scores.parquet").column("score_chosen").to_pylist()
        assert scores == pytest.approx(told, abs=1e-5), name
        assert max(told) - min(told) > 1e-3, "scores that are all alike would show nothing"
