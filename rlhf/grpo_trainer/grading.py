"""What an update's completions get, on every process, and what is measured of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from rlhf.errors import TrainingError
from rlhf.grpo_trainer.config import GRPOTrainerConfig
from rlhf.models.loading import computing_in, device, working_dtype
from rlhf.progress import say
from rlhf.rewards.combined import Rewards, Scored, group_measures
from rlhf.training import processes
from rlhf.training.prompts import Prompt

STAGE = "grpo_trainer"


def score(rewards: Rewards, prompts: Sequence[Prompt], completions: Sequence[str]) -> Scored:
    """What this process's completions get; of a reward model, in the precision of training."""
    with computing_in(working_dtype("auto", device()), device()):
        return rewards.score(
            [prompt.text for prompt in prompts],
            [prompt.original for prompt in prompts],
            list(completions),
            {"id": [prompt.id for prompt in prompts], "reference": [prompt.reference for prompt in prompts]},
        )


@dataclass
class Update:
    """What an update's completions got, those of all processes one after the other."""

    totals: list[float]
    parts: dict[str, list[float | None]]
    ended: list[bool]
    lengths: list[int]
    faults: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, scored: Scored, ended: Sequence[bool], lengths: Sequence[int]) -> "Update":
        """Put the processes' shares together."""
        each = processes.gather((scored, list(ended), list(lengths)))
        return cls(
            totals=[total for part, _, _ in each for total in part.total],
            parts={name: [g for part, _, _ in each for g in part.parts[name]] for name in scored.parts},
            ended=[is_end for _, part, _ in each for is_end in part],
            lengths=[length for _, _, part in each for length in part],
            faults=[words for part, _, _ in each for words in part.faults.values()],
        )

    @property
    def bad(self) -> int:
        return sum(not math.isfinite(total) for total in self.totals)

    def measures(self, group_size: int) -> dict[str, float]:
        """By name; without what is not known."""
        known = [total for total in self.totals if math.isfinite(total)]
        found = {
            "grade": math.fsum(known) / len(known),
            "length": sum(self.lengths) / len(self.lengths),
            "ended": sum(self.ended) / len(self.ended),
            "bad_grades": self.bad / len(self.totals),
            **group_measures(self.totals, group_size),
        }
        for name, grades in self.parts.items():
            judged = [grade for grade in grades if grade is not None and math.isfinite(grade)]
            if judged and len(self.parts) > 1:
                found[f"grade/{name}"] = math.fsum(judged) / len(judged)
        return found


def refuse_bad(config: GRPOTrainerConfig, update: Update, number: int) -> None:
    """Say which completions got no grade, and end the run where they are too many.

    Raises:
        TrainingError: They are.
    """
    if not update.bad:
        return
    rows = len(update.totals)
    none = ", ".join(f"{name}: {grades.count(None)} None" for name, grades in update.parts.items() if None in grades)
    why = update.faults[0] if update.faults else none or "NaN or infinite"
    allowed = max(1.0, config.max_bad_rewards * rows) if config.max_bad_rewards else 0
    if update.bad > allowed or update.bad == rows:
        raise TrainingError(
            f"update {number}: {update.bad} of {rows} completions got no finite grade ({why}); more than "
            f"max_bad_rewards ({config.max_bad_rewards:g}) allows: mend the grader, or raise it"
        )
    if processes.is_main():
        say(STAGE, f"warning: update {number}: {update.bad} of {rows} completions left out: {why}")
