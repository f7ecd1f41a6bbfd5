"""A reward function of the user's own, started from its code, and how it fails."""

import re
import time

import psutil
import pytest

from rlhf.errors import ConfigError, TrainingError
from rlhf.rewards.config import RewardFunction
from rlhf.rewards.functions import FunctionReward


@pytest.fixture
def reward(tmp_path):
    """Writes a file of functions and starts the one named `fn`."""
    started = []

    def start(code: str, **options) -> FunctionReward:
        file = tmp_path / "graders.py"
        file.write_text(code)
        started.append(FunctionReward(RewardFunction(function=f"{file}:fn", **options)))
        return started[-1]

    yield start
    for function in started:
        function.close()


def grade(function: FunctionReward, completions=("a", "bb"), **columns):
    return function.grade([f"P {i}" for i in range(len(completions))], list(completions), columns)


def refused(start, code: str) -> str:
    with pytest.raises(ConfigError) as caught:
        start(code)
    return one_line(caught.value)


def failed(function: FunctionReward, **columns) -> str:
    with pytest.raises(TrainingError) as caught:
        grade(function, **columns)
    return one_line(caught.value)


def one_line(error: Exception) -> str:
    """The message, which names the function as it was configured."""
    message = str(error)
    assert "\n" not in message
    assert re.match(r"reward function \S+:\w+: ", message)
    return message


def soon(holds) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def children() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}
