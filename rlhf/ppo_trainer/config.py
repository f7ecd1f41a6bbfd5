"""Options of the PPO trainer."""

from typing import Literal, Self

from pydantic import Field, model_validator

from rlhf.config import StageConfig


class PPOTrainerConfig(StageConfig):
    """Proximal policy optimisation. Defaults follow Huang et al. 2024 ("The N+ implementation details of RLHF with
    PPO") unless said otherwise."""

    train_steps: int = Field(
        1000, ge=1, description="PPO updates; each samples `batch_size` episodes and trains on them."
    )
    batch_size: int = Field(512, ge=1, description="Episodes (prompt and completion) per update.")
    minibatch_size: int = Field(512, ge=1, description="Episodes per optimiser step; at most `batch_size`.")
    microbatch_size: int = Field(
        64, ge=1, description="Episodes per forward pass; gradients are accumulated over them."
    )
    epochs: int = Field(4, ge=1, description="Passes over the episodes of one update.")
    learning_rate: float = Field(
        3e-6, gt=0, description="Policy's learning rate before the multiplier; falls linearly to 0."
    )
    learning_rate_multiplier: float = Field(
        1.0, gt=0, description="Multiplies both learning rates, as in the Vertex pipeline."
    )
    value_learning_rate: float | None = Field(
        None, gt=0, description="Critic's learning rate before the multiplier; unset takes the policy's."
    )
    max_gradient_norm: float = Field(
        1.0, gt=0, description="Policy and critic gradients are each clipped to this norm."
    )
    kl_coeff: float = Field(
        0.1,
        ge=0,
        description="Weight of the per-token KL penalty (k1) in the reward. 0.05 in the paper; 0.1 on Vertex.",
    )
    gamma: float = Field(1.0, gt=0, le=1, description="Discount per token.")
    gae_lambda: float = Field(
        0.95, ge=0, le=1, description="Bias-variance trade-off of GAE (Schulman et al. 2016, eq. 16)."
    )
    clip_range: float = Field(0.2, gt=0, description="Probability ratios are clipped to 1 +- this.")
    value_clip_range: float = Field(
        0.2, gt=0, description="Values are clipped to within this of those at sampling time."
    )
    value_coeff: float = Field(0.1, ge=0, description="Weight of the value loss.")
    temperature: float = Field(0.7, gt=0, description="Of sampling and of every log-softmax alike.")
    reward_scaling: Literal["standardise", "none"] = Field(
        "none",
        description="standardise: subtract the mean and divide by the standard deviation of the scores of the first "
        "update's episodes, which come from the untuned policy (Stiennon et al. 2020 normalise likewise).",
    )
    missing_eos_score: float | None = Field(
        -1.0,
        description="Replaces the score (after scaling) of a completion cut off before it ended; null keeps it.",
    )
    sample_every: int = Field(1, ge=1, description="Updates between those whose episodes are written to `samples`.")
    max_skipped_steps: int = Field(
        10,
        ge=0,
        description="Optimiser steps skipped for a loss or gradient that is not finite, before the stage fails.",
    )
    seed: int = Field(0, ge=0, description="Seeds the order of the prompts and the sampling.")

    @model_validator(mode="after")
    def _a_minibatch_is_part_of_a_batch(self) -> Self:
        if self.minibatch_size > self.batch_size:
            raise ValueError(f"minibatch_size ({self.minibatch_size}) must be at most batch_size ({self.batch_size})")
        return self
