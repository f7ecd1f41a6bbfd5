"""Validate the input data and settings of a run before anything expensive starts."""

from kfp import dsl

from components.images import image


@dsl.component(base_image=image("data_validation"), install_kfp_package=False)
def data_validation(
    prompt_dataset: str,
    large_model_reference: str,
    preferences: dsl.Output[dsl.Dataset],
    prompts: dsl.Output[dsl.Dataset],
    evaluation: dsl.Output[dsl.Dataset],
    demonstrations: dsl.Output[dsl.Dataset],
    quarantine: dsl.Output[dsl.Dataset],
    report: dsl.Output[dsl.HTML],
    findings: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    preference_dataset: str = "",
    eval_dataset: str = "",
    demonstration_dataset: str = "",
    instruction: str = "",
    prompt_sequence_length: int = 512,
    target_sequence_length: int = 64,
    reward_model_train_steps: int = 1000,
    reward_model_learning_rate_multiplier: float = 1.0,
    reinforcement_learning_train_steps: int = 1000,
    reinforcement_learning_rate_multiplier: float = 1.0,
    kl_coeff: float = 0.1,
    publish_to: str = "",
    model_display_name: str = "",
    seed: int = 0,
    grader: dict = {},
    sft: dict = {},
    reward: dict = {},
    ppo: dict = {},
    grpo: dict = {},
    inference: dict = {},
    evaluation_options: dict = {},
    options: dict = {},
    sources: str = "",
) -> list[int]:
    """Read every input once, write it in one canonical form, and check the settings of all later stages.

    Rows are never dropped in silence: each is in one of the outputs or, whole and with its file, line and reason, in
    `quarantine`. A wrong setting of any stage, a missing file or a model that is not there ends the run here, before
    a later stage asks for an accelerator.

    Args:
        prompt_dataset: URI of the prompts that the policy is tuned on.
        large_model_reference: Base model that the run tunes: Hugging Face id, path, URI or a short name.
        preferences: Canonical preferences: `id, prompt, chosen, rejected, split, position, margin`.
        prompts: Canonical prompts: `id, prompt, reference`.
        evaluation: Canonical held-out prompts: `id, prompt, reference`.
        demonstrations: Canonical demonstrations: `id, prompt, completion`; no rows if none were given.
        quarantine: Rows that cannot be used: `file, line, offset, reason, field, row`.
        report: What was found in the data: a verdict for each check, counts, plots and examples.
        findings: The same as JSON, for programs.
        metrics: Rows by output, quarantined share, and, where the model has a tokenizer.json, the shares of prompts
            and completions with more tokens than the sequence lengths allow.
        preference_dataset: URI of preferences, for example `input_text`, `candidate_0`, `candidate_1`, `choice`; empty
            only where there is a grader, which takes the reward model's place.
        eval_dataset: URI of prompts to evaluate on, with human references if there are; empty holds out some of
            prompt_dataset, which are then not trained on.
        demonstration_dataset: URI of demonstrations for supervised fine-tuning; empty for none.
        instruction: Text put before every prompt.
        prompt_sequence_length: Longest prompt in tokens; longer ones are cut, never losing instruction or suffix.
        target_sequence_length: Longest completion in tokens.
        reward_model_train_steps: Checked here, used by reward_trainer.
        reward_model_learning_rate_multiplier: Checked here, used by reward_trainer.
        reinforcement_learning_train_steps: Checked here, used by ppo_trainer.
        reinforcement_learning_rate_multiplier: Checked here, used by ppo_trainer.
        kl_coeff: Checked here, used by ppo_trainer.
        publish_to: Checked here, used by publisher: whether a model can be written there, by a file that is removed.
        model_display_name: Checked here, used by publisher.
        seed: Decides which prompts are held out.
        grader: Checked here, used by grpo_trainer and evaluator; with it and without preference_dataset, the steps,
            the multiplier and kl_coeff of reinforcement learning are grpo_trainer's.
        sft: Options of sft_trainer, checked here.
        reward: Options of reward_trainer, checked here.
        ppo: Options of ppo_trainer, checked here.
        grpo: Options of grpo_trainer, checked here.
        inference: Options of bulk_inference, checked here.
        evaluation_options: Options of evaluator, checked here.
        options: Further options of this stage, by the names in `rlhf.data_validation.config`.
        sources: What the files were when the run began (`data_fingerprint`). Not read: it is here so that a cached
            result is taken only while they are the same.

    Returns:
        Numbers of the parts into which bulk_inference cuts the prompts, for a loop over them.
    """
    from rlhf.job import merge_options, stage_job

    parameters = {
        "reward.train_steps": "reward_model_train_steps",
        "reward.learning_rate_multiplier": "reward_model_learning_rate_multiplier",
        "ppo.train_steps": "reinforcement_learning_train_steps",
        "ppo.learning_rate_multiplier": "reinforcement_learning_rate_multiplier",
        "ppo.kl_coeff": "kl_coeff",
    }
    tuning = ("train_steps", "learning_rate_multiplier", "kl_coeff")
    parameters |= {f"grpo.{name}": parameters[f"ppo.{name}"] for name in tuning} | {"grpo.grader": "grader"}
    with stage_job("data_validation", metrics, parameters) as job:
        from rlhf.data_validation.config import DataValidationConfig
        from rlhf.data_validation.stage import run

        config = DataValidationConfig.parse(
            merge_options(
                options,
                "data_validation",
                preference_dataset=preference_dataset,
                prompt_dataset=prompt_dataset,
                eval_dataset=eval_dataset,
                demonstration_dataset=demonstration_dataset,
                large_model_reference=large_model_reference,
                instruction=instruction,
                prompt_sequence_length=prompt_sequence_length,
                target_sequence_length=target_sequence_length,
                publish_to=publish_to,
                model_display_name=model_display_name,
                seed=seed,
                sft=merge_options(sft, "sft", seed=seed),
                reward=merge_options(
                    reward,
                    "reward",
                    train_steps=reward_model_train_steps,
                    learning_rate_multiplier=reward_model_learning_rate_multiplier,
                    seed=seed,
                ),
                ppo=merge_options(
                    ppo,
                    "ppo",
                    train_steps=reinforcement_learning_train_steps,
                    learning_rate_multiplier=reinforcement_learning_rate_multiplier,
                    kl_coeff=kl_coeff,
                    seed=seed,
                ),
                grpo=merge_options(
                    grpo,
                    "grpo",
                    train_steps=reinforcement_learning_train_steps,
                    learning_rate_multiplier=reinforcement_learning_rate_multiplier,
                    kl_coeff=kl_coeff,
                    seed=seed,
                    grader=grader or None,
                ),
                inference=merge_options(inference, "inference", seed=seed),
                evaluation=merge_options(evaluation_options, "evaluation", seed=seed),
            )
        )
        job.log(
            run(
                config,
                preferences=preferences.path,
                prompts=prompts.path,
                evaluation=evaluation.path,
                demonstrations=demonstrations.path,
                quarantine=quarantine.path,
                report=report.path,
                findings=findings.path,
            )
        )
        job.describe(preferences, prompts, evaluation, demonstrations, quarantine)

        from rlhf.bulk_inference.config import BulkInferenceConfig

        shards = BulkInferenceConfig.parse(config.inference, "inference").shards
    return list(range(shards))
