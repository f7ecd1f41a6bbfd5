"""Stages in containers on this machine: what kfp's Docker runner is told, and what it gets wrong."""

import codecs
import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import docker
from kfp import local
from kfp.local import docker_task_handler

from components.images import ImageError

# Whoever the images name as their user.
USER = 10001
SHARED_MEMORY = "1g"

_running: set[Any] = set()


def runner(readable: Iterable[Path]) -> local.DockerRunner:
    """What runs each task in a container: no root, no writing but to /tmp and to the pipeline's outputs.

    Args:
        readable: Folders of this machine that stages read, at the same paths; relative paths are taken from the working
            directory there too.
    """
    folders = [str(path.resolve()) for path in readable]
    return local.DockerRunner(
        user=f"{os.getuid() or USER}:{os.getgid() or USER}",
        read_only=True,
        tmpfs={"/tmp": "mode=1777"},
        shm_size=SHARED_MEMORY,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        working_dir=os.getcwd(),
        mounts=[docker.types.Mount(folder, folder, type="bind", read_only=True) for folder in folders],
    )


def check_images(images: Iterable[str]) -> None:
    """Make sure that an engine answers and has these images.

    Raises:
        ImageError: One is not there, or no engine is.
    """
    try:
        client = docker.from_env()
        for image in images:
            client.images.get(image)
    except docker.errors.ImageNotFound:
        raise ImageError(f"{image}: not built here; run `make build` with the same REGISTRY and TAG") from None
    except docker.errors.DockerException as error:
        raise ImageError(f"no container engine answers ({' '.join(str(error).split())[:120]}); start one") from None


@contextlib.contextmanager
def containers_that_fail_aloud() -> Iterator[None]:
    """Have kfp run containers with `run_container`.

    kfp 2.17 lets the engine remove each container when it ends, and takes one that is gone before it could be asked for
    its status as a success. Outputs are written for the caller: where that is root, folders are made for all.
    """
    before, docker_task_handler.run_docker_container = docker_task_handler.run_docker_container, run_container
    umask = os.umask(0) if os.getuid() == 0 else None
    try:
        yield
    finally:
        docker_task_handler.run_docker_container = before
        if umask is not None:
            os.umask(umask)


def run_container(client: docker.DockerClient, image: str, command: list[str], volumes: dict, **options: Any) -> int:
    """Run a container to its end, printing what it prints, and remove it.

    Returns:
        Its exit status; 1 when it vanished, or was never started.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    container = None
    try:
        container = client.containers.create(image=image, command=command, volumes=volumes, **options)
        _running.add(container)
        container.start()
        for chunk in container.logs(stream=True):
            print(decoder.decode(chunk), end="")
        return container.wait()["StatusCode"]
    except docker.errors.NotFound as error:
        print(f"[container] error: it vanished before it ended: {error.explanation}")
        return 1
    except docker.errors.APIError as error:
        print(f"[container] error: the engine could not run it: {error.explanation}")
        return 1
    finally:
        if container:
            _running.discard(container)
            with contextlib.suppress(docker.errors.APIError):  # gone, or somebody is about it
                container.remove(force=True)


def end_running() -> None:
    """End the containers that `run_container` waits for, in whichever threads."""
    for container in list(_running):
        with contextlib.suppress(docker.errors.APIError):  # it has ended by itself
            container.kill()
