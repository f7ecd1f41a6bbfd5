"""The process that a reward function runs in: `python -m rlhf.rewards.worker SOCKET FUNCTION`.

It answers each line of JSON on the socket with one: {"rewards": [...]}, or {"error": "..."} in words for the user. JSON
and not pickle, so that nothing a function returns is run by the process that trains. What it prints goes where it
always does.
"""

import asyncio
import importlib
import importlib.util
import inspect
import json
import os
import reprlib
import socket
import sys
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any

MESSAGE_LENGTH = 500  # characters of an exception's message that are shown
SIGNATURE = "fn(prompts, completions, **columns)"


class Unusable(Exception):
    """Cannot be loaded, or does not return rewards; the message says why."""


def load(function: str) -> tuple[Callable[..., Any], str]:
    """The function that `function` names, and the file it is in.

    Raises:
        Unusable: There is no such file, module or function, it is not callable, or its code fails to run.
    """
    place, _, name = function.rpartition(":")
    is_file = place.endswith(".py")
    if is_file and not os.path.isfile(place):
        raise Unusable(f"there is no file {os.path.abspath(place)}; correct the path")
    try:
        module = load_file(place) if is_file else importlib.import_module(place)
    except BaseException as error:  # SystemExit among them
        if isinstance(error, ModuleNotFoundError) and not is_file and f"{place}.".startswith(f"{error.name}."):
            raise Unusable(
                f"there is no module {error.name}; correct its name, install it, or give the path of its file"
            ) from error
        raise Unusable(
            f"cannot be loaded: {said(error, place)}; correct it, or install what it needs beside the trainer"
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


def call(function: Callable[..., Any], runner: asyncio.Runner, batch: dict[str, list[Any]]) -> list[float | None]:
    """The function's rewards of one batch, one for each completion.

    Raises:
        Unusable: What it returns is not that.
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
    for i, reward in enumerate(rewards):
        if reward is None:
            continue
        try:
            if isinstance(reward, str | bytes):  # which float() would read
                raise TypeError
            rewards[i] = float(reward)
        except Exception as error:
            row = f"row {i + 1} of {rows}" + (f" (id {reprlib.repr(ids[i])})" if ids else "")
            raise Unusable(
                f"returned {reprlib.repr(reward)} ({type(reward).__name__}) for {row}, expected a number or None; "
                "correct it"
            ) from error
    return rewards


def said(error: BaseException, file: str) -> str:
    """An exception's type, message and place: its last line in the user's `file` if it came by it."""
    message = f"{type(error).__name__}: {error}"[:MESSAGE_LENGTH]
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename not in (__file__, importlib.__file__)]
    frames = [f for f in frames if not f.filename.startswith("<frozen ")]
    theirs = [f for f in frames if f.filename == os.path.abspath(file)] or frames
    return f"{message} at {theirs[-1].filename}:{theirs[-1].lineno}" if theirs else message


def main() -> None:
    descriptor, name = sys.argv[1:]
    channel = socket.socket(fileno=int(descriptor))
    channel.set_inheritable(False)  # so that what the function starts does not keep it open

    def answer(**content: Any) -> None:
        channel.sendall(json.dumps(content).encode() + b"\n")

    with channel, channel.makefile("r", encoding="utf-8") as batches, asyncio.Runner() as runner:
        try:
            function, file = load(name)
        except Unusable as error:
            return answer(error=str(error))
        answer(rewards=[])
        for batch in batches:
            try:
                answer(rewards=call(function, runner, json.loads(batch)))
            except Unusable as error:
                answer(error=str(error))
            except BaseException as error:  # SystemExit among them
                # Nothing of the function's ran: it does not take what it is given.
                outside = traceback.extract_tb(error.__traceback__)[-1].filename == __file__
                expected = f"it to take {SIGNATURE}" if outside else "rewards, with None where it cannot judge"
                answer(error=f"raised {said(error, file)}, expected {expected}; correct it")


if __name__ == "__main__":
    main()
