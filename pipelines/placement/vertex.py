"""Placement on Vertex AI Pipelines.

Nothing of `kfp.kubernetes` may be used here: it adds a second document to the file, which Vertex's client refuses.
"""

import copy
import json
from collections.abc import Callable
from math import ceil

from kfp import dsl
from kfp.dsl.base_component import BaseComponent
from kfp.dsl.pipeline_channel import PipelineParameterChannel

from pipelines.placement import serving
from pipelines.placement.cluster import Profile, is_stage, machine_type, request, retry, size, stage_of

# Parameters of the job, and those of every pipeline that they are given by.
FROM_THE_PIPELINE = {"tensorboard": "tensorboard_resource_id", "encryption_spec_key_name": "encryption_spec_key_name"}
# Where a job's event files are streamed from: Vertex AI gives it to the job as AIP_TENSORBOARD_LOG_DIR, below this.
JOB_FOLDER = (
    f"{dsl.PIPELINE_ROOT_PLACEHOLDER}/jobs/{dsl.PIPELINE_JOB_NAME_PLACEHOLDER}/{dsl.PIPELINE_TASK_ID_PLACEHOLDER}"
)
SECRETS_VARIABLE = "RLHF_SECRETS"  # must be what rlhf.secrets reads; placement does not import rlhf


def placement(profile: Profile, images: dict[str, str]) -> Callable[[BaseComponent], Callable[..., dsl.PipelineTask]]:
    """Place each stage on a machine as `profile` says.

    Stages become custom jobs, which alone can be told the machine type, the disk, the time limit, the account, or to
    take spot machines. What is only a part of a stage, and takes seconds, is a plain task.

    Args:
        profile: A profile whose platform is "vertex".
        images: {stage: image}, from `components.images.cluster_images`.
    """

    def place(component: BaseComponent) -> Callable[..., dsl.PipelineTask]:
        stage = stage_of(component)
        resources = profile.stages[stage]
        if is_stage(component):
            job = _custom_job(component, profile, images[stage])

        def create(**arguments) -> dsl.PipelineTask:
            if not is_stage(component):
                task = component(**arguments)
                request(task, images[stage], resources)
                for name, value in {**profile.vertex.env, **_secrets(profile)}.items():
                    task.set_env_variable(name, value)
                return task
            given = {name: PipelineParameterChannel(pipeline, "String") for name, pipeline in FROM_THE_PIPELINE.items()}
            if not resources.accelerator:
                given.pop("tensorboard")
            task = job(**arguments, **given)
            retry(task, resources)
            if stage == "publisher":
                serving.on_vertex(task, arguments["publish_to"], profile)
            return task

        return create

    return place


def finish(pipeline: BaseComponent, profile: Profile) -> BaseComponent:
    """A run is given nothing beside what its tasks have."""
    return pipeline


def _secrets(profile: Profile) -> dict[str, str]:
    """Names of secrets, never what they hold."""
    secrets = profile.vertex.secrets
    return {SECRETS_VARIABLE: json.dumps(dict(secrets), sort_keys=True)} if secrets else {}


def _custom_job(component: BaseComponent, profile: Profile, image: str) -> BaseComponent:
    from google_cloud_pipeline_components import _placeholders
    from google_cloud_pipeline_components.v1.custom_job import create_custom_training_job_from_component

    resources, settings = profile.stages[stage_of(component)], profile.vertex
    flex_start = settings.flex_start and resources.accelerator is not None  # machines without one are always free
    strategy = "SPOT" if resources.spot else "FLEX_START" if flex_start else "STANDARD"
    component = copy.deepcopy(component)
    component.component_spec.implementation.container.image = image
    return create_custom_training_job_from_component(
        component,
        display_name=component.name,
        replica_count=resources.nodes,
        machine_type=machine_type(resources, settings.flex_start),
        accelerator_type=resources.accelerator or "",
        accelerator_count=resources.count,
        boot_disk_type=profile.disk_type(stage_of(component)),
        boot_disk_size_gb=max(100, ceil(size(resources.disk) / 10**9)),
        timeout=f"{resources.timeout_hours * 3600}s",
        # One that was taken away leaves others waiting for it.
        restart_job_on_worker_restart=resources.nodes > 1,
        # A job that the run starts has its account and network only where it is told so; Vertex fills these in.
        service_account=settings.service_account or _placeholders.SERVICE_ACCOUNT_PLACEHOLDER,
        network=settings.network or _placeholders.NETWORK_PLACEHOLDER,
        labels=dict(settings.labels),
        # An input, and another one in every run: where nothing is streamed, it would keep a step out of the cache.
        base_output_directory=JOB_FOLDER if stage_of(component).endswith("_trainer") else "",
        env=[{"name": name, "value": value} for name, value in {**settings.env, **_secrets(profile)}.items()],
        strategy=strategy,
        max_wait_duration=f"{settings.max_wait_hours * 3600}s",
    )
