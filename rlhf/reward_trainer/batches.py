"""In which order pairs are trained on, and which of them go through the model at once."""

import random
from collections import defaultdict, deque
from collections.abc import Hashable, Sequence
from itertools import islice

LOOK_AHEAD = 64  # groups among which one is looked for that fits into what is left of a batch


def training_order(prompts: Sequence[Hashable], batch_size: int, steps: int, seed: int) -> list[int]:
    """Indices of pairs, `batch_size` for each optimiser step; every pass over the pairs has each of them once.

    All pairs of one prompt come in one batch where they fit: spread over an epoch's batches, a prompt with many pairs
    is updated on as often as it has pairs, and the model overfits to it (Ouyang et al. 2022, sec. 3.5). Which pairs
    make a batch is otherwise random: batches of like lengths would not be, and padding is saved within them
    (`chunks`).

    Args:
        prompts: The prompt of each pair, or something that stands for it.
        seed: Of the order; the same seed gives the same order on any number of processes.
    """
    groups = defaultdict(list)
    for index, prompt in enumerate(prompts):
        groups[prompt].append(index)
    draw = random.Random(seed)
    order: list[int] = []
    while len(order) < steps * batch_size:
        left = deque(draw.sample(group, len(group)) for group in draw.sample(list(groups.values()), len(groups)))
        while left:
            room = batch_size - len(order) % batch_size
            fitting = (place for place, group in enumerate(islice(left, LOOK_AHEAD)) if len(group) <= room)
            place = next(fitting, 0)
            group = left[place]
            del left[place]
            if len(group) > room:  # no group near fits, or no batch could hold this one
                left.appendleft(group[room:])
                group = group[:room]
            order += group
    return order[: steps * batch_size]


def chunks(lengths: Sequence[int], most_tokens: int) -> list[list[int]]:
    """Cut a batch into parts of like lengths, each padded to its own longest text and no further.

    Args:
        lengths: Tokens of the longer text of each pair.
        most_tokens: Of a part's two texts a pair, padding included; one pair may have more.

    Returns:
        Indices of the pairs of each part, the longest first, so that memory is short at once or not at all.
    """
    parts: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        # The first of a part is its longest.
        if parts and 2 * (len(parts[-1]) + 1) * lengths[parts[-1][0]] <= most_tokens:
            parts[-1].append(index)
        else:
            parts.append([index])
    return parts
