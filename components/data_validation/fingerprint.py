"""What a run reads, in a line: data_validation is taken from the cache while that is the same. In its image."""

from kfp import dsl

from components.images import image


@dsl.component(base_image=image("data_validation"), install_kfp_package=False)
def data_fingerprint(
    prompt_dataset: str,
    large_model_reference: str,
    preference_dataset: str = "",
    eval_dataset: str = "",
    demonstration_dataset: str = "",
    grader: dict = {},
    reward: dict = {},
    ppo: dict = {},
    evaluation: dict = {},
) -> str:
    """Tell whether the files of a run have changed, by what their stores say of them; nothing is read.

    Args:
        prompt_dataset: As data_validation's.
        large_model_reference: As data_validation's; its files count where it is a URI or an absolute path.
        preference_dataset: As data_validation's.
        eval_dataset: As data_validation's.
        demonstration_dataset: As data_validation's.
        grader: As data_validation's. The files of graders count, here and in the options of stages.
        reward: Options of reward_trainer; the files of a `base_model` count as those of large_model_reference.
        ppo: Options of ppo_trainer.
        evaluation: Options of evaluator; the files of `others` count.

    Returns:
        A digest; another each time where a store does not say enough.
    """
    from rlhf.job import stage_errors

    with stage_errors("data_validation"):
        from rlhf.data_validation.fingerprint import fingerprint
        from rlhf.secrets import resolve

        resolve()
        return fingerprint(
            {
                "preference_dataset": preference_dataset,
                "prompt_dataset": prompt_dataset,
                "eval_dataset": eval_dataset,
                "demonstration_dataset": demonstration_dataset,
            },
            large_model_reference,
            [grader, reward, ppo, evaluation],
        )
