"""Train a scalar reward model on human preferences."""

from kfp import dsl

from components.images import image


@dsl.component(base_image=image("reward_trainer"), install_kfp_package=False)
def reward_trainer(
    preferences: dsl.Input[dsl.Dataset],
    policy: dsl.Input[dsl.Model],
    reward_model: dsl.Output[dsl.Model],
    scores: dsl.Output[dsl.Dataset],
    report: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
    calibration: dsl.Output[dsl.ClassificationMetrics],
    tensorboard: dsl.Output[dsl.Artifact],
    train_steps: int = 1000,
    learning_rate_multiplier: float = 1.0,
    seed: int = 0,
    options: dict = {},
):
    """Fit a reward model with the pairwise logistic loss of Stiennon et al. 2020, eq. 1.

    Args:
        preferences: Canonical preferences (`id, prompt, chosen, rejected, split`) from data_validation.
        policy: Model whose trunk is used, unless `options.base_model` names another.
        reward_model: Hugging Face folder with `rlhf.json`, or a PEFT adapter naming its base; held-out chosen responses
            average 0.
        scores: Parquet file with the scores of the held-out pairs, also with prompts exchanged between pairs.
        report: What the reward model learned, what it looks at, and whether to believe it.
        metrics: Accuracy on held-out pairs with its interval, beside what it is worth with prompts exchanged, on pairs
            trained on, and for rules that need no model; calibration error, loss, and the shift.
        calibration: ROC curve and confusion matrix of "the first candidate is preferred"; reliability bins in its file.
        tensorboard: Event files with `rank_loss`, `learning_rate` and accuracies.
        train_steps: Optimiser steps.
        learning_rate_multiplier: Multiplies the learning rate.
        seed: Seeds the head's first weights and the order of the data.
        options: Further options, by the names in `rlhf.reward_trainer.config`.
    """
    from rlhf.job import merge_options, stage_job

    with stage_job("reward_trainer", metrics) as job:
        job.check(preferences)
        from rlhf.reward_trainer.config import RewardTrainerConfig
        from rlhf.reward_trainer.stage import run
        from rlhf.training.launch import launch

        settings = merge_options(
            options,
            "reward",
            train_steps=train_steps,
            learning_rate_multiplier=learning_rate_multiplier,
            seed=seed,
        )
        job.log(
            launch(
                "reward_trainer",
                run,
                RewardTrainerConfig.parse(settings, "reward"),
                preferences=preferences.path,
                policy=policy.path,
                reward_model=reward_model.path,
                scores=scores.path,
                calibration=calibration.path,
                report=report.path,
                tensorboard=tensorboard.path,
            )
        )
        job.log_classification(calibration)
        job.describe(reward_model)
