"""Synthetic preferences, seeded: about 1.2 kB a row, words drawn by Zipf's law, some rows that cannot be used."""

import json
import random
from pathlib import Path

WORDS = 20_000
BAD = 0.005  # share of rows that belong in quarantine


def write_rows(path: Path, rows: int, seed: int = 0) -> int:
    """Write JSON lines of Vertex text preferences.

    Returns:
        Rows that cannot be used.
    """
    draw = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(WORDS)]
    weights = [1 / (rank + 10) for rank in range(WORDS)]
    pool = draw.choices(words, weights, k=4_000_000)  # texts are runs of it, for drawing each word would take minutes
    bad = 0
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            starts = [draw.randrange(len(pool) - 200) for _ in range(3)]
            post, first, second = (
                " ".join(pool[start : start + length])
                for start, length in zip(starts, (130, draw.randint(12, 30), draw.randint(12, 30)), strict=True)
            )
            row = {
                "input_text": f"{post}. “{number}”\n\nTL;DR:",
                "candidate_0": first,
                "candidate_1": second,
                "choice": draw.randint(0, 1),
            }
            if draw.random() < BAD:
                bad += 1
                row |= draw.choice([{"choice": 2}, {"candidate_0": " "}, {"candidate_1": first}, {"input_text": 5}])
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return bad
