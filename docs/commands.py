"""Write the page of commands, from Makefile and the programs' help: `python -m docs.commands > docs/commands.md`."""

import argparse
import contextlib
import importlib
import io
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from docs.parameters import table

ROOT = Path(__file__).parents[1]
# Programs that people call by name, with the arguments before --help.
PROGRAMS = {
    "rlhf curves": ("rlhf.__main__", "curves"),
    "rlhf grade": ("rlhf.__main__", "grade"),
    "python -m pipelines.run": ("pipelines.run",),
    "python -m pipelines.plan": ("pipelines.plan",),
    "python -m pipelines.compile": ("pipelines.compile",),
    "python -m pipelines.release": ("pipelines.release",),
    "python -m pipelines.submit kubeflow": ("pipelines.submit.__main__", "kubeflow"),
    "python -m pipelines.submit vertex": ("pipelines.submit.__main__", "vertex"),
}
INTRODUCTION = """<!-- Made from the code by `make docs`; do not edit. -->

# Commands

`make` sets `.venv` up where it is missing. Variables are given after the target: `make run PARAMS=my.yaml`.
"""
SHELL = """
What make calls can be called without it, as `.venv/bin/python -m ...`. Each stage, too, runs by itself: `python -m
rlhf.<stage> --config job.yaml`, where the file has `inputs` and `outputs` (paths, by the names in the
[component's](../components) tables) and `options`. `--metrics FILE.json` writes its metrics.
"""


def targets() -> list[tuple[str, str]]:
    """(target, what it does) as in `make help`."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return re.findall(r"^([a-z][a-z-]*):.*?## (.+)$", makefile, re.MULTILINE)


def usage(program: str) -> str:
    """What a program prints for --help."""
    module, *arguments = PROGRAMS[program]
    printed = io.StringIO()
    with (
        mock.patch.object(sys, "argv", [program, *arguments, "--help"]),
        mock.patch.dict(os.environ, {"COLUMNS": "100", "NO_COLOR": "1"}),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        importlib.import_module(module).main()
    return printed.getvalue().rstrip()


def parsed(program: str, arguments: list[str]) -> None:
    """See whether a program takes these arguments, without running it.

    Raises:
        SystemExit: It does not.
    """
    module, *before = PROGRAMS[program]
    with stopped_after_parsing(program, [*before, *arguments]):
        importlib.import_module(module).main()


class _Parsed(Exception):
    pass


@contextlib.contextmanager
def stopped_after_parsing(program: str, arguments: list[str]) -> Iterator[None]:
    """Programs that are called in here get these arguments, and end when they have read them."""
    parse = argparse.ArgumentParser.parse_args

    def stop(self, *args, **kwargs):
        parse(self, *args, **kwargs)
        raise _Parsed

    with (
        mock.patch.object(sys, "argv", [program, *arguments]),
        mock.patch.object(argparse.ArgumentParser, "parse_args", stop),
        contextlib.suppress(_Parsed),
    ):
        yield


def render() -> str:
    """The page, as Markdown."""
    lines = [INTRODUCTION, *table(("`make`", "What it does"), [(f"`{name}`", said) for name, said in targets()]), SHELL]
    for program in PROGRAMS:
        lines += [f"## {program}", "", "```text", usage(program), "```", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(render())
