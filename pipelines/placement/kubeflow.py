"""Placement on self-hosted Kubeflow Pipelines."""

from collections.abc import Callable

from kfp import dsl, kubernetes
from kfp.dsl.base_component import BaseComponent

from pipelines.placement.cluster import Profile, request, stage_of

# An optional Secret in the namespace of the run; without it, stages reach public models only.
HUGGING_FACE_SECRET = "hugging-face"
HUGGING_FACE_SECRET_KEY = "token"


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
            task = component(**arguments)
            request(task, images[stage], resources)
            kubernetes.use_secret_as_env(
                task, HUGGING_FACE_SECRET, {HUGGING_FACE_SECRET_KEY: "HF_TOKEN"}, optional=True
            )
            if resources.accelerator:
                kubernetes.add_toleration(task, key=resources.accelerator, operator="Exists", effect="NoSchedule")
            if resources.shm:
                # The runtime's default of 64 MiB is too small for NCCL and for data loaders.
                kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=resources.shm)
            if resources.timeout_hours:
                kubernetes.set_timeout(task, resources.timeout_hours * 3600)
            return task

        return create

    return place
