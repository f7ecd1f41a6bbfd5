"""Options of the reward trainer."""

from typing import Literal

from pydantic import Field

from rlhf.config import StageConfig


class RewardTrainerConfig(StageConfig):
    """Pairwise reward modelling (Stiennon et al. 2020, eq. 1). Defaults follow Huang et al. 2024 unless said."""

    base_model: str = Field(
        "",
        description="Hugging Face id, path or URI to start from; empty starts from the SFT policy, as in the paper.",
    )
    train_steps: int = Field(1000, ge=1, description="Optimiser steps; data is passed over again as needed.")
    batch_size: int = Field(64, ge=1, description="Pairs per optimiser step on one device.")
    learning_rate: float = Field(3e-6, gt=0, description="Peak learning rate of AdamW before the multiplier.")
    learning_rate_multiplier: float = Field(
        1.0, gt=0, description="Multiplies `learning_rate`, as in the Vertex pipeline."
    )
    learning_rate_schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="Decay after the warm-up, to 0 (constant: none)."
    )
    warmup_steps: int = Field(
        0, ge=0, description="Optimiser steps over which the learning rate rises linearly from 0."
    )
    adam_beta2: float = Field(0.999, gt=0, lt=1, description="AdamW's second-moment decay.")
    max_gradient_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    eval_batch_size: int = Field(128, ge=1, description="Prompt and response pairs scored at once in evaluation.")
    seed: int = Field(0, ge=0, description="Seeds the head's initial weights and the order of the data.")
