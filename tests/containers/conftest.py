"""Engine, registry and images, each once for all tests of this folder, which run on one worker."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.containers import machine

REPOSITORY = Path(__file__).parents[2]
TAG = "under-test"


@pytest.fixture(scope="session")
def engine():
    """A container engine."""
    with machine.engine():
        yield


@pytest.fixture(scope="session")
def registry(engine, tmp_path_factory) -> str:
    """A registry that takes everything."""
    with machine.registry(tmp_path_factory.mktemp("registry")) as address:
        yield f"{address}/team"


@pytest.fixture(scope="session")
def base_image(engine, tmp_path_factory) -> str:
    """What stands in for the public base image."""
    return machine.base_image(tmp_path_factory.mktemp("base_image"))


@pytest.fixture(scope="session")
def torch_index():
    """Address of a package index that has the CPU build of torch, where this machine has it in a folder."""
    with machine.wheels() as address:
        yield address


@pytest.fixture(scope="session")
def build(base_image, torch_index):
    """`make build` with this machine's base; returns what it printed."""

    def build(*arguments: str, repository: Path = REPOSITORY) -> str:
        given = ["--base-image", base_image, "--torch", "cpu", "--torch-index", torch_index, "--network", "host"]
        return command("containers.build", "build", *given, *arguments, repository=repository)

    return build


@pytest.fixture(scope="session")
def images(build, registry) -> dict[str, str]:
    """Every stage's image, built from the working tree: {stage: name}."""
    from components.images import cluster_images

    build("--registry", registry, "--tag", TAG)
    return cluster_images(registry, TAG)


def command(module: str, *arguments: str, repository: Path = REPOSITORY, cwd: Path | None = None) -> str:
    """Run a module of the repository, which must succeed; returns its stdout."""
    done = start(module, *arguments, repository=repository, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def start(
    module: str, *arguments: str, repository: Path = REPOSITORY, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess:
    """Run a module of the repository to its end."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=cwd or repository,
        env={**os.environ, "PYTHONPATH": str(repository), **environment},
        capture_output=True,
        text=True,
        timeout=1100,
        check=False,
    )
