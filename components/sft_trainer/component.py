"""Fine-tune the base model on demonstrations."""

from kfp import dsl

from components.images import image


@dsl.component(base_image=image("sft_trainer"), install_kfp_package=False)
def sft_trainer(
    demonstrations: dsl.Input[dsl.Dataset],
    base_model: str,
    policy: dsl.Output[dsl.Model],
    report: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
    tensorboard: dsl.Output[dsl.Artifact],
    seed: int = 0,
    options: dict = {},
):
    """Fine-tune a base model on demonstrations, so that reinforcement learning starts from a model that knows the task.

    Without demonstrations nothing is trained: the policy then refers to the base model. The pipeline therefore has
    the same shape with and without this step, on every platform.

    Args:
        demonstrations: Canonical demonstrations (`id, prompt, completion`) from data_validation; may hold no rows.
        base_model: Hugging Face id, path, URI or short name of a causal or encoder-decoder model.
        policy: Hugging Face folder with `rlhf.json`, a PEFT adapter naming its base, or a reference to the base model.
        report: Whether it learned or memorises, whether its completions end, and what it said through training.
        metrics: Loss on what was trained on and on what was held out, ROUGE and the share of completions that end,
            steps, numbers of demonstrations, and the shares that were cut.
        tensorboard: Event files with `sft/loss`, `learning_rate`, `sft/eval_loss`, `sft/rouge_l`, `sft/ended`.
        seed: Seeds new weights and the order of the data.
        options: Further options, by the names in `rlhf.sft_trainer.config`.
    """
    from rlhf.job import merge_options, stage_job

    with stage_job("sft_trainer", metrics) as job:
        job.check(demonstrations)
        from rlhf.sft_trainer.config import SFTTrainerConfig
        from rlhf.sft_trainer.stage import run
        from rlhf.training.launch import launch

        job.log(
            launch(
                "sft_trainer",
                run,
                SFTTrainerConfig.parse(merge_options(options, "sft", seed=seed), "sft"),
                demonstrations=demonstrations.path,
                base_model=base_model,
                policy=policy.path,
                report=report.path,
                tensorboard=tensorboard.path,
            )
        )
        job.describe(policy)
