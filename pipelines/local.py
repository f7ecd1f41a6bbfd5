"""Run a pipeline on this machine: the one place that knows the ways of `kfp.local`.

`kfp.local` prints pages: its own log, each stage's inputs as JSON, and everything stages print, indented. All of that
goes to `<root>/run.log`; a person is shown which stage runs, the lines it says of itself, and how long it took.
"""

import builtins
import contextlib
import io
import json
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import psutil
from kfp import local
from kfp.dsl.base_component import BaseComponent
from kfp.local import task_dispatcher
from kfp.local.status import Status

from pipelines.tasks import tasks_of

# Must be what rlhf.progress reads; what runs pipelines does not import rlhf.
TERMINAL_VARIABLE = "RLHF_TERMINAL"

TAIL_LINES = 15
SECONDS_TO_END = 5.0

_COLOUR = re.compile(r"\x1b\[\d+m")
_STARTED = re.compile(r"^[\d:.]+ - INFO - Executing task '(.+)'$")
_FINISHED = re.compile(r"^[\d:.]+ - (?:INFO|ERROR) - Task '(.+)' finished with status (\w+)$")
# How far a stage's output is indented depends on the loops and conditions that it or a stage before it stands in.
_FIRST_OF_STAGE = re.compile(r"^( +)\[KFP Executor ")
_SAID = re.compile(r"^\[\w+\] ")
_ERROR = re.compile(r"^\[\w+\] error: ")


class StageFailed(Exception):
    """A stage failed; the message is its own one line, or the end of its output where it left none."""


class NoRun(Exception):
    """There is no finished run where one was looked for; the message is one line."""


def run(
    pipeline: BaseComponent,
    arguments: dict[str, Any],
    root: str | Path,
    runner: local.DockerRunner | None = None,
) -> dict[str, Any]:
    """Run `pipeline` with `kfp.local`, each stage in a process of this Python environment, or in a container.

    Args:
        pipeline: A function decorated with `dsl.pipeline`.
        arguments: Pipeline parameters, already checked (`pipelines.params`).
        root: Folder for the stages' outputs and `run.log`; made if missing.
        runner: Runs stages in containers (`pipelines.containers.runner`).

    Returns:
        The pipeline's outputs by name: artifacts with `path` and `metadata`, parameters as values.

    Raises:
        StageFailed: A stage did not come through.
        KeyboardInterrupt: On Ctrl-C and SIGTERM, after the running stages have been ended.
    """
    root = Path(root)
    with _aloud(runner), _ending_with_us(runner):
        return _run(pipeline, arguments, root, runner or local.SubprocessRunner(use_venv=False))


def newest(root: str | Path) -> Path:
    """The folder of the newest run that is whole under a `root` of `run`: it has `<task>/<output>` of every task.

    Raises:
        NoRun: There is none.
    """
    reports = sorted(Path(root).glob("*/evaluator/executor_output.json"), key=lambda path: path.stat().st_mtime)
    if not reports:
        raise NoRun(
            f"{root}: found no finished run in it (*/evaluator/executor_output.json), expected the folder that a run "
            "on this machine wrote to, such as OUT of `make run`, or build/demo/run; or the run failed: see run.log"
        )
    return reports[-1].parents[1]


def metrics_of(task: str | Path) -> dict[str, float]:
    """What a task of a run measured.

    Args:
        task: Its folder in `newest`.
    """
    written = json.loads(Path(task, "executor_output.json").read_text(encoding="utf-8"))
    return written["artifacts"]["metrics"]["artifacts"][0]["metadata"]


def _run(pipeline: BaseComponent, arguments: dict[str, Any], root: Path, runner: Any) -> dict[str, Any]:
    root.mkdir(parents=True, exist_ok=True)
    log_path = root / "run.log"
    with log_path.open("w", encoding="utf-8") as log:
        console = _Console(log, sys.stdout, _display_names(pipeline))
        with _quiet(), _stages_find_the_terminal(), _printing_to(console):
            local.init(runner, pipeline_root=str(root))
            try:
                return pipeline(**arguments).outputs
            except RuntimeError:
                if console.failed is None:
                    raise
                raise StageFailed(console.why_failed(log_path)) from None


def _aloud(runner: local.DockerRunner | None) -> contextlib.AbstractContextManager[None]:
    if runner is None:
        return contextlib.nullcontext()
    from pipelines.containers import containers_that_fail_aloud  # only who has an engine needs its client

    return containers_that_fail_aloud()


class _Console(io.TextIOBase):
    """Stands in for stdout while `kfp.local` runs: everything to the log, what matters to the screen."""

    def __init__(self, log: TextIO, screen: TextIO, names: dict[str, str]):
        self._log, self._screen, self._names = log, screen, names
        self._line, self._indent = "", " " * 4
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._error: str | None = None
        self._started = 0.0
        self.failed: str | None = None
        self._why = ""

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            line = _COLOUR.sub("", line)
            self._log.write(line + "\n")
            self._read(line)
        self._log.flush()
        return len(text)

    def _read(self, line: str) -> None:
        if first := _FIRST_OF_STAGE.match(line):
            self._indent = first[1]
        if started := _STARTED.match(line):
            self._started, self._error = time.monotonic(), None
            self._tail.clear()
            self._show(f"{self._name(started[1])}: started")
        elif finished := _FINISHED.match(line):
            if finished[2] == "SUCCESS":
                self._show(f"{self._name(finished[1])}: finished in {time.monotonic() - self._started:.1f} s")
            else:
                failed = self._name(finished[1])
                self._show(f"{failed}: failed after {time.monotonic() - self._started:.1f} s")
                if self.failed is None:  # after one within a loop or a condition, kfp.local goes on with what it can
                    self.failed, self._why = failed, self._error or self._last_lines()
        elif line.startswith(self._indent) and (said := line.removeprefix(self._indent)).strip():
            self._tail.append(said.rstrip())
            if said == "}":  # the stage's inputs as JSON end here; what follows is the stage's own
                self._tail.clear()
            if _ERROR.match(said):
                self._error = said
            elif _SAID.match(said) and not said.endswith("] started"):
                self._show(f"  {said}")

    def _name(self, task: str) -> str:
        return self._names.get(task, task)

    def _show(self, line: str) -> None:
        # A stage's progress bar may be on this line of the terminal.
        self._screen.write(f"\r\x1b[2K{line}\n" if self._screen.isatty() else f"{line}\n")
        self._screen.flush()

    def _last_lines(self) -> str:
        return "\n".join(f"  {line}" for line in self._tail) or "  (it printed nothing)"

    def why_failed(self, log_path: Path) -> str:
        if _ERROR.match(self._why):
            return self._why
        return (
            f"{self.failed} ended without saying why: a bug, or it was killed, for example for want of memory.\n"
            f"Its last lines:\n{self._why}\nAll of its output: {log_path}"
        )


def _display_names(pipeline: BaseComponent) -> dict[str, str]:
    """Task names by the name under which kfp.local runs them, which is the component's."""
    tasks = tasks_of(pipeline.pipeline_spec).values()
    return {task.spec.component_ref.name.removeprefix("comp-"): task.name for task in tasks}


@contextlib.contextmanager
def _printing_to(console: TextIO) -> Iterator[None]:
    """What is printed goes to the console, and `print` is again what it was afterwards.

    `kfp.local` replaces it to indent; where tasks run side by side, one puts back what another had put there.
    """
    builtin = builtins.print
    try:
        with contextlib.redirect_stdout(console):
            yield
    finally:
        builtins.print = builtin


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings about what is meant: our images in this environment, and names for clusters' pages."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You may be attemping to run a task that uses custom", RuntimeWarning)
        warnings.filterwarnings("ignore", r"Task .*: settings \['display_name'\] have no effect", UserWarning)
        yield


@contextlib.contextmanager
def _stages_find_the_terminal() -> Iterator[None]:
    """Tell stages, whose output is captured, where they may draw a progress bar."""
    if not sys.stdout.isatty():
        yield
        return
    os.environ[TERMINAL_VARIABLE] = os.ttyname(sys.stdout.fileno())
    try:
        yield
    finally:
        del os.environ[TERMINAL_VARIABLE]


@contextlib.contextmanager
def _ending_with_us(runner: local.DockerRunner | None) -> Iterator[None]:
    """End what is still running when this ends early, whether by Ctrl-C, SIGTERM or an error, and start nothing more.

    Of a loop, kfp.local waits for the stages that run and for those that are still to come before an interrupt gets
    any further: they are ended by who catches the signal.
    """
    interrupted = threading.Event()
    end = _end_children
    if runner is not None:
        from pipelines.containers import end_running as end

    def interrupt(*_: object) -> None:
        interrupted.set()
        end()
        raise KeyboardInterrupt

    start = task_dispatcher.run_single_task_implementation
    before = {sent: signal.getsignal(sent) for sent in (signal.SIGTERM, signal.SIGINT)}
    if before[signal.SIGINT] is signal.SIG_IGN:  # as a shell's background jobs have it
        del before[signal.SIGINT]
    try:
        task_dispatcher.run_single_task_implementation = _unless(interrupted, start)
        for sent in before:
            signal.signal(sent, interrupt)
        yield
    finally:
        for sent, handler in before.items():
            signal.signal(sent, handler)
        task_dispatcher.run_single_task_implementation = start
        end()


def _unless(interrupted: threading.Event, start: Callable) -> Callable:
    """Start a task, or have it failed before it is started."""
    return lambda *args, **given: ({}, Status.FAILURE) if interrupted.is_set() else start(*args, **given)


def _end_children() -> None:
    children = psutil.Process().children(recursive=True)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.terminate()
    _, alive = psutil.wait_procs(children, timeout=SECONDS_TO_END)
    for child in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
