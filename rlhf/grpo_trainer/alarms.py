"""Alarms of a run with a grader: there is nothing to learn from, or the policy games its grader.

Every look is a function of what was logged so far; a run logs about fifty points.
"""

from collections.abc import Iterator

from rlhf.grpo_trainer.config import GRPOTrainerConfig
from rlhf.training.alarms import FIRST, Alarm, Course, History
from rlhf.words import percent

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


def look(history: History, config: GRPOTrainerConfig) -> list[Alarm]:
    """Alarms of a run, each kind once, at the first update at which it is raised."""
    course = Course(history)
    raised: dict[str, Alarm] = {}
    for update in sorted({update for update, _ in history.get("grpo/grade", ())}):
        for kind, words in _seen(course.until(update), config):
            raised.setdefault(kind, Alarm(kind, update, words))
    return list(raised.values())


def _seen(course: Course, config: GRPOTrainerConfig) -> Iterator[tuple[str, str]]:
    late, first_and_late = course.late, course.first_and_late
    if (share := late("grpo/no_signal")) is not None and share > NO_SIGNAL:
        yield "no_signal", f"In {percent(share)} of the groups all completions got one grade: nothing is learned there."
    if (spread := first_and_late("grpo/spread")) and spread[1] < SPREAD_LEFT * spread[0]:
        yield "spread", f"The spread of grades within groups fell from {spread[0]:.3g} to {spread[1]:.3g}."
    if (kl := late("grpo/kl")) is not None and kl > config.kl_limit:
        yield "kl", f"The policy went {kl:.3g} nats a completion away, above {config.kl_limit:g}."
    if length := first_and_late("grpo/length"):
        was, now = length
        if not was / LENGTH_FACTOR <= now <= was * LENGTH_FACTOR:
            yield "length", f"Completions went from {was:.3g} to {now:.3g} tokens."
    if (ended := late("grpo/ended")) is not None and ended < ENDED:
        yield "cut_off", f"Only {percent(ended)} of the completions end before they are cut off."
    if (bad := late("grpo/bad_grades")) is not None and bad > BAD:
        yield "bad_grades", f"{percent(bad)} of the completions got no finite grade and are left out."
    held_out = course.values("eval/grade")
    noise = 3 * (course.values("eval/grade_error") or [0.0])[-1]
    if len(held_out) > FIRST and held_out[-1] < max(held_out) - noise - 1e-9:
        grade = first_and_late("grpo/grade")
        if grade and grade[1] > grade[0]:
            yield (
                "held_out",
                f"The grade on training prompts rose while that on held-out ones fell from {max(held_out):.3g} to "
                f"{held_out[-1]:.3g}.",
            )
