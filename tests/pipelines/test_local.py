"""What a person sees of a run on this machine, and how it ends when a stage does not come through."""

import builtins
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import psutil
import pytest
from kfp import dsl

from pipelines import local


class Outputs(NamedTuple):
    data: dsl.Dataset
    metrics: dsl.Metrics


@dsl.component(base_image="not-built/first:1", install_kfp_package=False)
def first(how: str, options: dict, data: dsl.Output[dsl.Dataset], metrics: dsl.Output[dsl.Metrics]):
    import os
    import time

    print("noise of a library")
    print("[first] half way, loss 0.5", flush=True)
    if how == "error":
        print("[first] error: prompt_dataset: found 'x', no such file", flush=True)
        raise SystemExit(1)
    if how == "bug":
        raise ValueError("a bug")
    if how == "killed":
        os.kill(os.getpid(), 9)
    if how == "sleep":
        time.sleep(60)
    with open(data.path, "w") as file:
        file.write(f"{options['deep']['er']} {os.environ.get('RLHF_TERMINAL')}")
    metrics.log_metric("loss", 0.25)


@dsl.component(base_image="not-built/second:1", install_kfp_package=False)
def second(data: dsl.Input[dsl.Dataset]):
    with open(data.path) as file:
        print("[second] read", file.read())


@dsl.pipeline(name="two")
def two(how: str = "", options: dict = {}) -> Outputs:
    task = first(how=how, options=options).set_display_name("the-first")
    second(data=task.outputs["data"])
    return Outputs(task.outputs["data"], task.outputs["metrics"])


@dsl.pipeline(name="nested")
def nested(how: str = "", options: dict = {}):
    with dsl.If(how != "", name="outer"), dsl.ParallelFor(["a"], name="inner") as _:
        first(how="", options=options)
    with dsl.If(how != "never", name="condition"):
        first(how=how, options=options).set_display_name("the-second")


@dsl.pipeline(name="many")
def many(how: str = "", options: dict = {}):
    with dsl.ParallelFor(list(range(6)), name="shards") as _:
        first(how=how, options=options)


def run(how: str, root: Path):
    return local.run(two, {"how": how, "options": {"deep": {"er": "seven"}}}, root)


def test_a_person_sees_stages_and_what_they_say_and_nothing_else(tmp_path, capfd, recwarn):
    run("", tmp_path)
    shown = re.sub(r"\d+\.\d s", "N s", capfd.readouterr().out)
    assert shown.splitlines() == [
        "the-first: started",
        "  [first] half way, loss 0.5",
        "the-first: finished in N s",
        "second: started",
        "  [second] read seven None",
        "second: finished in N s",
    ]
    assert not [str(warning.message) for warning in recwarn]


def test_the_log_has_everything(tmp_path):
    run("", tmp_path)
    log = (tmp_path / "run.log").read_text()
    assert "noise of a library" in log
    assert '"parameterValues"' in log
    assert "\x1b" not in log


def test_outputs_can_be_used(tmp_path):
    outputs = run("", tmp_path)
    assert Path(outputs["data"].path).read_text().startswith("seven")
    assert Path(outputs["data"].path).is_relative_to(tmp_path)
    assert outputs["metrics"].metadata["loss"] == 0.25


def test_an_error_for_the_user_is_its_one_line(tmp_path, capfd):
    with pytest.raises(local.StageFailed) as error:
        run("error", tmp_path)
    assert str(error.value) == "[first] error: prompt_dataset: found 'x', no such file"
    shown = capfd.readouterr().out
    assert "error:" not in shown  # it is shown once, by whoever catches it
    assert "the-first: failed" in shown
    assert "second" not in shown


def test_stages_in_loops_and_conditions_and_after_them_are_heard_too(tmp_path, capfd):
    with pytest.raises(local.StageFailed) as error:
        local.run(nested, {"how": "error", "options": {"deep": {"er": "seven"}}}, tmp_path)
    assert str(error.value) == "[first] error: prompt_dataset: found 'x', no such file"
    assert capfd.readouterr().out.count("  [first] half way, loss 0.5\n") == 2


def test_the_first_failure_is_said_though_other_tasks_ran_after_it(tmp_path):
    # kfp.local runs tasks that do not need each other in an order that changes, so its lines are given here.
    console = local._Console(io.StringIO(), io.StringIO(), {})
    for line in (
        "10:00:00.0 - INFO - Executing task 'one'",
        "    [one] error: no room",
        "10:00:01.0 - ERROR - Task 'one' finished with status FAILURE",
        "10:00:01.0 - INFO - Executing task 'two'",
        "    [two] half way",
        "10:00:02.0 - ERROR - Task 'two' finished with status FAILURE",
    ):
        console.write(f"{line}\n")
    assert (console.failed, console.why_failed(tmp_path)) == ("one", "[one] error: no room")


def test_tasks_side_by_side_leave_print_as_it_was(tmp_path):
    before = builtins.print

    @dsl.pipeline
    def many():
        with dsl.ParallelFor(list(range(6))) as _:
            first(how="", options={"deep": {"er": "seven"}})

    local.run(many, {}, tmp_path)
    assert builtins.print is before


def test_a_bug_shows_the_end_of_the_output_and_where_the_rest_is(tmp_path):
    with pytest.raises(local.StageFailed) as error:
        run("bug", tmp_path)
    assert "the-first ended without saying why" in str(error.value)
    assert "ValueError: a bug" in str(error.value)
    assert str(tmp_path / "run.log") in str(error.value)
    assert len(str(error.value).splitlines()) <= local.TAIL_LINES + 3


def test_a_killed_stage_shows_its_own_last_lines_and_no_json(tmp_path):
    with pytest.raises(local.StageFailed) as error:
        run("killed", tmp_path)
    assert "killed, for example for want of memory" in str(error.value)
    assert "[first] half way" in str(error.value)
    assert "executor_output.json" not in str(error.value)


def test_a_run_after_a_failed_one_comes_through(tmp_path):
    with pytest.raises(local.StageFailed):
        run("error", tmp_path / "a")
    run("", tmp_path / "b")


@pytest.mark.parametrize("pipeline", ["two", "many"])
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_ends_the_running_stages_and_starts_no_more(tmp_path, sent, pipeline):
    code = (
        "import importlib.util, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs inherit it ignored
        f"spec = importlib.util.spec_from_file_location('tests_local', {str(Path(__file__))!r})\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "given = {'how': 'sleep', 'options': {'deep': {'er': 'seven'}}}\n"
        f"try: module.local.run(module.{pipeline}, given, {str(tmp_path)!r})\n"
        "except KeyboardInterrupt: sys.exit(130)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    for line in parent.stdout:
        if "half way" in line:
            break
    stage = psutil.Process(parent.pid).children(recursive=True)
    assert stage
    began = time.monotonic()
    os.kill(parent.pid, sent)  # to the parent alone, as a supervisor does
    assert parent.wait(timeout=20) == 130
    assert time.monotonic() - began < local.SECONDS_TO_END  # asked to end, not killed when time was up
    assert not [child for child in stage if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    started = (tmp_path / "run.log").read_text().count("Executing task")
    assert started <= {"two": 1, "many": 2}[pipeline], "kfp.local runs two shards side by side"


def test_interrupting_ends_containers_in_whichever_threads_they_are_waited_for(capsys):
    class Container:
        killed = threading.Event()

        def start(self): ...
        def remove(self, force): ...
        def kill(self):
            self.killed.set()

        def logs(self, stream):
            yield b"half way"
            self.killed.wait(20)

        def wait(self):
            return {"StatusCode": 137}

    containers = pytest.importorskip("pipelines.containers")
    client = SimpleNamespace(containers=SimpleNamespace(create=lambda **_: Container()))
    with ThreadPoolExecutor() as pool:
        status = pool.submit(containers.run_container, client, "image", [], {})
        while not containers._running:
            time.sleep(0.01)
        containers.end_running()
        assert status.result(timeout=10) == 137
    assert not containers._running


def test_on_a_terminal_stages_learn_where_to_draw(tmp_path, monkeypatch):
    terminal, screen = os.openpty()
    with os.fdopen(screen, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        outputs = run("", tmp_path)
        name = os.ttyname(screen)
    assert Path(outputs["data"].path).read_text() == f"seven {name}"
    assert "RLHF_TERMINAL" not in os.environ
    os.close(terminal)


def test_the_terminals_variable_is_the_one_that_stages_read():
    from rlhf.progress import TERMINAL_VARIABLE

    assert local.TERMINAL_VARIABLE == TERMINAL_VARIABLE


def finished(run: Path, promote: float) -> Path:
    """A run's folder, as kfp.local leaves it."""
    metrics = {"artifacts": [{"name": "metrics", "uri": "x", "metadata": {"promote": promote}}]}
    (run / "evaluator").mkdir(parents=True)
    (run / "evaluator" / "executor_output.json").write_text(json.dumps({"artifacts": {"metrics": metrics}}))
    return run


def test_the_newest_run_is_the_last_that_came_to_its_end(tmp_path):
    second, first = finished(tmp_path / "rlhf-1", 1.0), finished(tmp_path / "rlhf-2", 0.0)
    os.utime(first / "evaluator" / "executor_output.json", (0, 0))
    (tmp_path / "rlhf-3" / "reward-trainer").mkdir(parents=True)
    assert local.newest(tmp_path) == second
    assert local.metrics_of(local.newest(tmp_path) / "evaluator") == {"promote": 1.0}


def test_where_no_run_came_to_its_end_it_says_what_was_expected(tmp_path):
    (tmp_path / "rlhf-3" / "reward-trainer").mkdir(parents=True)
    with pytest.raises(local.NoRun, match=f"^{tmp_path}: found no finished run in it .* expected the folder"):
        local.newest(tmp_path)


def test_kfp_local_leaves_metrics_where_they_are_read(tmp_path):
    run("", tmp_path)
    (task,) = {path.parent for path in tmp_path.glob("*/first/executor_output.json")}
    assert local.metrics_of(task) == {"loss": 0.25}
