"""A Kubernetes API server with Kubeflow Trainer, on loopback: the paths that its SDK asks, and what pods are asked of.

TrainJobs are held against the API's published schema, as kubeflow_trainer_api was generated from it, and refused for
what Trainer's admission webhooks refuse. With `kubelet`, pods are processes of this machine.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from kubeflow_trainer_api import models

from tests.http_server import Answer, Request, Service

TRAINER = "/apis/trainer.kubeflow.org/v1alpha1"
NAMESPACE, TOKEN = "tuning", "token-of-the-pod"
JOBS, PODS = f"{TRAINER}/namespaces/{NAMESPACE}/trainjobs", f"/api/v1/namespaces/{NAMESPACE}/pods"
RUNTIME = "torch-distributed"
RUNTIMES = f"{TRAINER}/clustertrainingruntimes"
CREATED = "2026-11-21T00:00:00Z"


@dataclass
class Pod:
    name: str
    rank: int
    phase: str = "Pending"
    status: dict = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    process: subprocess.Popen | None = None


class TrainerServer(Service):
    """Trainer's `framework` is that of its only runtime; `kubelet` is a folder for pods that are processes."""

    def __init__(self, kubelet: Path | None = None, framework: str = "torch"):
        super().__init__()
        self.kubelet, self.framework = kubelet, framework
        self.jobs: dict[str, dict] = {}
        self.pods: list[Pod] = []
        self.conditions: list[dict] = []
        self.on_create = lambda job: None
        """What happens once a TrainJob is there."""

    def answer(self, request: Request) -> Answer:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return refused(401, "Unauthorized")
        match request.method, request.path.split("/")[1:]:
            case "GET", [*_, "trainingruntimes", name]:
                return missing("trainingruntimes", name)
            case "GET", [*_, "clustertrainingruntimes", name]:
                return Answer(200, self._runtime()) if name == RUNTIME else missing("clustertrainingruntimes", name)
            case "POST", [*_, "trainjobs"]:
                return self._create(request.json)
            case "GET", [*_, "trainjobs", name]:
                return Answer(200, self._job(name)) if name in self.jobs else missing("trainjobs", name)
            case "DELETE", [*_, "trainjobs", name]:
                return self._delete(name)
            case "GET", [*_, "pods"]:
                items = [self._pod(pod) for pod in self.pods]
                return Answer(200, {"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": items})
            case "GET", [*_, "pods", name, "log"]:
                (pod,) = [each for each in self.pods if each.name == name]
                assert request.query["container"] == "node"
                follow = request.query.get("follow", "").lower() == "true"
                return Answer(200, self._lines(pod, follow)) if follow else Answer(200, "\n".join(pod.lines))
            case "GET", [*_, "pods", name]:
                return Answer(
                    200, {"metadata": {"name": name}, "spec": {"serviceAccountName": "tuner", "containers": []}}
                )
        return refused(403, f"{request.path} is forbidden")

    def _runtime(self) -> dict:
        container = {"name": "node", "image": "pytorch/pytorch:2.13.0"}
        template = {
            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
            "spec": {"template": {"spec": {"containers": [container]}}},
        }
        return {
            "apiVersion": "trainer.kubeflow.org/v1alpha1",
            "kind": "ClusterTrainingRuntime",
            "metadata": {"name": RUNTIME, "labels": {"trainer.kubeflow.org/framework": self.framework}},
            "spec": {
                "mlPolicy": {"numNodes": 1, "torch": {}},
                "template": {"spec": {"replicatedJobs": [{"name": "node", "template": template}]}},
            },
        }

    def _create(self, job: dict) -> Answer:
        assert models.TrainerV1alpha1TrainJob.from_dict(job).to_dict() == job, "fields that the schema does not have"
        name = job["metadata"]["name"]
        if name in self.jobs:
            return refused(409, f'trainjobs.trainer.kubeflow.org "{name}" already exists')
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,40}[a-z0-9])?", name):
            return refused(422, f"metadata.name: {name}")
        if any(each["name"].startswith("PET_") for each in job["spec"]["trainer"]["env"]):
            return refused(422, "must not have reserved envs")
        (patch,) = job["spec"]["runtimePatches"]
        (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
        for container in replicated["template"]["spec"]["template"]["spec"]["containers"]:
            if container["name"] != "node" or container.get("env"):
                return refused(422, "must not have envs for the node container")
        self.jobs[name] = job
        if self.kubelet:
            self._start(job)
        self.on_create(job)
        return Answer(201, self._job(name))

    def _job(self, name: str) -> dict:
        job = {**self.jobs[name]}
        job["metadata"] = {**job["metadata"], "namespace": NAMESPACE, "creationTimestamp": CREATED}
        conditions = list(self.conditions)
        if self.kubelet and self.pods and all(pod.phase == "Succeeded" for pod in self.pods):
            conditions.append(condition("Complete", "JobsCompleted", "jobset completed successfully"))
        return {**job, "status": {"conditions": conditions}} if conditions else job

    def _delete(self, name: str) -> Answer:
        if name not in self.jobs:
            return missing("trainjobs", name)
        del self.jobs[name]
        for pod in self.pods:
            if pod.process and pod.process.poll() is None:
                os.killpg(pod.process.pid, signal.SIGKILL)
        self.pods, self.conditions = [], []
        return Answer(200, {"apiVersion": "v1", "kind": "Status", "status": "Success"})

    def _pod(self, pod: Pod) -> dict:
        labels = {
            "jobset.sigs.k8s.io/replicatedjob-name": "node",
            "batch.kubernetes.io/job-completion-index": str(pod.rank),
        }
        metadata = {"name": pod.name, "namespace": NAMESPACE, "labels": labels, "creationTimestamp": CREATED}
        spec = {"containers": [{"name": "node", "image": "x"}]}
        return {"metadata": metadata, "spec": spec, "status": {"phase": pod.phase, **pod.status}}

    def _lines(self, pod: Pod, follow: bool) -> Iterator[str]:
        sent = 0
        while True:
            over = pod.phase in ("Succeeded", "Failed") or not follow
            while sent < len(pod.lines):
                yield pod.lines[sent] + "\n"
                sent += 1
            if over or pod not in self.pods:
                return
            time.sleep(0.05)

    def _start(self, job: dict) -> None:
        """What Trainer's torch policy and a kubelet make of a TrainJob."""
        trainer, port = job["spec"]["trainer"], _free_port()
        for rank in range(trainer["numNodes"]):
            scratch = self.kubelet / f"node-{rank}"
            scratch.mkdir(parents=True)
            env = {
                **os.environ,
                **{each["name"]: each["value"] for each in trainer["env"]},
                "TMPDIR": str(scratch),
                "PET_NNODES": str(trainer["numNodes"]),
                "PET_NPROC_PER_NODE": "auto",
                "PET_NODE_RANK": str(rank),
                "PET_MASTER_ADDR": "127.0.0.1",
                "PET_MASTER_PORT": str(port),
            }
            env.pop("RLHF_TRAINJOB", None)
            command = [sys.executable, *trainer["command"][1:]]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            process = subprocess.Popen(command, env=env, start_new_session=True, **pipes)
            pod = Pod(f"{job['metadata']['name']}-node-0-{rank}-abcde", rank, "Running", process=process)
            self.pods.append(pod)
            threading.Thread(target=_watch, args=(pod,), daemon=True).start()


def _watch(pod: Pod) -> None:
    for line in pod.process.stdout:
        pod.lines.append(line.rstrip("\n"))
    status = pod.process.wait()
    pod.status = ended(status)
    pod.phase = "Failed" if status else "Succeeded"


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def ended(status: int) -> dict:
    state = {"terminated": {"exitCode": status, "reason": "Error" if status else "Completed"}}
    return {"containerStatuses": [_container(state)]}


def waiting(reason: str, message: str) -> dict:
    return {"containerStatuses": [_container({"waiting": {"reason": reason, "message": message}})]}


def unschedulable(message: str) -> dict:
    found = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return {"conditions": [found]}


def _container(state: dict) -> dict:
    return {"name": "node", "image": "x", "imageID": "x", "ready": False, "restartCount": 0, "state": state}


def condition(kind: str, reason: str, message: str) -> dict:
    return {"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": CREATED}


def refused(status: int, message: str, **details) -> Answer:
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": status}
    return Answer(status, {**body, "details": details})


def missing(kind: str, name: str) -> Answer:
    return refused(404, f'{kind}.trainer.kubeflow.org "{name}" not found', name=name, kind=kind)


def write_kubeconfig(path: Path, url: str, token: str = TOKEN) -> Path:
    """What leads clients to the server; in a pod its service account does."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": NAMESPACE}}],
        "current-context": "x",
    }
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path
