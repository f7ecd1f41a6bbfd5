"""Reinforcement fine-tuning as a user runs it: the demo with a grader of twenty lines, and what it must reach."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from examples.demo.rft import MARGIN

REPOSITORY = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def test_the_grade_rises_by_the_margin_on_prompts_that_no_stage_trained_on(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "examples.demo.rft"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1100)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "build/demo-rft/summary.json").read_text())
    assert summary["grade_change_ci"][0] >= MARGIN
    assert summary["grade_after"] - summary["grade_before"] >= summary["grade_change_ci"][0]
    assert summary["win_rate_ci"][0] > 0.7
    assert summary["prompts"] == 500
    assert summary["promote"]
    page = (tmp_path / "build/demo-rft/report.html").read_text(encoding="utf-8")
    assert "By the grader, the tuned model is better than the one before" in page
    assert "GRPO: grade" in page
    lines = (tmp_path / "build/demo-rft/data/prompts.jsonl").read_text().splitlines()
    trained = {json.loads(line)["input_text"] for line in lines}
    held_out = (tmp_path / "build/demo-rft/data/evaluation.jsonl").read_text().splitlines()
    assert not trained & {json.loads(line)["input_text"] for line in held_out}


def test_the_grader_is_twenty_lines_and_sound():
    code = (REPOSITORY / "examples/demo/grader.py").read_text().splitlines()
    assert len([line for line in code if line.strip()]) <= 20
