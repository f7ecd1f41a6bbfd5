"""Options of the SFT trainer."""

from typing import Literal

from pydantic import Field

from rlhf.config import StageConfig


class SFTTrainerConfig(StageConfig):
    """Supervised fine-tuning on demonstrations. Defaults follow Huang et al. 2024 (sec. 3) unless said otherwise."""

    train_steps: int | None = Field(
        None, ge=1, description="Optimiser steps; unset means `epochs` passes over the demonstrations."
    )
    epochs: float = Field(1.0, gt=0, description="Passes over the demonstrations when `train_steps` is unset.")
    batch_size: int = Field(32, ge=1, description="Demonstrations per optimiser step on one device.")
    learning_rate: float = Field(3e-6, gt=0, description="Peak learning rate of AdamW.")
    learning_rate_schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="Decay after the warm-up, to 0 (constant: none)."
    )
    warmup_steps: int = Field(
        0, ge=0, description="Optimiser steps over which the learning rate rises linearly from 0."
    )
    adam_beta2: float = Field(
        0.999, gt=0, lt=1, description="AdamW's second-moment decay; short runs profit from less, for example 0.98."
    )
    max_gradient_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    loss_on: Literal["completion", "prompt_and_completion"] = Field(
        "completion",
        description="Tokens in the loss. Huang et al. train on both; completion only learns the task in fewer steps.",
    )
    seed: int = Field(0, ge=0, description="Seeds the order of the data and everything drawn at random.")
