"""Which way the loss on held-out demonstrations goes."""

from collections.abc import Sequence
from typing import Literal

from rlhf.metrics import then_and_now

Course = Literal["falling", "level", "rising", "never fell"]

LATE = 0.2  # share of the run


def course(points: Sequence[tuple[int, float]]) -> Course:
    """Judge a run by its held-out losses; what counts is a change of more than 1 %, and of more than 0.005 nats.

    Args:
        points: [(step, nats a token), ...] from before training to the end.

    Returns:
        never fell: the lowest is not below the first. rising: the last is above the lowest. falling: the last fifth of
        the run lowered it. level: none of these.
    """
    losses = [loss for _, loss in points]
    if not _is_higher(losses[0], min(losses)):
        return "never fell"
    if _is_higher(losses[-1], min(losses)):
        return "rising"
    late = (1 - LATE) * points[-1][0]
    return "falling" if _is_higher([loss for step, loss in points if step <= late][-1], losses[-1]) else "level"


def since(losses: Sequence[tuple[int, float]], step: int) -> Literal["fell", "rose", "level"]:
    """Where the loss on what is trained on went since a step, noise apart; what counts is a change as in `course`."""
    then, now = then_and_now(losses, step)
    return "rose" if _is_higher(now, then) else "fell" if _is_higher(then, now) else "level"


def _is_higher(loss: float, other: float) -> bool:
    return loss - other > max(0.01 * other, 0.005)
