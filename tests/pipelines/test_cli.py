"""The command that runs a pipeline ends a wrong start at once, with one line."""

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
