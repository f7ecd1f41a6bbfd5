"""Stages on several nodes of a Kubernetes cluster: what the pod that starts the nodes is told of them.

The pod runs the stage's own component, in the stage's own image, so that a cached result follows that image. It asks
for no accelerator; `rlhf.training.trainjob` reads what is said here and has Kubeflow Trainer start the nodes.
"""

import json
from typing import Any

from pipelines.placement.cluster import Kubernetes, Resources

VARIABLE = "RLHF_TRAINJOB"
SECRETS = "/etc/rlhf/secrets"
SECRETS_VARIABLE = "RLHF_SECRETS_FOLDER"  # must be what rlhf.training.node reads
# Of the pod that starts the nodes: it copies files and waits.
LAUNCHER = {"cpu": 2, "memory": "8Gi"}
# In the namespaces of Kubeflow's profiles Istio would put a proxy into each pod, which then never ends, and through
# which processes do not find each other. KFP says the same of its own pods.
NO_PROXY = {"sidecar.istio.io/inject": "false"}


def launcher(resources: Resources) -> Resources:
    """What the pod that starts the nodes gets itself."""
    return Resources(**LAUNCHER, disk=resources.disk, timeout_hours=resources.timeout_hours, retries=resources.retries)


def seconds(cluster: Kubernetes, resources: Resources) -> int:
    """How long a stage on several nodes may take, with the wait for machines."""
    return resources.timeout_hours * 3600 + cluster.max_pending_minutes * 60


def trainjob(cluster: Kubernetes, resources: Resources, image: str, env: dict[str, str], pod: dict[str, Any]) -> str:
    """What `rlhf.training.trainjob.TrainJob` is read from, as JSON.

    Args:
        env: Variables of each node.
        pod: `volumes`, `mounts`, and how nodes are chosen, from `pipelines.placement.kubeflow`.
    """
    volumes, mounts = list(pod.pop("volumes")), list(pod.pop("mounts"))
    for number, secret in enumerate(cluster.secrets):
        item = {"key": secret.key, "path": secret.env}
        source = {"secretName": secret.name, "optional": secret.optional, "items": [item]}
        volumes.append({"name": f"secret-{number}", "secret": source})
        mounts.append({"name": f"secret-{number}", "mountPath": f"{SECRETS}/{number}", "readOnly": True})
    who = {
        "runAsUser": cluster.run_as_user,
        "runAsGroup": cluster.run_as_group,
        "runAsNonRoot": cluster.run_as_non_root,
    }
    spec = {
        "volumes": volumes,
        "image_pull_secrets": [{"name": name} for name in cluster.pull_secrets],
        "security_context": {name: value for name, value in who.items() if value is not None},
        **pod,
    }
    described = {
        "image": image,
        "nodes": resources.nodes,
        "runtime": cluster.training_runtime,
        "resources": {
            "cpu": str(resources.cpu),
            "memory": resources.memory,
            resources.accelerator: str(resources.count),
        },
        "devices": resources.count,
        "env": {**env, SECRETS_VARIABLE: SECRETS},
        "pod": {name: value for name, value in spec.items() if value},
        "mounts": mounts,
        "labels": NO_PROXY | cluster.labels,
        "annotations": NO_PROXY | cluster.annotations,
        "exchange": cluster.exchange,
        "pending_seconds": cluster.max_pending_minutes * 60,
        "timeout_seconds": seconds(cluster, resources),
    }
    return json.dumps(described, separators=(",", ":"))
