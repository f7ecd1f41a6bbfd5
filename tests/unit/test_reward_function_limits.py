"""The process of a reward function: when it ends, and what it may take of time, memory, processes and network."""
# ruff: noqa: F811 - tests take a fixture that is imported

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rlhf.rewards import functions
from tests.reward_functions import children, failed, grade, reward, running, soon  # noqa: F401


@pytest.mark.parametrize("body", ["while True: pass", "time.sleep(1000)", "subprocess.run(['sleep', MARK])"])
def test_a_function_that_hangs_is_ended_at_its_timeout_with_all_it_started(reward, body):
    started, mark = children(), f"987.{os.getpid()}"
    function = reward(f"import subprocess, time\nMARK = '{mark}'\ndef fn(**_):\n    {body}\n", timeout_seconds=1.0)
    before = time.monotonic()
    message = failed(function)
    assert time.monotonic() - before < 5
    assert "a call with 2 completions took more than 1 s, so its process was ended; make it faster, or raise" in message
    assert children() == started
    soon(lambda: all(p.info["cmdline"] != ["sleep", mark] for p in psutil.process_iter(["cmdline"])))


def test_closing_ends_the_process_and_can_be_repeated(reward):
    started = children()
    function = reward("def fn(**_): return [0, 0]\n")
    assert children() > started
    function.close()
    function.close()
    assert children() == started


def test_the_process_ends_with_the_one_that_trains(tmp_path):
    (tmp_path / "graders.py").write_text("def fn(**_): return []\n")
    code = (
        "import os\nfrom rlhf.rewards.config import RewardFunction\nfrom rlhf.rewards.functions import FunctionReward\n"
        f"kept = FunctionReward(RewardFunction(function={str(tmp_path / 'graders.py:fn')!r}))\n"
        "print(kept._process.pid, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    root = Path(functions.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    soon(lambda: not running(int(done.stdout)))


def test_starting_a_function_does_not_import_torch(reward):
    function = reward("import sys\ndef fn(**_): return ['torch' in sys.modules, 'pydantic' in sys.modules]\n")
    assert grade(function) == [0.0, 0.0]


# What it may take


def test_memory_is_limited(reward):
    function = reward("def fn(completions, **_): return [len(b'x' * 3_000_000_000)] * 2\n", memory_gb=1.0)
    assert "MemoryError: it took more than its memory_gb at " in failed(function)
    assert grade(reward("def fn(**_): return [len(b'x' * 100_000_000)] * 2\n", memory_gb=1.0)) == [1e8, 1e8]


def test_memory_of_all_that_a_function_starts_is_limited_together(reward):
    function = reward(
        "import subprocess, sys, time\ndef fn(completions, **_):\n"
        "    code = 'import time; b = bytearray(150_000_000); b[::4096] = b\"x\" * len(b[::4096]); time.sleep(60)'\n"
        "    for _ in range(3): subprocess.Popen([sys.executable, '-c', code])\n    time.sleep(60)\n",
        memory_gb=0.3,
    )
    started = children()
    before = time.monotonic()
    assert re.search(r"it took 0\.\d+ GB, more than its memory_gb \(0\.3\)", failed(function))
    assert time.monotonic() - before < 30
    soon(lambda: children() <= started)


# Pss is in the /proc of Linux alone; elsewhere shared pages are counted for every process.
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what pages processes share")
def test_memory_that_processes_share_is_counted_once(reward):
    function = reward(
        "import os, time\nheld = bytearray(b'x') * 150_000_000\ndef fn(completions, **_):\n"
        "    children = [os.fork() or (time.sleep(2), os._exit(0)) for _ in range(4)]\n"
        "    for child in children: os.waitpid(child, 0)\n    return [1, 2]\n",
        memory_gb=0.5,
    )
    assert grade(function) == [1.0, 2.0]


def test_a_function_that_forks_without_end_is_ended(reward, monkeypatch):
    monkeypatch.setattr(functions, "MOST_PROCESSES", 8)
    function = reward(
        "import os, time\ndef fn(completions, **_):\n"
        "    for _ in range(20):\n        if os.fork() == 0: time.sleep(60)\n    time.sleep(60)\n"
    )
    assert re.search(r"it had \d+ processes running, more than 8", failed(function))


# PR_SET_CHILD_SUBREAPER of prctl(2) is Linux's alone.
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process adopt what its children leave behind")
def test_what_a_function_leaves_behind_in_a_session_of_its_own_is_ended_too(reward):
    mark = f"987.{os.getpid()}1"
    function = reward(f"import os\ndef fn(**_): os.system('setsid sleep {mark} &'); return [0, 0]\n")
    grade(function)
    soon(lambda: any(p.info["cmdline"] == ["sleep", mark] for p in psutil.process_iter(["cmdline"])))
    function.close()
    soon(lambda: all(p.info["cmdline"] != ["sleep", mark] for p in psutil.process_iter(["cmdline"])))


CONNECT = """
import socket
def fn(completions, **_):
    with socket.create_connection(("127.0.0.1", %d), timeout=5): pass
    return [1] * len(completions)
"""


@pytest.fixture
def listening():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_there_is_no_network_unless_allowed(reward, listening):
    message = failed(reward(CONNECT % listening))
    assert "PermissionError" in message
    assert "has no network unless its option network is true" in message
    assert grade(reward(CONNECT % listening, network=True)) == [1.0, 1.0]


def test_what_a_function_starts_has_no_network_either(reward, listening):
    code = f"import socket; socket.create_connection((\\'127.0.0.1\\', {listening}))"
    function = reward(
        "import subprocess, sys\n"
        f"def fn(**_): return [subprocess.run([sys.executable, '-c', '{code}']).returncode] * 2\n"
    )
    assert grade(function) == [1.0, 1.0]


def test_secrets_of_the_stage_are_not_told(reward, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    monkeypatch.setenv("PLAIN", "1")
    code = "import os\ndef fn(**_): return [int('HF_TOKEN' in os.environ), int(os.environ['PLAIN'])]\n"
    assert grade(reward(code)) == [0.0, 1.0]
    assert grade(reward(code, network=True)) == [1.0, 1.0]


def test_what_a_function_writes_goes_when_it_goes(reward):
    function = reward(
        "import os\ndef fn(**_):\n    open('left', 'w').write('x')\n    return [os.path.exists('left')] * 2\n"
    )
    assert grade(function) == [1.0, 1.0]
    scratch = function._scratch
    assert (scratch / "work/left").exists()
    assert not Path("left").exists()
    function.close()
    assert not scratch.exists()


def test_a_file_that_is_written_has_a_largest_size(reward):
    function = reward(
        "import signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\ndef fn(**_):\n"
        "    with open('big', 'wb') as file: file.truncate(1); file.seek(2**30); file.write(b'x')\n    return [0, 0]\n"
    )
    assert "raised OSError: [Errno 27] File too large at " in failed(function)


def test_megabytes_of_prints_are_read_and_left_out(reward, capfd):
    function = reward("def fn(completions, **_):\n    print('x' * 20_000_000)\n    return [1, 2]\n")
    assert grade(function) == grade(function) == [1.0, 2.0]
    out = capfd.readouterr().out
    assert len(out) < 100_000
    assert "[fn] prints much; the rest is left out" in out
