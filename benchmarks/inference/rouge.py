"""How fast ROUGE is against rouge-score's own loop."""

import random
import statistics
import time

from rouge_score.rouge_scorer import RougeScorer

from rlhf.metrics import ROUGE_TYPES, rouge

PAIRS = 10_000
TIMES = 3
WORDS = 5_000


def measure_rouge() -> dict[str, float]:
    """Theirs and ours take turns, three times each; seconds are medians.

    Returns:
        `ratio_rouge` (their seconds over ours: how many times faster ours is), `rouge_seconds`,
        `rouge_score_seconds`; and the ratios with three lines a text (`ratio_rouge_lines`), where ROUGE-Lsum is not
        ROUGE-L, and over stems (`ratio_rouge_stems`).
    """
    theirs, ours = _seconds(*texts(), stemming=False)
    by_lines, by_stems = _seconds(*texts(lines=3), stemming=False), _seconds(*texts(), stemming=True)
    return {
        "ratio_rouge": theirs / ours,
        "rouge_seconds": ours,
        "rouge_score_seconds": theirs,
        "ratio_rouge_lines": by_lines[0] / by_lines[1],
        "ratio_rouge_stems": by_stems[0] / by_stems[1],
        "rouge_pairs": PAIRS,
    }


def texts(pairs: int = PAIRS, lines: int = 1, seed: int = 0) -> tuple[list[str], list[str]]:
    """Predictions and references of 20 to 60 words, by Zipf's law; a prediction has a run of its reference."""
    draw = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(WORDS)]
    weights = [1 / (rank + 10) for rank in range(WORDS)]
    predictions, references = [], []
    for _ in range(pairs):
        reference = draw.choices(words, weights, k=draw.randint(20, 60))
        start = draw.randrange(len(reference))
        kept = reference[start : start + draw.randint(3, 12)]
        own = draw.choices(words, weights, k=draw.randint(20, 60) - len(kept))
        at = draw.randrange(len(own))
        predictions.append(_text(own[:at] + kept + own[at:], lines))
        references.append(_text(reference, lines))
    return predictions, references


def _text(words: list[str], lines: int) -> str:
    length = -(-len(words) // lines)
    said = (" ".join(words[start : start + length]).capitalize() + "." for start in range(0, len(words), length))
    return "\n".join(said)


def _seconds(predictions: list[str], references: list[str], stemming: bool) -> tuple[float, float]:
    """Of rouge-score and of ours; both have been imported."""
    seconds: dict[str, list[float]] = {"theirs": [], "ours": []}
    for _ in range(TIMES):
        started = time.perf_counter()
        scorer = RougeScorer(ROUGE_TYPES, use_stemmer=stemming)
        theirs = [scorer.score(reference, text) for text, reference in zip(predictions, references, strict=True)]
        seconds["theirs"].append(time.perf_counter() - started)
        started = time.perf_counter()
        ours = rouge(predictions, references, stemming)
        seconds["ours"].append(time.perf_counter() - started)
        for kind in ROUGE_TYPES:
            if ours.rows[kind] != [score[kind].fmeasure for score in theirs]:
                raise AssertionError(f"{kind} is not rouge-score's")
    return statistics.median(seconds["theirs"]), statistics.median(seconds["ours"])
