"""A container engine, a base image and a registry on a machine that has none of them and reaches no registry."""

import contextlib
import fcntl
import functools
import http.server
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.lacking import lacking

BASE_IMAGE = "rlhf-test-base:bookworm"
MIRROR = "http://deb.debian.org/debian"
SECONDS_TO_START = 60
INDEX_PORT = 28971


def engine_answers() -> bool:
    """Whether there is an engine that this user may use."""
    return bool(shutil.which("docker")) and subprocess.run(["docker", "info"], capture_output=True).returncode == 0


def can_start_engine() -> bool:
    """Whether this user may start an engine, and has one."""
    return os.getuid() == 0 and bool(shutil.which("dockerd") and shutil.which("docker"))


@contextlib.contextmanager
def locked(name: str, how: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Hold what the workers of a test run, each a process, share."""
    with Path(tempfile.gettempdir(), f"rlhf-tests-{os.getuid()}-{name}.lock").open("w") as file:
        fcntl.flock(file, how)
        yield


@contextlib.contextmanager
def engine() -> Iterator[None]:
    """The engine that runs, or one of our own, which ends when no worker uses it any more."""
    daemon = None
    with locked("engine-starts"):
        if not engine_answers():
            if not can_start_engine():
                lacking("no container engine answers, and to start one takes root and Debian's docker.io")
            daemon = subprocess.Popen(
                ["dockerd"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )
            if not wait_for(engine_answers, daemon):
                daemon.terminate()
                lacking("dockerd did not come up on this machine")
        in_use = contextlib.ExitStack()
        in_use.enter_context(locked("engine-in-use", fcntl.LOCK_SH))
    try:
        yield
    finally:
        in_use.close()
        if daemon:
            with locked("engine-starts"), locked("engine-in-use"):
                daemon.terminate()
                daemon.wait(SECONDS_TO_START)


def base_image(folder: Path) -> str:
    """An image with Python 3.11 and how this machine reaches packages: one that is named, or made by debootstrap."""
    with locked("base-image"):
        return os.environ.get("RLHF_TEST_BASE_IMAGE") or _own_base_image(folder)


def _own_base_image(folder: Path) -> str:
    if subprocess.run(["docker", "image", "inspect", BASE_IMAGE], capture_output=True).returncode == 0:
        return BASE_IMAGE
    if os.getuid() != 0 or not shutil.which("debootstrap"):
        lacking("no base image: RLHF_TEST_BASE_IMAGE is not set, and making one takes root and debootstrap")
    root = folder / "base"
    packages = "--include=python3,python3-venv,python3-pip,ca-certificates"
    command = ["debootstrap", "--variant=minbase", packages, "bookworm", str(root), MIRROR]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        lacking(f"debootstrap did not make a base image: {made.stdout[-200:]}")
    for unused in ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"):
        shutil.rmtree(root / unused, ignore_errors=True)
    bundle = Path(os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt"))
    shutil.copyfile(bundle, root / "etc/ssl/certs/ca-certificates.crt")
    (root / "etc/pip.conf").write_text("[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n")
    packed = subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE)
    subprocess.run(["docker", "import", "-", BASE_IMAGE], stdin=packed.stdout, capture_output=True, check=True)
    assert packed.wait() == 0
    shutil.rmtree(root)
    return BASE_IMAGE


@contextlib.contextmanager
def wheels(port: int = INDEX_PORT) -> Iterator[str]:
    """Address of a package index with this machine's folders of wheels, for the steps of a build; port 0 is any."""
    folders = [Path(each) for each in os.environ.get("PIP_FIND_LINKS", "").split() if Path(each).is_dir()]
    if not folders:
        yield ""
        return

    class Index(http.server.SimpleHTTPRequestHandler):
        """A package's page is the folder itself."""

        def translate_path(self, path: str) -> str:
            return super().translate_path("/" + path.rpartition("/")[2])

        def log_message(self, *_: object) -> None:
            pass

    # Always the same address: it is an argument of the build, and another one would build the layers again.
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), functools.partial(Index, directory=str(folders[0])))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()


@contextlib.contextmanager
def registry(folder: Path, users: Path | None = None) -> Iterator[str]:
    """A registry on loopback, "localhost:port"; with `users`, an htpasswd file, for those alone."""
    program = shutil.which("docker-registry") or shutil.which("registry")
    if program is None:
        lacking("no registry to push to: Debian's package is docker-registry")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    access = f"auth:\n  htpasswd: {{realm: tests, path: {users}}}\n" if users else ""
    (folder / "config.yml").write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder}/data}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n{access}"
    )
    command = [program, "serve", str(folder / "config.yml")]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert wait_for(lambda: _listens(port), server), "the registry did not come up"
        yield f"localhost:{port}"
    finally:
        server.terminate()
        server.wait(SECONDS_TO_START)


def wait_for(condition, process: subprocess.Popen) -> bool:
    """Whether `condition` came true while `process` ran."""
    end = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < end and process.poll() is None:
        if condition():
            return True
        time.sleep(0.2)
    return False


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
