"""Publish the tuned model where servers load it from."""

from kfp import dsl

from components.images import image


@dsl.component(base_image=image("publisher"), install_kfp_package=False)
def publisher(
    model: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Dataset],
    figures: dsl.Input[dsl.Metrics],
    published: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    publish_to: str,
    model_display_name: str = "",
) -> str:
    """Make the tuned model a folder that servers load as it is, with a model card, and copy it to where they find it.

    An adapter is merged into its base. A reader of `publish_to` finds a whole model or none: config.json comes last. A
    task that is started again copies what is not there yet; a folder that holds anything else is refused.

    Args:
        model: Tuned policy from ppo_trainer or grpo_trainer, whole or an adapter.
        evaluation: Canonical held-out prompts from data_validation; the prompt template stands beside them.
        figures: Metrics of the evaluator: the verdict and what it rests on, for the model card.
        published: Hugging Face folder: safetensors, tokenizer, generation_config.json, README.md. Its metadata has the
            display name, where it was copied to (`published_to`), framework, architecture, digests and the figures.
        metrics: Bytes and files of the model, files copied, and whether an adapter was merged.
        publish_to: Folder on disk, or its URI (file://, gs://, s3://); one for each model.
        model_display_name: What people call the model; empty: the base model's name with `-rlhf`.

    Returns:
        What people call the model.
    """
    from rlhf.job import merge_options, stage_job

    with stage_job("publisher", metrics) as job:
        job.check(evaluation)
        from rlhf.publisher.config import PublisherConfig
        from rlhf.publisher.stage import run

        numbers = {name: value for name, value in figures.metadata.items() if isinstance(value, int | float)}
        config = PublisherConfig.parse(
            merge_options(
                {}, "publisher", publish_to=publish_to, model_display_name=model_display_name, figures=numbers
            )
        )
        job.log(run(config, model=model.path, evaluation=evaluation.path, published=published.path))
        job.describe(published)
    return published.metadata["display_name"]
