"""Every parameter file in examples/ can be submitted as it is."""

import inspect
import json
from pathlib import Path

import pytest
from google_cloud_pipeline_components.preview.llm import rlhf_pipeline

from pipelines.placement.cluster import load_profile
from pipelines.placement.local import place
from pipelines.rlhf import build
from pipelines.submit.check import parameters
from rlhf.data_validation.steps import StepCount
from rlhf.models.references import SHORT_NAMES

FOLDER = Path(__file__).parents[2] / "examples"
EXAMPLES = sorted(path for path in FOLDER.iterdir() if path.suffix in (".yaml", ".json"))
OLD = FOLDER / "vertex-dictionary.json"


@pytest.fixture(scope="module")
def pipeline():
    return build(place)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
@pytest.mark.parametrize("platform", ["kubeflow", "vertex"])
def test_every_example_passes_the_checks_before_submitting(pipeline, path, platform):
    arguments, _ = parameters(path, pipeline, load_profile(f"{platform}-l4"))
    assert arguments["prompt_dataset"]


def test_the_old_dictionary_has_parameters_of_the_old_pipeline_only_and_runs_unchanged(pipeline):
    given = json.loads(OLD.read_text())
    assert set(given) == set(inspect.signature(rlhf_pipeline.pipeline_func).parameters)
    arguments, warnings = parameters(OLD, pipeline, load_profile("vertex-l4"))
    assert {name: arguments[name] for name in arguments} == {name: given[name] for name in arguments}
    assert set(given) - set(arguments) == {"project", "location", "accelerator_type"}
    ignored = {"project", "location", "accelerator_type", "model_display_name"}  # nothing is published unasked
    assert {warning.split(":")[0] for warning in warnings} == ignored


def test_the_llama_example_has_the_old_settings_and_steps(pipeline):
    arguments, _ = parameters(FOLDER / "llama-2-7b-vertex-tldr.yaml", pipeline, load_profile("kubeflow-l4"))
    old = json.loads(OLD.read_text())
    assert {name: old[name] for name in arguments.keys() & old} == {
        name: arguments[name] for name in arguments.keys() & old
    }
    assert arguments["large_model_reference"] in SHORT_NAMES
    assert (
        StepCount(3000, arguments["reward"]["batch_size"], None).by_epoch(30) == arguments["reward_model_train_steps"]
    )
    rl_steps = StepCount(2000, arguments["ppo"]["batch_size"], None).by_epoch(10)
    assert rl_steps == arguments["reinforcement_learning_train_steps"]


def test_the_t5_example_gives_each_split_of_the_comparisons_one_use(pipeline):
    arguments, _ = parameters(FOLDER / "t5-base-bert-tldr.yaml", pipeline, load_profile("kubeflow-l4"))
    uses = {"demonstration": "valid1", "preference": "valid2", "prompt": "train", "eval": "test"}
    for use, split in uses.items():
        assert arguments[f"{use}_dataset"].rpartition("/")[2].startswith(f"{split}-")
    assert "bert" in arguments["reward"]["base_model"]
