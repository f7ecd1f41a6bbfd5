"""A reward function of the user's own, run in a process of its own, so that nothing it does ends or stalls training."""

import contextlib
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from rlhf.errors import ConfigError, RlhfError, TrainingError
from rlhf.rewards import sandbox
from rlhf.rewards.config import RewardFunction
from rlhf.rewards.worker import row_name

LOAD_SECONDS = 600.0  # for imports and whatever model the function's module loads
WATCH_SECONDS = 0.25  # between two looks at what a function takes
MOST_PROCESSES = 64  # that a function may have running
PRINTED_BYTES = 64 * 1024  # of what it prints that are passed on
ROWS_OF_A_CALL = 64  # at most, whoever asks: what a function may take of time and memory is meant for so many
MOST_ROWS_THAT_END_IT = 8  # in one call, before it is the function that is at fault


class FunctionReward:
    """A process that has loaded the function and waits for batches, until `close` or this process's end."""

    reads_rendered = False

    def __init__(self, config: RewardFunction):
        """Start the process and load the function there.

        Raises:
            ConfigError: There is no such file, module or function, it is not callable, or loading it fails.
        """
        self.config = config
        self.faults: dict[int, str] = {}
        """What was wrong with rows of the last batch that have NaN for want of a reward."""
        self._scratch = Path(tempfile.mkdtemp(prefix="grader-"))
        try:
            self._file = self._fetched()
            self._start()
        except ConfigError:
            self.close()
            raise

    def _start(self) -> None:
        config = self.config
        self._channel, theirs = socket.socketpair()
        self._answers = self._channel.makefile("r", encoding="utf-8")
        how = {
            "function": config.function if self._file else self._absolute(config.function),
            "file": self._file,
            "builtin": config.builtin,
            "options": config.options,
            "memory_bytes": int(config.memory_gb * 1e9),
            "network": config.network,
        }
        work = self._scratch / "work"
        work.mkdir(exist_ok=True)
        with theirs:
            # Not multiprocessing's spawn, which would run the main module (torch, kfp) in there once more.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rlhf.rewards.worker", str(theirs.fileno()), json.dumps(how)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a group of its own, which is ended as a whole
                cwd=work,  # what it writes goes when it goes
                # Modules are found where this process finds them; prints are not lost when the process is ended.
                env={
                    **sandbox.environment(config.network),
                    "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path),
                    "PYTHONUNBUFFERED": "1",
                    "TMPDIR": str(work),
                },
            )
        self._printed = threading.Thread(target=_pass_on, args=(self._process.stdout, config.name), daemon=True)
        self._printed.start()
        self._receive(LOAD_SECONDS, "loading", ConfigError)

    def grade(
        self,
        prompts: Sequence[str | list[dict[str, str]]],
        completions: Sequence[str | list[dict[str, str]]],
        columns: Mapping[str, Sequence[Any]],
    ) -> list[float | None]:
        """Call `fn(prompts=..., completions=..., **columns)`, with `ROWS_OF_A_CALL` rows at most, as often as it takes.

        A row that it raises for, hangs at, ends its process with, or gives no number for, has NaN, and its words are in
        `faults`.

        Args:
            columns: What else is known of each row, by name, each as long as `prompts`. All three must fit into JSON.

        Returns:
            A reward for each completion, which may be NaN or infinite; None where the function does not judge.

        Raises:
            TrainingError: The function raises, takes longer than its timeout or more than its memory, or ends its
                process, not for single rows alone; or it does not return a number or None for each completion.
        """
        batch = {"prompts": list(prompts), "completions": list(completions), **columns}
        rows = len(batch["completions"])
        self.faults = {}
        rewards: list[float | None] = []
        faults: dict[int, str] = {}
        calls = max(1, -(-rows // ROWS_OF_A_CALL))
        failed: list[TrainingError] = []
        for i in range(calls):
            start, part = len(rewards), _rows_of(batch, range(rows * i // calls, rows * (i + 1) // calls))
            try:
                found, found_faults = self._grade_part(part)
            except TrainingError as error:  # for all rows of this call, but it may be right about those of others
                failed.append(error)
                if len(failed) == calls:
                    raise failed[0] from None
                of_part = len(part["completions"])
                found, found_faults = [math.nan] * of_part, dict.fromkeys(range(of_part), self._cause(error))
            rewards += found
            faults |= {start + row: words for row, words in found_faults.items()}
        self.faults = {row: f"{self.config.words}: {words}" for row, words in faults.items()}
        assert len(rewards) == rows
        return rewards

    def _grade_part(self, part: dict[str, Any]) -> tuple[list[float | None], dict[int, str]]:
        if self._process.returncode is not None:  # what it died of was another call's
            self._restart()
        try:
            return self._call(part, self.config.timeout_seconds)
        except _Ended as ended:
            return self._search(part, ended)

    def close(self) -> None:
        """End the process and whatever it started; without its leave, for it may hang."""
        if hasattr(self, "_process"):
            self._end()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _end(self) -> None:
        if self._process.returncode is None:  # not waited for yet, so the group's number is still its own
            strays = _below(self._process.pid)
            with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: only a process that has ended
                os.killpg(self._process.pid, signal.SIGKILL)
            for stray in strays:  # those that left the group
                with contextlib.suppress(psutil.Error):
                    stray.kill()
            self._process.wait()
        self._answers.close()
        self._channel.close()

    def _call(self, batch: dict[str, Any], seconds: float) -> tuple[list[float | None], dict[int, str]]:
        """
        Raises:
            _Ended: The process had to be ended, or ended by itself.
        """
        with contextlib.suppress(OSError):  # a process that has ended is noticed below
            self._channel.settimeout(None)
            self._channel.sendall(json.dumps(batch).encode() + b"\n")
        return self._receive(seconds, f"a call with {len(batch['completions'])} completions", TrainingError)

    def _search(self, batch: dict[str, Any], ended: "_Ended") -> tuple[list[float | None], dict[int, str]]:
        """Grade again in halves, each half that fails in halves of its own, to find the rows that end the process.

        Raises:
            TrainingError: They are all rows, or too many.
        """
        rows = len(batch["completions"])
        most = min(MOST_ROWS_THAT_END_IT, rows - 1)
        rewards: list[float | None] = [None] * rows
        faults: dict[int, str] = {}
        bad = 0
        suspects = [(range(rows), ended.words)]
        if not ended.may_be_a_row:
            raise ended.error
        while suspects:
            if bad + len(suspects) > most:
                raise ended.error
            part, words = suspects.pop()
            if len(part) == 1:
                bad += 1
                rewards[part.start] = math.nan
                faults[part.start] = f"{words} for {row_name(part.start, rows, batch.get('id', []))}"
                continue
            middle = len(part) // 2
            for half in (part[:middle], part[middle:]):
                if self._process.returncode is not None:
                    self._restart()
                seconds = max(1.0, self.config.timeout_seconds * len(half) / rows)
                try:
                    found, found_faults = self._call(_rows_of(batch, half), seconds)
                except _Ended as again:
                    suspects.append((half, again.words))
                except TrainingError as error:  # it raises for all of the half, which may be a single row
                    suspects.append((half, self._cause(error)))
                else:
                    rewards[half.start : half.stop] = found
                    faults |= {half.start + row: words for row, words in found_faults.items()}
        if self._process.returncode is not None:
            self._restart()
        return rewards, faults

    def _restart(self) -> None:
        self._end()
        self._start()

    def _receive(self, seconds: float, during: str, kind: type[RlhfError]) -> tuple[list[float | None], dict[int, str]]:
        finished = threading.Event()
        taken: list[str] = []
        watch = threading.Thread(target=self._watch, args=(self._process.pid, finished, taken), daemon=True)
        watch.start()
        try:
            self._channel.settimeout(seconds)
            line = self._answers.readline()
        except TimeoutError:
            self._end()
            advice = "make it faster" + (", or raise its timeout_seconds" if kind is TrainingError else "")
            raise self._ended(
                kind, f"{during} took more than {seconds:g} s, so its process was ended; {advice}", "hung"
            ) from None
        except (OSError, ValueError):  # cut off, or closed before
            line = ""
        finally:
            finished.set()
            watch.join()
        if not line.endswith("\n"):
            closed_before = self._channel.fileno() < 0
            self._end()
            self._printed.join(1.0)
            if taken:
                raise self._ended(kind, f"{taken[0]} during {during}, so its process was ended", taken[0])
            status = self._process.returncode
            how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
            words = f"its process ended ({how})"
            ended = self._ended(
                kind, f"{words} during {during}, expected it to live on; what it printed last may say why", words
            )
            if isinstance(ended, _Ended):
                ended.may_be_a_row = not closed_before
            raise ended
        answer = json.loads(line)
        if "raised" in answer:  # and its rows are graded one by one now
            return self._receive(seconds, f"{during}, one by one after the function {answer['raised']}", kind)
        if "error" in answer:
            raise self._error(kind, answer["error"])
        return answer["rewards"], {int(row): words for row, words in answer["faults"].items()}

    def _watch(self, pid: int, finished: threading.Event, taken: list[str]) -> None:
        """End the process where it and what it started take too much."""
        while not finished.wait(WATCH_SECONDS):
            processes, total = _below(pid, itself=True), 0
            for process in processes:
                with contextlib.suppress(psutil.Error):
                    total += process.memory_info().rss
            if total > self.config.memory_gb * 1e9:  # the kernel takes its time to say what they share
                total = sum(map(_own_memory, processes))
            if total > self.config.memory_gb * 1e9:
                taken.append(f"it took {total / 1e9:.2g} GB, more than its memory_gb ({self.config.memory_gb:g})")
            elif len(processes) > MOST_PROCESSES:
                taken.append(f"it had {len(processes)} processes running, more than {MOST_PROCESSES}")
            if taken:
                for process in processes:
                    with contextlib.suppress(psutil.Error):
                        process.kill()
                return

    def _fetched(self) -> str:
        """The file's path, where it is not the one named: it travelled with the options, or lies at a URI."""
        config = self.config
        if not config.is_file or not (config.source or "://" in config.place):
            return ""
        folder = self._scratch / "code"
        folder.mkdir()
        path = folder / config.place.rpartition("/")[2]
        path.write_text(read_source(config), encoding="utf-8")
        return str(path)

    def _absolute(self, function: str) -> str:
        return (
            f"{os.path.abspath(self.config.place)}:{function.rpartition(':')[2]}" if self.config.is_file else function
        )

    def _ended(self, kind: type[RlhfError], what: str, words: str) -> Exception:
        error = self._error(kind, what)
        return _Ended(error, words) if kind is TrainingError else error

    def _cause(self, error: TrainingError) -> str:
        """What went wrong, without what was expected."""
        said = str(error).removeprefix(f"{self.config.words}: ")
        return said.rpartition(", expected ")[0] or said

    def _error(self, kind: type[RlhfError], what: str) -> RlhfError:
        return kind(" ".join(f"{self.config.words}: {what}".split()))


class _Ended(Exception):
    """The process is gone. `words` say why in few, `error` in full."""

    def __init__(self, error: RlhfError, words: str):
        super().__init__(str(error))
        self.error, self.words, self.may_be_a_row = error, words, True


def read_source(config: RewardFunction) -> str:
    """The text of a grader's file.

    Raises:
        ConfigError: It cannot be read.
    """
    if config.source:
        return config.source
    from rlhf.data.file_systems import file_system, redacted

    try:
        fs, path = file_system(config.place)
        return fs.cat_file(path).decode("utf-8")
    except Exception as error:  # each store's client has exceptions of its own
        reason = redacted(" ".join(str(error).split()))
        raise ConfigError(
            f"{config.words}: cannot be read ({type(error).__name__}: {reason}); give a path or URI that can be"
        ) from error


def _rows_of(batch: Mapping[str, Sequence[Any]], rows: range) -> dict[str, list[Any]]:
    return {name: list(values[rows.start : rows.stop]) for name, values in batch.items()}


def _own_memory(process: psutil.Process) -> int:
    """Bytes that a process takes; on Linux, of pages that it shares with others, such as its parent, its part alone."""
    for look in (process.memory_full_info, process.memory_info):  # the first is not always allowed
        with contextlib.suppress(psutil.Error):
            taken = look()
            return getattr(taken, "pss", taken.rss)
    return 0


def _below(pid: int, itself: bool = False) -> list[psutil.Process]:
    """What a process started, and what that started."""
    try:
        process = psutil.Process(pid)
        return [process] * itself + process.children(recursive=True)
    except psutil.Error:
        return []


def _pass_on(stream: Any, name: str) -> None:
    """What a function prints goes to this process's output, the first of it; the rest is read and left out."""
    left = PRINTED_BYTES
    with contextlib.suppress(OSError, ValueError), stream:
        while chunk := os.read(stream.fileno(), 65536):
            if left > 0:
                os.write(1, chunk[:left])
                left -= len(chunk)
                if left <= 0:
                    os.write(1, f"\n[{name}] prints much; the rest is left out\n".encode())
