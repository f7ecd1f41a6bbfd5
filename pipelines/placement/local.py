"""Placement on this machine: tasks run as they are, in processes of this Python environment, or in their images."""

from collections.abc import Callable

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from pipelines.placement.cluster import stage_of


def place(component: BaseComponent) -> BaseComponent:
    """A component is already what creates its task."""
    return component


def in_containers(images: dict[str, str]) -> Callable[[BaseComponent], Callable[..., dsl.PipelineTask]]:
    """Place each stage in a container of its image on this machine.

    Args:
        images: {stage: image}, from `components.images.local_images`.
    """

    def place_in_container(component: BaseComponent) -> Callable[..., dsl.PipelineTask]:
        return lambda **arguments: component(**arguments).set_container_image(images[stage_of(component)])

    return place_in_container
