"""The SFT trainer as processes: killed and resumed, spread over processes, saved and loaded elsewhere."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlhf.tracking import read_scalars
from tests import training
from tests.sft import rows, write_demonstrations

OUTPUTS = {"policy": "policy", "report": "report.html", "tensorboard": "logs"}
pytestmark = pytest.mark.slow


@pytest.fixture
def demonstrations(tmp_path) -> Path:
    """Completions of various lengths, so that batches hold various numbers of tokens."""
    found = [{**row, "completion": row["completion"] + " on monday" * (i % 4)} for i, row in enumerate(rows())]
    return write_demonstrations(tmp_path, found)


def job(folder: Path, demonstrations: Path, base: Path, **options) -> Path:
    inputs = {"demonstrations": str(demonstrations), "base_model": str(base)}
    options = {"train_steps": 40, "batch_size": 16, "learning_rate": 1e-3, "eval_fraction": 0.1, **options}
    return training.write_job(folder.with_suffix(".yaml"), inputs, folder, OUTPUTS, options)


@pytest.mark.parametrize(
    ("base", "tuning", "numbers"),
    [
        ("llama", "full", [signal.SIGKILL] * 3),
        ("pythia", "lora", [signal.SIGTERM, signal.SIGKILL]),
        ("t5", "full", [signal.SIGTERM] * 3),
        ("t5", "lora", [signal.SIGKILL, signal.SIGTERM]),
    ],
)
def test_a_run_that_was_killed_ends_with_the_very_same_weights(
    base, tuning, numbers, request, demonstrations, tmp_path
):
    folder = request.getfixturevalue(f"{base}_folder")
    options = {"tuning": tuning, "eval_every": 7, "microbatch_size": 8}
    if tuning == "lora":
        options["lora"] = {"rank": 4, "dropout": 0.1}
    training.finish(training.start("sft_trainer", job(tmp_path / "whole", demonstrations, folder, **options)))
    checkpoints = tmp_path / "checkpoints"
    broken = job(
        tmp_path / "broken", demonstrations, folder, checkpoint_dir=str(checkpoints), checkpoint_every=2, **options
    )
    for step, number in zip(training.random_steps(len(numbers), 36, seed=len(base)), numbers, strict=True):
        output = training.end_at_step(training.start("sft_trainer", broken), checkpoints, step, number)
        assert not (tmp_path / "broken/policy").exists(), "nothing unfinished is handed on"
        if number == signal.SIGTERM:
            assert "stopped by SIGTERM after step" in output
    output = training.finish(training.start("sft_trainer", broken))
    assert "going on from the checkpoint of step" in output
    assert training.weights(tmp_path / "broken/policy") == training.weights(tmp_path / "whole/policy")
    whole, resumed = (training.saved_summary(tmp_path / name / "policy") for name in ("whole", "broken"))
    assert resumed == whole
    assert not list(checkpoints.glob("step-*")), "a finished run leaves no checkpoints"
    for tag in ("sft/loss", "sft/eval_loss"):
        curves = [read_scalars(tmp_path / name / "logs")[tag] for name in ("whole", "broken")]
        assert curves[0] == curves[1], "the curve is whole after a restart"
    reports = [(tmp_path / name / "report.html").read_text() for name in ("whole", "broken")]
    said = [re.findall(r"<h4>.*?</h4>\s*<[^>]*>([^<]*)", report) for report in reports]
    assert said[0] == said[1] != []


def test_time_makes_checkpoints_too(demonstrations, llama_folder, tmp_path):
    checkpoints = tmp_path / "checkpoints"
    options = {"checkpoint_dir": str(checkpoints), "checkpoint_every": 1000, "checkpoint_minutes": 1e-6}
    broken = job(tmp_path / "broken", demonstrations, llama_folder, **options)
    training.end_at_step(training.start("sft_trainer", broken), checkpoints, 3, signal.SIGKILL)
    assert "going on from the checkpoint of" in training.finish(training.start("sft_trainer", broken))


def test_a_run_may_go_on_with_smaller_microbatches(demonstrations, llama_folder, tmp_path):
    whole = job(tmp_path / "whole", demonstrations, llama_folder, train_steps=20, microbatch_size=8)
    training.finish(training.start("sft_trainer", whole))
    checkpoints = tmp_path / "checkpoints"
    options = {"checkpoint_dir": str(checkpoints), "checkpoint_every": 1, "train_steps": 20}
    broken = job(tmp_path / "broken", demonstrations, llama_folder, microbatch_size=8, **options)
    training.end_at_step(training.start("sft_trainer", broken), checkpoints, 5, signal.SIGKILL)
    broken = job(tmp_path / "broken", demonstrations, llama_folder, microbatch_size=4, **options)
    assert "going on from the checkpoint of" in training.finish(training.start("sft_trainer", broken))
    found, expected = (training.tensors(tmp_path / name / "policy") for name in ("broken", "whole"))
    assert all(torch.allclose(found[name], weights, atol=1e-4) for name, weights in expected.items())


def test_a_checkpoint_of_another_run_is_refused(demonstrations, llama_folder, tmp_path):
    checkpoints = tmp_path / "checkpoints"
    options = {"checkpoint_dir": str(checkpoints), "checkpoint_every": 1}
    first = training.start("sft_trainer", job(tmp_path / "first", demonstrations, llama_folder, **options))
    training.end_at_step(first, checkpoints, 2, signal.SIGKILL)
    other = job(tmp_path / "other", demonstrations, llama_folder, batch_size=8, **options)
    output = training.finish(training.start("sft_trainer", other), status=1)
    assert "holds a checkpoint of another run (batch_size: 16 there, 8 now)" in output


@pytest.mark.parametrize(
    ("base", "options"),
    [
        ("llama", {}),
        ("llama", {"packing": True, "loss_on": "prompt_and_completion"}),
        ("t5", {}),
    ],
)
def test_two_processes_learn_what_one_does(base, options, request, demonstrations, tmp_path):
    folder = request.getfixturevalue(f"{base}_folder")
    for name, processes in (("one", 1), ("two", 2)):
        settings = {"microbatch_size": 8, "train_steps": 20, **options}  # one process takes two turns for each step
        training.finish(
            training.start("sft_trainer", job(tmp_path / name, demonstrations, folder, **settings), processes)
        )
    one, two = (read_scalars(tmp_path / name / "logs") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for tag in ("sft/loss", "sft/eval_loss", "sft/rouge_l", "sft/ended"):
        assert [step for step, _ in one[tag]] == [step for step, _ in two[tag]]
        assert [value for _, value in two[tag]] == pytest.approx([value for _, value in one[tag]], abs=1e-4), tag


READ = """
import json, sys, torch
from rlhf.data.template import Template
from rlhf.models.loading import prepare_torch
from rlhf.models.policy import Policy
from rlhf.sft_trainer.demonstrations import tokenise
from rlhf.sft_trainer.held_out import HeldOut
from rlhf.data.store import read_dataset
prepare_torch(7)  # another seed than in training: new weights would be others
rows, _, template = read_dataset(sys.argv[2], "demonstrations")
policy = Policy.load(sys.argv[1], template)
held_out = [each for each in tokenise(rows, template, policy) if each.id in sys.argv[3].split(",")]
measures, said = HeldOut(policy, held_out, False, 64, 16).measure()
print(json.dumps([measures, said]))
"""


@pytest.mark.parametrize("base", ["llama", "pythia", "t5"])
@pytest.mark.parametrize(
    "options",
    [
        {"tuning": "full"},
        {"tuning": "lora"},
        {"tuning": "lora", "lora": "rank-16", "save": "merged"},
        {"tuning": "qlora"},
        {"tuning": "qlora", "save": "merged"},
    ],
    ids=lambda options: "-".join(options[name] for name in ("tuning", "save") if name in options),
)
def test_a_saved_policy_says_the_same_in_another_process(base, options, request, demonstrations, tmp_path, monkeypatch):
    from rlhf.sft_trainer import SFTTrainerConfig, stage
    from rlhf.sft_trainer.held_out import HeldOut

    measured = []
    measure = HeldOut.measure

    def spied(self):
        measured.append((measure(self), [each.id for each in self._sampled]))
        return measured[-1][0]

    monkeypatch.setattr(HeldOut, "measure", spied)
    settings = {"train_steps": 6, "batch_size": 16, "learning_rate": 3e-3, "eval_fraction": 0.2, "keep": "last"}
    paths = {name: str(tmp_path / file) for name, file in OUTPUTS.items()}
    folder = request.getfixturevalue(f"{base}_folder")
    stage.run(
        SFTTrainerConfig(**settings | options), demonstrations=str(demonstrations), base_model=str(folder), **paths
    )
    is_adapter = (tmp_path / "policy/adapter_config.json").exists()
    assert is_adapter == (options["tuning"] != "full" and options.get("save") != "merged")
    (start, _), ((told, said), ids) = measured[0], measured[-1]
    command = [sys.executable, "-c", READ, paths["policy"], str(demonstrations), ",".join(ids)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    measures, said_there = json.loads(done.stdout.splitlines()[-1])
    assert measures["sft/eval_loss"] == pytest.approx(told["sft/eval_loss"], abs=1e-5)
    assert [tuple(each) for each in said_there] == said
    assert told["sft/eval_loss"] < start[0]["sft/eval_loss"] - 0.1, "untrained weights would show nothing"
