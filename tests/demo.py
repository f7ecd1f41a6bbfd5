"""The demo as a module, and what any run of it must reach."""

import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def run(folder: Path, *command: str) -> str:
    """Run a module of the repository in `folder`; returns what a person would see."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


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
