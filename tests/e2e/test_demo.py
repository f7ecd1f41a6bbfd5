"""The demo as a user runs it, and what it must reach."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM

from examples.demo import gold as gold_scores
from examples.demo import posts
from examples.demo.__main__ import UNLEASHED
from pipelines import params

REPOSITORY = Path(__file__).parents[2]
SETTINGS = REPOSITORY / "examples" / "demo" / "llama.yaml"

pytestmark = pytest.mark.slow


def run(folder: Path, *command: str) -> str:
    """Run a module of the repository in `folder`; returns what a person would see."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def llama_demo(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llama_demo")
    (folder / "screen.txt").write_text(run(folder, "examples.demo", "--arch", "llama"))
    return folder


@pytest.fixture(scope="module")
def t5_demo(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("t5_demo")
    (folder / "screen.txt").write_text(run(folder, "examples.demo", "--arch", "t5"))
    return folder


@pytest.mark.parametrize("arch", ["llama", "t5"])
def test_the_demo_makes_the_model_better_by_a_score_that_no_stage_saw(arch, request):
    folder = request.getfixturevalue(f"{arch}_demo")
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
    assert not evaluation["over_optimised"]
    assert summary["peak_rss_gb"] < 3
    report = (folder / "build/demo/report.html").read_text()
    for kind, rate in reward_model["one_fact"].items():
        assert (f"does not see when the {kind} is wrong" in report) == (rate < 0.75)
    assert "The reward model reads the post" in report
    assert report.index('id="gold"') > report.index('id="side-by-side"'), "gold stands last"
    assert "http://" not in report.replace("http://www.w3.org", "")
    assert "https://" not in report


def test_a_person_sees_stages_and_progress_and_no_pages_of_json(llama_demo):
    screen = (llama_demo / "screen.txt").read_text()
    for stage in ("data-validation", "sft-trainer", "reward-trainer", "ppo-trainer", "evaluator"):
        assert f"{stage}: started" in screen
        assert f"{stage}: finished in" in screen
    assert "[ppo_trainer] update " in screen
    assert '"inputs"' not in screen
    assert "Traceback" not in screen


def test_without_the_kl_penalty_the_demo_over_optimises_and_the_report_says_so(llama_demo, tmp_path):
    """PPO again on the same policy and reward model, with nothing to hold it back (Gao et al. 2023)."""
    root = llama_demo / "build/demo"
    stages = next((root / "run").glob("rlhf-*"))
    values = params.read(SETTINGS)
    job = {
        "inputs": {
            "prompts": str(stages / "data-validation/prompts"),
            "policy": str(stages / "sft-trainer/policy"),
            "reward_model": str(stages / "reward-trainer/reward_model"),
        },
        "outputs": {name: str(tmp_path / name) for name in ("tuned_policy", "samples", "report", "tensorboard")},
        "options": values["ppo"]
        | {"train_steps": UNLEASHED * values["reinforcement_learning_train_steps"], "kl_coeff": 0.0},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    run(llama_demo, "rlhf.ppo_trainer", "--config", str(tmp_path / "job.yaml"))
    gold = gold_scores.measure(
        posts.load_gold(root / "gold"),
        preferences=root / "data/preferences.jsonl",
        scores=stages / "reward-trainer/scores",
        samples=tmp_path / "samples",
        side_by_side=stages / "evaluator/side_by_side",
        one_fact_scores=root / "one_fact.jsonl",
    )
    assert gold.over_optimised
    assert "Over-optimisation: the reward model" in gold_scores.section(gold, kl=9.0).body


def test_the_same_seed_gives_the_same_model_and_the_same_figures(llama_demo, tmp_path):
    """The demo's pipeline twice with few steps: bit-identical weights, equal metrics, times apart.

    Under a rule that promotes any model, for both to be published.
    """
    values = params.read(SETTINGS) | {"reward_model_train_steps": 4, "reinforcement_learning_train_steps": 2}
    values["sft"] = values["sft"] | {"train_steps": 8}
    values["evaluation"] = values["evaluation"] | {"min_win_rate": 0, "kl_limit": 1000, "max_ended_drop": 1}
    values["publish_to"] = str(tmp_path / "published")
    (tmp_path / "few.yaml").write_text(yaml.safe_dump(values))
    for out in ("first", "again"):
        screen = run(llama_demo, "pipelines.run", "--params", str(tmp_path / "few.yaml"), "--out", str(tmp_path / out))
    first, again = (next((tmp_path / out).glob("rlhf-*")) for out in ("first", "again"))
    for file in ("sft-trainer/policy", "reward-trainer/reward_model", "ppo-trainer/tuned_policy"):
        assert (first / file / "model.safetensors").read_bytes() == (again / file / "model.safetensors").read_bytes()
    assert "nothing to copy, this model is already in" in screen, "both runs publish the same model"
    published = tmp_path / "published/model.safetensors"
    assert published.read_bytes() == (first / "ppo-trainer/tuned_policy/model.safetensors").read_bytes()
    AutoModelForCausalLM.from_pretrained(tmp_path / "published")
    metrics = []
    for stages in (first, again):
        output = json.loads((stages / "evaluator/executor_output.json").read_text())
        values = output["artifacts"]["metrics"]["artifacts"][0]["metadata"]
        metrics.append({name: value for name, value in values.items() if name not in ("seconds", "peak_rss_gb")})
    assert metrics[0] == metrics[1]
    assert "win_rate" in metrics[0]
