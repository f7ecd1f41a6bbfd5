"""What a pod of a TrainJob runs: `python -m rlhf.training.node`.

Takes the job from the exchange, trains together with the other pods under torchrun, and hands back what the first
process wrote.
"""

import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from rlhf.errors import ConfigError
from rlhf.job import stage_errors
from rlhf.progress import say
from rlhf.training.checkpoints import KEEP
from rlhf.training.exchange import Exchange
from rlhf.training.launch import torchrun
from rlhf.training.nodes import nodes
from rlhf.training.trainjob import BEATS

EXCHANGE = "RLHF_EXCHANGE"
"""Environment variable: folder or URI of the exchange."""
SECRETS = "RLHF_SECRETS_FOLDER"
"""Environment variable: a folder of folders whose files are further variables. Kubeflow Trainer refuses variables from
Secrets for the container that trains, so that these come as files. Not `rlhf.secrets.VARIABLE`, which the processes
that this starts read too."""


def main() -> int:
    """Run this node's part.

    Returns:
        Exit status: that of torchrun, or 0 where nobody waited any more.
    """
    _read_secrets(os.environ.get(SECRETS, ""))
    with stage_errors("node"), tempfile.TemporaryDirectory() as folder:
        machines = nodes()
        if machines is None:
            raise ConfigError(
                "PET_NNODES: found none above 1, expected what Kubeflow Trainer sets for several nodes of a runtime "
                "with the torch policy; name such a runtime in the profile (kubernetes.training_runtime)"
            )
        exchange = Exchange(os.environ[EXCHANGE])
        job = exchange.take_job(Path(folder, "inputs"))
        stage, devices, patience = (job.pop(name) for name in ("stage", "devices", "abandoned_seconds"))
        _check_devices(devices)
        job["outputs"] = {name: str(Path(folder, "outputs", name, file)) for name, file in job["outputs"].items()}
        path, metrics = Path(folder, "job.json"), Path(folder, "metrics.json")
        path.write_text(json.dumps(job), encoding="utf-8")
        say(stage, f"node {machines.rank + 1} of {machines.count}")
        os.environ[KEEP] = "1"  # the pod that waits for us removes them, once it has the outputs
        with _ended_when_abandoned(stage, exchange, patience) as abandoned:
            status = torchrun(stage, path, metrics, machines)
        if status and abandoned.is_set():
            return 0  # with another status the cluster would start this node again
        if status == 0 and machines.rank == 0:
            exchange.hand_back(job["outputs"], json.loads(metrics.read_text(encoding="utf-8")))
        return status


def _read_secrets(folder: str) -> None:
    if folder:
        for file in Path(folder).glob("*/*"):
            if file.is_file():  # a Secret's volume also has folders that its links lead through
                os.environ[file.name] = file.read_text(encoding="utf-8").rstrip("\n")


@contextlib.contextmanager
def _ended_when_abandoned(stage: str, exchange: Exchange, patience: float) -> Iterator[threading.Event]:
    """End what runs within by SIGTERM, as a cluster would, once nobody has waited for it for `patience` seconds.

    Returns:
        Set where that was so.
    """
    over, abandoned = threading.Event(), threading.Event()

    def watch() -> None:
        seen, since = None, time.monotonic()
        while not over.wait(patience / BEATS):
            beat = exchange.last_beat()
            if beat is not None and beat != seen:
                seen, since = beat, time.monotonic()
            elif time.monotonic() - since > patience:
                abandoned.set()
                say(stage, f"stopping: the pod that waits for this node gave no sign of life for {patience:g} s")
                os.kill(os.getpid(), signal.SIGTERM)
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield abandoned
    finally:
        over.set()


def _check_devices(expected: int) -> None:
    if expected:
        import torch

        if (found := torch.cuda.device_count()) != expected:
            raise ConfigError(
                f"accelerators: PyTorch finds {found} on this node, and the pod asked for {expected}; its driver or "
                "its device plugin does not fit the image"
            )


if __name__ == "__main__":
    sys.exit(main())
