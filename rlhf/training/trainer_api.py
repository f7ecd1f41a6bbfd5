"""Kubeflow Trainer by its SDK, and what the SDK leaves out: why a TrainJob waits or failed, in one line."""

import contextlib
import json
import logging
import os
import time
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, Any

from rlhf.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from rlhf.training.trainjob import TrainJob

UNREACHABLE_SECONDS = 600
"""How long the API server may be gone while a TrainJob runs."""
SETTLE_SECONDS = 300
"""After one node failed, the others get so long to end by themselves: one of them may be writing a checkpoint."""
DELETED_SECONDS = 120
LAST_LINES = 20
_STARTED = ("Running", "Succeeded")


@dataclass
class State:
    """Of a TrainJob: `waits_for` says why nodes have not all started, `failure` why it is over without result."""

    complete: bool = False
    waits_for: str | None = None
    failure: str | None = None


class TrainerAPI:
    """One TrainJob, through the API server that this pod's account leads to.

    Raises:
        ConfigError: There is no way to an API server.
    """

    def __init__(self, job: "TrainJob", name: str):
        from kubeflow.trainer import TrainerClient
        from kubernetes.config import ConfigException

        # It warns about a ConfigMap of Trainer's own namespace, which accounts of users may not read.
        logging.getLogger("kubeflow.trainer.backends.kubernetes.backend").setLevel(logging.ERROR)
        self.job, self.name = job, name
        try:
            self._client = TrainerClient()
        except (ConfigException, OSError) as error:
            raise ConfigError(
                f"Kubernetes: {' '.join(str(error).split())}; the pod needs a service account whose token is mounted"
            ) from error
        self._core, self._custom = self._client.backend.core_api, self._client.backend.custom_api
        self._namespace = self._client.backend.namespace
        self._answered = time.monotonic()
        self._failed_since: float | None = None

    def check(self) -> None:
        """See that the runtime is there.

        Raises:
            ConfigError: It is not, or Kubeflow Trainer is not installed, or this pod may not ask.
        """
        with self._told("get", "clustertrainingruntimes"):
            runtime = self._client.get_runtime(self.job.runtime)
        if runtime.trainer.framework != "torch":
            raise ConfigError(
                f"training_runtime: {self.job.runtime} is for {runtime.trainer.framework}, expected one for torch, "
                "such as torch-distributed"
            )

    def clear(self) -> None:
        """Delete the TrainJob that an earlier try of the same task may have left.

        Raises:
            ConfigError: This pod may not.
            TrainingError: It does not go away.
        """
        deadline = time.monotonic() + DELETED_SECONDS
        while self._exists():
            if time.monotonic() > deadline:
                raise TrainingError(
                    f"TrainJob {self.name}: an earlier try of this task left it, and it was not gone {DELETED_SECONDS} "
                    "s after it was deleted; see what holds it"
                )
            with self._told("delete", "trainjobs"):
                self._delete()
            time.sleep(min(self.job.poll_seconds, 2))

    def create(self, env: dict[str, str]) -> None:
        """Create the TrainJob.

        Args:
            env: Variables of its nodes beside those of the profile.

        Raises:
            ConfigError: It is refused.
        """
        from kubeflow.trainer import CustomTrainerContainer
        from kubeflow.trainer.options import ActiveDeadlineSeconds, Annotations, Labels, Name, TrainerCommand

        from rlhf.training.trainjob import COMMAND

        job = self.job
        options = [
            Name(self.name),
            TrainerCommand(COMMAND),
            ActiveDeadlineSeconds(job.timeout_seconds),
            self._patch(),
            *([Labels(job.labels)] if job.labels else []),
            *([Annotations(job.annotations)] if job.annotations else []),
        ]
        trainer = CustomTrainerContainer(job.image, job.nodes, job.resources, {**job.env, **env})
        with self._told("create", "trainjobs"):
            self._client.train(runtime=job.runtime, trainer=trainer, options=options)
            made = self._read()
        if not made["spec"].get("runtimePatches"):
            self.delete()
            raise ConfigError(
                "Kubeflow Trainer: this version drops runtimePatches, with which a TrainJob's pods are placed; install "
                "2.2 or newer"
            )

    def look(self) -> State:
        """How the TrainJob is.

        Raises:
            ConfigError: This pod may not ask.
            TrainingError: The TrainJob was deleted, or the API server has been gone for long.
        """
        try:
            with self._told("get", "trainjobs"):
                resource = self._read()
            with self._told("list", "pods"):
                pods = self._pods()
        except _Unreachable as error:
            if time.monotonic() - self._answered > UNREACHABLE_SECONDS:
                raise TrainingError(f"TrainJob {self.name}: {error}") from error
            return State()
        self._answered = time.monotonic()
        if _condition(resource, "Complete") is not None:
            return State(complete=True)
        if (why := _condition(resource, "Failed")) is not None:
            return State(failure=why or "failed")
        if failed := [pod for pod in pods if pod.status.phase == "Failed"]:
            self._failed_since = self._failed_since or time.monotonic()
            running = any(pod.status.phase == "Running" for pod in pods)
            if running and time.monotonic() - self._failed_since < SETTLE_SECONDS:
                return State()
            return State(failure=f"{failed[0].metadata.name} {_end_of(failed[0])}")
        waiting = [pod for pod in pods if pod.status.phase not in _STARTED]
        if waiting:
            return State(waits_for=f"{waiting[0].metadata.name}: {_why_pending(waiting[0])}")
        if len(pods) < self.job.nodes:
            why = _condition(resource, "Suspended")
            return State(waits_for=why or f"{len(pods)} of {self.job.nodes} pods are there")
        return State()

    def print_logs(self, over: Event) -> None:
        """Print what the first node prints, each line once, until `over`; a broken connection is opened again."""
        pod, printed = None, 0
        while True:
            last_round = over.is_set()
            with contextlib.suppress(Exception):  # whether the job is well is for `look` to say
                steps = {step.name: step for step in self._client.get_job(self.name).steps}
                found = steps.get("node-0")
                if found and found.pod_name != pod:
                    pod, printed = found.pod_name, 0
                for number, line in enumerate(self._client.get_job_logs(self.name, follow=not last_round)):
                    if number >= printed:
                        print(line, flush=True)
                        printed = number + 1
            if last_round:
                return
            over.wait(min(self.job.poll_seconds, 2))

    def print_other_nodes(self) -> None:
        """Print the last lines of every node but the first, of which all was printed."""
        for rank in range(1, self.job.nodes):
            with contextlib.suppress(Exception):
                for line in list(self._client.get_job_logs(self.name, step=f"node-{rank}"))[-LAST_LINES:]:
                    print(f"node-{rank}: {line}", flush=True)

    def delete(self) -> None:
        """Delete the TrainJob, where there is one; says so where it cannot."""
        try:
            self._delete()
        except Exception as error:
            print(f"TrainJob {self.name} could not be deleted ({_reason(error)}); delete it by hand", flush=True)

    def _delete(self) -> None:
        try:
            self._client.delete_job(self.name)
        except Exception as error:
            if _status(error) != 404:
                raise

    def _read(self) -> dict[str, Any]:
        from kubeflow.trainer.constants import constants

        return self._custom.get_namespaced_custom_object(
            constants.GROUP, constants.VERSION, self._namespace, constants.TRAINJOB_PLURAL, self.name
        )

    def _exists(self) -> bool:
        try:
            self._read()
        except Exception as error:
            if _status(error) == 404:
                return False
            with self._told("get", "trainjobs"):
                raise
        return True

    def _pods(self) -> list[Any]:
        from kubeflow.trainer.constants import constants

        return self._core.list_namespaced_pod(
            self._namespace, label_selector=f"{constants.JOBSET_NAME_LABEL}={self.name}"
        ).items

    def _patch(self) -> Any:
        from kubeflow.trainer import options

        from rlhf.training.trainjob import NODE

        job, pod = self.job, dict(self.job.pod)
        if account := self._own_account():
            pod["service_account_name"] = account
        spec = options.PodSpecPatch(**pod, containers=[options.ContainerPatch(NODE, volume_mounts=job.mounts)])
        about = {"labels": job.labels, "annotations": job.annotations}
        template = options.PodTemplatePatch({key: value for key, value in about.items() if value} or None, spec)
        node = options.ReplicatedJobPatch(NODE, options.JobTemplatePatch(spec=options.JobSpecPatch(template)))
        jobs = options.JobSetTemplatePatch(spec=options.JobSetSpecPatch([node]))
        return options.RuntimePatch(options.TrainingRuntimeSpecPatch(jobs))

    def _own_account(self) -> str | None:
        """The service account of this pod: what it may read in a store, nodes have to read as well."""
        name = os.environ.get("KFP_POD_NAME")
        if not name:
            return None
        with self._told("get", "pods"):
            return self._core.read_namespaced_pod(name, self._namespace).spec.service_account_name

    @contextlib.contextmanager
    def _told(self, verb: str, resources: str):
        try:
            yield
        except Exception as error:
            status, what = _status(error), f"{verb} {resources} in namespace {self._namespace}"
            if status in (401, 403):
                raise ConfigError(
                    f"Kubernetes: this pod's service account may not {what} ({_reason(error)}); give it a Role that "
                    "lets it, see docs/platforms.md"
                ) from error
            if status == 404 and not _is_named(error):
                raise ConfigError(
                    "Kubeflow Trainer is not installed on this cluster (there is no trainer.kubeflow.org); install it, "
                    "or take a profile with one node"
                ) from error
            if status == 404 and resources == "clustertrainingruntimes":
                raise ConfigError(
                    f"training_runtime: this cluster has no TrainingRuntime or ClusterTrainingRuntime named "
                    f"{self.job.runtime!r}; install Kubeflow Trainer's, or name one in the profile "
                    "(kubernetes.training_runtime)"
                ) from error
            if status == 404 and verb == "get":
                raise TrainingError(f"TrainJob {self.name}: somebody deleted it") from error
            if status is not None and status < 500 and status not in (408, 409, 429):
                raise ConfigError(f"Kubernetes: may not {what}: {_reason(error)}") from error
            raise _Unreachable(f"Kubernetes: cannot {what}: {_reason(error)}") from error


class _Unreachable(TrainingError):
    """The API server did not answer, or not now."""


def _causes(error: BaseException | None):
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    """HTTP status behind an error of the SDK, which wraps those of the client."""
    return next((each.status for each in _causes(error) if isinstance(getattr(each, "status", None), int)), None)


def _body(error: BaseException) -> dict[str, Any]:
    for each in _causes(error):
        with contextlib.suppress(TypeError, ValueError):
            found = json.loads(getattr(each, "body", None) or "")
            if isinstance(found, dict):
                return found
    return {}


def _is_named(error: BaseException) -> bool:
    """Whether it is one object that was not found, not the kind of it: that is answered without a Status."""
    return bool(_body(error).get("details", {}).get("name"))


def _reason(error: BaseException) -> str:
    innermost = list(_causes(error))[-1]
    return " ".join(str(_body(error).get("message") or getattr(innermost, "reason", None) or innermost).split())


def _condition(resource: dict[str, Any], kind: str) -> str | None:
    """Why it is so; None where it is not."""
    for each in resource.get("status", {}).get("conditions", []):
        if each["type"] == kind and each["status"] == "True":
            return ": ".join(filter(None, [each.get("reason"), each.get("message")]))
    return None


def _why_pending(pod: Any) -> str:
    for status in [*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])]:
        waiting = status.state.waiting if status.state else None
        if waiting and waiting.reason not in (None, "ContainerCreating", "PodInitializing"):
            return ": ".join(filter(None, [waiting.reason, waiting.message]))
    for each in pod.status.conditions or []:
        if each.type == "PodScheduled" and each.status == "False":
            return ": ".join(filter(None, [each.reason, each.message]))
    return f"{pod.status.phase}"


def _end_of(pod: Any) -> str:
    for status in pod.status.container_statuses or []:
        if status.state and status.state.terminated and status.state.terminated.exit_code:
            ended = status.state.terminated
            return f"ended with status {ended.exit_code}{f' ({ended.reason})' if ended.reason else ''}"
    return f"failed{f': {pod.status.reason}' if pod.status.reason else ''}"
