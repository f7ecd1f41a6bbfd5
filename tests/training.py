"""Trainers run as a user runs them: as processes of their own, killed and started again."""

import json
import multiprocessing
import os
import random
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

DEADLINE_SECONDS = 240


def write_job(path: Path, inputs: dict[str, str], outputs: Path, names: dict[str, str], options: dict) -> Path:
    """A job file whose outputs lie below `outputs`; `names` gives the file name of each."""
    outputs.mkdir(parents=True, exist_ok=True)
    job = {
        "inputs": inputs,
        "outputs": {name: str(outputs / file) for name, file in names.items()},
        "options": options,
    }
    path.write_text(yaml.safe_dump(job), encoding="utf-8")
    return path


_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(
    ["rlhf.sft_trainer.trainers", "rlhf.reward_trainer.trainer", "rlhf.ppo.loop", "rlhf.grpo_trainer.trainer"]
)
_OFFLINE = {"HF_HUB_OFFLINE": "1"}


class Forked:
    """`python -m rlhf.<stage> --config <job>`, forked from a process that has imported what stages import.

    What starts, and what a signal ends, is a process as any other; most of the seconds that it takes to start one are
    imports, and tests of runs that are killed start more than a hundred. Its methods are those of `subprocess.Popen`.
    """

    def __init__(self, stage: str, job: Path):
        self._output = job.with_suffix(".output")
        self._process = _FORKED.Process(
            target=_run, args=(stage, str(job), str(self._output), {**os.environ, **_OFFLINE})
        )
        with mock.patch.dict(os.environ, _OFFLINE):  # the first one starts the process that imports
            self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(str(self._output), timeout)
        return self._output.read_text(encoding="utf-8"), None


def _run(stage: str, job: str, output: str, environment: dict[str, str]) -> None:
    with open(output, "wb") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [stage, "--config", job]
    runpy.run_module(f"rlhf.{stage}", run_name="__main__")


def start(stage: str, job: Path, processes: int = 1) -> "subprocess.Popen | Forked":
    """Start `python -m rlhf.<stage> --config <job>`, with several processes under torchrun."""
    if processes == 1:
        return Forked(stage, job)
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"),
            *("-m", f"rlhf.{stage}", "--config", str(job)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | _OFFLINE,
    )


def finish(process: "subprocess.Popen | Forked", status: int = 0) -> str:
    """Wait for the end; returns what was printed."""
    try:
        output, _ = process.communicate(timeout=DEADLINE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        raise AssertionError(f"not finished within {DEADLINE_SECONDS} s:\n{output[-3000:]}") from None
    assert process.returncode == status, f"status {process.returncode}, expected {status}:\n{output[-3000:]}"
    return output


def end_at_step(
    process: "subprocess.Popen | Forked",
    checkpoints: Path,
    step: int,
    number: int,
    delay: float = 0.0,
    launched: bool = False,
) -> str:
    """Send a signal once a checkpoint of `step` or later is complete; returns what was printed.

    Args:
        delay: Seconds from then to the signal.
        launched: Whether the process is a launcher, whose exit status says little.
    """
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if latest_step(checkpoints) >= step:
            time.sleep(delay)
            process.send_signal(number)
            break
        time.sleep(0.005)
    if launched:
        return process.communicate(timeout=DEADLINE_SECONDS)[0]
    status = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143}[number]
    return finish(process, status)


def latest_step(checkpoints: Path) -> int:
    """Step of the newest complete checkpoint, 0 for none."""
    return max(
        (int(path.parent.name.removeprefix("step-")) for path in checkpoints.glob("step-*/complete.json")), default=0
    )


def tensors(folder: Path) -> dict[str, Any]:
    """Every weight of a saved model or adapter."""
    from safetensors.torch import load_file

    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    assert found, f"no weights in {folder}"
    return found


def weights(folder: Path) -> dict[str, bytes]:
    """The same as bytes."""
    return {name: value.numpy().tobytes() for name, value in tensors(folder).items()}


def random_steps(count: int, last: int, seed: int) -> list[int]:
    """Steps at which to end a run, before the last."""
    return sorted(random.Random(seed).sample(range(1, last), count))


def saved_summary(folder: Path) -> dict[str, float]:
    """The training summary in a model's card."""
    return json.loads((folder / "rlhf.json").read_text(encoding="utf-8"))["training"]
