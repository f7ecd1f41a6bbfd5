"""Tune the policy against the reward model with PPO."""

from kfp import dsl

from components.images import image


@dsl.component(base_image=image("ppo_trainer"), install_kfp_package=False)
def ppo_trainer(
    prompts: dsl.Input[dsl.Dataset],
    policy: dsl.Input[dsl.Model],
    reward_model: dsl.Input[dsl.Model],
    tuned_policy: dsl.Output[dsl.Model],
    samples: dsl.Output[dsl.Dataset],
    report: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
    tensorboard: dsl.Output[dsl.Artifact],
    train_steps: int = 1000,
    learning_rate_multiplier: float = 1.0,
    kl_coeff: float = 0.1,
    seed: int = 0,
    options: dict = {},
):
    """Tune a policy with proximal policy optimisation (Schulman et al. 2017; details of Huang et al. 2024).

    Args:
        prompts: Canonical prompts (`id, prompt, reference`) from data_validation.
        policy: Model to start from, and to stay close to.
        reward_model: Scores each completion; `options` may add reward functions.
        tuned_policy: Hugging Face folder with `rlhf.json`, or a PEFT adapter naming its base.
        samples: JSON lines `update, id, completion, score, kl` of episodes through training.
        report: What became of reward, KL, length and entropy, alarms of over-optimisation, and completions through
            training.
        metrics: Reward before and after, KL to the policy it started from, the share of completions that end, and
            numbers of alarms, skipped steps and episodes without a reward.
        tensorboard: Event files with `reward`, `kl_loss`, `rl_loss`, `learning_rate`, `ppo/...` and `eval/...`.
        train_steps: Updates; each samples a batch of episodes and trains on it.
        learning_rate_multiplier: Multiplies the learning rates.
        kl_coeff: Weight of the per-token KL penalty in the reward; 0 leaves the reward model alone in charge.
        seed: Seeds the order of the prompts and the sampling.
        options: Further options, by the names in `rlhf.ppo_trainer.config`.
    """
    from rlhf.job import merge_options, stage_job

    with stage_job("ppo_trainer", metrics) as job:
        job.check(prompts)
        from rlhf.ppo_trainer.config import PPOTrainerConfig
        from rlhf.ppo_trainer.stage import run
        from rlhf.training.launch import launch

        settings = merge_options(
            options,
            "ppo",
            train_steps=train_steps,
            learning_rate_multiplier=learning_rate_multiplier,
            kl_coeff=kl_coeff,
            seed=seed,
        )
        job.log(
            launch(
                "ppo_trainer",
                run,
                PPOTrainerConfig.parse(settings, "ppo"),
                prompts=prompts.path,
                policy=policy.path,
                reward_model=reward_model.path,
                tuned_policy=tuned_policy.path,
                samples=samples.path,
                report=report.path,
                tensorboard=tensorboard.path,
            )
        )
        job.describe(tuned_policy)
