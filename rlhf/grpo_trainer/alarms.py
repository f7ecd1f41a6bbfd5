"""Alarms of a GRPO run: there is nothing to learn from, or the policy games its grader.

Every look is a function of what was logged so far. Medians over a few points keep the noise of one from raising
anything.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from rlhf.grpo_trainer.config import GRPOTrainerConfig
from rlhf.metrics import percent

LATE = 5  # logged points whose median is "now"; a run has about fifty
FIRST = 3
NO_SIGNAL = (
    0.8  # of the groups: four in five completions are sampled and graded for nothing (Yu et al. 2025, DAPO, 3.2)
)
SPREAD_LEFT = 0.1
LENGTH_FACTOR = 2.0  # rewarded texts grow some, but twice is another kind of text
ENDED = 0.05
BAD = 0.01

ADVICE = {
    "no_signal": "Grade in finer steps, raise group_size or temperature, or take prompts that are neither too easy nor "
    "too hard for the policy.",
    "spread": "The policy says the same to a prompt: raise temperature or kl_coeff, or stop earlier.",
    "kl": "Raise kl_coeff, or take fewer updates or a lower learning rate; compare completions from before and after.",
    "length": "Read what was added or left out; let the grader not pay for length (built-in `length`).",
    "held_out": "The policy learned its prompts by heart: take more prompts or fewer updates.",
    "cut_off": "Raise target_sequence_length, set missing_eos_penalty, or fine-tune the policy to end first.",
    "bad_grades": "Look at the completions that the grader cannot grade: `rlhf grade` shows them.",
}
"""{kind: what to do}."""

History = Mapping[str, Sequence[tuple[int, float]]]


@dataclass(frozen=True)
class Alarm:
    """What was seen, when."""

    kind: str
    """A key of `ADVICE`."""
    update: int
    words: str


def look(history: History, config: GRPOTrainerConfig) -> list[Alarm]:
    """Alarms of a run, each kind once, at the first update at which it is raised.

    Args:
        history: {tag: [(update, value), ...]} as logged. Tags may be absent, and values not finite.
    """
    updates = sorted({update for update, _ in history.get("grpo/grade", ())})
    raised: dict[str, Alarm] = {}
    for update in updates:
        until = {tag: [v for u, v in points if u <= update and math.isfinite(v)] for tag, points in history.items()}
        for kind, words in _seen(until, config):
            raised.setdefault(kind, Alarm(kind, update, words))
    return list(raised.values())


def _seen(values: Mapping[str, Sequence[float]], config: GRPOTrainerConfig) -> Iterator[tuple[str, str]]:
    def late(tag: str) -> float | None:
        found = values.get(tag, ())
        return median(found[-LATE:]) if len(found) >= LATE else None

    def first(tag: str) -> float | None:
        found = values.get(tag, ())
        return median(found[:FIRST]) if len(found) >= FIRST + LATE else None

    if (share := late("grpo/no_signal")) is not None and share > NO_SIGNAL:
        yield "no_signal", f"In {percent(share)} of the groups all completions got one grade: nothing is learned there."
    spread, was = late("grpo/spread"), first("grpo/spread")
    if spread is not None and was and spread < SPREAD_LEFT * was:
        yield "spread", f"The spread of grades within groups fell from {was:.3g} to {spread:.3g}."
    if (kl := late("grpo/kl")) is not None and kl > config.kl_limit:
        yield "kl", f"The policy went {kl:.3g} nats a completion away, above {config.kl_limit:g}."
    length, long = late("grpo/length"), first("grpo/length")
    if length is not None and long and not long / LENGTH_FACTOR <= length <= long * LENGTH_FACTOR:
        yield "length", f"Completions went from {long:.3g} to {length:.3g} tokens."
    if (ended := late("grpo/ended")) is not None and ended < ENDED:
        yield "cut_off", f"Only {percent(ended)} of the completions end before they are cut off."
    if (bad := late("grpo/bad_grades")) is not None and bad > BAD:
        yield "bad_grades", f"{percent(bad)} of the completions got no finite grade and are left out."
    held_out = values.get("eval/grade", ())
    noise = 3 * (values.get("eval/grade_error", [0.0]) or [0.0])[-1]
    if len(held_out) > FIRST and held_out[-1] < max(held_out) - noise - 1e-9:
        grade, at_first = late("grpo/grade"), first("grpo/grade")
        if grade is not None and at_first is not None and grade > at_first:
            yield (
                "held_out",
                f"The grade on training prompts rose while that on held-out ones fell from {max(held_out):.3g} to "
                f"{held_out[-1]:.3g}.",
            )
