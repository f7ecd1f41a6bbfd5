"""Somebody with a clean machine that has Python 3.11, git and make, who does what the documents say."""

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from containers import engine
from tests.containers import machine

REPOSITORY = Path(__file__).parents[1]
IMAGE = "rlhf-test-newcomer"
CLONE = "/home/newcomer/rlhf"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# Nothing else but Python is there, and a person who is not root.
MACHINE = """
FROM {base}
RUN apt-get -qq update && \
    DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends git make && \
    rm -rf /var/lib/apt/lists/*
RUN useradd --create-home newcomer
USER newcomer
WORKDIR /home/newcomer
"""


class Step(NamedTuple):
    """What a document tells people to do: save a text under a name, or type a command."""

    text: str
    name: str = ""


def steps(document: str, heading: str = "") -> list[Step]:
    """What the section of a document tells people to do, in its order; without a heading, the whole document.

    A block of a file says in its first line which: `# name`.
    """
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    if heading:
        text = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found = []
    for language, block in BLOCK.findall(text):
        if language == "sh":
            lines = re.sub(r"\\\n", " ", block).splitlines()
            found += [Step(command) for line in lines if (command := line.partition(" #")[0].strip())]
        elif named := re.match(r"# ([\w.]+\.\w+)\b", block):
            found.append(Step(block, named[1]))
    return found


class Newcomer:
    """Does one step after the other, in a clone."""

    def __init__(self, container: str):
        self.container = container
        self.seconds = 0.0
        self.screen = ""

    def do(self, step: Step) -> None:
        """Save the text, or type the command, which must succeed."""
        began = time.monotonic()
        command = ["sh", "-c", f"cat > {step.name}"] if step.name else ["sh", "-c", step.text]
        done = subprocess.run(
            ["docker", "exec", "--interactive", "--workdir", CLONE, self.container, *command],
            input=step.text if step.name else "",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        self.seconds += time.monotonic() - began
        self.screen += done.stdout
        assert done.returncode == 0, f"{step.name or step.text}\n{done.stdout}"

    def fetch(self, path: str, folder: Path) -> None:
        """Copy a path of the clone to the same path under `folder`."""
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["docker", "cp", f"{self.container}:{CLONE}/{path}", str(target)], check=True, capture_output=True
        )


@contextlib.contextmanager
def newcomer(base: str, folder: Path) -> Iterator[Newcomer]:
    """Somebody who has just cloned what lies here, committed or not, on the cores of this process.

    Args:
        base: An image with Python 3.11 and how this machine reaches packages.
        folder: For what goes into the container.
    """
    (folder / "image").mkdir()
    (folder / "image/Dockerfile").write_text(MACHINE.format(base=base), encoding="utf-8")
    engine.run("build", "--network", "host", "--tag", IMAGE, str(folder / "image"))
    bundle = _bundle(folder)
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    with machine.wheels(port=0) as index:
        options = ["--detach", "--init", "--network", "host", "--cpuset-cpus", cores]
        options += ["--volume", f"{bundle}:/rlhf.bundle:ro"]
        if index := index or os.environ.get("PIP_EXTRA_INDEX_URL"):  # as README.md says, for the CPU build of torch
            options += ["--env", f"PIP_EXTRA_INDEX_URL={index}"]
        container = engine.run("run", *options, IMAGE, "sleep", "infinity").strip()
        try:
            engine.run("exec", container, "git", "clone", "--quiet", "/rlhf.bundle", CLONE)
            yield Newcomer(container)
        finally:
            engine.run("rm", "--force", container)


def _bundle(folder: Path) -> Path:
    """A repository in one file, which anybody may read."""
    copy = folder / "copy"
    shutil.copytree(REPOSITORY, copy, ignore=shutil.ignore_patterns(".git", ".venv", "build", "__pycache__"))
    author = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.invalid"]
    for command in (
        ["init", "--quiet", "--initial-branch", "main"],
        ["add", "--all"],
        [*author, "commit", "--quiet", "--message", "As it lies here."],
        ["bundle", "create", "--quiet", str(folder / "rlhf.bundle"), "HEAD", "main"],
    ):
        subprocess.run(["git", *command], cwd=copy, check=True, capture_output=True)
    shutil.rmtree(copy)
    return folder / "rlhf.bundle"
