"""The demo as a module, and what any run of it must reach."""

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

from examples.demo.__main__ import UNLEASHED
from pipelines import params

REPOSITORY = Path(__file__).parents[1]


def run(folder: Path, *command: str) -> str:
    """Run a module of the repository in `folder`; returns what a person would see."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def stages_of(folder: Path) -> Path:
    """Folder of what the stages of the demo in `folder` wrote."""
    return next((folder / "build/demo/run").glob("rlhf-*"))


def unleashed(arch: str, folder: Path, outputs: Path) -> int:
    """PPO once more on the policy and the reward model of the demo in `folder`, with nothing to hold it back.

    Args:
        outputs: Folder for what the stage writes, and for `screen.txt`.

    Returns:
        Updates.
    """
    stages = stages_of(folder)
    values = params.read(REPOSITORY / "examples" / "demo" / f"{arch}.yaml")
    updates = UNLEASHED * values["reinforcement_learning_train_steps"]
    job = {
        "inputs": {
            "prompts": str(stages / "data-validation/prompts"),
            "policy": str(stages / "sft-trainer/policy"),
            "reward_model": str(stages / "reward-trainer/reward_model"),
        },
        "outputs": {name: str(outputs / name) for name in ("tuned_policy", "samples", "report", "tensorboard")},
        "options": values["ppo"] | {"train_steps": updates, "kl_coeff": 0.0},
    }
    (outputs / "job.yaml").write_text(yaml.safe_dump(job), encoding="utf-8")
    screen = run(folder, "rlhf.ppo_trainer", "--config", str(outputs / "job.yaml"))
    (outputs / "screen.txt").write_text(screen, encoding="utf-8")
    return updates


def assert_better_by_gold(folder: Path) -> None:
    """See that the run in `folder` made the model better, by a score that no stage saw, and that its report says so."""
    summary = json.loads((folder / "build/demo/summary.json").read_text())
    reward_model, evaluation = summary["reward_model"], summary["evaluation"]
    assert reward_model["accuracy_clean"] >= 0.84
    assert reward_model["accuracy_clean"] - reward_model["accuracy_prompt_swapped"] > 0.10, "it reads the post"
    assert reward_model["accuracy"] < reward_model["best_possible"] < 1
    assert evaluation["gold_win_rate"] >= 0.80
    assert evaluation["gold_win_rate_ci"][0] > 0.70
    assert evaluation["gold_after"] > evaluation["gold_before"]
    assert evaluation["rouge_l_after"] >= evaluation["rouge_l_before"] - 0.02
    assert summary["ppo"]["kl"] > 0
    assert summary["ppo"]["alarms"] == 0
    assert not evaluation["over_optimised"]
    assert summary["peak_rss_gb"] < 3
    report = (folder / "build/demo/report.html").read_text()
    for kind, rate in reward_model["one_fact"].items():
        assert (f"does not see when the {kind} is wrong" in report) == (rate < 0.75)
    assert "The reward model reads the post" in report
    assert report.index('id="gold"') > report.index('id="side-by-side"'), "gold stands last"
    assert "http://" not in report.replace("http://www.w3.org", "")
    assert "https://" not in report
