"""Steps that pipelines share."""

from collections.abc import Callable
from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

# Creates a task of a component that is placed.
Step = Callable[..., dsl.PipelineTask]
# Takes a component and returns what creates its task, placed where it should run (pipelines/placement).
Placement = Callable[[BaseComponent], Step]


def completions(generate: Step, when: str, data: dict[str, Any], **arguments: Any) -> dict[str, Any]:
    """Outputs of bulk inference on the evaluation prompts, a task for each shard of them.

    Args:
        generate: Creates a task of bulk_inference.
        when: Of training: before or after.
        data: Outputs of data_validation.
        arguments: Of bulk_inference: model or base_model, seed and options.
    """
    with dsl.ParallelFor(data["Output"], name=when) as shard:
        task = generate(prompts=data["evaluation"], shard=shard, **arguments)
        return task.set_display_name(f"bulk-inference-{when}").outputs


def publish_if_promoted(
    publish: Step, model: Any, data: dict[str, Any], verdict: dict[str, Any], publish_to: str, model_display_name: str
) -> None:
    """Publish a model where the verdict is promote and there is a place for it.

    Args:
        publish: Creates a task of publisher.
        data, verdict: Outputs of data_validation, and of evaluator.
    """
    with dsl.If(publish_to != "", name="to-be-published"), dsl.If(verdict["Output"] == "promote", name="promoted"):
        published = publish(
            model=model,
            evaluation=data["evaluation"],
            figures=verdict["metrics"],
            publish_to=publish_to,
            model_display_name=model_display_name,
        )
        published.set_caching_options(False)  # what is to be in the folder may have been removed since
