"""A stage on several nodes of a Kubernetes cluster: a TrainJob of Kubeflow Trainer, started and followed from here.

The pod that runs this needs no accelerator. It hands the inputs over (`rlhf.training.exchange`), creates the TrainJob,
shows what its first node says, takes the outputs back, and deletes the TrainJob however it ends.
"""

import contextlib
import hashlib
import json
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from pydantic import Field

from rlhf.config import StageConfig
from rlhf.data.file_systems import redacted
from rlhf.errors import ConfigError, Stopped, TrainingError
from rlhf.models.card import FILE_NAME
from rlhf.progress import say
from rlhf.training.checkpoints import Checkpoints
from rlhf.training.config import TrainerConfig
from rlhf.training.exchange import Exchange

VARIABLE = "RLHF_TRAINJOB"
"""Environment variable: a `TrainJob` as JSON."""
COMMAND = ["python", "-m", "rlhf.training.node"]
NODE = "node"  # Kubeflow Trainer's name of the job and of the container that train
BEATS = 30
"""Signs of life that may be missed before nodes end."""
LAST_WORDS_SECONDS = 30
"""How long what a node printed last may take to come."""
# Where KFP has a run's artifacts in a pod, and in which store they are.
_STORES = {"/gcs/": "gs://", "/s3/": "s3://", "/minio/": "s3://"}
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


class TrainJob(StageConfig):
    """What a profile says of the nodes of one stage (`pipelines.placement.kubeflow`)."""

    image: str
    nodes: int = Field(ge=2)
    runtime: str = Field(description="A TrainingRuntime or ClusterTrainingRuntime with the torch policy.")
    resources: dict[str, str] = Field(description="Of each node: requests, which are limits too.")
    devices: int = Field(0, ge=0, description="Accelerators that PyTorch has to find on each node.")
    env: dict[str, str] = Field({})
    pod: dict[str, Any] = Field({}, description="Fields of the SDK's PodSpecPatch.")
    mounts: list[dict[str, Any]] = Field([], description="Of the container.")
    labels: dict[str, str] = Field({})
    annotations: dict[str, str] = Field({})
    exchange: str | None = Field(None, description="Folder or URI; unset: beside the run's artifacts.")
    pending_seconds: int = Field(ge=1, description="So long may nodes wait for machines.")
    timeout_seconds: int = Field(ge=1)
    poll_seconds: float = Field(10.0, gt=0)
    abandoned_seconds: float = Field(
        1800.0, gt=0, description="Nodes end by themselves once this pod gave no sign of life for so long."
    )


def run(stage: str, config: TrainerConfig, paths: dict[str, str]) -> dict[str, float]:
    """Run a stage on the nodes that `RLHF_TRAINJOB` describes.

    Args:
        paths: Inputs and outputs of the stage, by name. A path with nothing there yet is an output, as KFP gives it;
            what is no path, such as a model's name, is handed on as it is, and so is a folder with a model that no
            stage wrote: it is on a volume, which the nodes mount too, and adapters and checkpoints name it.

    Returns:
        The stage's metrics, as its first process returned them.

    Raises:
        ConfigError: The cluster has no Kubeflow Trainer, not this runtime, or lets this pod not use it; or there is no
            place that all nodes reach.
        Stopped: SIGTERM came.
        TrainingError: A node failed, or no machine was free in time.
    """
    from rlhf.training.trainer_api import TrainerAPI

    job = TrainJob.parse(json.loads(os.environ[VARIABLE]), VARIABLE)
    local = {name: path for name, path in paths.items() if os.path.isabs(path)}
    inputs = {name: path for name, path in local.items() if os.path.exists(path) and not _is_base_model(path)}
    outputs = {name: path for name, path in local.items() if not os.path.exists(path)}
    # The same for a pod that is started again, so that it finds what the one before it left running.
    name = f"{stage.replace('_', '-')}-{hashlib.sha256(json.dumps(outputs).encode()).hexdigest()[:10]}"
    exchange = Exchange(f"{(job.exchange or _beside(outputs)).rstrip('/')}/{name}")
    with _stopped_by_sigterm():
        api = TrainerAPI(job, name)
        api.check()
        api.clear()
        exchange.offer(
            {
                "stage": stage,
                "devices": job.devices,
                "abandoned_seconds": job.abandoned_seconds,
                "inputs": {key: value for key, value in paths.items() if key not in inputs and key not in outputs},
                "outputs": {key: os.path.basename(path) for key, path in outputs.items()},
                "options": config.model_dump(mode="json"),
            },
            inputs,
        )
        try:
            api.create({"RLHF_EXCHANGE": exchange.uri})
            say(stage, f"TrainJob {name}: {job.nodes} nodes of {_in_words(job.resources)}")
            _follow(stage, job, api, exchange)
            metrics = exchange.take_back(outputs)
            if config.checkpoint_dir:  # which nodes leave, for what they wrote was not here yet
                Checkpoints(config.checkpoint_dir, {}).remove()
        finally:
            with _undisturbed():
                api.delete()
                with contextlib.suppress(Exception):  # what is left there harms nobody
                    exchange.remove()
        return metrics


def _is_base_model(path: str) -> bool:
    return os.path.isfile(os.path.join(path, "config.json")) and not os.path.exists(os.path.join(path, FILE_NAME))


def _follow(stage: str, job: TrainJob, api: Any, exchange: Exchange) -> None:
    """Return once the TrainJob is complete, printing what its first node prints.

    A pod that is killed deletes nothing, and neither does one that is cancelled: KFP starts a stage below a shell, past
    which SIGTERM does not come (kubeflow/pipelines#7903). So nodes are told all the while that they are waited for.
    """
    over = threading.Event()
    reader = threading.Thread(target=api.print_logs, args=(over,), daemon=True)
    reader.start()
    said, started, beaten = "", time.monotonic(), -math.inf
    while True:
        if time.monotonic() - beaten >= job.abandoned_seconds / BEATS:
            if not exchange.beat():
                lasting = f"nodes end by themselves where that lasts for {job.abandoned_seconds:g} s"
                say(stage, f"warning: {redacted(exchange.uri)} cannot be written now; {lasting}")
            beaten = time.monotonic()
        state = api.look()
        if state.complete or state.failure:
            over.set()
            reader.join(LAST_WORDS_SECONDS)
            if not state.failure:
                return
            api.print_other_nodes()
            raise TrainingError(f"TrainJob {api.name}: {state.failure}; what its nodes said is above")
        if state.waits_for is None:
            started = time.monotonic()
        elif time.monotonic() - started > job.pending_seconds:
            raise TrainingError(
                f"TrainJob {api.name}: its {job.nodes} nodes of {_in_words(job.resources)} did not start within "
                f"{job.pending_seconds / 60:.3g} minutes ({state.waits_for}); take a profile whose machines the "
                "cluster has, or let it wait longer (kubernetes.max_pending_minutes)"
            )
        if state.waits_for and state.waits_for != said:
            said = state.waits_for
            say(stage, f"waiting: {said}")
        time.sleep(job.poll_seconds)


def _in_words(resources: dict[str, str]) -> str:
    return ", ".join(f"{amount} {name}" for name, amount in resources.items())


def _beside(outputs: dict[str, str]) -> str:
    """A folder beside a run's artifacts, where these lie in a store that nodes reach."""
    path = os.path.dirname(next(iter(outputs.values()), ""))
    for prefix, scheme in _STORES.items():
        if path.startswith(prefix) and (prefix != "/minio/" or any(os.environ.get(each) for each in _ENDPOINTS)):
            return f"{scheme}{path.removeprefix(prefix)}/exchange"
    raise ConfigError(
        f"exchange: the profile names no place where nodes hand files to each other, and the run's artifacts are in "
        f"{path}, which they do not reach; set kubernetes.exchange to a URI, or to a folder on a volume that all pods "
        "mount; for artifacts in MinIO, kubernetes.env.AWS_ENDPOINT_URL and its keys as secrets do as well"
    )


class _Cancelled(BaseException):
    """SIGTERM came. No Exception, for clients of APIs wrap those."""


@contextlib.contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        raise _Cancelled

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except _Cancelled:
        raise Stopped("stopped by SIGTERM; the TrainJob is deleted") from None
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """A second SIGTERM is not to keep a TrainJob alive."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
