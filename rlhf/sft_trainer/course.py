"""Which way the loss on held-out demonstrations goes."""

from collections.abc import Sequence
from typing import Literal

Course = Literal["falling", "level", "rising", "never fell"]

WORTH_A_WORD = 0.01  # relative change of the loss; the held-out tokens are the same each time
LATE = 0.2  # share of the run


def course(points: Sequence[tuple[int, float]]) -> Course:
    """Judge a run by its held-out losses.

    Args:
        points: [(step, nats a token), ...] from before training to the end.

    Returns:
        never fell: the lowest is not 1 % below the first. rising: the last is more than 1 % above the lowest.
        falling: the last fifth of the run lowered it by more than 1 %. level: none of these.
    """
    losses = [loss for _, loss in points]
    if min(losses) > (1 - WORTH_A_WORD) * losses[0]:
        return "never fell"
    if losses[-1] > (1 + WORTH_A_WORD) * min(losses):
        return "rising"
    last_step = points[-1][0]
    before = [loss for step, loss in points if step <= (1 - LATE) * last_step][-1]
    return "falling" if losses[-1] < (1 - WORTH_A_WORD) * before else "level"
