"""The `rlhf` pipeline: from preference data and a base model to a tuned model and a report."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.bulk_inference.component import bulk_inference
from components.data_validation.component import data_validation
from components.data_validation.fingerprint import data_fingerprint
from components.evaluator.component import evaluator
from components.ppo_trainer.component import ppo_trainer
from components.publisher.component import publisher
from components.reward_trainer.component import reward_trainer
from components.sft_trainer.component import sft_trainer
from pipelines.steps import Placement, completions, publish_if_promoted


class Outputs(NamedTuple):
    """What the pipeline hands back: what every run makes, so nothing of the publisher."""

    report: dsl.HTML
    data_report: dsl.HTML
    data_findings: dsl.Artifact
    tuned_policy: dsl.Model
    reward_model: dsl.Model
    scores: dsl.Dataset
    samples: dsl.Dataset
    predictions_before: list[dsl.Dataset]
    predictions_after: list[dsl.Dataset]
    summary: dsl.Markdown
    side_by_side: dsl.Dataset
    data_validation_metrics: dsl.Metrics
    sft_trainer_metrics: dsl.Metrics
    reward_trainer_metrics: dsl.Metrics
    ppo_trainer_metrics: dsl.Metrics
    bulk_inference_before_metrics: list[dsl.Metrics]
    bulk_inference_after_metrics: list[dsl.Metrics]
    evaluator_metrics: dsl.Metrics


def build(place: Placement) -> BaseComponent:
    """Define the pipeline with every task placed by `place`; the DAG itself is the same everywhere."""
    identify = place(data_fingerprint)
    validate = place(data_validation)
    fine_tune = place(sft_trainer)
    train_reward_model = place(reward_trainer)
    tune = place(ppo_trainer)
    generate = place(bulk_inference)
    evaluate = place(evaluator)
    publish = place(publisher)

    @dsl.pipeline(name="rlhf", display_name="RLHF", description="Tune a model on human preferences, and evaluate it.")
    def rlhf(
        prompt_dataset: str,
        preference_dataset: str,
        large_model_reference: str,
        eval_dataset: str = "",
        model_display_name: str = "",
        prompt_sequence_length: int = 512,
        target_sequence_length: int = 64,
        reward_model_learning_rate_multiplier: float = 1.0,
        reinforcement_learning_rate_multiplier: float = 1.0,
        reward_model_train_steps: int = 1000,
        reinforcement_learning_train_steps: int = 1000,
        kl_coeff: float = 0.1,
        instruction: str = "",
        deploy_model: bool = False,
        tensorboard_resource_id: str = "",
        encryption_spec_key_name: str = "",
        demonstration_dataset: str = "",
        publish_to: str = "",
        seed: int = 0,
        data_validation: dict = {},
        sft: dict = {},
        reward: dict = {},
        ppo: dict = {},
        inference: dict = {},
        evaluation: dict = {},
    ) -> Outputs:
        """Tune a model on human preferences with PPO, and say whether it got better.

        Parameters up to `encryption_spec_key_name` have the names and defaults of the closed Vertex pipeline.

        Args:
            prompt_dataset: URI of the prompts that the policy is tuned on.
            preference_dataset: URI of preferences: prompts with two candidates and the choice between them.
            large_model_reference: Base model: Hugging Face id, path, URI or a short name such as `t5-large`.
            eval_dataset: URI of prompts to evaluate on, with human references if there are; empty holds out some of
                prompt_dataset, which are then not trained on.
            model_display_name: Name to publish the tuned model under; empty: the base model's with `-rlhf`.
            prompt_sequence_length: Longest prompt in tokens; longer ones are cut.
            target_sequence_length: Longest completion in tokens.
            reward_model_learning_rate_multiplier: Multiplies the reward trainer's learning rate.
            reinforcement_learning_rate_multiplier: Multiplies the PPO trainer's learning rates.
            reward_model_train_steps: Optimiser steps of the reward trainer.
            reinforcement_learning_train_steps: PPO updates.
            kl_coeff: Weight of the KL penalty; 0 leaves the reward model alone in charge.
            instruction: Text put before every prompt.
            deploy_model: Serve the published model: by KServe, or an endpoint of Vertex, where the profile has them.
            tensorboard_resource_id: TensorBoard of Vertex AI that training is streamed to, on Vertex.
            encryption_spec_key_name: Customer-managed encryption key, on Vertex.
            demonstration_dataset: URI of demonstrations for supervised fine-tuning; empty skips it.
            publish_to: URI of a folder for the tuned model where the verdict is promote; empty publishes nothing.
            seed: Seeds every stage.
            data_validation: Further options of data_validation.
            sft: Options of sft_trainer.
            reward: Further options of reward_trainer.
            ppo: Further options of ppo_trainer.
            inference: Options of bulk_inference, before and after alike.
            evaluation: Options of evaluator.
        """
        # Never cached: what lies under a URI may have changed while the URI has not.
        identified = identify(
            preference_dataset=preference_dataset,
            prompt_dataset=prompt_dataset,
            eval_dataset=eval_dataset,
            demonstration_dataset=demonstration_dataset,
            large_model_reference=large_model_reference,
            reward=reward,
            ppo=ppo,
            evaluation=evaluation,
        )
        identified.set_caching_options(False)
        data = validate(
            sources=identified.output,
            preference_dataset=preference_dataset,
            prompt_dataset=prompt_dataset,
            eval_dataset=eval_dataset,
            demonstration_dataset=demonstration_dataset,
            large_model_reference=large_model_reference,
            instruction=instruction,
            prompt_sequence_length=prompt_sequence_length,
            target_sequence_length=target_sequence_length,
            reward_model_train_steps=reward_model_train_steps,
            reward_model_learning_rate_multiplier=reward_model_learning_rate_multiplier,
            reinforcement_learning_train_steps=reinforcement_learning_train_steps,
            reinforcement_learning_rate_multiplier=reinforcement_learning_rate_multiplier,
            kl_coeff=kl_coeff,
            publish_to=publish_to,
            model_display_name=model_display_name,
            seed=seed,
            sft=sft,
            reward=reward,
            ppo=ppo,
            inference=inference,
            evaluation_options=evaluation,
            options=data_validation,
        ).outputs
        supervised = fine_tune(
            demonstrations=data["demonstrations"],
            base_model=large_model_reference,
            seed=seed,
            options=sft,
        ).outputs
        rewarded = train_reward_model(
            preferences=data["preferences"],
            policy=supervised["policy"],
            train_steps=reward_model_train_steps,
            learning_rate_multiplier=reward_model_learning_rate_multiplier,
            seed=seed,
            options=reward,
        ).outputs
        tuned = tune(
            prompts=data["prompts"],
            policy=supervised["policy"],
            reward_model=rewarded["reward_model"],
            train_steps=reinforcement_learning_train_steps,
            learning_rate_multiplier=reinforcement_learning_rate_multiplier,
            kl_coeff=kl_coeff,
            seed=seed,
            options=ppo,
        ).outputs

        answered = {"seed": seed, "options": inference}
        before = completions(generate, "before", data, model=supervised["policy"], **answered)
        after = completions(generate, "after", data, model=tuned["tuned_policy"], **answered)
        verdict = evaluate(
            predictions_before=dsl.Collected(before["predictions"]),
            predictions_after=dsl.Collected(after["predictions"]),
            evaluation=data["evaluation"],
            reward_model=rewarded["reward_model"],
            sft_logs=supervised["tensorboard"],
            reward_logs=rewarded["tensorboard"],
            ppo_logs=tuned["tensorboard"],
            seed=seed,
            options=evaluation,
        ).outputs
        publish_if_promoted(publish, tuned["tuned_policy"], data, verdict, publish_to, model_display_name)
        return Outputs(
            report=verdict["report"],
            data_report=data["report"],
            data_findings=data["findings"],
            tuned_policy=tuned["tuned_policy"],
            reward_model=rewarded["reward_model"],
            scores=rewarded["scores"],
            samples=tuned["samples"],
            predictions_before=dsl.Collected(before["predictions"]),
            predictions_after=dsl.Collected(after["predictions"]),
            summary=verdict["summary"],
            side_by_side=verdict["side_by_side"],
            data_validation_metrics=data["metrics"],
            sft_trainer_metrics=supervised["metrics"],
            reward_trainer_metrics=rewarded["metrics"],
            ppo_trainer_metrics=tuned["metrics"],
            bulk_inference_before_metrics=dsl.Collected(before["metrics"]),
            bulk_inference_after_metrics=dsl.Collected(after["metrics"]),
            evaluator_metrics=verdict["metrics"],
        )

    return rlhf
