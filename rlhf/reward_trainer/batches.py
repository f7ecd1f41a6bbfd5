"""In which order pairs are trained on, and which of them go through the model at once."""

import random
from collections import defaultdict, deque
from collections.abc import Hashable, Iterator, Sequence

LOOK_AHEAD = 64  # groups that may be put off because they do not fit into what is left of a batch


def training_order(prompts: Sequence[Hashable], batch_size: int, steps: int, seed: int) -> list[int]:
    """Indices of pairs, `batch_size` for each optimiser step, over as many passes as it takes.

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
    passes = _passes(list(groups.values()), draw)
    waiting: deque[list[int]] = deque()
    while len(order) < steps * batch_size:
        room = batch_size - len(order) % batch_size
        group = _first_that_fits(waiting, room)
        if group is None:
            group = next(passes)
            if len(group) > room and len(waiting) < LOOK_AHEAD and room < batch_size:
                waiting.append(group)
                continue
            if len(group) > room:  # none fits, or no batch could hold it: it is split
                waiting.appendleft(group[room:])
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


def _passes(groups: list[list[int]], draw: random.Random) -> Iterator[list[int]]:
    while True:
        for index in draw.sample(range(len(groups)), len(groups)):
            yield draw.sample(groups[index], len(groups[index]))


def _first_that_fits(waiting: deque[list[int]], room: int) -> list[int] | None:
    for position, group in enumerate(waiting):
        if len(group) <= room:
            del waiting[position]
            return group
    return None
