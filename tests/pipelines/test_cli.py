"""The commands that start and compile pipelines. What a wrong input ends in: tests/e2e/test_bad_input.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from components.images import STAGES
from pipelines import PIPELINES
from tests.http_server import Answer, Request, Service, served

ROOT = Path(__file__).parents[2]
DIGEST = "sha256:" + "b" * 64


@pytest.fixture
def images(tmp_path) -> Path:
    """What `make push` leaves."""
    path = tmp_path / "images.json"
    names = {stage: f"r.example/x/rlhf-{stage.replace('_', '-')}:1f2e" for stage in STAGES}
    path.write_text(json.dumps({stage: {"image": name, "digest": DIGEST} for stage, name in names.items()}))
    return path


def start(module: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--images", "none.json"], "error: none.json: no such file; `make build push"),
        (["--registry", "other.example"], "error: {images}: data_validation was pushed as r.example/x/"),
        (["--tag", "2"], "error: {images}: data_validation was pushed as r.example/x/"),
        (["--profile", "kubeflow-l5"], "error: profile: found 'kubeflow-l5'"),
        (
            ["--platform", "vertex", "--profile", "kubeflow-l4"],
            "error: profile: kubeflow-l4 is for kubeflow, expected one for vertex",
        ),
    ],
)
def test_compiling_refuses_what_a_cluster_could_not_pull_or_place(tmp_path, images, arguments, line):
    ended = start("pipelines.compile", "--out", str(tmp_path / "build"), "--images", str(images), *arguments)
    line = line.format(images=images)
    assert ended.returncode == 2
    assert ended.stderr.startswith(line)
    assert len(ended.stderr.splitlines()) == 1
    assert not (tmp_path / "build").exists()


def test_compiling_names_the_files_it_wrote_and_in_them_images_by_digest(tmp_path, images):
    ended = start("pipelines.compile", "--images", str(images), "--out", str(tmp_path))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines() == [
        str(tmp_path / platform / f"{name}.yaml") for platform in ("kubeflow", "vertex") for name in PIPELINES
    ]
    compiled = (tmp_path / "vertex/rlhf.yaml").read_text()
    assert f"r.example/x/rlhf-ppo-trainer@{DIGEST}" in compiled
    assert ":1f2e" not in compiled


class Templates(Service):
    """A registry of templates, as Artifact Registry's: a pipeline is posted as a form, the answer is name/version."""

    def answer(self, request: Request) -> Answer:
        return Answer(body=f"rlhf/{DIGEST}")


def test_templates_are_what_was_compiled_for_vertex_under_the_tag(tmp_path, images):
    with served(Templates()) as registry:
        given = ["--images", str(images), "--out", str(tmp_path), "--tag", "1f2e", "--templates", registry.url]
        ended = start("pipelines.compile", *given)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert f"{registry.url}/rlhf/{DIGEST}" in ended.stdout.splitlines()
    posted = [request.body for request in registry.seen("POST", "/")]
    compiled = sorted((tmp_path / "vertex").glob("*.yaml"))
    assert len(posted) == len(compiled)
    assert all(any(path.read_bytes() in body for body in posted) for path in compiled)
    assert all(b'name="tags"\r\n\r\n1f2e\r\n' in body for body in posted)


def test_a_registry_that_does_not_take_templates_is_one_line(tmp_path, images):
    with served(Templates()) as registry:
        registry.said["POST", "/"] = Answer(403, {})
        given = ["--images", str(images), "--out", str(tmp_path), "--templates", registry.url]
        ended = start("pipelines.compile", *given)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"error: templates: {registry.url} did not take the pipelines: 403 ")


def test_starting_up_loads_no_models_and_no_cloud_libraries():
    code = "import sys, pipelines.run, pipelines.rlhf; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    modules = set(ended.stdout.split())
    assert "kfp" in modules
    assert not modules & {"torch", "transformers", "google.cloud.aiplatform", "google_cloud_pipeline_components"}
