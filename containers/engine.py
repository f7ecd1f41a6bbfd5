"""The container engine, through its command line: what went wrong is one line that says what to do."""

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path

# What engines and registries say, and what a person is told. The first that fits is taken.
_CAUSES = (
    (
        r"permission denied while trying to connect",
        "this user may not use the container engine; join the group `docker` and log in again, or use a rootless one",
    ),
    (
        r"Cannot connect to the Docker daemon|Is the docker daemon running|error during connect",
        "no container engine answers; start it (`systemctl start docker`, or Docker Desktop), or set DOCKER_HOST",
    ),
    (
        r"unauthorized|authentication required|no basic auth credentials|insufficient_scope|denied: |403 Forbidden",
        "the registry refuses these credentials; `docker login` to it with some that may push and pull there",
    ),
    (
        r"THESE PACKAGES DO NOT MATCH THE HASHES",
        "a package is not the one that was locked; look at the log before `make lock` takes it",
    ),
    (
        r"No matching distribution found for torch",
        "no package source here has this build of torch; for TORCH=cpu, name one in TORCH_INDEX",
    ),
)
_SILENT = "the container engine failed without saying why"
_FULL = "no space left on device"
# Exit status of `docker run` where not what runs in the container failed, but the engine.
_ENGINES_OWN = 125
# How BuildKit names the step that failed, where that is the pull of the base.
_BASE = re.compile(r"^ > \[(internal\] load metadata for|base 1/\d+\] FROM)", re.MULTILINE)
_BASE_FIX = "cannot be pulled; set BASE_IMAGE to one with Python 3.11 that this machine reaches"
_UNREACHABLE = re.compile(r"dial tcp|no such host|connection refused|i/o timeout|server gave HTTP response")


class EngineError(Exception):
    """The engine or a registry did not do as asked; the message is one line."""


def run(*arguments: str, log: Path | None = None, base: str | None = None) -> str:
    """Run `docker` with `arguments`; returns its stdout, and stderr where there is a log.

    Args:
        log: Takes all of the output, for a command that says much.
        base: The base image, where the command may pull it.

    Raises:
        EngineError: It failed.
    """
    command = [cli(), *arguments]
    environment = {**os.environ, "DOCKER_BUILDKIT": "1", "BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}
    stderr = subprocess.STDOUT if log else subprocess.PIPE
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment, check=False)
    if log:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(done.stdout, encoding="utf-8")
    if done.returncode:
        said = done.stdout if log else done.stderr
        where = f" (all of its output: {log})" if log else ""
        if arguments[0] == "run" and done.returncode != _ENGINES_OWN:
            raise EngineError((said.strip().splitlines() or [_SILENT])[-1] + where)
        raise EngineError(explain(said, base=base, registry=_registry(arguments)) + where)
    return done.stdout


def explain(said: str, base: str | None = None, registry: str | None = None) -> str:
    """One line for what the engine said when it failed."""
    if _FULL in said:  # also where it is what ended the pull of the base
        return "the disk is full; `docker system prune` frees what no image needs"
    if base and _BASE.search(said):
        return f"base image: {base} {_BASE_FIX}"
    for pattern, message in _CAUSES:
        if re.search(pattern, said):
            return message
    if registry and _UNREACHABLE.search(said):
        return f"registry: {registry} does not answer; look at REGISTRY and at the network"
    lines = [re.sub(r"^#\d+ ([\d.]+ )?", "", line.strip()) for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"error", line, re.IGNORECASE) and "executor failed" not in line]
    return (errors or lines or [_SILENT])[-1]


def check() -> None:
    """Make sure of an engine whose images can hold what is locked.

    Raises:
        EngineError: There is none, this user may not use it, or it builds for another processor.
    """
    architecture = run("version", "--format", "{{.Server.Arch}}").strip()
    platform = os.environ.get("DOCKER_DEFAULT_PLATFORM")
    if architecture != "amd64" and platform != "linux/amd64":
        raise EngineError(
            f"the container engine builds for {architecture}, and packages are locked for linux/amd64; build on such a "
            "machine, or set DOCKER_DEFAULT_PLATFORM=linux/amd64 (emulated, and slow)"
        )


@functools.cache
def cli() -> str:
    """The first `docker` on the path that builds with BuildKit: by its plugin, or, up to 22, by itself.

    Raises:
        EngineError: There is none.
    """
    found = False
    for folder in os.get_exec_path():
        if command := shutil.which("docker", path=folder):
            found = True
            version = subprocess.run([command, "--version"], capture_output=True, text=True, check=False).stdout
            number = re.search(r"version (\d+)", version)
            if number and int(number[1]) < 23:
                return command
            if subprocess.run([command, "buildx", "version"], capture_output=True, check=False).returncode == 0:
                return command
    if found:
        raise EngineError(
            "docker has no BuildKit here; install its plugin buildx (docker-buildx-plugin, docker-buildx)"
        )
    raise EngineError("docker: command not found; install Docker Engine (Debian: docker.io), or Docker Desktop")


def _registry(arguments: tuple[str, ...]) -> str | None:
    if arguments[0] in ("push", "manifest"):
        return arguments[-1].rpartition("/")[0] or None
    return None
