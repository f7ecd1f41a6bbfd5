"""Options of the PPO trainer."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from rlhf.ppo import zero_options
from rlhf.rewards.config import RewardFunction
from rlhf.training.config import TrainerConfig


class PPOTrainerConfig(TrainerConfig):
    """Proximal policy optimisation (Schulman et al. 2017). Defaults follow Huang et al. 2024 ("The N+ implementation
    details of RLHF with PPO") unless said otherwise."""

    # How much, and in what portions
    train_steps: int = Field(
        1000, ge=1, description="PPO updates; each samples `batch_size` episodes and trains on them."
    )
    batch_size: int = Field(512, ge=1, description="Episodes (prompt and completion) per update, of all processes.")
    minibatch_size: int | None = Field(
        None, ge=1, description="Episodes per optimiser step; unset means `batch_size`, as in the paper."
    )
    epochs: int = Field(4, ge=1, description="Passes over the episodes of one update.")
    microbatch_tokens: int = Field(
        8192,
        ge=1,
        description="Tokens, padding included, of one forward and backward pass; gradients are accumulated over them. "
        "Changes memory and speed, not the gradient.",
    )
    rollout_tokens: int = Field(
        65536, ge=1, description="Tokens, prompts and room for completions, that are sampled at once."
    )
    logits_at_once: int = Field(
        512, ge=1, description="Tokens whose logits over the vocabulary are held at once; memory is for so many only."
    )

    # What earns
    reward_model_weight: float = Field(1.0, description="The reward model's score is multiplied by this.")
    reward_functions: list[RewardFunction] = Field(
        [], description="Graders whose rewards are added: functions, services, built-ins, sums and products of them."
    )
    reward_scaling: Literal["none", "standardise", "running"] = Field(
        "none",
        description="standardise: subtract the mean and divide by the standard deviation of the first update's "
        "rewards, which the untuned policy earned (Stiennon et al. 2020 normalise likewise); where those are all the "
        "same, of all up to the first that differ. running: of all so far.",
    )
    reward_clip: float | None = Field(
        None, gt=0, description="Scaled rewards are clipped to +- this (Engstrom et al. 2020); unset clips none."
    )
    missing_eos_score: float | None = Field(
        -1.0,
        description="Replaces the scaled reward of a completion cut off before it ended (detail 14); null keeps it.",
    )
    missing_eos_penalty: float = Field(
        0.0, ge=0, description="Subtracted from it instead, as TRL does; needs missing_eos_score null."
    )
    score_position: Literal["eos", "after_eos"] = Field(
        "eos",
        description="Where the reward is paid: with the last token, or one position later, whose value the critic then "
        "gives too, as in TRL and in the paper's code.",
    )
    max_bad_rewards: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="Episodes whose reward is not a finite number are left out and counted; a larger share of an "
        "update's, and more than those of one prompt, ends the run. 0: one is enough. Those that nothing judges do not "
        "count.",
    )

    # How far it may go
    kl_coeff: float = Field(
        0.1, ge=0, description="Weight of the per-token KL penalty in the reward. 0.05 in the paper; 0.1 on Vertex."
    )
    kl_estimator: Literal["k1", "k3"] = Field(
        "k1", description="Of the penalty: -log r, or r - 1 - log r (Schulman 2020, 'Approximating KL divergence')."
    )
    kl_target: float | None = Field(
        None,
        gt=0,
        description="Nats a completion that kl_coeff is adapted to reach (Ziegler et al. 2019, sec. 2.2); unset keeps "
        "it fixed.",
    )
    kl_horizon: int = Field(
        10_000,
        ge=1,
        description="Episodes over which kl_target adapts kl_coeff (Ziegler et al. 2019); batch_size or more.",
    )
    reference: Literal["auto", "none"] = Field(
        "auto",
        description="The policy that KL is measured from: auto is the one that training starts from (a frozen copy, or "
        "the base under the adapter); none saves its memory and time, watches no KL, and needs kl_coeff 0.",
    )
    stop_at_update_kl: float | None = Field(
        None,
        gt=0,
        description="An update's remaining steps are left out once the policy is so many nats a token from the one "
        "that sampled (early stopping of Stable-Baselines3 and TRL 0.11); unset never does.",
    )

    # The algorithm
    advantage: Literal["gae", "group"] = Field(
        "gae",
        description="Of a token: by a critic (Schulman et al. 2016), or of the whole episode against the others of its "
        "prompt (Shao et al. 2024), which needs no critic and group_size 2 or more.",
    )
    group_size: int = Field(1, ge=1, description="Completions of each prompt in an update; divides batch_size.")
    group_baseline: Literal["standardised", "leave_one_out"] = Field(
        "standardised",
        description="Of an episode within its group: its reward less the mean, in standard deviations (Shao et al. "
        "2024), or less the mean of the others (Ahmadian et al. 2024).",
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
    entropy_coeff: float = Field(
        0.0, ge=0, description="Weight of an entropy bonus (Schulman et al. 2017, eq. 9); 0 in the paper on RLHF."
    )
    temperature: float = Field(0.7, gt=0, description="Of sampling and of every log-softmax alike.")
    critic: Literal["shared", "own"] = Field(
        "shared",
        description="shared: a value head on the policy's trunk, which halves time and memory. own: a trunk of its "
        "own, started from the reward model where that reads the policy's tokens (detail 15).",
    )
    learning_rate_schedule: Literal["cosine", "linear", "constant"] = Field(
        "linear", description="Decay after the warm-up, to 0 (constant: none)."
    )
    learning_rate_multiplier: float = Field(
        1.0, gt=0, description="Multiplies both learning rates, as in the Vertex pipeline."
    )
    value_learning_rate: float | None = Field(
        None, gt=0, description="Of the critic, or the value head, before the multiplier; unset takes the policy's."
    )

    # The machine
    engine: Literal["auto", "transformers", "vllm"] = Field(
        "auto", description="What samples; auto takes vLLM where it is installed and there is a GPU."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Of forward and backward passes; weights and optimiser stay in float32. auto is bfloat16 on a GPU "
        "that has it, else float32.",
    )
    activation_checkpointing: bool | None = Field(
        None, description="Compute activations again in the backward pass, for memory; unset does so on a GPU."
    )
    compile: bool = Field(False, description="Compile the trunks of all networks with torch.compile.")
    sharding: Literal["none", "fsdp", "deepspeed"] = Field(
        "none",
        description="Of several processes: each holds all weights, or its share of them (fsdp: PyTorch's FSDP2), or "
        "what `deepspeed` says.",
    )
    deepspeed: Annotated[dict[str, Any] | None, AfterValidator(zero_options.checked)] = Field(
        None,
        description="DeepSpeed's configuration, less what other options are for; unset, with sharding deepspeed, is "
        "ZeRO's stage 2.",
    )

    # Watching
    sample_every: int = Field(1, ge=1, description="Updates between those whose episodes are written to `samples`.")
    held_out_prompts: int = Field(
        64, ge=0, description="Prompts kept out of training, on which the policy is measured as it trains; 0 for none."
    )
    eval_every: int | None = Field(
        None, ge=1, description="Updates between measurements on them; unset means ten in the run."
    )
    stop_on_alarm: bool = Field(
        False, description="End the run, with the policy as it is, when an alarm of over-optimisation is raised."
    )
    kl_limit: float = Field(
        10.0, gt=0, description="Nats a completion above which KL raises the alarm (compare Gao et al. 2023, fig. 1)."
    )

    @property
    def episodes_per_step(self) -> int:
        return self.minibatch_size or self.batch_size

    @property
    def value_rate(self) -> float:
        """The critic's learning rate that the options come to."""
        rate = self.value_learning_rate
        return self.peak_learning_rate if rate is None else rate * self.learning_rate_multiplier

    @property
    def zero_stage(self) -> int:
        """Of DeepSpeed's ZeRO; 0 without."""
        if self.sharding != "deepspeed":
            return 0
        return (self.deepspeed or zero_options.DEFAULT)["zero_optimization"]["stage"]

    @property
    def spreads_weights(self) -> bool:
        """Whether each of several processes holds a part of the weights only, and all have to compute in step."""
        return self.sharding == "fsdp" or self.zero_stage == 3

    @model_validator(mode="after")
    def _options_fit(self) -> Self:
        self.refuse_dropout()
        if self.episodes_per_step > self.batch_size:
            raise ValueError(f"minibatch_size ({self.minibatch_size}) must be at most batch_size ({self.batch_size})")
        if self.batch_size % self.group_size:
            raise ValueError(f"group_size ({self.group_size}) must divide batch_size ({self.batch_size})")
        if (self.advantage == "group") != (self.group_size > 1):
            raise ValueError("advantage 'group' and a group_size above 1 go together")
        if self.group_baseline == "leave_one_out" and self.group_size == 1:
            raise ValueError("group_baseline 'leave_one_out' needs a group_size above 1, found 1")
        if self.advantage == "group" and self.critic == "own":
            raise ValueError("advantage 'group' has no critic; leave critic at 'shared', which costs nothing then")
        if self.missing_eos_penalty and self.missing_eos_score is not None:
            raise ValueError(
                f"missing_eos_penalty ({self.missing_eos_penalty:g}) and missing_eos_score "
                f"({self.missing_eos_score:g}) exclude each other; set missing_eos_score to null to subtract"
            )
        if self.sharding != "none" and self.tuning == "qlora":
            raise ValueError(
                f"sharding {self.sharding!r} cannot hold weights of 4 bits; use tuning 'lora', or sharding 'none'"
            )
        if self.deepspeed is not None and self.sharding != "deepspeed":
            raise ValueError(f"deepspeed needs sharding 'deepspeed', found {self.sharding!r}")
        if self.zero_stage == 3 and self.engine != "transformers":
            raise ValueError(f"stage 3 of deepspeed needs engine 'transformers', found {self.engine!r}")
        if self.reference == "none" and (self.kl_coeff or self.kl_target):
            raise ValueError(f"reference 'none' needs kl_coeff 0 and no kl_target, found {self.kl_coeff:g}")
        if self.kl_target is not None and not self.kl_coeff:
            raise ValueError("kl_target needs a kl_coeff above 0 to start from, for it is adapted by factors; found 0")
        if self.kl_target is not None and self.kl_horizon < self.batch_size:
            raise ValueError(
                f"kl_horizon ({self.kl_horizon}) must not be less than batch_size ({self.batch_size}): an update would "
                "change kl_coeff by more than a fifth, or turn its sign"
            )
        return self
