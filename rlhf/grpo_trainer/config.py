"""Options of the trainer by groups of graded completions."""

from typing import Literal, Self

from pydantic import Field, model_validator

from rlhf.rewards.config import RewardFunction
from rlhf.training.config import TrainerConfig


class GRPOTrainerConfig(TrainerConfig):
    """Group relative policy optimisation (Shao et al. 2024, "DeepSeekMath", sec. 4), or REINFORCE with a leave-one-out
    baseline (Ahmadian et al. 2024, "Back to Basics"). Defaults follow TRL's GRPOTrainer unless said otherwise."""

    algorithm: Literal["grpo", "rloo"] = Field(
        "grpo",
        description="grpo: a completion's advantage is in its group's standard deviations, the KL is part of the loss "
        "and ratios are of tokens (Shao et al. 2024). rloo: it is the grade less the mean of the others', the KL is "
        "taken off the grade and ratios are of whole completions (Ahmadian et al. 2024; TRL's RLOOTrainer).",
    )

    # How much, and in what portions
    train_steps: int = Field(
        1000, ge=1, description="Updates; each samples `batch_size` completions and takes one optimiser step on them."
    )
    batch_size: int = Field(64, ge=2, description="Completions per update, over all devices together.")
    group_size: int = Field(8, ge=2, description="Completions of one prompt, which are compared; divides batch_size.")
    microbatch_size: int | None = Field(
        None,
        ge=1,
        description="Completions in one forward pass on one device; unset means all of its share of a batch. Changes "
        "memory and speed, not the gradient.",
    )
    rollout_tokens: int = Field(
        65536, ge=1, description="Tokens, prompts and room for completions, that are sampled at once."
    )

    # What earns
    grader: RewardFunction | None = Field(
        None, description="What grades: a function, a service, a built-in, or a sum or product of them."
    )
    reward_model_weight: float = Field(
        1.0, description="Where there is a reward model too, its score is multiplied by this and added."
    )
    missing_eos_penalty: float = Field(
        0.0, ge=0, description="Subtracted from the grade of a completion cut off before it ended."
    )
    max_bad_rewards: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="Completions without a finite grade are left out and counted; a larger share of an update's, and "
        "more than those of one prompt, ends the run. 0: one is enough. Those that no grader judges do not count.",
    )

    # How far it may go
    kl_coeff: float = Field(
        0.04,
        ge=0,
        description="Weight of the KL from the policy that training starts from: in the loss, a token (grpo), or in "
        "the grade, a completion (rloo, where TRL's is 0.05); 0 keeps no reference and watches no KL.",
    )
    temperature: float = Field(1.0, gt=0, description="Of sampling and of every log-softmax alike.")
    clip_range: float = Field(0.2, gt=0, description="Probability ratios are clipped to 1 +- this.")
    learning_rate_schedule: Literal["cosine", "linear", "constant"] = Field(
        "linear", description="Decay after the warm-up, to 0 (constant: none)."
    )
    learning_rate_multiplier: float = Field(
        1.0, gt=0, description="Multiplies the learning rate, as in the Vertex pipeline."
    )

    # The machine
    engine: Literal["auto", "transformers", "vllm"] = Field(
        "auto", description="What samples; auto takes vLLM where it is installed and there is a GPU."
    )

    # Watching
    sample_every: int = Field(10, ge=1, description="Updates between those whose completions are written to `samples`.")
    held_out_prompts: int = Field(
        64, ge=0, description="Prompts kept out of training, on which the policy is measured as it trains; 0 for none."
    )
    eval_every: int | None = Field(
        None, ge=1, description="Updates between measurements on them; unset means ten in the run."
    )
    kl_limit: float = Field(
        10.0, gt=0, description="Nats a completion above which KL raises the alarm (compare Gao et al. 2023, fig. 1)."
    )

    @model_validator(mode="after")
    def _groups_fit(self) -> Self:
        self.refuse_dropout()
        if self.batch_size % self.group_size:
            raise ValueError(f"group_size ({self.group_size}) must divide batch_size ({self.batch_size})")
        return self
