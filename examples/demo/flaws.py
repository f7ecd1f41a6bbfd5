"""Flaws for the demo's data, as people's data has them: for who wants to see what data validation says of them."""

import json
import random
from pathlib import Path
from typing import Any

ONE_IN = {"duplicates": 8, "contradictions": 50, "blank_candidate": 100, "bad_choice": 200}
"""Of how many pairs one gets the flaw; a pair gets at most one."""
SHARED, PRIVATE = 20, 3  # evaluation's posts that are trained on, too; prompts with an e-mail address


def plant(folder: str | Path, seed: int = 0) -> dict[str, int]:
    """Write flaws into the demo's `preferences.jsonl` and `prompts.jsonl`.

    Args:
        folder: What `posts.generate` wrote into, with an `evaluation.jsonl` of 20 posts or more.
        seed: Draws which rows get them.

    Returns:
        {flaw: rows}, the flaws by the names that data_validation has for them: `duplicates` (pairs repeated at the
        end), `contradictions` (pairs repeated with the other label), `blank_candidate` and `bad_choice` (pairs that
        cannot be used), `shared_prompts` (prompts that are evaluation's), `private_data` (prompts with an e-mail
        address).
    """
    rng = random.Random(f"flaws {seed}")
    folder = Path(folder)
    pairs, prompts, evaluation = (_rows(folder / f"{name}.jsonl") for name in ("preferences", "prompts", "evaluation"))
    planted = {flaw: len(pairs) // every for flaw, every in ONE_IN.items()}
    drawn = iter(rng.sample(pairs, sum(planted.values())))
    taken = {flaw: [next(drawn) for _ in range(count)] for flaw, count in planted.items()}
    pairs += [pair | {"id": f"{pair['id']}-again"} for pair in taken["duplicates"]]
    pairs += [pair | {"id": f"{pair['id']}-other", "choice": 1 - pair["choice"]} for pair in taken["contradictions"]]
    for pair in taken["blank_candidate"]:
        pair["candidate_1"] = " "
    for pair in taken["bad_choice"]:
        pair["choice"] = 2
    for prompt in rng.sample(prompts, PRIVATE):
        prompt["input_text"] = "Write to anna.berg@example.com. " + prompt["input_text"]
    prompts += [{"id": f"{row['id']}-shared", "input_text": row["input_text"]} for row in evaluation[:SHARED]]
    _write(folder / "preferences.jsonl", pairs)
    _write(folder / "prompts.jsonl", prompts)
    return planted | {"shared_prompts": SHARED, "private_data": PRIVATE}


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
