"""The commands that start and compile pipelines. What a wrong input ends in: tests/e2e/test_bad_input.py."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def start(module: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


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
