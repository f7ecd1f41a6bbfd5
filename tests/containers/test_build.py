"""What needs no engine of building images: names, locks, and what people are told. With one: tests/containers."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from components.images import STAGES, ImageError, pinned_images
from containers import build, contents, engine
from containers.contents import lines
from pipelines.containers import check_images

REPOSITORY = Path(__file__).parents[2]
DIGEST = "sha256:" + "a" * 64
CLOUD_BUILD = yaml.safe_load((REPOSITORY / "cloudbuild.yaml").read_text())
OLD = "echo 'Docker version 20.10.24'"  # has BuildKit in itself


@pytest.fixture
def table(tmp_path) -> Path:
    """What a push of every stage leaves."""
    path = tmp_path / "images.json"
    pushed = {s: {"image": f"r.example/x/rlhf-{s.replace('_', '-')}:1f2e", "digest": DIGEST} for s in STAGES}
    path.write_text(json.dumps(pushed))
    return path


def test_pushed_images_are_named_by_digest(table):
    pinned = pinned_images(table, "r.example/x", "1f2e")
    assert list(pinned) == list(STAGES)
    assert pinned["ppo_trainer"] == f"r.example/x/rlhf-ppo-trainer@{DIGEST}"
    assert pinned_images(table) == pinned, "where they were pushed is in the table"


def test_other_images_than_those_asked_for_are_refused(table):
    with pytest.raises(ImageError, match=r"was pushed as .*, not to other.example; run `make push`"):
        pinned_images(table, "other.example")
    with pytest.raises(ImageError, match="not with tag 2; run `make build push TAG=2`"):
        pinned_images(table, None, "2")
    pushed = json.loads(table.read_text())
    del pushed["evaluator"]
    table.write_text(json.dumps(pushed))
    with pytest.raises(ImageError, match='has no evaluator; run `make build push STAGES="evaluator"`'):
        pinned_images(table)


@pytest.mark.parametrize("text", ["[1]", "{", '{"evaluator": {}}'])
def test_a_table_that_is_none_is_refused(table, text):
    table.write_text(text)
    with pytest.raises(ImageError, match=r"found what is no table of images|has no "):
        pinned_images(table)


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("ERROR: Cannot connect to the Docker daemon at unix:///var/run/docker.sock.", "no container engine answers"),
        ("permission denied while trying to connect to the docker API", "this user may not use the container engine"),
        ("write /var/lib/docker/x: no space left on device", "the disk is full; `docker system prune`"),
        (
            " > [base 1/2] FROM x:1@sha256:8b94:\n------\nfailed to register layer: Error processing tar file(exit "
            "status 1): write /usr/share/python-wheels/pip-23.0.1-py3-none-any.whl: no space left on device",
            "the disk is full; `docker system prune`",
        ),
        ("unauthorized: authentication required", "the registry refuses these credentials; `docker login`"),
        ("denied: Permission 'artifactregistry.write' denied", "the registry refuses these credentials"),
        ("dial tcp: lookup r.example: no such host", "registry: r.example/x does not answer"),
        ("#9 1.2 ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM", "a package is not the one that was locked"),
        (" > [internal] load metadata for docker.io/x:\n---\npull access denied", "base image: x:1 cannot be pulled"),
        (
            "#9 1.3 ModuleNotFoundError: No module named 'rlhf'\n#9 ERROR: executor failed",
            "ModuleNotFoundError: No mod",
        ),
        ("", "the container engine failed without saying why"),
    ],
)
def test_what_an_engine_says_becomes_one_line_with_what_to_do(said, line):
    told = engine.explain(said, base="x:1", registry="r.example/x")
    assert told.startswith(line)
    assert "\n" not in told


def test_what_fails_in_a_container_is_not_taken_for_a_failure_of_the_engine(tmp_path, monkeypatch):
    said = "E   no space left on device\\n1 failed, 2 passed"
    fails = f"test $1 = --version && {OLD} || {{ printf '{said}\\n' >&2; exit 1; }}"
    monkeypatch.setenv("PATH", f"{fake_docker(tmp_path, fails)}:{os.environ['PATH']}")
    engine.cli.cache_clear()
    with pytest.raises(engine.EngineError, match=r"^1 failed, 2 passed$"):
        engine.run("run", "image")
    engine.cli.cache_clear()


def command(*arguments: str, repository: Path = REPOSITORY, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "containers.build", *arguments],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def fake_docker(folder: Path, script: str) -> str:
    """A folder for the path, with a `docker` that does as told, and nothing else but git."""
    (folder / "docker").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "docker").chmod(0o755)
    return f"{folder}:{Path(subprocess.check_output(['which', 'git'], text=True).strip()).parent}"


@pytest.mark.parametrize(
    ("script", "line"),
    [
        (
            f"{OLD}; test $1 = --version || {{ echo 'Cannot connect to the Docker daemon' >&2; exit 1; }}",
            "no container",
        ),
        (f"test $1 = --version && {OLD} || echo arm64", "the container engine builds for arm64"),
    ],
    ids=["no engine", "ARM"],
)
def test_no_engine_and_another_processor_are_one_line(tmp_path, script, line):
    ended = command("build", "--tag", "1", PATH=fake_docker(tmp_path, script), DOCKER_DEFAULT_PLATFORM="")
    assert ended.returncode == 2
    (said,) = ended.stderr.splitlines()
    assert said.startswith(f"error: {line}")


def test_no_docker_at_all_is_one_line(tmp_path):
    ended = command("build", "--tag", "1", PATH=str(tmp_path))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: docker: command not found; install Docker Engine")


def test_a_demo_in_containers_without_an_engine_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody-listens")
    with pytest.raises(ImageError, match=r"^no container engine answers \(.*\); start one$"):
        check_images(["rlhf-evaluator:1"])


def test_vllm_goes_into_the_images_of_all_stages_that_sample(tmp_path):
    (tmp_path / "docker").mkdir()
    log = tmp_path / "commands"
    answers = f'case $1 in --version) {OLD};; build) echo "$@" >> {log};; image) echo 1;; *) echo amd64;; esac'
    path = fake_docker(tmp_path / "docker", answers)
    command("build", "--tag", "1", "--vllm", "0.31.0", PATH=f"{path}:{os.environ['PATH']}", DOCKER_DEFAULT_PLATFORM="")
    built = {re.search(r"STAGE=(\w+)", line)[1]: line for line in log.read_text().splitlines()}
    assert set(built) == set(STAGES)
    with_it = {stage for stage, line in built.items() if "VLLM=0.31.0" in line and "DEPENDENCIES=vllm" in line}
    assert with_it == {"ppo_trainer", "grpo_trainer", "bulk_inference"}


def test_an_unknown_stage_and_a_moving_tag_are_refused():
    assert command("build", "--tag", "1", "--stages", "ppo").stderr.startswith("error: stages: found 'ppo', expected")
    assert command("build", "--tag", "latest").stderr.startswith("error: tag: found 'latest'")


def test_the_tag_of_a_dirty_tree_says_so(monkeypatch):
    monkeypatch.setattr(build, "git", lambda *_: "1f2e3d4c5b6a")
    assert build.default_tag(dirty=False) == "1f2e3d4c5b6a"
    assert build.default_tag(dirty=True) == "1f2e3d4c5b6a-dirty"
    monkeypatch.setattr(build, "git", lambda *_: "")
    with pytest.raises(ImageError, match="this is no git checkout; set TAG="):
        build.default_tag(dirty=False)


def test_a_shallow_clone_has_no_revision_for_every_stage_would_have_the_newest(tmp_path, monkeypatch):
    whole, shallow = tmp_path / "whole", tmp_path / "shallow"
    (whole / "rlhf").mkdir(parents=True)
    as_somebody = ["git", "-c", "user.name=x", "-c", "user.email=x@x.example", "-C", str(whole)]
    subprocess.run([*as_somebody, "init", "--quiet"], check=True)
    for file in ("rlhf/words.py", "README.md"):
        (whole / file).touch()
        subprocess.run([*as_somebody, "add", "."], check=True)
        subprocess.run([*as_somebody, "commit", "--quiet", "--message", file], check=True)
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", f"file://{whole}", str(shallow)], check=True)
    monkeypatch.setattr(build, "ROOT", shallow)
    with pytest.raises(ImageError, match=r"revision: .* fetch --unshallow"):
        build.revision("evaluator")
    history = CLOUD_BUILD["steps"][0]
    assert all(step["waitFor"] != ["-"] for step in CLOUD_BUILD["steps"][1:]), "the others wait for it"
    subprocess.run([history["entrypoint"], *history["args"]], cwd=shallow, check=True)
    first = subprocess.check_output(["git", "-C", str(whole), "rev-parse", "HEAD~1"], text=True).strip()
    assert build.revision("evaluator") == first
    monkeypatch.setattr(build, "ROOT", tmp_path)
    subprocess.run([history["entrypoint"], *history["args"]], cwd=tmp_path, check=True)
    assert build.revision("evaluator") == "", "uploaded sources have no history"


def test_a_dirty_tree_is_said_and_is_not_pushed_under_the_commit_s_name(tmp_path):
    repository = tmp_path / "repository"
    for package in ("components", "containers"):
        shutil.copytree(REPOSITORY / package, repository / package, ignore=shutil.ignore_patterns("__pycache__"))
    as_somebody = ["git", "-c", "user.name=x", "-c", "user.email=x@x.example", "-C", str(repository)]
    for arguments in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "all"]):
        subprocess.run([*as_somebody, *arguments], check=True)
    (repository / "containers/Dockerfile").write_text("FROM scratch\n")
    ended = command("push", "--registry", "r.example/x", repository=repository)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "error: the tree has changes that are not committed; commit them, or name a TAG\n"
    (tmp_path / "tools").mkdir()
    path = fake_docker(tmp_path / "tools", f"test $1 = --version && {OLD} || exit 1")
    ended = command("build", "--stages", "evaluator", PATH=path, repository=repository)
    assert re.fullmatch(
        r"warning: the tree has changes that are not committed; they go into images tagged [0-9a-f]{12}-dirty\n",
        ended.stdout,
    )


CONFIG, MANIFEST = (f"sha256:{letter * 64}" for letter in "cd")
OF_DOCKER = {"Id": CONFIG, "RepoDigests": []}
OF_CONTAINERD = {"Id": MANIFEST, "RepoDigests": [f"r.example/x@{MANIFEST}"]}
PUSHED_BEFORE = {"Id": f"sha256:{'e' * 64}", "RepoDigests": [f"r.example/x@{MANIFEST}"]}
OTHER = {"Id": f"sha256:{'e' * 64}", "RepoDigests": [f"r.example/x@sha256:{'f' * 64}"]}


@pytest.mark.parametrize("kind", ["SchemaV2Manifest", "OCIManifest"])
@pytest.mark.parametrize(
    ("image", "free"), [(OF_DOCKER, True), (OF_CONTAINERD, True), (PUSHED_BEFORE, True), (OTHER, False)]
)
def test_a_tag_may_be_pushed_again_with_the_same_content_whichever_store_docker_keeps_it_in(
    image, free, kind, monkeypatch
):
    manifest = {"Descriptor": {"digest": MANIFEST}, kind: {"config": {"digest": CONFIG}}}
    said = {"image": [image], "manifest": manifest}
    monkeypatch.setattr(engine, "run", lambda command, *_: json.dumps(said[command]))
    if free:
        build._check_tag_is_free("r.example/x:1")
    else:
        with pytest.raises(ImageError, match=r"the registry has this tag with other content; commit, or name another"):
            build._check_tag_is_free("r.example/x:1")


def test_the_base_is_pinned_by_digest():
    assert re.fullmatch(r"python:3\.11-slim-bookworm@sha256:[0-9a-f]{64}", build.default_base())


def pins() -> dict[str, str]:
    """{package: version} of constraints.txt."""
    pinned = re.findall(r"^([\w.-]+)==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in pinned}


@pytest.mark.parametrize("torch", ["cpu", "cuda"])
def test_images_hold_the_versions_that_set_up_installs_by_hash(torch):
    pinned = pins()
    locked = dict(re.fullmatch(r"(\S+)==(\S+) --hash=sha256:[0-9a-f]{64}\n", line).groups() for line in lines(torch))
    assert len(locked) == len(lines(torch)), "no package twice"
    for package, version in locked.items():
        if package in pinned:
            assert version.removesuffix("+cpu") == pinned[package], package
        else:
            assert package == "setuptools" or (torch == "cuda" and package.startswith(("nvidia-", "cuda-", "triton")))


def test_every_version_takes_every_python_that_the_project_takes():
    floor = "3.11.0"
    wants = {package.name: package.metadata["Requires-Python"] or "" for package in metadata.distributions()}
    assert len(wants) >= len(pins())
    assert [name for name, python in wants.items() if floor not in SpecifierSet(python)] == []


def test_an_audit_is_of_versions_that_are_published_and_of_all_of_them(monkeypatch, tmp_path):
    def looked_up(command: list[str], check: bool) -> SimpleNamespace:
        assert "--strict" in command
        audited.append(Path(command[command.index("--requirement") + 1]).read_text())
        return SimpleNamespace(returncode=1)

    audited: list[str] = []
    monkeypatch.setattr(contents, "OUT", tmp_path)
    monkeypatch.setattr(contents.subprocess, "run", looked_up)
    monkeypatch.setattr(sys, "argv", ["contents", "audit", "--torch", "cpu"])
    assert contents.main() == 1
    assert "torch==2.13.0 " in audited[0]
    assert len(audited[0].splitlines()) == len(lines("cpu"))


def test_validation_s_lock_has_no_torch():
    light = (REPOSITORY / "containers/locks/light.txt").read_text()
    assert not re.search(r"^(torch|transformers|nvidia)", light, re.MULTILINE)


def test_cloud_builds_steps_run_in_images_that_do_not_change_but_for_googles_own():
    moving = [step["id"] for step in CLOUD_BUILD["steps"] if not re.search(r"@sha256:[0-9a-f]{64}$", step["name"])]
    assert moving == ["upload"], "its image has no version that lasts"


def test_cloud_build_defines_what_it_uses_and_uses_what_it_defines():
    text = (REPOSITORY / "cloudbuild.yaml").read_text()
    parsed = yaml.safe_load(text)
    commands = json.dumps(parsed["steps"]) + parsed["serviceAccount"]
    assert set(re.findall(r"\$\{(_\w+)\}", commands)) == set(parsed["substitutions"])
    (compiler,) = (step["name"] for step in parsed["steps"] if step["id"] == "compile")
    assert compiler == build.default_base()
    assert "secret" not in commands.lower()
    builders = {step["name"] for step in parsed["steps"] if "containers.build" in step["args"][1]}
    assert [re.sub(r"[0-9a-f]{64}$", "", name) for name in builders] == ["docker:28-cli@sha256:"], "with BuildKit"


def test_the_workflow_builds_tests_pushes_and_compiles_as_cloud_build_does():
    def modules(text: str) -> list[str]:
        return re.findall(r"python3 -m (containers\.build \w+|pipelines\.compile)", text)

    workflow = yaml.safe_load((REPOSITORY / ".github/workflows/images.yaml").read_text())
    runs = "\n".join(step.get("run", "") for step in workflow["jobs"]["images"]["steps"])
    cloud = modules(json.dumps(yaml.safe_load((REPOSITORY / "cloudbuild.yaml").read_text())["steps"]))
    assert modules(runs) == list(dict.fromkeys(cloud))


# Folders whose code no image holds, and what of kfp its client alone needs.
NOT_IN_AN_IMAGE = re.compile(
    r"(components|pipelines|containers|docs|benchmarks|docker|mkdocs|kfp_server_api|google_cloud_pipeline_components"
    r"|google\.cloud\.aiplatform\w*|kfp(?!\.dsl\.executor_main))(\.|$)"
)


def imported(path: Path, root: Path) -> set[str]:
    """Modules that a file imports, wherever in it, and those that its files of tests and examples import in turn."""
    found: set[str] = set()
    waiting, seen = [path], {path}
    while waiting:
        for node in ast.walk(ast.parse(waiting.pop().read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = {name.name for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
            else:
                continue
            found |= names
            files = [
                root / f"{name.replace('.', '/')}.py" for name in names if name.startswith(("tests.", "examples."))
            ]
            new = [file for file in files if file.is_file() and file not in seen]
            waiting += new
            seen |= {*new}
    return found


@pytest.mark.parametrize(
    "path",
    [REPOSITORY / "tests/conftest.py", *sorted((REPOSITORY / "tests/unit").rglob("*.py"))],
    ids=lambda path: path.stem,
)
def test_what_is_run_in_an_image_imports_nothing_that_an_image_lacks(path):
    assert [name for name in imported(path, REPOSITORY) if NOT_IN_AN_IMAGE.match(name)] == []
