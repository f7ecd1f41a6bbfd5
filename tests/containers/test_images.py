"""The images as they are built, pushed and run. One file, so that one worker has the engine to itself."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import docker as sdk
import pytest
import yaml

from components.images import STAGES
from containers.engine import cli
from pipelines.containers import run_container
from tests.containers import machine
from tests.containers.conftest import REPOSITORY, TAG, command, start

pytestmark = [pytest.mark.slow, pytest.mark.docker]

MEGABYTE = 1e6
# Few steps: what is asked here is whether the stages work in their images, not what they learn.
FEW_STEPS = [
    "reward_model_train_steps=20",
    "reinforcement_learning_train_steps=2",
    "sft={train_steps: 30}",
]
STAGE_NAMES = [stage.replace("_", "-") for stage in STAGES]


def docker(*arguments: str) -> str:
    """What `docker` says; it must succeed."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def inspect(image: str) -> dict:
    return json.loads(docker("image", "inspect", image))[0]


def layers(image: str) -> dict[str, int]:
    """{digest: bytes} of an image's layers."""
    sizes = [
        int(size) for size in docker("history", "--no-trunc", "--human=false", "--format", "{{.Size}}", image).split()
    ]
    digests = inspect(image)["RootFS"]["Layers"]
    # History has lines for settings too, which have no size; nor have the layers of what comes after the code.
    sizes = [size for size in reversed(sizes) if size]
    assert len(sizes) == len(digests) - 2, (sizes, digests)
    return dict(zip(digests, sizes, strict=False))


def inside(image: str, *arguments: str, user: str = "4321:4321") -> subprocess.CompletedProcess:
    """Run something in an image as a cluster would that trusts nobody."""
    options = [
        "--rm",
        "--read-only",
        "--tmpfs",
        "/tmp:mode=1777",
        "--user",
        user,
        "--network",
        "none",
        "--cap-drop",
        "ALL",
    ]
    return subprocess.run(["docker", "run", *options, image, *arguments], capture_output=True, text=True, timeout=300)


def test_images_are_small_and_share_all_but_their_code(images):
    of_each = {stage: layers(name) for stage, name in images.items()}
    assert sum(of_each["data_validation"].values()) <= 600 * MEGABYTE
    sizes = {stage: sum(each.values()) for stage, each in of_each.items()}
    assert max(sizes.values()) <= 2500 * MEGABYTE
    unique = {digest: size for each in of_each.values() for digest, size in each.items()}
    assert sum(unique.values()) <= 1.15 * max(sizes.values())
    models = [set(each) for stage, each in of_each.items() if stage != "data_validation"]
    assert all(len(each - set.intersection(*models)) == 1 for each in models), "one layer of code"


def test_validation_has_no_torch_and_no_other_stage_s_code(images):
    listed = inside(
        images["data_validation"], "sh", "-c", "ls /opt/venv/lib/python3.11/site-packages . "
    ).stdout.split()
    assert "pyarrow" in listed
    assert not {"torch", "transformers", "trl"} & set(listed)
    listed = inside(images["ppo_trainer"], "sh", "-c", "cd /opt/venv/lib/python3.11/site-packages/rlhf; echo */*.py")
    listed = set(listed.stdout.split())
    assert {"ppo_trainer/stage.py", "ppo/loop.py", "models/card.py", "reward_trainer/config.py"} <= listed
    assert not {"data_validation/stage.py", "evaluator/stage.py", "reward_trainer/stage.py"} & listed


def test_images_say_what_they_are_and_run_as_nobody_in_particular(images):
    for stage, name in images.items():
        config = inspect(name)["Config"]
        assert config["User"] == "10001:10001"
        assert config["Labels"]["org.opencontainers.image.title"] == f"rlhf-{stage}"
        assert re.match("[0-9a-f]{40}", config["Labels"]["org.opencontainers.image.revision"])
        assert "HF_HOME=/tmp/huggingface" in config["Env"]


def test_no_compiler_no_cache_and_no_secret_is_in_any_layer(images, base_image):
    name = images["ppo_trainer"]
    found = inside(name, "sh", "-c", "command -v gcc cc make git; ls -A /tmp; find /opt -name '*.whl'")
    assert found.stdout.split() == []
    shown = docker("history", "--no-trunc", name) + json.dumps(inspect(name)["Config"])
    assert not re.search(r"(?i)token|password|secret|api_key", shown)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_says_something_of_its_own_soon_after_its_container_starts(images, stage):
    ended = inside(images[stage], "python", "-c", SPEAKS.format(stage=stage))
    assert ended.returncode == 0, ended.stderr
    said, seconds = ended.stdout.splitlines()[-2:]
    assert said == f"[{stage}] started"
    assert float(seconds) < 5, "of a processor; the engine takes less than one more"


# What a task does: kfp's executor runs the component, which starts a job of its stage. On a busy machine only the
# processor's own time is steady.
SPEAKS = """
import os
os.environ["_KFP_RUNTIME"] = "true"
import kfp.dsl.executor_main, time
from types import SimpleNamespace
from rlhf.job import stage_job
with stage_job("{stage}", SimpleNamespace(log_metric=lambda *_: None)):
    print(time.process_time())
"""


def test_building_again_takes_every_layer_that_is_there(images, build, registry):
    before = {stage: inspect(name)["Id"] for stage, name in images.items()}
    began = time.monotonic()
    build("--registry", registry, "--tag", TAG)
    assert time.monotonic() - began < 20
    assert {stage: inspect(name)["Id"] for stage, name in images.items()} == before


def test_a_line_of_one_stage_changes_that_stage_s_image_alone(images, build, tmp_path):
    copy = tmp_path / "repository"
    ignored = shutil.ignore_patterns(".git", ".venv", "build", "__pycache__")
    shutil.copytree(REPOSITORY, copy, ignore=ignored)
    command_line = ["--tag", "changed", "--registry", "changed.invalid"]
    build(*command_line, repository=copy)
    names = {stage: f"changed.invalid/rlhf-{stage.replace('_', '-')}:changed" for stage in STAGES}
    before = {stage: list(layers(name)) for stage, name in names.items()}
    with (copy / "rlhf/reward_trainer/trainer.py").open("a") as module:
        module.write("\n# A line more.\n")
    began = time.monotonic()
    build(*command_line, repository=copy)
    assert time.monotonic() - began < 60
    after = {stage: list(layers(name)) for stage, name in names.items()}
    assert [stage for stage in STAGES if before[stage] != after[stage]] == ["reward_trainer"]
    assert before["reward_trainer"][:-1] == after["reward_trainer"][:-1], "all but the code"


def test_what_is_pushed_is_what_the_pipelines_name(images, registry, tmp_path):
    shown = command("containers.build", "push", "--registry", registry, "--tag", TAG, cwd=tmp_path)
    table = json.loads((tmp_path / "build/images.json").read_text())
    assert set(table) == set(STAGES)
    for stage, pushed in table.items():
        assert f"{pushed['image']}@{pushed['digest']}" in shown
        repository = pushed["image"].rpartition(":")[0]
        docker("manifest", "inspect", "--insecure", f"{repository}@{pushed['digest']}")
        assert f"{repository}@{pushed['digest']}" in inspect(images[stage])["RepoDigests"]
    again = command("containers.build", "push", "--registry", registry, "--tag", TAG, cwd=tmp_path)
    assert again == shown, "the same content may be pushed again"
    command("pipelines.compile", "--registry", registry, "--tag", TAG, cwd=tmp_path)
    by_digest = {f"{pushed['image'].rpartition(':')[0]}@{pushed['digest']}" for pushed in table.values()}
    for platform in ("kubeflow", "vertex"):
        compiled = "".join(path.read_text() for path in (tmp_path / "build" / platform).glob("*.yaml"))
        assert set(re.findall(rf"{registry}/rlhf-[^\s\"']+", compiled)) == by_digest


def test_a_tag_that_has_other_content_is_not_moved(images, registry, tmp_path):
    name = f"{registry}/rlhf-evaluator:taken"
    docker("tag", images["sft_trainer"], name)
    docker("push", name)
    docker("tag", images["evaluator"], name)
    arguments = ["push", "--registry", registry, "--tag", "taken", "--stages", "evaluator"]
    ended = start("containers.build", *arguments, cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr == (
        f"error: {name}: the registry has this tag with other content; commit, or name another TAG\n"
    )


def test_wrong_credentials_a_silent_registry_and_images_not_built_are_one_line_each(images, tmp_path):
    def refused(registry: str, tag: str = TAG) -> str:
        arguments = ["push", "--registry", registry, "--tag", tag, "--stages", "evaluator"]
        ended = start("containers.build", *arguments, cwd=tmp_path)
        assert ended.returncode == 2
        (line,) = ended.stderr.splitlines()
        return line

    users = tmp_path / "users"
    users.write_text("somebody:$2y$05$wfrYLe0d0HyPMvFwTUeQMu3V2nFTTJe1gLxUIkKpMnZTLfAXUDMxG\n")
    with machine.registry(tmp_path / "registry", users) as closed:
        docker("tag", images["evaluator"], f"{closed}/rlhf-evaluator:{TAG}")
        assert "the registry refuses these credentials; `docker login`" in refused(closed)
    assert f"registry: {closed} does not answer" in refused(closed)
    assert "not built here; run `make build`" in refused(closed, "never-built")


def build_fails(*arguments: str, cwd: Path, **environment: str) -> str:
    """The one line that a build ends with."""
    ended = start(
        "containers.build", "build", "--tag", "x", "--stages", "evaluator", *arguments, cwd=cwd, **environment
    )
    assert ended.returncode == 2, ended.stdout
    (line,) = ended.stderr.splitlines()
    return line


def test_an_unreachable_base_is_one_line(engine, tmp_path):
    base = "localhost:9/nowhere/python:3.11"
    line = build_fails("--base-image", base, cwd=tmp_path)
    assert line.startswith(f"error: base image: {base} cannot be pulled; set BASE_IMAGE")


def test_an_engine_that_does_not_run_is_one_line(engine, tmp_path):
    line = build_fails(cwd=tmp_path, DOCKER_HOST=f"unix://{tmp_path}/nobody-listens")
    assert line.startswith("error: no container engine answers; start it")


# Without root nobody else can be asked for the engine; CI is root, and has util-linux.
@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="to be another user takes root and setpriv")
def test_a_user_who_may_not_use_the_engine_is_told_so(engine, tmp_path):
    as_nobody = tmp_path / "docker"
    as_nobody.write_text(f'#!/bin/sh\nexec setpriv --reuid 65534 --regid 65534 --clear-groups {cli()} "$@"\n')
    as_nobody.chmod(0o755)
    line = build_fails(cwd=tmp_path, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert line.startswith("error: this user may not use the container engine; join the group `docker`")


def test_the_steps_of_cloud_build_run_here_in_order(images, base_image, build, torch_index, registry, tmp_path):
    """All but the machine is as in Cloud Build: the commands, their order, the shell, what is substituted."""
    steps = yaml.safe_load((REPOSITORY / "cloudbuild.yaml").read_text())
    given = {
        **{"LOCATION": "here", "PROJECT_ID": "project", "COMMIT_SHA": "0" * 40},
        **steps["substitutions"],
        **{"_REGISTRY": f"{registry}/cloud", "_TAG": "v1", "_TORCH": "cpu", "_TORCH_INDEX": torch_index},
        **{"_BASE_IMAGE": base_image, "_NETWORK": "host", "_BUCKET": "gs://bucket/pipelines"},
        **{"_TESTS": "tests/unit/test_steps.py"},
    }
    tools = tmp_path / "tools"
    tools.mkdir()
    # Packages are installed already, and nothing is uploaded.
    for name, does in {
        "python3": f'case "$*" in *"-m pip "*) exit 0;; esac; exec {sys.executable} "$@"',
        "apk": "exit 0",
        "gcloud": f'echo "$@" >> {tmp_path}/uploaded',
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{does}\n")
        (tools / name).chmod(0o755)
    # /workspace, which every step starts in.
    workspace = tmp_path / "workspace"
    shutil.copytree(REPOSITORY, workspace, ignore=shutil.ignore_patterns(".git", ".venv", "build", "__pycache__"))
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": ""}
    before: set[str] = set()
    for step in steps["steps"]:
        assert set(step["waitFor"]) - {"-"} <= before, "steps are in order"
        text = " ".join(step["args"][1:])
        script = re.sub(r"\$\{(\w+)\}", lambda name: given[name[1]], text)
        done = subprocess.run(
            [step["entrypoint"], step["args"][0], script],
            cwd=workspace,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (step["id"], done.stdout, done.stderr)
        before.add(step["id"])
    assert (tmp_path / "uploaded").read_text().startswith("storage cp --recursive build/kubeflow build/vertex")
    table = json.loads((workspace / "build/images.json").read_text())
    compiled = (workspace / "build/vertex/rlhf.yaml").read_text()
    assert f"{registry}/cloud/rlhf-ppo-trainer@{table['ppo_trainer']['digest']}" in compiled


@pytest.fixture(scope="module")
def demo(images, registry, tmp_path_factory) -> dict[str, Path]:
    """Folders of the demo with few steps, in processes and in containers."""
    folders = {}
    for runner, options in {"process": [], "docker": ["--registry", registry, "--tag", TAG]}.items():
        folders[runner] = tmp_path_factory.mktemp(runner)
        few = [argument for value in FEW_STEPS for argument in ("--set", value)]
        shown = command("examples.demo", "--runner", runner, *options, *few, cwd=folders[runner])
        (folders[runner] / "screen.txt").write_text(shown)
    return folders


def test_the_demo_in_containers_comes_to_the_same_summary(demo):
    process, container = (json.loads((demo[each] / "build/demo/summary.json").read_text()) for each in demo)
    assert set(process) == set(container)
    # Torch is the same build; what differs is how many threads share a sum.
    for part in ("reward_model", "ppo", "evaluation"):
        for name, value in process[part].items():
            if isinstance(value, float):
                assert container[part][name] == pytest.approx(value, abs=0.1), (part, name)
    screen = (demo["docker"] / "screen.txt").read_text()
    for stage in ("data-validation", "sft-trainer", "reward-trainer", "ppo-trainer", "evaluator"):
        assert f"{stage}: finished in" in screen
    assert "[ppo_trainer] update " in screen
    assert (demo["docker"] / "build/demo/report.html").is_file()


def test_a_stage_that_fails_in_its_container_fails_the_run_with_its_own_line(images, registry, tmp_path):
    options = ["--runner", "docker", "--registry", registry, "--tag", TAG, "--set", "reward={learning_rate: fast}"]
    ended = start("examples.demo", *options, cwd=tmp_path)
    assert ended.returncode == 1
    assert "error: reward.learning_rate: found 'fast'" in ended.stderr
    assert not (tmp_path / "build/demo/summary.json").exists()
    assert docker("ps", "--all", "--quiet", "--filter", f"ancestor={images['data_validation']}") == ""


def test_a_container_that_vanishes_is_no_success(images):
    def remove() -> None:
        for _ in range(100):
            for container in client.containers.list(filters={"ancestor": images["data_validation"]}):
                container.remove(force=True)
                return
            time.sleep(0.1)

    client = sdk.from_env()
    threading.Thread(target=remove).start()
    assert run_container(client, images["data_validation"], ["sleep", "60"], {}) != 0


def test_a_container_that_the_engine_cannot_start_is_no_success_and_is_not_left(images, capsys):
    client = sdk.from_env()
    assert run_container(client, images["data_validation"], ["no-such-program"], {}) != 0
    said = capsys.readouterr().out
    assert said.startswith("[container] error: the engine could not run it: ")
    assert "no-such-program" in said
    assert docker("ps", "--all", "--quiet", "--filter", f"ancestor={images['data_validation']}") == ""


def test_the_demo_says_which_image_is_not_built(engine, tmp_path):
    ended = start("examples.demo", "--runner", "docker", "--tag", "never-built", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        "error: rlhf-data-validation:never-built: not built here; run `make build` with the same REGISTRY and TAG\n"
    )
