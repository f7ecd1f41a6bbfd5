"""What the tests do with an engine, and without: no container is started here."""

import os
import tempfile
import threading

import pytest

from tests.containers import machine
from tests.lacking import lacking

# An engine that answers as long as its daemon runs.
DOCKERD = """#!/bin/sh
trap 'rm {folder}/answers; exit 0' TERM
touch {folder}/answers
while :; do sleep 0.05; done
"""
DOCKER = "#!/bin/sh\ntest -e {folder}/answers\n"


@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_what_a_machine_lacks_skips_a_test_and_on_ci_fails_it(ci, outcome, monkeypatch):
    monkeypatch.setenv("CI", ci)
    with pytest.raises((pytest.skip.Exception, pytest.fail.Exception), match=r"^no Chromium") as raised:
        lacking("no Chromium")
    assert raised.type is outcome


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """An engine that does nothing, on the path of somebody who may start it."""
    for name, script in {"dockerd": DOCKERD, "docker": DOCKER}.items():
        (tmp_path / name).write_text(script.format(folder=tmp_path))
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(os, "getuid", lambda: 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_an_engine_of_ours_ends_when_the_last_worker_is_done_with_it(programs):
    assert not machine.engine_answers()
    first, second = machine.engine(), machine.engine()
    first.__enter__()
    second.__enter__()
    leaves = threading.Thread(target=first.__exit__, args=(None, None, None))
    leaves.start()
    leaves.join(0.5)
    assert leaves.is_alive(), "who started it waits for the others"
    assert machine.engine_answers()
    second.__exit__(None, None, None)
    leaves.join(10)
    assert not machine.engine_answers()


def test_an_engine_that_runs_already_is_left_running(programs):
    with machine.engine():
        with machine.engine():
            pass
        assert machine.engine_answers()


def test_without_an_engine_and_the_right_to_start_one_a_test_is_skipped(programs, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    with pytest.raises(pytest.skip.Exception, match="no container engine answers"), machine.engine():
        pass
