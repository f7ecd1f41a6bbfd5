"""A newcomer's first hour by the documents, on a clean machine, and what the demo that they run must reach.

With xdist, whose workers have a core each, the demo is run here, and the newcomer is left out.
"""

import json
import os
import re
from pathlib import Path

import pytest
import yaml
from selenium.webdriver.support.ui import WebDriverWait
from transformers import AutoModelForCausalLM

from examples.demo import gold as gold_scores
from examples.demo import posts
from pipelines import params
from rlhf.models.card import ModelCard
from tests import newcomer
from tests.chromium import chromium
from tests.containers import machine
from tests.demo import assert_better_by_gold, run, stages_of, unleashed

REPOSITORY = Path(__file__).parents[2]
SETTINGS = REPOSITORY / "examples" / "demo" / "llama.yaml"
# What two updates of PPO, and a few steps of the others, read.
FEW_ROWS = {"preference_dataset": 1000, "prompt_dataset": 256, "eval_dataset": 64, "demonstration_dataset": 320}
# The documents' figures are of two cores, and on one an hour goes by with installing and training.
SEVERAL_CORES = len(os.sched_getaffinity(0)) > 1
# Everything is installed, trained and evaluated in here, on a core that may be slow.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def somebody(engine, base_image, tmp_path_factory):
    """A newcomer, on a clean machine."""
    with newcomer.newcomer(base_image, tmp_path_factory.mktemp("newcomer")) as somebody:
        yield somebody


@pytest.fixture(scope="module")
def first_report(somebody, tmp_path_factory) -> Path:
    """Folder of the demo that the newcomer ran, by the first command of the README."""
    somebody.do(newcomer.steps("README.md")[0])
    folder = tmp_path_factory.mktemp("first_report")
    (folder / "screen.txt").write_text(somebody.screen, encoding="utf-8")
    (folder / "seconds.txt").write_text(f"{somebody.seconds:.0f}")
    somebody.fetch("build/demo", folder)
    return folder


@pytest.fixture(scope="module")
def own_report(first_report, somebody, tmp_path_factory) -> Path:
    """Folder of the run on 200 rows of their own, by the quickstart."""
    before = somebody.seconds
    for step in newcomer.steps("docs/quickstart.md", "2. Your own rows"):
        somebody.do(step)
    folder = tmp_path_factory.mktemp("own_report")
    (folder / "seconds.txt").write_text(f"{somebody.seconds - before:.0f}")
    somebody.fetch("mine.jsonl", folder)
    somebody.fetch("build/my-run/report.html", folder)
    return folder


@pytest.fixture(scope="module")
def llama_demo(request, tmp_path_factory) -> Path:
    """Folder of the demo: the newcomer's, where there is one; else of a demo that is run here."""
    if SEVERAL_CORES and (machine.engine_answers() or machine.can_start_engine()):
        return request.getfixturevalue("first_report")
    folder = tmp_path_factory.mktemp("llama_demo")
    (folder / "screen.txt").write_text(run(folder, "examples.demo", "--arch", "llama"))
    return folder


def test_the_quickstart_begins_with_the_first_command_of_the_readme():
    assert newcomer.steps("docs/quickstart.md", "1. The demo") == newcomer.steps("README.md")[:1]


@pytest.mark.docker
# A worker of xdist has one core, on which installing and two runs take an hour; `benchmarks/README.md` has the command.
@pytest.mark.skipif(not SEVERAL_CORES, reason="a newcomer has two cores: run this file by itself, without xdist")
@pytest.mark.parametrize(
    ("report", "path", "verdicts"),
    [
        ("first_report", "build/demo/report.html", ("Promote", "Hold")),
        ("own_report", "build/my-run/report.html", ("Hold",)),
    ],
)
def test_a_newcomer_comes_to_a_report_that_opens_by_what_the_documents_say(report, path, verdicts, request, tmp_path):
    folder = request.getfixturevalue(report)
    print(f"{report}: {(folder / 'seconds.txt').read_text()} s")  # for benchmarks/README.md
    with chromium(tmp_path) as browser:
        browser.get((folder / path).as_uri())
        WebDriverWait(browser, 120).until(lambda _: browser.find_elements("css selector", "#browser[data-ready]"))
        assert browser.find_element("css selector", "#verdict .word").text in verdicts
        assert browser.get_log("browser") == []


def test_the_demo_makes_the_model_better_by_a_score_that_no_stage_saw(llama_demo):
    assert_better_by_gold(llama_demo)


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
    root, stages = llama_demo / "build/demo", stages_of(llama_demo)
    updates = unleashed("llama", llama_demo, tmp_path)
    screen = (tmp_path / "screen.txt").read_text(encoding="utf-8")
    raised = [int(update) for update in re.findall(r"warning: update (\d+): The reward rose while", screen)]
    assert min(raised) <= updates / 2, "well before the end"
    assert ModelCard.load(tmp_path / "tuned_policy").training["alarms"] >= len(raised)
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
    """The demo's pipeline twice with few rows and steps: bit-identical weights, equal metrics, times apart.

    Under a rule that promotes any model, for both to be published.
    """
    values = params.read(SETTINGS) | {"reward_model_train_steps": 4, "reinforcement_learning_train_steps": 2}
    values["sft"] = values["sft"] | {"train_steps": 8}
    values["evaluation"] = values["evaluation"] | {"min_win_rate": 0, "kl_limit": 1000, "max_ended_drop": 1}
    values["publish_to"] = str(tmp_path / "published")
    for name, rows in FEW_ROWS.items():
        lines = (llama_demo / values[name]).read_text(encoding="utf-8").splitlines(keepends=True)
        values[name] = str(tmp_path / f"{name}.jsonl")
        Path(values[name]).write_text("".join(lines[:rows]), encoding="utf-8")
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
