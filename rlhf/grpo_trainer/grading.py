"""What an update's completions get, on every process, and what is measured of it."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

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

    scored: Scored
    ended: list[bool]
    lengths: list[int]

    @classmethod
    def of(cls, scored: Scored, ended: Sequence[bool], lengths: Sequence[int]) -> "Update":
        """Put the processes' shares together."""
        each = processes.gather((scored, list(ended), list(lengths)))
        shares = [share for share, _, _ in each]
        starts = itertools.accumulate((len(share.total) for share in shares[:-1]), initial=0)
        return cls(
            Scored(
                total=[total for share in shares for total in share.total],
                parts={name: [grade for share in shares for grade in share.parts[name]] for name in scored.parts},
                faults={
                    start + row: words
                    for start, share in zip(starts, shares, strict=True)
                    for row, words in share.faults.items()
                },
            ),
            ended=[is_end for _, part, _ in each for is_end in part],
            lengths=[length for _, _, part in each for length in part],
        )

    def measures(self, group_size: int) -> dict[str, float]:
        """By name; without what is not known."""
        totals, parts = self.scored.total, self.scored.parts
        known = [total for total in totals if math.isfinite(total)]
        found = {
            "grade": math.fsum(known) / len(known),
            "length": sum(self.lengths) / len(self.lengths),
            "ended": sum(self.ended) / len(self.ended),
            "bad_grades": self.scored.bad / len(totals),
            "not_judged": self.scored.not_judged / len(totals),
            **group_measures(totals, group_size),
        }
        for name, grades in parts.items():
            judged = [grade for grade in grades if grade is not None and math.isfinite(grade)]
            if judged and len(parts) > 1:
                found[f"grade/{name}"] = math.fsum(judged) / len(judged)
        return found


def refuse_bad(config: GRPOTrainerConfig, update: Update, number: int) -> None:
    """Say which completions got no grade because of a fault, and end the run where they are too many.

    Raises:
        TrainingError: They are, or no completion got a grade.
    """
    scored, rows = update.scored, len(update.scored.total)
    bad = scored.bad
    none = ", ".join(f"{name}: {grades.count(None)} None" for name, grades in scored.parts.items() if None in grades)
    why = next(iter(scored.faults.values()), none or "NaN or infinite")
    if scored.too_many_bad(config.max_bad_rewards, config.group_size):
        raise TrainingError(
            f"update {number}: {bad} of {rows} completions got no finite grade ({why}); more than "
            f"max_bad_rewards ({config.max_bad_rewards:g}) allows: mend the grader, or raise it"
        )
    if bad + scored.not_judged == rows:
        raise TrainingError(
            f"update {number}: {rows} of {rows} completions got no finite grade ({why}), so there is nothing to learn "
            "from; let a grader judge some of every update: see that prompts have what it judges by, such as references"
        )
    if bad and processes.is_main():
        say(STAGE, f"warning: update {number}: {bad} of {rows} completions left out: {why}")
