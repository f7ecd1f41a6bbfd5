"""Random numbers that depend on what they are for alone: not on batches, processes or where a run was stopped."""

from collections.abc import Sequence

import numpy as np
import torch
import xxhash


def generator(*numbers: int) -> torch.Generator:
    """Random numbers that depend on these numbers alone."""
    words = np.random.SeedSequence(numbers).generate_state(2, np.uint32).tolist()
    return torch.Generator().manual_seed(words[0] << 32 | words[1])


def draws_of(rows: Sequence[tuple[str, int]], tokens: int, seed: int) -> torch.Tensor:
    """What to sample completions with: (rows, tokens) uniform in [0, 1).

    Args:
        rows: Each a prompt's id and the number of its sample, which with the seed is all that the numbers depend on.
    """
    drawn = [
        torch.rand(tokens, generator=generator(seed, xxhash.xxh3_64_intdigest(id_.encode()), sample))
        for id_, sample in rows
    ]
    return torch.stack(drawn) if drawn else torch.empty(0, tokens)
