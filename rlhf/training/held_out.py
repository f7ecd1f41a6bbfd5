"""Which rows are kept out of training to watch it by."""

from collections import Counter
from collections.abc import Sequence

FEWEST_PROMPTS = 20
"""With fewer, nothing is held out: so few say nothing, and would be missed in training."""


def hold_out(keys: Sequence[int], fraction: float, at_most: int) -> list[bool]:
    """Choose rows to hold out by prompt: all rows of one are on one side.

    Prompts are taken in the order of their keys, whatever the order of the rows and the seed of the run, unless they
    would make it more rows than are to be held out.

    Args:
        keys: A hash of each row's prompt.
        fraction: Share of the rows that is held out.
        at_most: Rows held out.

    Returns:
        Whether each row is held out; none is with fewer than `FEWEST_PROMPTS` prompts.
    """
    sizes = Counter(keys)
    room = min(at_most, round(fraction * len(keys)), len(keys) - 1) if len(sizes) >= FEWEST_PROMPTS else 0
    taken = set()
    for key in sorted(sizes):
        if sizes[key] <= room:
            taken.add(key)
            room -= sizes[key]
    return [key in taken for key in keys]
