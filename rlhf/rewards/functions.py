"""A reward function of the user's own, run in a process of its own, so that nothing it does ends or stalls training."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.errors import ConfigError, RlhfError, TrainingError
from rlhf.rewards.config import RewardFunction

LOAD_SECONDS = 600.0  # for imports and whatever model the function's module loads


class FunctionReward:
    """A process that has loaded the function and waits for batches, until `close` or this process's end."""

    def __init__(self, config: RewardFunction):
        """Start the process and load the function there.

        Raises:
            ConfigError: There is no such file, module or function, it is not callable, or loading it fails.
        """
        self.config = config
        self._channel, theirs = socket.socketpair()
        self._answers = self._channel.makefile("r", encoding="utf-8")
        with theirs:
            # Not multiprocessing's spawn, which would run the main module (torch, kfp) in there once more.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rlhf.rewards.worker", str(theirs.fileno()), config.function],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a group of its own, which is ended as a whole
                # Modules are found where this process finds them; prints are not lost when the process is ended.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONUNBUFFERED": "1"},
            )
        try:
            self._receive(LOAD_SECONDS, "loading", ConfigError)
        except ConfigError:
            self.close()
            raise

    def grade(
        self,
        prompts: Sequence[str | list[dict[str, str]]],
        completions: Sequence[str | list[dict[str, str]]],
        columns: Mapping[str, Sequence[Any]],
    ) -> list[float | None]:
        """Call `fn(prompts=..., completions=..., **columns)`.

        Args:
            columns: What else is known of each row, by name, each as long as `prompts`. All three must fit into JSON.

        Returns:
            A reward for each completion, which may be NaN or infinite; None where the function does not judge.

        Raises:
            TrainingError: The function raises, takes longer than its timeout, ends its process, or does not return a
                number or None for each completion.
        """
        batch = json.dumps({"prompts": prompts, "completions": completions, **columns})
        with contextlib.suppress(OSError):  # a process that has ended is noticed below
            self._channel.sendall(batch.encode() + b"\n")
        return self._receive(self.config.timeout_seconds, f"a call with {len(completions)} completions", TrainingError)

    def close(self) -> None:
        """End the process and whatever it started; without its leave, for it may hang."""
        if self._process.returncode is None:  # not waited for yet, so the group's number is still its own
            with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: only a process that has ended
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._answers.close()
        self._channel.close()

    def _receive(self, seconds: float, during: str, kind: type[RlhfError]) -> list[float | None]:
        try:
            self._channel.settimeout(seconds)
            line = self._answers.readline()
        except TimeoutError:
            self.close()
            raise self._error(
                kind,
                f"{during} took more than {seconds:g} s, so its process was ended; make it faster"
                + (", or raise its timeout_seconds" if kind is TrainingError else ""),
            ) from None
        except (OSError, ValueError):  # cut off, or closed before
            line = ""
        if not line.endswith("\n"):
            self.close()
            status = self._process.returncode
            how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
            raise self._error(
                kind,
                f"its process ended ({how}) during {during}, expected it to live on; what it printed last may say why",
            )
        answer = json.loads(line)
        if "error" in answer:
            raise self._error(kind, answer["error"])
        return answer["rewards"]

    def _error(self, kind: type[RlhfError], what: str) -> RlhfError:
        return kind(" ".join(f"reward function {self.config.function}: {what}".split()))
