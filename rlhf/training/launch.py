"""A training stage with a process for each accelerator: of this machine, of several, or of nodes that others start."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf.data.store import MANIFEST_NAME, read_manifest
from rlhf.errors import ConfigError
from rlhf.progress import say
from rlhf.training import trainjob
from rlhf.training.config import TrainerConfig
from rlhf.training.nodes import Nodes, nodes

PROCESSES = "RLHF_PROCESSES"
"""Environment variable: so many processes, whatever accelerators there are."""
SHUTDOWN_SECONDS = 3600


def launch(stage: str, run: Callable[..., dict[str, float]], config: TrainerConfig, **paths: str) -> dict[str, float]:
    """Run a stage where its processes are to be.

    - Where `RLHF_TRAINJOB` describes nodes: on these, as a TrainJob of Kubeflow Trainer (`rlhf.training.trainjob`).
      Data without rows, such as demonstrations that nobody gave, is worth no nodes.
    - On one of several machines that a cluster started: under torchrun, together with the others.
    - Else under torchrun in as many processes as this machine has accelerators, or in this process for one.

    Args:
        stage: Its name: `python -m rlhf.<stage>` is what torchrun starts.
        run: The stage's function.
        paths: Its inputs and outputs.

    Returns:
        The stage's metrics.

    Raises:
        ConfigError: `RLHF_PROCESSES` is no number of processes, or more than there are GPUs.
        SystemExit: A process failed, after it said why; with its exit status. On every machine but the first also where
            none failed, with 0: only the first has outputs to go on with.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun has started this process
        return run(config, **paths)
    if trainjob.VARIABLE in os.environ and not _has_no_rows(paths):
        return trainjob.run(stage, config, paths)
    machines = nodes()
    count = _processes()
    if count == 1 and machines is None:
        return run(config, **paths)
    together = f" of node {machines.rank + 1} of {machines.count}" if machines else ""
    say(stage, f"one process on each of {count} devices{together}")
    with tempfile.TemporaryDirectory() as folder:
        job, metrics = Path(folder, "job.json"), Path(folder, "metrics.json")  # JSON is YAML
        job.write_text(json.dumps({"inputs": paths, "options": config.model_dump(mode="json")}), encoding="utf-8")
        status = torchrun(stage, job, metrics, machines, count)
        if status or (machines and machines.rank):
            raise SystemExit(status)
        return json.loads(metrics.read_text(encoding="utf-8"))


def torchrun(stage: str, job: Path, metrics: Path, machines: Nodes | None, count: int | None = None) -> int:
    """Run `python -m rlhf.<stage> --config <job>` in a process on each device of this machine.

    Args:
        metrics: File that the first process of all writes.
        machines: Those whose processes train together; None for this one alone.
        count: Processes here; unset takes one for each device.

    Returns:
        Exit status; 143 where SIGTERM ended it.
    """
    rendezvous = machines.torchrun_options if machines else ["--standalone"]
    # How long a step and its checkpoint may take after SIGTERM, whoever sent it decides.
    options = [f"--nproc-per-node={count or _processes()}", f"--shutdown-timeout={SHUTDOWN_SECONDS}"]
    command = [sys.executable, "-m", "torch.distributed.run", *rendezvous, *options]
    return _run_and_pass_on_sigterm([*command, "-m", f"rlhf.{stage}", "--config", str(job), "--metrics", str(metrics)])


def _has_no_rows(paths: dict[str, str]) -> bool:
    manifests = [Path(path) / MANIFEST_NAME for path in paths.values() if Path(path, MANIFEST_NAME).is_file()]
    return any(read_manifest(manifest.parent).rows == 0 for manifest in manifests)


def _processes() -> int:
    import torch

    wanted, devices = os.environ.get(PROCESSES), torch.cuda.device_count()
    if wanted is None:
        return max(1, devices)
    if not wanted.isdecimal() or int(wanted) < 1:
        raise ConfigError(f"{PROCESSES}: found {wanted!r}, expected a number of processes")
    if 0 < devices < int(wanted):
        raise ConfigError(f"{PROCESSES}: found {wanted}, but there are {devices} GPUs here; each process takes one")
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
