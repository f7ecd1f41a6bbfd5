"""Which rows go through a model together."""

from collections.abc import Sequence


def by_length(lengths: Sequence[int], most_tokens: int, most_rows: int | None = None) -> list[list[int]]:
    """Batches of rows of similar length, shortest first, so that little is padded.

    Args:
        lengths: Tokens of each row.
        most_tokens: Of a batch, padding included; a row that is longer has a batch of its own.
        most_rows: Of a batch.

    Returns:
        Indices of rows, each once.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        rows = len(batches[-1]) + 1 if batches else 1
        if not batches or rows * lengths[index] > most_tokens or (most_rows is not None and rows > most_rows):
            batches.append([])
        batches[-1].append(index)
    return batches
