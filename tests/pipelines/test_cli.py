"""The command that runs a pipeline ends a wrong start at once, with one line."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REQUIRED = "prompt_dataset: p\npreference_dataset: q\neval_dataset: e\nlarge_model_reference: m\n"


def start(module: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (REQUIRED + "kl_coef: 0.1\n", "error: kl_coef: unknown parameter, did you mean kl_coeff?"),
        (REQUIRED + "seed: one\n", "error: seed: found 'one' (text), expected a whole number"),
        ("[1, 2]", "expected a mapping of parameter names to values"),
        (None, "cannot be read (No such file or directory)"),
    ],
    ids=["unknown parameter", "wrong type", "not a mapping", "no file"],
)
def test_a_wrong_start_is_one_line_and_quick(tmp_path, text, line):
    path = tmp_path / "params.yaml"
    if text is not None:
        path.write_text(text)
    began = time.monotonic()
    ended = start("pipelines.run", "--params", str(path), "--out", str(tmp_path / "out"))
    assert time.monotonic() - began < 10
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 1
    assert line in ended.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Parameters that name data that is there, and what looks like a model to those who do not load it."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "model").mkdir()
    (folder / "model/config.json").write_text('{"model_type": "llama"}')
    (folder / "model/model.safetensors").touch()
    pairs = [{"input_text": f"Post {i}", "candidate_0": "a", "candidate_1": f"b {i}", "choice": 0} for i in range(40)]
    prompts = [{"input_text": f"Post {i}", "output_text": "a"} for i in range(8)]
    for name, rows in {"pairs": pairs, "prompts": prompts}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "preference_dataset": str(folder / "pairs.jsonl"),
        "prompt_dataset": str(folder / "prompts.jsonl"),
        "eval_dataset": str(folder / "prompts.jsonl"),
        "large_model_reference": str(folder / "model"),
    }


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"prompt_dataset": "/no/such/file.jsonl"}, ["prompt_dataset", "/no/such/file.jsonl"]),
        ({"large_model_reference": "/no/such/model"}, ["large_model_reference", "/no/such/model"]),
        ({"ppo": {"bacth_size": 8}}, ["ppo.bacth_size", "batch_size"]),
        ({"reward": {"learning_rate": "fast"}}, ["reward.learning_rate", "'fast'"]),
        ({"reinforcement_learning_train_steps": -2}, ["reinforcement_learning_train_steps", "-2"]),
        ({"kl_coeff": 0.2, "ppo": {"kl_coeff": 0.1}}, ["kl_coeff", "parameter of its own"]),
    ],
    ids=["no file", "no model", "unknown option", "wrong option", "out of range", "given twice"],
)
def test_what_only_the_first_stage_can_know_ends_the_run_there_in_one_line(inputs, tmp_path, change, names):
    path = tmp_path / "params.json"
    path.write_text(json.dumps({**inputs, **change}))
    began = time.monotonic()
    ended = start("pipelines.run", "--params", str(path), "--out", str(tmp_path / "out"))
    assert time.monotonic() - began < 30
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith("[data_validation] error: ")
    assert all(name in line for name in names)
    assert "Traceback" not in ended.stdout + ended.stderr
    assert "sft-trainer" not in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "error: registry: none given"),
        (["--registry", "r.example/x"], "error: tag: none given"),
        (["--registry", "r.example/x", "--tag", "latest"], "error: tag: found 'latest'"),
        (
            ["--registry", "r.example/x", "--tag", "1", "--profile", "kubeflow-l5"],
            "error: profile: found 'kubeflow-l5'",
        ),
        (
            ["--registry", "r.example/x", "--tag", "1", "--platform", "vertex", "--profile", "kubeflow-l4"],
            "error: profile: kubeflow-l4 is for kubeflow, expected one for vertex",
        ),
    ],
)
def test_compiling_refuses_what_a_cluster_could_not_pull_or_place(tmp_path, arguments, line):
    ended = start("pipelines.compile", "--out", str(tmp_path / "build"), *arguments)
    assert ended.returncode == 2
    assert ended.stderr.startswith(line)
    assert len(ended.stderr.splitlines()) == 1
    assert not (tmp_path / "build").exists()


def test_compiling_names_the_files_it_wrote(tmp_path):
    ended = start("pipelines.compile", "--registry", "r.example/x", "--tag", "1f2e3d", "--out", str(tmp_path))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines() == [str(tmp_path / "kubeflow/rlhf.yaml"), str(tmp_path / "vertex/rlhf.yaml")]


def test_starting_up_loads_no_models_and_no_cloud_libraries():
    code = "import sys, pipelines.run, pipelines.rlhf; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    modules = set(ended.stdout.split())
    assert "kfp" in modules
    assert not modules & {"torch", "transformers", "google.cloud.aiplatform", "google_cloud_pipeline_components"}
