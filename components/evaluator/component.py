"""Say whether tuning made the model better."""

from typing import Optional

from kfp import dsl

from components.images import image


@dsl.component(base_image=image("evaluator"), install_kfp_package=False)
def evaluator(
    predictions_before: dsl.Input[list[dsl.Dataset]],
    predictions_after: dsl.Input[list[dsl.Dataset]],
    evaluation: dsl.Input[dsl.Dataset],
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    side_by_side: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
    reward_model: Optional[dsl.Input[dsl.Model]] = None,  # noqa: UP045 - KFP does not read `X | None`
    sft_logs: Optional[dsl.Input[dsl.Artifact]] = None,  # noqa: UP045
    reward_logs: Optional[dsl.Input[dsl.Artifact]] = None,  # noqa: UP045
    ppo_logs: Optional[dsl.Input[dsl.Artifact]] = None,  # noqa: UP045
    grpo_logs: Optional[dsl.Input[dsl.Artifact]] = None,  # noqa: UP045
    grader: dict = {},
    seed: int = 0,
    options: dict = {},
) -> str:
    """Compare two models' completions of the same prompts, with each other and with human references.

    Args:
        predictions_before: Completions of the policy before tuning, from bulk_inference, a file for each part.
        predictions_after: Completions of the tuned policy, likewise.
        evaluation: Canonical held-out prompts with references (`id, prompt, reference`) from data_validation.
        reward_model: Scores completions and references again; not needed where there is a grader.
        report: One page that opens offline: verdict, curves, distributions, and a browser of all completions side by
            side, in which people can vote without knowing which is which.
        summary: The verdict with its reasons, and the key numbers.
        side_by_side: JSON lines `id, prompt, before, after, reference, outcomes, scores, rouge_l`.
        metrics: ROUGE, rewards, win rates with their intervals, health of the texts, and the verdict (`promote`).
        sft_logs: Event files of sft_trainer, for its curves.
        reward_logs: Event files of reward_trainer, for its curves.
        ppo_logs: Event files of ppo_trainer, for its curves.
        grpo_logs: Event files of grpo_trainer, for its curves.
        grader: What the policy was tuned with, as grpo_trainer takes it; without a reward model it decides.
        seed: Seeds the intervals.
        options: Further options, by the names in `rlhf.evaluator.config`.

    Returns:
        The verdict, `promote` or `hold`, for a step that depends on it.
    """
    from rlhf.job import merge_options, stage_job

    with stage_job("evaluator", metrics) as job:
        job.check(evaluation)
        from rlhf.evaluator.config import EvaluatorConfig
        from rlhf.evaluator.stage import run

        found = run(
            EvaluatorConfig.parse(merge_options(options, "evaluation", seed=seed, grader=grader or None), "evaluation"),
            predictions_before=[part.path for part in predictions_before],
            predictions_after=[part.path for part in predictions_after],
            evaluation=evaluation.path,
            reward_model=reward_model.path if reward_model else "",
            report=report.path,
            summary=summary.path,
            side_by_side=side_by_side.path,
            sft_logs=sft_logs and sft_logs.path,
            reward_logs=reward_logs and reward_logs.path,
            ppo_logs=ppo_logs and ppo_logs.path,
            grpo_logs=grpo_logs and grpo_logs.path,
        )
        job.log(found)
    return "promote" if found["promote"] else "hold"
