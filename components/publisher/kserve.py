"""Serve the published model on the cluster, and enter it in the Model Registry. In the publisher's image.

Not stages of the pipeline: they are there where a profile asks for them (`pipelines/placement/kubeflow.py`).
"""

from kfp import dsl

from components.images import image


@dsl.component(base_image=image("publisher"), install_kfp_package=False)
def kserve(
    published: dsl.Input[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    publish_to: str,
    deploy: bool = False,
    service: dict = {},
    registry: dict = {},
) -> str:
    """Write and apply an InferenceService, wait until it is ready, and enter the model in the Model Registry.

    Args:
        published: From the publisher; its metadata has name, digest and the figures that it was judged by.
        metrics: `deployed` and `registered`, 0 or 1 each.
        publish_to: Folder that the model was copied to.
        deploy: Whether to serve it.
        service: `rlhf.publisher.kserve.KServeConfig`.
        registry: `rlhf.publisher.registry.RegistryConfig`; empty: it is entered nowhere.

    Returns:
        URL of the service; empty where there is none.
    """
    from rlhf.job import stage_job

    with stage_job("kserve", metrics) as job:
        from rlhf.publisher.serve import ServeConfig, run

        config = ServeConfig.parse({"deploy": deploy, "service": service, "registry": registry or None})
        url, done = run(config, dict(published.metadata), publish_to)
        job.log(done)
    return url


@dsl.component(base_image=image("publisher"), install_kfp_package=False)
def kserve_check(service: dict = {}):
    """Fail before anything is trained where the cluster has no KServe, or this pod may not use it.

    Args:
        service: `rlhf.publisher.kserve.KServeConfig`.
    """
    from rlhf.job import stage_errors

    with stage_errors("kserve"):
        from rlhf.publisher.kserve import Cluster, KServeConfig

        Cluster(KServeConfig.parse(service, "kserve")).check()
