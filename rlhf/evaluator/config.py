"""Options of the evaluator."""

from pydantic import Field, field_validator

from rlhf.config import StageConfig
from rlhf.evaluator.judge import JudgeConfig
from rlhf.rewards.config import RewardFunction

TAKEN = {"before", "after", "reference", "predictions_before", "predictions_after", "evaluation"}


class EvaluatorConfig(StageConfig):
    """The rule of the verdict, and how the page is made."""

    min_win_rate: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="Promote only if the lower end of the 95 % interval of the length-controlled win rate by the "
        "reward model, or else by `grader`, is above.",
    )
    tie_margin: float = Field(
        0.0,
        ge=0,
        description="Differences up to this are ties, in the unit of who decides: the reward model, or else `grader`.",
    )
    kl_limit: float = Field(
        20.0,
        gt=0,
        description="Nats per completion from the policy before tuning. Promote only at or below it: further away, "
        "reward models stop predicting what people prefer (Stiennon et al. 2020, fig. 5, where that happens within "
        "tens of nats).",
    )
    max_ended_drop: float = Field(
        0.02,
        ge=0,
        le=1,
        description="Share of completions. Promote only if those that end by themselves did not fall by more.",
    )
    max_not_judged: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Share of pairs. Promote only if no more of them stayed without a judgement by who decides, for a "
        "win rate says nothing of these. A grader that leaves rows out on purpose needs more.",
    )
    rouge_stemming: bool = Field(
        False, description="ROUGE over Porter stems. Off as in Hugging Face `evaluate`; set it to compare with others."
    )
    grader: RewardFunction | None = Field(
        None, description="The grader that the policy was tuned with; where there is no reward model, it decides."
    )
    graders: list[RewardFunction] = Field(
        [],
        description="Functions that judge too, of the signature that ppo_trainer's reward_functions have; their "
        "weights do not matter here.",
    )
    judge: JudgeConfig | None = Field(None, description="A language model that judges too; unset asks none.")
    others: dict[str, str] = Field(
        {},
        description="Paths or URIs of files of predictions of further models, by name, for the ranking of more than "
        "two.",
    )
    bertscore_model: str = Field(
        "",
        description="Model for BERTScore; empty takes none. It needs the bert-score package, which no image has: add "
        "it to the evaluator's.",
    )
    side_by_side_rows: int = Field(
        2000, ge=0, description="Prompts in the side-by-side browser; of more, a seeded random choice."
    )
    batch_size: int = Field(64, ge=1, description="Completions scored at once.")
    seed: int = Field(
        0, ge=0, description="Seeds bootstrap intervals, and the choice of the prompts shown side by side."
    )

    @field_validator("others")
    @classmethod
    def _are_others(cls, others: dict[str, str]) -> dict[str, str]:
        if taken := sorted(TAKEN & set(others)):
            raise ValueError(
                f"names other than {', '.join(sorted(TAKEN))}, which stand for what is compared; rename {taken[0]!r}"
            )
        return others
