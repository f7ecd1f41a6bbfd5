"""The `rft` pipeline: from prompts, a base model and a grader to a tuned model and a report. No preference data."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.bulk_inference.component import bulk_inference
from components.data_validation.component import data_validation
from components.data_validation.fingerprint import data_fingerprint
from components.evaluator.component import evaluator
from components.grpo_trainer.component import grpo_trainer
from components.publisher.component import publisher
from pipelines.steps import Placement, completions, publish_if_promoted


class Outputs(NamedTuple):
    """What the pipeline hands back: what every run makes, so nothing of the publisher."""

    report: dsl.HTML
    data_report: dsl.HTML
    data_findings: dsl.Artifact
    training_report: dsl.HTML
    tuned_policy: dsl.Model
    samples: dsl.Dataset
    predictions_before: list[dsl.Dataset]
    predictions_after: list[dsl.Dataset]
    summary: dsl.Markdown
    side_by_side: dsl.Dataset
    data_validation_metrics: dsl.Metrics
    grpo_trainer_metrics: dsl.Metrics
    bulk_inference_before_metrics: list[dsl.Metrics]
    bulk_inference_after_metrics: list[dsl.Metrics]
    evaluator_metrics: dsl.Metrics


def build(place: Placement) -> BaseComponent:
    """Define the pipeline with every task placed by `place`; the DAG itself is the same everywhere."""
    identify = place(data_fingerprint)
    validate = place(data_validation)
    tune = place(grpo_trainer)
    generate = place(bulk_inference)
    evaluate = place(evaluator)
    publish = place(publisher)

    @dsl.pipeline(
        name="rft",
        display_name="Reinforcement fine-tuning",
        description="Tune a model against a grader of your own, and evaluate it.",
    )
    def rft(
        prompt_dataset: str,
        large_model_reference: str,
        grader: dict,
        eval_dataset: str = "",
        model_display_name: str = "",
        prompt_sequence_length: int = 512,
        target_sequence_length: int = 64,
        reinforcement_learning_rate_multiplier: float = 1.0,
        reinforcement_learning_train_steps: int = 1000,
        kl_coeff: float = 0.04,
        instruction: str = "",
        deploy_model: bool = False,
        tensorboard_resource_id: str = "",
        encryption_spec_key_name: str = "",
        publish_to: str = "",
        seed: int = 0,
        data_validation: dict = {},
        grpo: dict = {},
        inference: dict = {},
        evaluation: dict = {},
    ) -> Outputs:
        """Tune a model against a grader with GRPO or RLOO, and say whether it got better by it.

        Args:
            prompt_dataset: URI of the prompts that the policy is tuned on, with references if there are.
            large_model_reference: Model to tune: Hugging Face id, path, URI or a short name.
            grader: What grades completions: a mapping with `function`, `http`, `builtin`, `sum` or `product`, see
                docs/graders.md.
            eval_dataset: URI of prompts to evaluate on; empty holds out some of prompt_dataset, which are then not
                trained on.
            model_display_name: Name to publish the tuned model under; empty: the base model's with `-rlhf`.
            prompt_sequence_length: Longest prompt in tokens; longer ones are cut.
            target_sequence_length: Longest completion in tokens.
            reinforcement_learning_rate_multiplier: Multiplies grpo_trainer's learning rate.
            reinforcement_learning_train_steps: Updates of grpo_trainer.
            kl_coeff: Weight of the KL from the model that training starts from.
            instruction: Text put before every prompt.
            deploy_model: Serve the published model: by KServe, or an endpoint of Vertex, where the profile has them.
            tensorboard_resource_id: TensorBoard of Vertex AI that training is streamed to, on Vertex.
            encryption_spec_key_name: Customer-managed encryption key, on Vertex.
            publish_to: URI of a folder for the tuned model where the verdict is promote; empty publishes nothing.
            seed: Seeds every stage.
            data_validation: Further options of data_validation.
            grpo: Further options of grpo_trainer, such as `algorithm` (grpo or rloo).
            inference: Options of bulk_inference, before and after alike.
            evaluation: Options of evaluator.
        """
        # Never cached: what lies under a URI may have changed while the URI has not.
        identified = identify(
            prompt_dataset=prompt_dataset,
            eval_dataset=eval_dataset,
            large_model_reference=large_model_reference,
            grader=grader,
            evaluation=evaluation,
        )
        identified.set_caching_options(False)
        data = validate(
            sources=identified.output,
            prompt_dataset=prompt_dataset,
            eval_dataset=eval_dataset,
            large_model_reference=large_model_reference,
            instruction=instruction,
            prompt_sequence_length=prompt_sequence_length,
            target_sequence_length=target_sequence_length,
            reinforcement_learning_train_steps=reinforcement_learning_train_steps,
            reinforcement_learning_rate_multiplier=reinforcement_learning_rate_multiplier,
            kl_coeff=kl_coeff,
            publish_to=publish_to,
            model_display_name=model_display_name,
            seed=seed,
            grader=grader,
            grpo=grpo,
            inference=inference,
            evaluation_options=evaluation,
            options=data_validation,
        ).outputs
        tuned = tune(
            prompts=data["prompts"],
            base_model=large_model_reference,
            grader=grader,
            train_steps=reinforcement_learning_train_steps,
            learning_rate_multiplier=reinforcement_learning_rate_multiplier,
            kl_coeff=kl_coeff,
            seed=seed,
            options=grpo,
        ).outputs

        answered = {"seed": seed, "options": inference}
        before = completions(generate, "before", data, base_model=large_model_reference, **answered)
        after = completions(generate, "after", data, model=tuned["tuned_policy"], **answered)
        verdict = evaluate(
            predictions_before=dsl.Collected(before["predictions"]),
            predictions_after=dsl.Collected(after["predictions"]),
            evaluation=data["evaluation"],
            grpo_logs=tuned["tensorboard"],
            grader=grader,
            seed=seed,
            options=evaluation,
        ).outputs
        publish_if_promoted(publish, tuned["tuned_policy"], data, verdict, publish_to, model_display_name)
        return Outputs(
            report=verdict["report"],
            data_report=data["report"],
            data_findings=data["findings"],
            training_report=tuned["report"],
            tuned_policy=tuned["tuned_policy"],
            samples=tuned["samples"],
            predictions_before=dsl.Collected(before["predictions"]),
            predictions_after=dsl.Collected(after["predictions"]),
            summary=verdict["summary"],
            side_by_side=verdict["side_by_side"],
            data_validation_metrics=data["metrics"],
            grpo_trainer_metrics=tuned["metrics"],
            bulk_inference_before_metrics=dsl.Collected(before["metrics"]),
            bulk_inference_after_metrics=dsl.Collected(after["metrics"]),
            evaluator_metrics=verdict["metrics"],
        )

    return rft
