"""Trainers run as a user runs them: as processes of their own, killed and started again."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

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


def start(stage: str, job: Path, processes: int = 1) -> subprocess.Popen:
    """Start `python -m rlhf.<stage> --config <job>`, with several processes under torchrun."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [*launcher, "-m", f"rlhf.{stage}", "--config", str(job)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def finish(process: subprocess.Popen, status: int = 0) -> str:
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
    process: subprocess.Popen, checkpoints: Path, step: int, number: int, delay: float = 0.0, launched: bool = False
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
