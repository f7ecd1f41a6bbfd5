"""Options of data validation."""

from typing import Any, Literal

from pydantic import Field

from rlhf.config import StageConfig
from rlhf.data_validation.checks import Checks

_URIS = "paths or URIs of any protocol fsspec knows, globs among them, separated by commas; .jsonl, .json or .parquet"


Treatment = Literal["keep", "quarantine"]


class DataValidationConfig(StageConfig):
    """Where the data is, how prompts are laid out, and what is tolerated.

    It also takes the other stages' options, only to check them: a typing error ends the run here, not after hours.
    """

    preference_dataset: str = Field(
        "", description=f"Pairs with a choice: {_URIS}; empty only where a grader takes the reward model's place."
    )
    prompt_dataset: str = Field(min_length=1, description=f"Prompts for reinforcement learning: {_URIS}.")
    eval_dataset: str = Field(
        "",
        description=f"Prompts for evaluation, references if there are: {_URIS}; empty: some of prompt_dataset's.",
    )
    demonstration_dataset: str = Field("", description=f"Prompts with completions for SFT: {_URIS}; empty: no SFT.")
    large_model_reference: str = Field(
        min_length=1, description="Hugging Face id, local folder, URI, or a short name of the old Vertex pipeline."
    )
    instruction: str = Field("", description="Stands before every prompt; for models that follow instructions.")
    suffix: str | None = Field(
        None,
        description="Ends every prompt, for example 'TL;DR:'; empty for none. Unset: the one that the data itself "
        "uses, if any.",
    )
    chat_template: Literal["none", "model"] = Field(
        "none",
        description="How prompts and conversations are rendered: plain text, or the model's own chat template. With it "
        "an answer ends in what ends a turn there, such as Gemma's `<end_of_turn>`.",
    )
    prompt_sequence_length: int = Field(512, ge=1, description="Tokens of a prompt with instruction and suffix.")
    target_sequence_length: int = Field(64, ge=1, description="Tokens of a completion.")
    preference_eval_fraction: float = Field(
        0.1, gt=0, le=0.5, description="Share of the prompts whose pairs are held out to measure the reward model."
    )
    prompt_eval_fraction: float = Field(
        0.1, gt=0, le=0.5, description="Share of the prompts held out for evaluation where there is no eval_dataset."
    )
    duplicates: Treatment = Field(
        "keep", description="Pairs that another pair repeats: repetition may be meant as weight; or quarantine them."
    )
    contradictions: Treatment = Field(
        "keep", description="Pairs labelled both ways: people disagree, and both labels say so; or quarantine them."
    )
    shared_prompts: Treatment = Field(
        "keep", description="Rows to train on whose prompt is also in eval_dataset; or quarantine them."
    )
    publish_to: str = Field("", description="Where publisher is to copy the model, checked here; empty: nowhere.")
    model_display_name: str = Field("", description="Name for the published model, checked here.")
    checks: Checks = Field(Checks(), description="What is tolerated of the data, and what happens beyond: see below.")
    seed: int = Field(0, ge=0, description="Draws which prompts are held out.")
    sft: dict[str, Any] = Field({}, description="Options of sft_trainer, checked here.")
    reward: dict[str, Any] = Field({}, description="Options of reward_trainer, checked here.")
    ppo: dict[str, Any] = Field({}, description="Options of ppo_trainer, checked here.")
    grpo: dict[str, Any] = Field({}, description="Options of grpo_trainer, checked here.")
    inference: dict[str, Any] = Field({}, description="Options of bulk_inference, checked here.")
    evaluation: dict[str, Any] = Field({}, description="Options of evaluator, checked here.")

    @property
    def is_graded(self) -> bool:
        """Whether the run has a grader and no preferences."""
        return not self.preference_dataset and bool(self.grpo.get("grader"))
