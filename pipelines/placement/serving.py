"""What is done with a published model: on Kubernetes a service of KServe, on Vertex AI a model and an endpoint.

Called where the publisher's task is created, so that it stands under the same conditions. What the run is given is
taken from the pipeline's parameters, which every pipeline with a publisher has.
"""

from collections.abc import Callable
from math import ceil

from kfp import dsl
from kfp.dsl.pipeline_channel import PipelineParameterChannel

from components.publisher.kserve import kserve, kserve_check
from pipelines.placement.cluster import Kubernetes, Profile, Resources

# Waits, and asks questions.
SMALL = Resources(cpu=1, memory="2Gi", disk="1Gi", timeout_hours=1, retries=1)


def deploy_model() -> PipelineParameterChannel:
    return PipelineParameterChannel("deploy_model", "Boolean")


def on_kubernetes(published: dsl.PipelineTask, publish_to, profile: Profile, place: Callable) -> None:
    """Serve with KServe where `deploy_model` is set, and enter the model in the Model Registry, as a profile has them.

    Args:
        published: The publisher's task.
        publish_to: Folder that the model is copied to.
        place: Places a task as others are, given its resources.
    """
    cluster = profile.kubernetes
    if not (cluster.kserve or cluster.model_registry):
        return

    def serve(deploy) -> None:
        task = kserve(
            published=published.outputs["published"],
            publish_to=publish_to,
            deploy=deploy,
            service=service_options(cluster),
            registry=cluster.model_registry.model_dump() if cluster.model_registry else {},
        )
        waits = cluster.kserve.wait_minutes if cluster.kserve else 0
        place(task, SMALL.model_copy(update={"timeout_hours": 1 + ceil(waits / 60)}))
        task.set_caching_options(False)  # somebody may have deleted the service since

    if not cluster.kserve:
        serve(False)
    elif cluster.model_registry:
        serve(deploy_model())
    else:
        with dsl.If(deploy_model() == True, name="to-be-served"):  # noqa: E712 - KFP compiles the comparison
            serve(True)


def check_kubernetes(profile: Profile, place: Callable) -> None:
    """Where a model is to be served in the end, see at the beginning whether that can be."""
    if profile.kubernetes.kserve:
        with dsl.If(deploy_model() == True, name="can-be-served"):  # noqa: E712
            task = kserve_check(service=service_options(profile.kubernetes))
            place(task, SMALL.model_copy(update={"retries": 0}))  # the sooner it fails, the less is trained in vain
            task.set_caching_options(False)


def service_options(cluster: Kubernetes) -> dict:
    """What the pod is told: a profile's settings, and where its volumes are."""
    volumes = {
        volume.path: f"pvc://{volume.claim}{'/' if volume.sub_path else ''}{volume.sub_path.strip('/')}"
        for volume in cluster.volumes
    }
    return {**cluster.kserve.model_dump(exclude_none=True), "volumes": volumes} if cluster.kserve else {}


def on_vertex(published: dsl.PipelineTask, publish_to, profile: Profile) -> None:
    """Enter the model in the Model Registry, and deploy it to an endpoint of its own where `deploy_model` is set.

    Args:
        published: The publisher's task; its output is the model's name.
        publish_to: gs:// folder that the model is copied to.
    """
    from google_cloud_pipeline_components import _placeholders
    from google_cloud_pipeline_components.types.artifact_types import UnmanagedContainerModel
    from google_cloud_pipeline_components.v1.endpoint import EndpointCreateOp, ModelDeployOp
    from google_cloud_pipeline_components.v1.model import ModelUploadOp

    serving = profile.vertex.serving
    if not serving:
        return
    common = {
        "display_name": published.outputs["Output"],
        "location": _placeholders.LOCATION_PLACEHOLDER,
        "labels": dict(profile.vertex.labels),
        "encryption_spec_key_name": PipelineParameterChannel("encryption_spec_key_name", "String"),
    }
    container = {
        "imageUri": serving.image,
        "args": [arg.replace("{model}", f"{publish_to}") for arg in serving.args],
        "env": [{"name": name, "value": value} for name, value in serving.env.items()],
        "ports": [{"containerPort": serving.port}],
        "predictRoute": serving.predict_route,
        "healthRoute": serving.health_route,
    }
    if serving.command:
        container["command"] = list(serving.command)
    folder = dsl.importer(
        artifact_uri=publish_to,
        artifact_class=UnmanagedContainerModel,
        reimport=True,
        metadata={"containerSpec": container},
    ).after(published)
    folder.set_display_name("published-folder")
    uploaded = ModelUploadOp(unmanaged_container_model=folder.output, **common)
    uploaded.set_caching_options(False).set_display_name("model-upload")
    with dsl.If(deploy_model() == True, name="to-be-served"):  # noqa: E712
        endpoint = EndpointCreateOp(**common).set_caching_options(False).set_display_name("endpoint-create")
        deployed = ModelDeployOp(
            model=uploaded.outputs["model"],
            endpoint=endpoint.outputs["endpoint"],
            deployed_model_display_name=published.outputs["Output"],
            traffic_split={"0": "100"},
            dedicated_resources_machine_type=serving.machine_type,
            dedicated_resources_accelerator_type=serving.accelerator,
            dedicated_resources_accelerator_count=serving.count,
            dedicated_resources_min_replica_count=serving.min_replicas,
            dedicated_resources_max_replica_count=serving.max_replicas,
            # Without one it would be served by an account of Google's, which reads no bucket of the project.
            service_account=profile.vertex.service_account or _placeholders.SERVICE_ACCOUNT_PLACEHOLDER,
        )
        deployed.set_caching_options(False).set_display_name("model-deploy")
