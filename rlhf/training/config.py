"""Options that the SFT and the reward trainer share."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from rlhf.config import StageConfig

FULL_LEARNING_RATE = 3e-6  # Huang et al. 2024, for SFT, reward model and PPO alike
LORA_LEARNING_RATE = 1e-4  # the base rate of the closed Vertex pipeline, which tuned adapters


class Lora(StageConfig):
    """A low-rank adapter (Hu et al. 2021)."""

    rank: int = Field(4, ge=1, description="Rank of the two matrices that stand for each weight's change.")
    alpha: float | None = Field(
        None, gt=0, description="The change is scaled by alpha / rank; unset means twice the rank."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of the adapter's inputs dropped in training.")
    target_modules: list[str] | None = Field(
        None, description="Names of the linear layers adapted; unset means all of them (Dettmers et al. 2023, sec. 4)."
    )

    @property
    def scaled_alpha(self) -> float:
        return 2.0 * self.rank if self.alpha is None else self.alpha


LORA_PROFILES = {"rank-4": Lora(rank=4), "rank-16": Lora(rank=16)}


def _profile(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value not in LORA_PROFILES:
        raise ValueError(
            f"one of the profiles {', '.join(LORA_PROFILES)}, or a mapping of {', '.join(Lora.model_fields)}"
        )
    return LORA_PROFILES[value]


class TrainerConfig(StageConfig):
    """How weights are trained and kept, whatever the loss."""

    tuning: Literal["full", "lora", "qlora"] = Field(
        "full",
        description="Train every weight, a low-rank adapter, or an adapter on a base model held in 4 bits "
        "(Dettmers et al. 2023).",
    )
    lora: Annotated[Lora, BeforeValidator(_profile)] = Field(
        LORA_PROFILES["rank-4"],
        description="The adapter: `rank-4`, `rank-16`, or a mapping of rank, alpha, dropout and target_modules.",
    )
    save: Literal["auto", "adapter", "merged"] = Field(
        "auto",
        description="What of an adapted model is saved: the adapter, or the base model with the adapter merged into "
        "it. auto saves the adapter unless its base is only another stage's output, which later readers may not have.",
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        description=f"Peak learning rate of AdamW before any multiplier; unset means {FULL_LEARNING_RATE:g} for full "
        f"tuning (Huang et al. 2024) and {LORA_LEARNING_RATE:g} for adapters (the closed Vertex pipeline's).",
    )
    learning_rate_schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="Decay after the warm-up, to 0 (constant: none)."
    )
    warmup_steps: int = Field(
        0, ge=0, description="Optimiser steps (in PPO, updates) over which the learning rate rises linearly from 0."
    )
    adam_beta2: float = Field(
        0.999, gt=0, lt=1, description="AdamW's second-moment decay; short runs profit from less, for example 0.98."
    )
    max_gradient_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    max_skipped_steps: int = Field(
        10, ge=0, description="Steps whose gradient is not finite are skipped; more of them than this end the run."
    )
    checkpoint_dir: str = Field(
        "",
        description="Folder or URI (gs://, s3://) that a restarted task goes on from; empty keeps no checkpoints. "
        "Removed when the stage has finished.",
    )
    checkpoint_every: int = Field(
        100,
        ge=1,
        description="Optimiser steps (in PPO, updates) between checkpoints; one more is written on SIGTERM and at the "
        "end.",
    )
    checkpoint_minutes: float = Field(
        30.0,
        gt=0,
        description="Minutes after which a checkpoint is written in between: what is lost at most where a machine is "
        "taken away without SIGTERM, as from a pod of Kubeflow Pipelines.",
    )
    seed: int = Field(0, ge=0, description="Seeds new weights, the order of the data and everything drawn at random.")

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate that the options come to."""
        rate = self.learning_rate or (FULL_LEARNING_RATE if self.tuning == "full" else LORA_LEARNING_RATE)
        return rate * getattr(self, "learning_rate_multiplier", 1.0)

    def refuse_dropout(self) -> None:
        """For a trainer that compares probabilities with those of an earlier pass.

        Raises:
            ValueError: The adapter has dropout.
        """
        if self.lora.dropout:
            raise ValueError(
                f"lora.dropout must be 0 where ratios of probabilities are trained on, not {self.lora.dropout:g}"
            )

    @model_validator(mode="after")
    def _save_fits(self) -> Self:
        if self.tuning == "full" and self.save == "adapter":
            raise ValueError("save 'adapter' needs tuning 'lora' or 'qlora'; full tuning has no adapter to save")
        return self
