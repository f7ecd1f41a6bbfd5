"""Tune the policy against a grader with GRPO or RLOO."""

from typing import Optional

from kfp import dsl

from components.images import image


@dsl.component(base_image=image("grpo_trainer"), install_kfp_package=False)
def grpo_trainer(
    prompts: dsl.Input[dsl.Dataset],
    base_model: str,
    tuned_policy: dsl.Output[dsl.Model],
    samples: dsl.Output[dsl.Dataset],
    report: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
    tensorboard: dsl.Output[dsl.Artifact],
    policy: Optional[dsl.Input[dsl.Model]] = None,  # noqa: UP045 - KFP does not read `X | None`
    reward_model: Optional[dsl.Input[dsl.Model]] = None,  # noqa: UP045
    grader: dict = {},
    train_steps: int = 1000,
    learning_rate_multiplier: float = 1.0,
    kl_coeff: float = 0.04,
    seed: int = 0,
    options: dict = {},
):
    """Tune a policy by groups of graded completions: by GRPO (Shao et al. 2024) or RLOO (Ahmadian et al. 2024).

    Of each prompt several completions are sampled and graded, and the policy is moved towards those that are better
    than the others. Causal models are trained by TRL's GRPOTrainer and RLOOTrainer, encoder-decoders by the PPO
    trainer's loop with advantages within groups.

    Args:
        prompts: Canonical prompts (`id, prompt, reference`) from data_validation.
        base_model: Model to start from: Hugging Face id, path, URI or a short name.
        tuned_policy: Hugging Face folder with `rlhf.json`, or a PEFT adapter naming its base.
        samples: JSON lines `update, id, completion, score` of completions through training.
        report: What became of grade, groups without a signal, spread within groups, KL and length, alarms, and
            completions through training.
        metrics: Grade before and after, on held-out prompts too, the share of groups without a signal, KL to the policy
            it started from, and numbers of alarms, skipped steps and completions without a grade.
        tensorboard: Event files with `reward`, `kl_loss`, `rl_loss`, `learning_rate`, `grpo/...` and `eval/...`.
        policy: Model to start from in place of `base_model`, from sft_trainer.
        reward_model: Its score is added to the grades. Either it or a grader is needed.
        grader: What grades: a mapping with `function`, `http`, `builtin`, `sum` or `product`, see docs/graders.md.
        train_steps: Updates; each samples a batch of completions and takes one step on it.
        learning_rate_multiplier: Multiplies the learning rate.
        kl_coeff: Weight of the KL from the policy that training starts from; 0 leaves the grader alone in charge.
        seed: Seeds the order of the prompts and the sampling.
        options: Further options, by the names in docs/parameters.md under `grpo`: `algorithm`, `batch_size`,
            `group_size`, `tuning`, `checkpoint_dir` and others.
    """
    from rlhf.job import merge_options, stage_job

    with stage_job("grpo_trainer", metrics, {"grpo.grader": "grader"}) as job:
        job.check(prompts)
        from rlhf.grpo_trainer.config import GRPOTrainerConfig
        from rlhf.grpo_trainer.stage import run
        from rlhf.training.launch import launch

        settings = merge_options(
            options,
            "grpo",
            train_steps=train_steps,
            learning_rate_multiplier=learning_rate_multiplier,
            kl_coeff=kl_coeff,
            seed=seed,
            grader=grader or None,
        )
        job.log(
            launch(
                "grpo_trainer",
                run,
                GRPOTrainerConfig.parse(settings, "grpo"),
                prompts=prompts.path,
                policy=policy.path if policy else base_model,
                reward_model=reward_model.path if reward_model else "",
                tuned_policy=tuned_policy.path,
                samples=samples.path,
                report=report.path,
                tensorboard=tensorboard.path,
            )
        )
        job.describe(tuned_policy)
