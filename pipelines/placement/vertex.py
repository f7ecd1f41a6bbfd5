"""Placement on Vertex AI Pipelines.

Nothing of `kfp.kubernetes` may be used here: it adds a second document to the file, which Vertex's client refuses.
"""

from collections.abc import Callable

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from pipelines.placement.cluster import Profile, request, stage_of


def placement(profile: Profile, images: dict[str, str]) -> Callable[[BaseComponent], Callable[..., dsl.PipelineTask]]:
    """Place each stage on a machine as `profile` says; Vertex picks the machine type that fits.

    Args:
        profile: A profile whose platform is "vertex".
        images: {stage: image}, from `components.images.cluster_images`.
    """

    def place(component: BaseComponent) -> Callable[..., dsl.PipelineTask]:
        stage = stage_of(component)

        def create(**arguments) -> dsl.PipelineTask:
            task = component(**arguments)
            request(task, images[stage], profile.stages[stage])
            return task

        return create

    return place
