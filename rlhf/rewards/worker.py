"""The process that a reward function runs in: `python -m rlhf.rewards.worker SOCKET JSON`.

It answers each line of JSON on the socket with one: {"rewards": [...], "faults": {row: words}}, or {"error": "..."} in
words for the user; and before that with {"raised": "..."} where it goes on to grade row by row. JSON and not pickle, so
that nothing a function returns is run by the process that trains. What it prints goes to the process that started it.
"""

import asyncio
import contextlib
import importlib
import importlib.util
import inspect
import json
import math
import os
import reprlib
import socket
import sys
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any

from rlhf.rewards import sandbox

MESSAGE_LENGTH = 500  # characters of an exception's message that are shown
SIGNATURE = "fn(prompts, completions, **columns)"
TRIES = 8  # rows from all over a batch that are graded first: where all raise, it is the function that is at fault


class Unusable(Exception):
    """Cannot be loaded, or does not return rewards; the message says why."""


def load(function: str, file: str = "") -> tuple[Callable[..., Any], str]:
    """The function that `function` names, and the file it is in.

    Args:
        file: Where the file's text is, if that is elsewhere.

    Raises:
        Unusable: There is no such file, module or function, it is not callable, or its code fails to run.
    """
    place, _, name = function.rpartition(":")
    is_file = place.endswith(".py")
    path = file or place
    if is_file and not os.path.isfile(path):
        raise Unusable(f"there is no file {os.path.abspath(path)}; correct the path")
    try:
        module = load_file(path) if is_file else importlib.import_module(place)
    except BaseException as error:  # SystemExit among them
        if isinstance(error, ModuleNotFoundError) and not is_file and f"{place}.".startswith(f"{error.name}."):
            raise Unusable(
                f"there is no module {error.name}; correct its name, install it, or give the path of its file"
            ) from error
        raise Unusable(
            f"cannot be loaded: {said(error, path)}; correct it, or install what it needs beside the trainer"
        ) from error
    found = getattr(module, name, None)
    if found is None:
        known = [n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]
        raise Unusable(f"there is no {name} in {place}, which has {', '.join(known) or 'no functions'}; correct it")
    if not callable(found):
        raise Unusable(f"found {reprlib.repr(found)} ({type(found).__name__}), expected a function {SIGNATURE}")
    return found, module.__file__ or place


def load_file(path: str) -> ModuleType:
    """Run a file as a module that can import its neighbours, as `python path` would."""
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    # A name that is no library's, whatever the file is called.
    spec = importlib.util.spec_from_file_location("rlhf_reward_function", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


Graded = tuple[list[float | None], dict[int, str]]
"""Rewards, and what was wrong with those rows that have NaN for want of one."""


def call(function: Callable[..., Any], runner: asyncio.Runner, batch: dict[str, list[Any]]) -> Graded:
    """The function's rewards of one batch, one for each completion.

    Raises:
        Unusable: What it returns is not that, or nothing in it is a reward.
        Exception: Whatever the function raises.
    """
    rows, ids = len(batch["completions"]), list(batch.get("id", []))  # now, for the function may change its lists
    rewards = function(**batch)
    if inspect.iscoroutine(rewards):
        rewards = runner.run(rewards)
    if isinstance(rewards, str | bytes | dict) or not hasattr(rewards, "__iter__"):
        raise Unusable(
            f"returned {reprlib.repr(rewards)} ({type(rewards).__name__}), expected a list; let it return one with a "
            "number or None for each completion"
        )
    rewards = list(rewards)
    if len(rewards) != rows:
        raise Unusable(
            f"returned {len(rewards)} rewards for {rows} completions, expected one for each; let it give None where it "
            "does not judge"
        )
    faults = {}
    for i, reward in enumerate(rewards):
        if reward is None:
            continue
        try:
            if isinstance(reward, str | bytes):  # which float() would read
                raise TypeError
            rewards[i] = float(reward)
        except Exception:
            rewards[i] = math.nan
            faults[i] = (
                f"returned {reprlib.repr(reward)} ({type(reward).__name__}) for {row_name(i, rows, ids)}, expected a "
                "number or None"
            )
    if faults and len(faults) == rows:
        raise Unusable(f"{faults[0]}; correct it")
    return rewards, faults


def row_name(i: int, rows: int, ids: list[Any]) -> str:
    return f"row {i + 1} of {rows}" + (f" (id {reprlib.repr(ids[i])})" if ids else "")


def call_apart(function: Callable[..., Any], runner: asyncio.Runner, batch: dict[str, list[Any]], file: str) -> Graded:
    """The same row by row, after the whole raised: rows that raise by themselves have NaN.

    Raises:
        Exception: What the first row raises, where `TRIES` rows from all over the batch do, or all do.
    """
    rows, ids = len(batch["completions"]), list(batch.get("id", []))
    rewards: list[float | None] = [None] * rows
    faults: dict[int, str] = {}
    first: Exception | None = None
    # Not the first ones, which may be completions of one prompt.
    tried = list(dict.fromkeys(rows * i // TRIES for i in range(TRIES)))
    for done, i in enumerate([*tried, *sorted(set(range(rows)) - set(tried))], 1):
        try:
            (reward,), _ = call(function, runner, {name: [values[i]] for name, values in batch.items()})
        except Exception as error:
            first = first or error
            what = str(error) if isinstance(error, Unusable) else f"raised {said(error, file)}"
            reward, faults[i] = math.nan, f"{what} for {row_name(i, rows, ids)}"
        rewards[i] = reward
        if first is not None and len(faults) == done and done in (len(tried), rows):
            raise first
    return rewards, faults


def said(error: BaseException, file: str) -> str:
    """An exception's type, message and place: its last line in the user's `file` if it came by it."""
    message = f"{type(error).__name__}: {error}"[:MESSAGE_LENGTH]
    if isinstance(error, MemoryError):
        message = "MemoryError: it took more than its memory_gb"
    if isinstance(error, PermissionError) and error.errno == 13 and error.filename is None:
        message += " (a grader has no network unless its option network is true)"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename not in (__file__, importlib.__file__)]
    frames = [f for f in frames if not f.filename.startswith("<frozen ")]
    theirs = [f for f in frames if f.filename == os.path.abspath(file)] or frames
    return f"{message} at {theirs[-1].filename}:{theirs[-1].lineno}" if theirs else message


def _leave(channel: socket.socket) -> None:
    # Not close(), which waits for the file that was made of it.
    with contextlib.suppress(OSError):  # a child's child
        os.close(channel.detach())


def main() -> None:
    descriptor, settings = sys.argv[1:]
    how = json.loads(settings)
    channel = socket.socket(fileno=int(descriptor))
    # What the function starts must not keep it open: whoever waits would not see that this process has ended.
    channel.set_inheritable(False)
    os.register_at_fork(after_in_child=lambda: _leave(channel))
    sandbox.enter(how["memory_bytes"], how["network"])

    def answer(**content: Any) -> None:
        channel.sendall(json.dumps(content).encode() + b"\n")

    with channel, channel.makefile("r", encoding="utf-8") as batches, asyncio.Runner() as runner:
        try:
            if how["builtin"]:
                from rlhf.rewards import builtin

                function, file = builtin.make(how["builtin"], how["options"]), builtin.__file__
            else:
                function, file = load(how["function"], how["file"])
        except Unusable as error:
            return answer(error=str(error))
        except Exception as error:  # of a built-in
            return answer(error=f"cannot be made: {said(error, '')}")
        answer(rewards=[], faults={})
        for line in batches:
            batch = json.loads(line)
            try:
                try:
                    rewards, faults = call(function, runner, json.loads(line))
                except Exception as error:
                    outside = traceback.extract_tb(error.__traceback__)[-1].filename == __file__
                    if isinstance(error, Unusable) or outside or len(batch["completions"]) < 2:
                        raise
                    answer(raised=f"raised {said(error, file)}")
                    rewards, faults = call_apart(function, runner, batch, file)
                answer(rewards=rewards, faults=faults)
            except Unusable as error:
                answer(error=str(error))
            except BaseException as error:  # SystemExit among them
                # Nothing of the function's ran: it does not take what it is given.
                outside = traceback.extract_tb(error.__traceback__)[-1].filename == __file__
                expected = f"it to take {SIGNATURE}" if outside else "rewards, with None where it cannot judge"
                answer(error=f"raised {said(error, file)}, expected {expected}; correct it")


if __name__ == "__main__":
    main()
