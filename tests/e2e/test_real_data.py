"""The whole pipeline on real files, as published, with tiny random models and few steps.

Each run must come through to a report that accounts for every row. What random models write says nothing about
quality, so nothing here asks which way the verdict went.
"""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from examples.demo.base_models import write_bert, write_llama, write_t5
from pipelines import local, params
from pipelines.placement.local import place
from pipelines.rlhf import build
from rlhf.data.store import read_dataset
from tests.pages import browsed

pytestmark = pytest.mark.slow
VERTEX = {
    "preference_dataset": "vertex_text/preference.jsonl",
    "prompt_dataset": "vertex_text/course_prompt.jsonl",
    "eval_dataset": "vertex_text/eval_with_references.jsonl",
}
CARPERAI = {
    "preference_dataset": "carperai/comparisons.jsonl",
    "prompt_dataset": "carperai/tldr_train.jsonl",
    "eval_dataset": "carperai/tldr_test.jsonl",
    "demonstration_dataset": "carperai/tldr_train.jsonl",
}
FEW_STEPS = {
    "prompt_sequence_length": 128,  # the models take 512 tokens; the posts are longer
    "target_sequence_length": 32,
    "reward_model_train_steps": 3,
    "reinforcement_learning_train_steps": 2,
    "sft": {"train_steps": 2, "batch_size": 4},
    "reward": {"batch_size": 4},
    "ppo": {"batch_size": 8, "minibatch_size": 8, "epochs": 1},
}


@pytest.fixture
def vertex(real_data, tmp_path) -> dict[str, str]:
    """The files as published, but that a prompt to evaluate on begins with what HTML would read as markup."""
    files = {parameter: str(real_data / file) for parameter, file in VERTEX.items()}
    first, *others = rows_of(files["eval_dataset"])
    rows = [{**first, "input_text": f"Questions & answers, three < four of them: {first['input_text']}"}, *others]
    (tmp_path / "evaluation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return files | {"eval_dataset": str(tmp_path / "evaluation.jsonl")}


@pytest.fixture
def carperai(real_data) -> dict[str, str]:
    return {parameter: str(real_data / file) for parameter, file in CARPERAI.items()}


def rows_of(file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").split("\n") if line.strip()]


def model(write: Callable, folder: Path, files: dict[str, str]) -> str:
    """Random weights, and a tokenizer fitted to the texts of `files`."""
    rows = [row for file in dict.fromkeys(files.values()) for row in rows_of(file)]
    write(folder, [text for row in rows for text in row.values() if isinstance(text, str)])
    return str(folder)


def run(files: dict[str, str], tmp_path: Path, **options: Any) -> dict[str, Any]:
    """The pipeline's outputs: artifacts by name."""
    pipeline = build(place)
    arguments, _ = params.check({**files, **FEW_STEPS, **options}, pipeline)
    return local.run(pipeline, arguments, tmp_path / "run")


def metrics(outputs: dict[str, Any], stage: str) -> dict[str, float]:
    found = outputs[f"{stage}_metrics"]
    if isinstance(found, list):  # of tasks in a loop
        (found,) = found
    return found.metadata


def dataset(tmp_path: Path, name: str, kind: str) -> list[dict[str, Any]]:
    (folder,) = (tmp_path / "run").glob(f"*/data-validation/{name}")
    return read_dataset(folder, kind)[0]


def predictions(outputs: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for name in ("predictions_before", "predictions_after")
        for part in outputs[name]
        for line in Path(part.path).read_text(encoding="utf-8").split("\n")
        if line
    ]


class Elements(HTMLParser):
    """The names of a page's elements, and of their attributes."""

    def __init__(self, page: str):
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}


def check_page(outputs: dict[str, Any], texts: list[str]) -> None:
    """The report has a verdict, and nothing in `texts` is markup of it; its browser shows them all."""
    page = Path(outputs["report"].path).read_text(encoding="utf-8")
    assert re.search(r">\s*(Promote|Hold)\s*<", page)
    elements = Elements(page)
    assert not elements.names & {"img", "iframe", "object", "embed", "link", "form"}
    assert page.count("<script") == 2, "the browser's data and its code, which the page's policy knows by its digest"
    assert not [name for name in elements.attributes if name.startswith("on")]
    # What HTML would read as markup, with what stands around it, is in the page only escaped.
    marked = [match[0] for text in texts for match in re.finditer(r"[^\n<>&]{4,12}[<>&][^\n<>&]{4,12}", text)]
    assert marked, "no text has markup: this checks nothing"
    assert not [piece for piece in marked if piece in page]
    shown = json.dumps(browsed(page), ensure_ascii=False)
    assert not [piece for piece in marked if json.dumps(piece, ensure_ascii=False)[1:-1] not in shown]


def check_run(outputs: dict[str, Any], evaluated: int) -> None:
    """All stages came through on `evaluated` prompts."""
    written = predictions(outputs)
    assert len(written) == 2 * evaluated == 2 * metrics(outputs, "evaluator")["rows"]
    check_page(outputs, [row[name] for row in written for name in ("prompt", "prediction")])
    for name in ("tuned_policy", "reward_model"):
        assert (Path(outputs[name].path) / "rlhf.json").is_file()
        assert list(Path(outputs[name].path).glob("*.safetensors"))


def check_vertex_rows(outputs: dict[str, Any], tmp_path: Path, vertex: dict[str, str]) -> None:
    """All 600 rows of preferences are in one place or the other; the one with a blank candidate is in quarantine."""
    kept, quarantined = dataset(tmp_path, "preferences", "preferences"), dataset(tmp_path, "quarantine", "quarantine")
    assert len(kept) + len(quarantined) == 600 == len(rows_of(vertex["preference_dataset"]))
    assert [row["reason"] for row in quarantined] == ["blank_candidate"]
    blank = json.loads(quarantined[0]["row"])
    assert not (blank["candidate_0"].strip() and blank["candidate_1"].strip())
    reward = metrics(outputs, "reward_trainer")
    assert reward["pairs"] + reward["selection_pairs"] + reward["held_out"] == len(kept)


def test_vertex_files_with_a_llama(vertex, tmp_path):
    outputs = run(vertex, tmp_path, large_model_reference=model(write_llama, tmp_path / "llama", vertex))
    check_vertex_rows(outputs, tmp_path, vertex)
    check_run(outputs, evaluated=14)
    assert metrics(outputs, "evaluator")["rows_with_reference"] == 14
    found = metrics(outputs, "data_validation")
    assert 0.5 < found["prompts_cut_share_preferences"] <= 1
    # What was counted before any model was loaded is what the stages then find.
    assert found["prompts_cut_share_prompts"] == metrics(outputs, "ppo_trainer")["prompts_cut"]
    assert found["prompts_cut_share_evaluation"] == metrics(outputs, "bulk_inference_before")["prompts_cut"]


def test_vertex_files_with_a_t5_policy_and_a_bert_reward_model(vertex, tmp_path):
    policy, base_model = model(write_t5, tmp_path / "t5", vertex), model(write_bert, tmp_path / "bert", vertex)
    reward = {**FEW_STEPS["reward"], "base_model": base_model}
    outputs = run(vertex, tmp_path, large_model_reference=policy, reward=reward)
    check_vertex_rows(outputs, tmp_path, vertex)
    check_run(outputs, evaluated=14)
    assert json.loads((Path(outputs["reward_model"].path) / "config.json").read_text())["model_type"] == "bert"
    found = metrics(outputs, "data_validation")
    assert found["prompts_cut_share_prompts"] == metrics(outputs, "ppo_trainer")["prompts_cut"]


def test_carperai_files_with_demonstrations(carperai, tmp_path):
    outputs = run(carperai, tmp_path, large_model_reference=model(write_llama, tmp_path / "llama", carperai))
    check_run(outputs, evaluated=len(rows_of(carperai["eval_dataset"])))
    found = metrics(outputs, "data_validation")
    assert found["rows_demonstrations"] == len(rows_of(carperai["demonstration_dataset"]))
    assert found["rows_preferences"] + found["quarantined"] == len(rows_of(carperai["preference_dataset"]))


def test_an_old_parameter_dictionary_without_eval_dataset_is_evaluated_on_prompts_held_out_without_references(
    vertex, tmp_path
):
    files = {"preference_dataset": vertex["preference_dataset"], "prompt_dataset": vertex["preference_dataset"]}
    outputs = run(
        files,
        tmp_path,
        large_model_reference=model(write_llama, tmp_path / "llama", files),
        model_display_name="my-model",
        deploy_model=False,
        instruction="Summarize in less than 50 words.",
        kl_coeff=0.1,
    )
    found, compared = metrics(outputs, "data_validation"), metrics(outputs, "evaluator")
    assert found["rows_prompts"] + found["prompts_held_out"] == 600
    assert 30 <= found["prompts_held_out"] <= 90
    assert compared["rows_with_reference"] == 0
    assert not [name for name in compared if name.startswith(("rouge", "reward_reference"))]
    check_run(outputs, evaluated=int(found["prompts_held_out"]))
