"""Options of the reward trainer."""

from pydantic import Field

from rlhf.training.config import TrainerConfig


class RewardTrainerConfig(TrainerConfig):
    """Pairwise reward modelling (Stiennon et al. 2020, eq. 1). Defaults follow Huang et al. 2024 unless said."""

    base_model: str = Field(
        "",
        description="Hugging Face id, path or URI to start from; empty starts from the SFT policy, as in the paper.",
    )
    train_steps: int = Field(1000, ge=1, description="Optimiser steps; data is passed over again as needed.")
    learning_rate_multiplier: float = Field(
        1.0, gt=0, description="Multiplies `learning_rate`, as in the Vertex pipeline."
    )
    batch_size: int = Field(64, ge=1, description="Pairs per optimiser step, over all processes.")
    tokens_per_forward: int = Field(
        4096,
        ge=1,
        description="Tokens that go through the model at once on one device, padding included; less takes less memory. "
        "A batch is cut into parts of like lengths, and its gradient stays that of the whole.",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="Chance that a label is wrong (Mitchell 2023, eq. 3); 0 trusts every label."
    )
    margin_scale: float = Field(
        1.0,
        ge=0,
        description="Multiplies the data's `margin`, where it has one: by how much the chosen response is to win "
        "before a pair counts as learned (Touvron et al. 2023, eq. 2). 0 leaves it out.",
    )
    selection_fraction: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Share of the training pairs kept out, by prompt, to choose the best weights by; so the accuracy "
        "that is reported, on other pairs, was not chosen by. 0 keeps the last weights.",
    )
    selection_pairs: int = Field(500, ge=1, description="Pairs kept out for that, at most.")
    eval_every: int | None = Field(
        None, ge=1, description="Optimiser steps between evaluations on those; unset means ten in a run."
    )
    early_stopping_patience: int = Field(
        3,
        ge=0,
        description="So many evaluations in a row whose accuracy lies more than a standard error under the best end "
        "the training; 0 never does.",
    )
    eval_batch_size: int = Field(128, ge=1, description="Prompt and response pairs scored at once in evaluation.")
