"""The notebooks run, on small data and with few steps, as a user would have them: by changing their first cell."""

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nbformat
import pytest
import yaml
from nbclient.exceptions import CellExecutionError

from docs.notebooks import NOTEBOOKS, execute
from examples.demo import posts
from tests.events import write_events
from tests.pages import browsed

pytestmark = pytest.mark.slow
SIZES = {"preferences": 240, "prompts": 60, "evaluation": 30, "demonstrations": 60}


class Ran:
    """An executed notebook: what its cells showed, by their names."""

    def __init__(self, name: str, folder: Path, **values: Any):
        notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
        (cell,) = [cell for cell in notebook.cells if cell.id == "change-this"]
        known = re.findall(r"^([A-Z_]+) = ", cell.source, re.MULTILINE)
        assert set(values) <= set(known)
        cell.source += "\n" + "\n".join(f"{name} = {value!r}" for name, value in values.items())
        self._cells = {cell.id: cell for cell in execute(notebook, folder).cells}

    def shown(self, cell: str, kind: str) -> list[str]:
        outputs = self._cells[cell].outputs
        return [output.data[kind] for output in outputs if kind in output.get("data", {})]

    def printed(self, cell: str) -> str:
        return "".join(output.text for output in self._cells[cell].outputs if output.get("name") == "stdout")

    def table(self, cell: str) -> list[list[str]]:
        (text,) = self.shown(cell, "text/markdown")
        return [line.strip("| ").split(" | ") for line in text.splitlines()[2:]]


def test_the_first_notebook_finds_what_was_planted_in_the_demo_s_data(tmp_path):
    ran = Ran("1_explore_data", tmp_path)
    found = {row[0]: (int(row[1]), row[2]) for row in ran.table("show-planted")}
    assert found["blank_candidate"] == (20, "20 rows in quarantine")
    assert found["bad_choice"] == (10, "10 rows in quarantine")
    assert found["contradictions"][1].startswith("Two candidates labelled both ways: 40, in 80 of 2,260 pairs")
    assert found["shared_prompts"][1].startswith("20 of 500 evaluation prompts are trained on")
    assert "e-mail address in 3. Looked for: " in found["private_data"][1]
    planted, said = found["duplicates"]
    # A made-up pair comes twice by chance, once in a while.
    assert planted <= int(said.split(" of ")[0]) <= planted + 5
    warned = {row[1] for row in ran.table("show-findings") if row[0] == "warning"}
    assert warned == {"duplicates", "shared_prompts", "private_data"}
    assert [row[1] for row in ran.table("show-shapes")] == ["Vertex text"] * 3 + ["TRL / CarperAI"]
    assert "anna.berg" not in ran.printed("show-examples") + ran.printed("show-warned")
    for svg in (*ran.shown("show-lengths", "image/svg+xml"), *ran.shown("show-biases", "image/svg+xml")):
        ElementTree.fromstring(svg)


def test_the_first_notebook_reads_rows_of_one_s_own_in_another_shape(tmp_path):
    rows = [
        {"prompt": f"What is {i} and {i}?", "chosen": f"it is {2 * i}, to be sure", "rejected": "who knows"}
        for i in range(195)
    ]
    rows += [*rows[:3], {"prompt": "one", "chosen": "", "rejected": "x"}, {"prompt": "two", "chosen": "y"}]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model" / "model.safetensors").touch()
    ran = Ran("1_explore_data", tmp_path, PREFERENCES="mine.jsonl", MODEL="model", OUT="out")
    assert not (tmp_path / "out" / "demo").exists(), "nothing of the demo's is made"
    shapes = ran.table("show-shapes")
    assert [row[:2] for row in shapes] == [[f"{name}_dataset", "TRL / CarperAI"] for name in ("preference", "prompt")]
    assert all(row[2].endswith("/mine.jsonl") for row in shapes)
    assert shapes[0][3:] == ["200", "198", "2"]
    assert {row[0] for row in ran.table("show-aside")} >= {"blank_candidate", "missing_field"}
    assert ["duplicates", "preferences", "3 of 198 pairs repeat another one; they are kept."] in ran.table(
        "show-duplicates"
    )
    (said,) = ran.shown("show-biases", "text/plain")
    assert "the longer of the two, 100\N{NO-BREAK SPACE}%" in said
    assert "the first of the two" not in said, "the shape does not tell which candidate came first"
    assert "length_bias" in {row[1] for row in ran.table("show-findings") if row[0] == "warning"}
    assert ran.table("show-planted") == []


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, llama_folder) -> tuple[Path, Ran]:
    """The folder of the notebooks, and the second one after a run of few steps."""
    folder = tmp_path_factory.mktemp("notebooks")
    posts.generate(folder / "data", folder / "gold", **SIZES)
    values = {
        **{f"{name}_dataset": f"data/{file}.jsonl" for name, file in _FILES.items()},
        "large_model_reference": str(llama_folder),
        "prompt_sequence_length": 96,
        "target_sequence_length": 32,
        "reward_model_train_steps": 6,
        "reinforcement_learning_train_steps": 3,
        "sft": {"train_steps": 4, "batch_size": 4},
        "reward": {"batch_size": 8},
        "ppo": {"batch_size": 8, "minibatch_size": 8, "epochs": 1},
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(values))
    return folder, Ran("2_tune", folder, PARAMETERS="mine.yaml", OUT="out", BUCKET="s3://bucket/here")


_FILES = {"prompt": "prompts", "preference": "preferences", "eval": "evaluation", "demonstration": "demonstrations"}


def test_the_second_notebook_draws_the_pipeline(tuned):
    (svg,) = tuned[1].shown("show-dag", "image/svg+xml")
    assert {"evaluator", "reward trainer"} <= set(_texts(svg))
    (said,) = tuned[1].shown("show-dag", "text/plain")
    assert "reward-trainer to ppo-trainer" in said


def _texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_the_second_notebook_runs_with_the_parameters_of_a_file_and_says_how_far_it_is(tuned):
    _, ran = tuned
    shown = {row[0]: row[1] for row in ran.table("show-parameters")}
    assert (shown["reward_model_train_steps"], shown["prompt_sequence_length"]) == ("6", "96"), (
        "no more steps when quick"
    )
    assert "'train_steps': 4" in shown["sft"]
    assert "kl_coef: unknown parameter, did you mean kl_coeff?" in ran.printed("show-mistakes")
    lines = ran.printed("run-it").splitlines()
    assert [line.partition(": fin")[0] for line in lines if ": finished" in line][-1] == "evaluator"
    assert [line for line in lines if line.startswith("  [ppo_trainer] ")]


def test_the_second_notebook_names_folders_that_tensorboard_reads(tuned):
    folder, ran = tuned
    for path in ran.printed("show-logs").splitlines():
        assert list((folder / path).glob("events.out.tfevents.*"))
    assert len(ran.printed("show-logs").splitlines()) == 3
    measured = {tuple(row[:2]): row[2] for row in ran.table("show-measured")}
    assert measured["evaluator", "promote"] in "01"
    assert float(measured["ppo-trainer", "kl"].replace("−", "-")) < 4


def test_the_second_notebook_compiles_for_both_clusters(tuned):
    folder, ran = tuned
    assert "make build push" in ran.printed("compile-it"), "nothing was pushed, and it says how"
    for platform in ("kubeflow", "vertex"):
        path = f"out/compiled/{platform}/rlhf.yaml"
        assert path in ran.printed("compile-it")
        text = (folder / path).read_text()
        spec, *_ = yaml.safe_load_all(text)
        assert spec["pipelineInfo"]["name"] == "rlhf"
        images = set(re.findall(r"[\w.]+/rlhf-[a-z-]+@\w+:\w+", text))
        assert len(images) == 7, "those of the stages of this pipeline, which has no grpo_trainer"
        assert all(re.fullmatch(r"registry\.invalid/rlhf-[a-z-]+@sha256:0{64}", image) for image in images)
    assert ["kubeflow-l4", "ppo_trainer", "1 x NVIDIA_L4"] in [row[:3] for row in ran.table("show-profiles")]


def test_the_second_notebook_submits_nothing_but_says_what_it_would(tuned):
    _, ran = tuned
    refused = ran.printed("refuse").splitlines()
    assert [line.partition(":")[0] for line in refused][:4] == [f"{name}_dataset" for name in _FILES]
    assert all("a path on this machine" in line for line in refused[:4])
    sent = json.loads(ran.printed("submit-it")[ran.printed("submit-it").index("{") :])
    assert sent["preference_dataset"] == "s3://bucket/here/preferences.jsonl"
    assert sent["reward_model_train_steps"] == 6
    assert "submitted" not in ran.printed("submit-it")


def test_the_third_notebook_reads_the_run_of_the_second(tuned):
    folder, _ = tuned
    ran = Ran("3_evaluate", folder, RUN="out", OUT="judged")
    assert ran.printed("read-run") == "30 prompts, answered by the models before and after tuning\n"
    curves = ran.shown("show-curves", "text/plain")
    # Curves of very different size are drawn apart, and then a title names its run.
    titles = [re.sub(": (this run|old run.*)$", "", each.partition(" by ")[0]) for each in curves]
    assert list(dict.fromkeys(titles))[-3:] == ["Reward", "KL loss", "PPO: KL from the model before"]
    of_reward = " ".join(each for each in curves if each.startswith("Reward"))
    assert re.search(r"this run from \S+ to \S+[;.]", of_reward)
    assert re.search(r"old run \(made up\) from −1\.\d+ to 1\.\d+\.", of_reward)
    (said,) = ran.shown("show-rewards", "text/plain")
    assert re.search(r"Means: before \S+, after \S+, reference \S+\.$", said)
    rouge = {row[0]: row[1:] for row in ran.table("show-rouge")}
    assert all(0 <= float(value) <= 1 for value in rouge["ROUGE-L"])
    (frame,) = ran.shown("show-side-by-side", "text/html")
    assert len(browsed(ElementTree.fromstring(frame).get("srcdoc"))["rows"]) == 30
    (verdict,) = ran.shown("show-verdict", "text/markdown")
    assert re.match(r"### (Promote|Hold)\n\n.+\n\n- ", verdict)


def test_the_third_notebook_lays_an_old_run_over_a_new_one(tuned):
    folder, _ = tuned
    write_events(folder / "old", {"reward": [(1, -7.0), (2, -5.0)], "kl_loss": [(1, 0.0), (2, 0.1)]}, as_tensors=True)
    ran = Ran("3_evaluate", folder, RUN="out", OLD_RUNS={"of Vertex": "old"}, OUT="compared")
    said = " ".join(each for each in ran.shown("show-curves", "text/plain") if each.startswith("Reward"))
    assert "of Vertex from −7 to −5" in said
    assert not (folder / "compared").exists(), "nothing is made up where there is an old run"


def test_the_third_notebook_says_what_to_do_where_there_is_no_run(tmp_path):
    with pytest.raises(CellExecutionError, match=r"build/tune: found no finished run in it .* expected the folder"):
        Ran("3_evaluate", tmp_path)
