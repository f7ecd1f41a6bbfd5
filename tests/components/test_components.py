"""Every stage has a face that compiles, is documented, and keeps to the direction of imports."""

import ast
import datetime
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from kfp import compiler

from components.images import STAGES, ImageError, cluster_images, image
from components.readme import render

ROOT = Path(__file__).parents[2]


def module_imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Dotted names of the modules that a file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def load(stage: str):
    return getattr(importlib.import_module(f"components.{stage}.component"), stage)


def test_every_folder_with_a_component_is_a_stage():
    assert {path.parent.name for path in (ROOT / "components").glob("*/component.py")} == set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_the_function_is_named_as_its_folder_and_compiles(stage, tmp_path):
    path = tmp_path / "component.yaml"
    compiler.Compiler().compile(load(stage), str(path))
    executor = yaml.safe_load(path.read_text())["deploymentSpec"]["executors"][f"exec-{stage.replace('_', '-')}"]
    assert executor["container"]["image"] == image(stage)
    # The image holds KFP; a pod that installs packages would need a network and time.
    assert "pip install" not in " ".join(executor["container"]["command"])


@pytest.mark.parametrize("stage", STAGES)
def test_a_component_imports_only_what_a_client_without_rlhf_has(stage):
    names = module_imports(ROOT / "components" / stage / "component.py", top_level_only=True)
    allowed = set(sys.stdlib_module_names) | {"kfp"}
    ours = {name for name in names if name.split(".")[0] not in allowed}
    assert ours <= {"components.images", "components.images.image"}


@pytest.mark.parametrize("stage", STAGES)
def test_the_readme_is_fresh(stage):
    assert (ROOT / "components" / stage / "README.md").read_text(encoding="utf-8") == render(stage), "run `make readme`"


@pytest.mark.parametrize("stage", STAGES)
def test_inputs_and_outputs_are_in_tables_of_their_own(stage):
    inputs, outputs = render(stage).split("## Inputs")[1].split("## Outputs")
    spec = load(stage).component_spec
    assert set(re.findall(r"^\| `(\w+)` \|", inputs, re.M)) == set(spec.inputs)
    assert set(re.findall(r"^\| `(\w+)` \|", outputs, re.M)) == set(spec.outputs)


@pytest.mark.parametrize("stage", STAGES)
def test_metadata_has_the_schema_of_kubeflow_pipelines_components(stage):
    """scripts/validate_metadata/metadata_schema.json in kubeflow/pipelines-components."""
    metadata = yaml.safe_load((ROOT / "components" / stage / "metadata.yaml").read_text())
    assert {"name", "stability", "dependencies", "lastVerified"} <= set(metadata)
    assert set(metadata) <= {"name", "stability", "dependencies", "lastVerified", "tags", "ci", "links", "description"}
    assert metadata["name"] == stage
    assert metadata["stability"] in {"alpha", "beta", "stable"}
    assert set(metadata["dependencies"]) <= {"kubeflow", "external_services"}
    assert "Pipelines" in [dependency["name"] for dependency in metadata["dependencies"]["kubeflow"]]
    for dependency in metadata["dependencies"]["kubeflow"] + metadata["dependencies"].get("external_services", []):
        assert re.fullmatch(r"(==|>=|<=|~=)?\d+\.\d+\.\d+", dependency["version"])
    assert isinstance(metadata["lastVerified"], datetime.datetime)
    assert all(isinstance(tag, str) for tag in metadata["tags"])
    assert all(link.startswith("https://") for link in metadata.get("links", {}).values())
    assert yaml.safe_load((ROOT / "components" / stage / "OWNERS").read_text())["approvers"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_later_stage_has_the_settings_that_data_validation_checks_for_it(stage):
    """data_validation names each setting as the pipeline does; those must exist, with the same type and default."""
    pipeline_names = {
        ("reward_trainer", "train_steps"): "reward_model_train_steps",
        ("reward_trainer", "learning_rate_multiplier"): "reward_model_learning_rate_multiplier",
        ("ppo_trainer", "train_steps"): "reinforcement_learning_train_steps",
        ("ppo_trainer", "learning_rate_multiplier"): "reinforcement_learning_rate_multiplier",
        ("grpo_trainer", "train_steps"): "reinforcement_learning_train_steps",
        ("grpo_trainer", "learning_rate_multiplier"): "reinforcement_learning_rate_multiplier",
    }
    if stage == "data_validation":
        return
    checked = load("data_validation").component_spec.inputs
    for name, spec in load(stage).component_spec.inputs.items():
        # Which part of the prompts a task takes is for the pipeline to say, not a setting.
        if spec.optional and not spec.type.startswith("system.") and name not in ("options", "shard", "base_model"):
            there = checked[pipeline_names.get((stage, name), name)]
            # The pipelines have defaults of their own for it, as PPO's and GRPO's KL weigh differently.
            default = there.default if (stage, name) != ("grpo_trainer", "kl_coeff") else 0.04
            assert (there.type, default) == (spec.type, spec.default)


@pytest.mark.parametrize("stage", STAGES)
def test_a_component_gives_its_stage_every_path_and_only_settings_it_knows(stage):
    """Read from the source: importing a stage would load torch."""
    stage_source = ast.parse((ROOT / "rlhf" / stage / "stage.py").read_text(encoding="utf-8"))
    (run,) = [node for node in stage_source.body if isinstance(node, ast.FunctionDef) and node.name == "run"]
    component = ast.parse((ROOT / "components" / stage / "component.py").read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(component) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    (started,) = [call for call in calls if call.func.id in ("run", "launch")]
    assert started.func.id == "run" or ast.unparse(started.args[0]) == repr(stage)
    assert {keyword.arg for keyword in started.keywords} == {argument.arg for argument in run.args.kwonlyargs}

    configs = {name: importlib.import_module(f"rlhf.{name}.config") for name in STAGES}
    fields = {
        where: set(getattr(configs[name], f"{prefix}Config").model_fields)
        for where, name, prefix in [
            ("data_validation", "data_validation", "DataValidation"),
            ("sft", "sft_trainer", "SFTTrainer"),
            ("reward", "reward_trainer", "RewardTrainer"),
            ("ppo", "ppo_trainer", "PPOTrainer"),
            ("grpo", "grpo_trainer", "GRPOTrainer"),
            ("inference", "bulk_inference", "BulkInference"),
            ("evaluation", "evaluator", "Evaluator"),
            ("publisher", "publisher", "Publisher"),
        ]
    }
    merges = [call for call in calls if call.func.id == "merge_options"]
    assert merges
    for call in merges:
        assert {keyword.arg for keyword in call.keywords} <= fields[call.args[1].value]


def test_the_library_knows_nothing_of_pipelines():
    for path in (ROOT / "rlhf").rglob("*.py"):
        forbidden = {name for name in module_imports(path) if name.split(".")[0] in {"kfp", "components", "pipelines"}}
        assert not forbidden, f"{path}: {forbidden}"


def test_components_know_nothing_of_pipelines():
    for path in (ROOT / "components").rglob("*.py"):
        assert not {name for name in module_imports(path) if name.split(".")[0] == "pipelines"}, path


def test_pipelines_reach_the_library_only_through_components():
    """Except that a run's file is read as its stages read theirs, and checked against their configs, without torch."""
    checking = [ROOT / "pipelines" / "plan.py", ROOT / "pipelines" / "submit" / "check.py"]
    for path in (ROOT / "pipelines").rglob("*.py"):
        if path not in checking:
            reading = {"rlhf", "rlhf.yaml12"} if path == ROOT / "pipelines" / "params.py" else set()
            assert {name for name in module_imports(path) if name.split(".")[0] == "rlhf"} == reading, path
    code = "import sys, pipelines.plan, pipelines.submit.check; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("stage", STAGES)
def test_stages_never_import_one_another(stage):
    """Except that data_validation checks the options of all stages against their configs, before they run."""
    for path in (ROOT / "rlhf" / stage).rglob("*.py"):
        for name in module_imports(path):
            for other in set(STAGES) - {stage}:
                config_only = stage == "data_validation" and f"{name}.".startswith(f"rlhf.{other}.config.")
                assert config_only or not f"{name}.".startswith(f"rlhf.{other}."), f"{path}: {name}"


def test_an_image_is_named_by_registry_stage_and_tag(monkeypatch):
    monkeypatch.setenv("IMAGE_REGISTRY", "registry.example/team")
    monkeypatch.setenv("IMAGE_TAG", "1f2e3d")
    assert image("reward_trainer") == "registry.example/team/rlhf-reward-trainer:1f2e3d"


def test_an_image_of_the_source_tree_says_that_it_is_not_built(monkeypatch):
    monkeypatch.delenv("IMAGE_REGISTRY", raising=False)
    monkeypatch.delenv("IMAGE_TAG", raising=False)
    assert "not-built" in image("evaluator")
    assert "latest" not in image("evaluator")


def test_an_unknown_stage_has_no_image():
    with pytest.raises(ValueError, match="rewrd_trainer"):
        image("rewrd_trainer")


@pytest.mark.parametrize(
    ("registry", "tag", "names"),
    [
        (None, "1f2e3d", "registry: none given"),
        ("", "1f2e3d", "registry: none given"),
        ("registry.example/team", None, "tag: none given"),
        ("registry.example/team", "latest", "tag: found 'latest'"),
        ("registry.example/team", "a b", "tag: found 'a b'"),
        ("https://registry.example", "1f2e3d", "registry: found"),
    ],
)
def test_images_for_a_cluster_need_a_registry_and_a_fixed_tag(registry, tag, names):
    with pytest.raises(ImageError, match=re.escape(names)) as error:
        cluster_images(registry, tag)
    assert "\n" not in str(error.value)
