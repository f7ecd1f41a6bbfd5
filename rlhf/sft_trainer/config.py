"""Options of the SFT trainer."""

from typing import Literal, Self

from pydantic import Field, model_validator

from rlhf.training.config import TrainerConfig


class SFTTrainerConfig(TrainerConfig):
    """Supervised fine-tuning on demonstrations. Defaults follow Huang et al. 2024 (sec. 3) unless said otherwise."""

    train_steps: int | None = Field(
        None, ge=1, description="Optimiser steps; unset means `epochs` passes over the demonstrations."
    )
    epochs: float = Field(1.0, gt=0, description="Passes over the demonstrations when `train_steps` is unset.")
    batch_size: int = Field(32, ge=1, description="Demonstrations per optimiser step, over all devices together.")
    microbatch_size: int | None = Field(
        None,
        ge=1,
        description="Demonstrations in one forward pass on one device; unset means all of its share of a batch.",
    )
    loss_on: Literal["completion", "prompt_and_completion"] = Field(
        "completion",
        description="Tokens in the loss. Huang et al. train on both; completion only learns the task in fewer steps.",
    )
    packing: bool = Field(
        False,
        description="Lay several demonstrations of a forward pass out in one row instead of padding each; causal "
        "models only. What is learned stays the same.",
    )
    packed_length: int | None = Field(
        None,
        ge=1,
        description="Tokens of such a row; unset means prompt_sequence_length + target_sequence_length. A longer "
        "demonstration has a row of its own.",
    )
    eval_fraction: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="Share of the demonstrations that is held out, by prompt, to measure the policy while it is "
        "trained.",
    )
    eval_rows: int = Field(500, ge=1, description="Demonstrations held out, at most.")
    eval_samples: int = Field(64, ge=1, description="Held-out prompts that the policy completes, greedily, at most.")
    eval_every: int | None = Field(
        None, ge=1, description="Optimiser steps between two measurements; unset means a tenth of the run."
    )
    keep: Literal["best", "last"] = Field(
        "best",
        description="Weights that the stage ends with: those with the lowest held-out loss, or the last. Ouyang et "
        "al. 2022 (sec. 3.5) let that loss rise, for people's preferences went on rising.",
    )

    @model_validator(mode="after")
    def _packed(self) -> Self:
        if self.packed_length is not None and not self.packing:
            raise ValueError("packed_length needs packing")
        return self
