"""Generate completions for many prompts with one model."""

from typing import Optional

from kfp import dsl

from components.images import image


@dsl.component(base_image=image("bulk_inference"), install_kfp_package=False)
def bulk_inference(
    prompts: dsl.Input[dsl.Dataset],
    predictions: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    model: Optional[dsl.Input[dsl.Model]] = None,  # noqa: UP045 - KFP does not read `X | None`
    base_model: str = "",
    shard: int = 0,
    seed: int = 0,
    options: dict = {},
):
    """Generate completions for each prompt, or for a part of the prompts.

    What is generated is kept as it comes (`checkpoint_dir` of the options): a task that is started again goes on there.

    Args:
        prompts: Canonical prompts (`id, prompt, reference`) from data_validation.
        model: Policy from sft_trainer, ppo_trainer or grpo_trainer.
        base_model: Model in its place: Hugging Face id, path, URI or a short name.
        predictions: JSON lines `id, prompt, prediction, finish_reason, tokens, model, template_digest`, in order.
        metrics: Number of completions, tokens per second and the share that ended by themselves.
        shard: Which part of the prompts, from 0; the options say into how many they are cut (`shards`).
        seed: Seeds the sampling; what is sampled for a prompt does not depend on the shards.
        options: Further options, by the names in `rlhf.bulk_inference.config`.
    """
    from rlhf.job import merge_options, stage_job

    with stage_job("bulk_inference", metrics) as job:
        job.check(prompts)
        from rlhf.bulk_inference.config import BulkInferenceConfig
        from rlhf.bulk_inference.stage import run

        job.log(
            run(
                BulkInferenceConfig.parse(merge_options(options, "inference", seed=seed), "inference"),
                prompts=prompts.path,
                model=model.path if model else base_model,
                predictions=predictions.path,
                shard=shard,
            )
        )
