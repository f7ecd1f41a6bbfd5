"""A training stage with a process for each accelerator of this machine."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf.errors import ConfigError
from rlhf.progress import say
from rlhf.training.config import TrainerConfig

PROCESSES = "RLHF_PROCESSES"
"""Environment variable: so many processes, whatever accelerators there are."""
SHUTDOWN_SECONDS = 3600


def launch(stage: str, run: Callable[..., dict[str, float]], config: TrainerConfig, **paths: str) -> dict[str, float]:
    """Run a stage in this process, or under torchrun in as many as this machine has accelerators.

    Args:
        stage: Its name: `python -m rlhf.<stage>` is what torchrun starts.
        run: The stage's function.
        paths: Its inputs and outputs.

    Returns:
        The stage's metrics.

    Raises:
        ConfigError: `RLHF_PROCESSES` is no number of processes.
        SystemExit: A process failed, after it said why; with its exit status.
    """
    count = 1 if "RANK" in os.environ else _processes()  # torchrun has started this process
    if count == 1:
        return run(config, **paths)
    say(stage, f"one process on each of {count} devices")
    with tempfile.TemporaryDirectory() as folder:
        job, metrics = Path(folder, "job.json"), Path(folder, "metrics.json")  # JSON is YAML
        job.write_text(json.dumps({"inputs": paths, "options": config.model_dump(mode="json")}), encoding="utf-8")
        # How long a step and its checkpoint may take after SIGTERM, whoever sent it decides.
        options = ["--standalone", f"--nproc-per-node={count}", f"--shutdown-timeout={SHUTDOWN_SECONDS}"]
        torchrun = [sys.executable, "-m", "torch.distributed.run", *options]
        command = [*torchrun, "-m", f"rlhf.{stage}", "--config", str(job), "--metrics", str(metrics)]
        status = _run_and_pass_on_sigterm(command)
        if status:
            raise SystemExit(status)
        return json.loads(metrics.read_text(encoding="utf-8"))


def _processes() -> int:
    wanted = os.environ.get(PROCESSES)
    if wanted is None:
        import torch

        return max(1, torch.cuda.device_count())
    if not wanted.isdecimal() or int(wanted) < 1:
        raise ConfigError(f"{PROCESSES}: found {wanted!r}, expected a number of processes")
    return int(wanted)


def _run_and_pass_on_sigterm(command: list[str]) -> int:
    process = subprocess.Popen(command)
    stopped = False

    def pass_on(number: int, frame: Any) -> None:
        nonlocal stopped
        stopped = True
        process.send_signal(number)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        status = process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
    return 128 + signal.SIGTERM if stopped and status else status
