"""What becomes of a published model on Kubernetes: a service, and an entry in the Model Registry."""

from typing import Any

from rlhf.config import StageConfig
from rlhf.data.file_systems import redacted
from rlhf.progress import say
from rlhf.publisher.card import FIGURES
from rlhf.publisher.kserve import STAGE, Cluster, KServeConfig, inference_service, service_name, storage_uri
from rlhf.publisher.registry import RegistryConfig, register


class ServeConfig(StageConfig):
    """What is to be done."""

    deploy: bool
    service: KServeConfig
    registry: RegistryConfig | None = None


def run(config: ServeConfig, published: dict[str, Any], publish_to: str) -> tuple[str, dict[str, float]]:
    """Deploy first: what is entered in the registry as deployed is so.

    Args:
        published: The publisher's metadata: display_name, digest and figures.
        publish_to: Folder that the model was copied to.

    Returns:
        URL of the service, empty without one; deployed and registered, 0 or 1 each.

    Raises:
        ConfigError: Nothing of the model's name can be in the name of a service.
        ModelError: The folder can be read by the publisher alone.
        ServingError, RegistryError: The cluster or the registry refuses.
    """
    name, url = published["display_name"], ""
    properties = {key: published[key] for key in FIGURES if key in published}
    if config.deploy:
        service = service_name(config.service.name, name)
        cluster = Cluster(config.service)
        uri = storage_uri(publish_to, config.service.volumes)
        cluster.apply(inference_service(config.service, service, uri))
        url = cluster.wait(service)
        say(STAGE, f"{name} is served at {url or 'an address that KServe does not say'}")
        properties |= {"inference_service": f"{cluster.namespace}/{service}"}
    registered = False
    if config.registry:
        registered = register(config.registry, name, redacted(publish_to), published["digest"], properties)
    return url, {"deployed": float(config.deploy), "registered": float(registered)}
