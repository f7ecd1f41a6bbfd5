"""Placement on self-hosted Kubeflow Pipelines."""

from collections.abc import Callable
from typing import Any

from google.protobuf import json_format
from kfp import dsl, kubernetes
from kfp.dsl.base_component import BaseComponent

from pipelines.placement import nodes, serving
from pipelines.placement.cluster import Kubernetes, Profile, Resources, Toleration, Volume, request, stage_of

SCRATCH = "/scratch"  # writable by every user, also where the image's own files are not


def placement(profile: Profile, images: dict[str, str]) -> Callable[[BaseComponent], Callable[..., dsl.PipelineTask]]:
    """Place each stage in a pod as `profile` says.

    Args:
        profile: A profile whose platform is "kubeflow".
        images: {stage: image}, from `components.images.cluster_images`.
    """

    def place(component: BaseComponent) -> Callable[..., dsl.PipelineTask]:
        stage = stage_of(component)
        resources = profile.stages[stage]

        def create(**arguments) -> dsl.PipelineTask:
            if component.name == "data-validation":
                serving.check_kubernetes(profile, place_beside)
            task = component(**arguments)
            if resources.nodes > 1:
                _start_nodes(task, images[stage], profile.kubernetes, resources)
            else:
                place_task(task, images[stage], resources)
            if stage == "publisher":
                serving.on_kubernetes(task, arguments["publish_to"], profile, place_beside)
            return task

        return create

    def place_task(task: dsl.PipelineTask, image: str, resources: Resources) -> None:
        _in_a_pod(task, image, profile.kubernetes, resources)
        kubernetes.set_timeout(task, resources.timeout_hours * 3600)
        if resources.accelerator:
            _on_accelerators(task, profile.kubernetes, resources)

    def place_beside(task: dsl.PipelineTask, resources: Resources) -> None:
        """What is done with a published model is in the publisher's image."""
        place_task(task, images["publisher"], resources)

    return place


def finish(pipeline: BaseComponent, profile: Profile) -> BaseComponent:
    """Set what a whole run is given."""
    days = profile.kubernetes.delete_after_days
    if days is not None:
        config = {"pipelineConfig": {"resourceTtlOnCompletion": days * 24 * 3600}}
        json_format.ParseDict(config, pipeline.platform_spec.platforms["kubernetes"])
    return pipeline


def _in_a_pod(task: dsl.PipelineTask, image: str, cluster: Kubernetes, resources: Resources) -> None:
    request(task, image, resources)
    _of_the_cluster(task, cluster)
    _storage(task, cluster, resources)


def _of_the_cluster(task: dsl.PipelineTask, cluster: Kubernetes) -> None:
    for secret in cluster.secrets:
        kubernetes.use_secret_as_env(task, secret.name, {secret.key: secret.env}, optional=secret.optional)
    if cluster.pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(cluster.pull_secrets))
    if cluster.pull_policy:
        kubernetes.set_image_pull_policy(task, cluster.pull_policy)
    who = (cluster.run_as_user, cluster.run_as_group, cluster.run_as_non_root)
    if any(each is not None for each in who):
        kubernetes.set_security_context(task, *who)
    for name, value in cluster.env.items():
        task.set_env_variable(name, value)
    for name, value in cluster.labels.items():
        kubernetes.add_pod_label(task, name, value)
    for name, value in cluster.annotations.items():
        kubernetes.add_pod_annotation(task, name, value)


def _storage(task: dsl.PipelineTask, cluster: Kubernetes, resources: Resources) -> None:
    if cluster.storage_class is None:
        kubernetes.empty_dir_mount(task, "scratch", SCRATCH, size_limit=resources.disk)
    else:
        modes, kind = ["ReadWriteOnce"], cluster.storage_class
        kubernetes.add_ephemeral_volume(task, "scratch", SCRATCH, modes, resources.disk, storage_class_name=kind)
    for name, value in _scratch_variables(cluster).items():
        task.set_env_variable(name, value)
    for volume in _claims(cluster):
        kubernetes.mount_pvc(task, volume.claim, volume.path, volume.sub_path)


def _scratch_variables(cluster: Kubernetes) -> dict[str, str]:
    cache = cluster.model_cache
    return {"TMPDIR": SCRATCH, "HF_HOME": f"{cache.path if cache else SCRATCH}/huggingface"}


def _claims(cluster: Kubernetes) -> list[Volume]:
    return [*([cluster.model_cache] if cluster.model_cache else []), *cluster.volumes]


def _on_accelerators(task: dsl.PipelineTask, cluster: Kubernetes, resources: Resources) -> None:
    for each in _tolerations(cluster, resources):
        kubernetes.add_toleration(task, each.key, each.operator, each.value, each.effect)
    for name, value in _selector(cluster, resources).items():
        kubernetes.add_node_selector(task, name, value)
    for rule in cluster.affinity:
        kubernetes.add_node_affinity(task, [match.model_dump() for match in rule.match], weight=rule.weight)
    if resources.shm:
        # The runtime's default of 64 MiB is too small for NCCL and for data loaders.
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=resources.shm)


def _tolerations(cluster: Kubernetes, resources: Resources) -> list[Toleration]:
    spot = cluster.spot_tolerations if resources.spot else []
    return [Toleration(key=resources.accelerator), *cluster.tolerations, *spot]


def _selector(cluster: Kubernetes, resources: Resources) -> dict[str, str]:
    return {**cluster.node_selector, **(cluster.spot_node_selector if resources.spot else {})}


def _start_nodes(task: dsl.PipelineTask, image: str, cluster: Kubernetes, resources: Resources) -> None:
    """The task's pod only starts nodes, which get what a pod of one node gets."""
    _in_a_pod(task, image, cluster, nodes.launcher(resources))
    kubernetes.set_timeout(task, nodes.seconds(cluster, resources))
    env = {**cluster.env, **_scratch_variables(cluster)}
    task.set_env_variable(nodes.VARIABLE, nodes.trainjob(cluster, resources, image, env, _pod(cluster, resources)))


def _pod(cluster: Kubernetes, resources: Resources) -> dict[str, Any]:
    """The same as `_storage` and `_on_accelerators` set, in the words of Kubernetes."""
    mounts = [("scratch", {"mountPath": SCRATCH})]
    if cluster.storage_class is None:
        volumes: list[dict[str, Any]] = [{"name": "scratch", "emptyDir": {"sizeLimit": resources.disk}}]
    else:
        claim = {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": cluster.storage_class,
            "resources": {"requests": {"storage": resources.disk}},
        }
        volumes = [{"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": claim}}}]
    for number, volume in enumerate(_claims(cluster)):
        volumes.append({"name": f"volume-{number}", "persistentVolumeClaim": {"claimName": volume.claim}})
        below = {"subPath": volume.sub_path} if volume.sub_path else {}
        mounts.append((f"volume-{number}", {"mountPath": volume.path, **below}))
    if resources.shm:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": resources.shm}})
        mounts.append(("shm", {"mountPath": "/dev/shm"}))
    required, preferred = [], []
    for rule in cluster.affinity:
        expressions = {"matchExpressions": [match.model_dump() for match in rule.match]}
        if rule.weight is None:
            required.append(expressions)
        else:
            preferred.append({"weight": rule.weight, "preference": expressions})
    affinity = {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": required} if required else None,
        "preferredDuringSchedulingIgnoredDuringExecution": preferred,
    }
    return {
        "volumes": volumes,
        "mounts": [{"name": name, **where} for name, where in mounts],
        "node_selector": _selector(cluster, resources),
        "tolerations": [each.model_dump(exclude_none=True) for each in _tolerations(cluster, resources)],
        "affinity": {"nodeAffinity": {k: v for k, v in affinity.items() if v}} if cluster.affinity else None,
    }
