"""ROUGE by rouge-score, without what rouge-score does twice, and on all cores where that pays.

`python -m rlhf.rouge` is a process that helps: lines of JSON in, lines of JSON out, until its input ends.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import chain
from types import SimpleNamespace

from nltk.stem.porter import PorterStemmer
from rouge_score import rouge_scorer, scoring
from rouge_score.tokenize import tokenize

CHUNK = 100  # pairs
PATIENCE = 1.0  # seconds of work after which help is thought of
WORTH = 2.0  # seconds of work for which a helper is started: its imports take one

Row = Sequence[float]
"""F measures of ROUGE-1, -2, -L and -Lsum."""


def f_measures(
    predictions: Sequence[str], references: Sequence[str], stemming: bool, processes: int | None
) -> list[Row]:
    """One row a pair: what rouge-score's RougeScorer computes, to the last bit.

    Args:
        processes: At most so many, this one among them; None: one for each core. Helpers are started once this process
            has found out that enough is left for them.

    Raises:
        ValueError: The two are not of one length.
    """
    pairs = list(zip(predictions, references, strict=True))
    chunks = [pairs[start : start + CHUNK] for start in range(0, len(pairs), CHUNK)]
    score = scorer(stemming)
    found: dict[int, list[Row]] = {}
    waiting = enumerate(chunks)  # shared by threads: whoever is ready takes the next

    started = time.perf_counter()
    for number, chunk in waiting:
        found[number] = [score(*pair) for pair in chunk]
        if time.perf_counter() - started > PATIENCE:
            break
    left = (time.perf_counter() - started) / max(1, len(found)) * (len(chunks) - len(found))
    helpers = min(processes or len(os.sched_getaffinity(0)), 1 + int(left / WORTH)) - 1
    with ThreadPoolExecutor(max(1, helpers)) as pool:
        helped = [pool.submit(_have_helped, waiting, found, stemming) for _ in range(helpers)]
        for number, chunk in waiting:
            found[number] = [score(*pair) for pair in chunk]
        for one in helped:
            one.result()
    for number, chunk in enumerate(chunks):
        if number not in found:  # its helper died
            found[number] = [score(*pair) for pair in chunk]
    return [row for number in range(len(chunks)) for row in found[number]]


def scorer(stemming: bool) -> Callable[[str, str], Row]:
    """The function of a prediction and its reference that gives their row.

    Tokens and formulae are rouge-score's. What is spared: its table of len x len cells for ROUGE-L, of which it reads
    the last cell; ROUGE-Lsum of texts of one line, which is ROUGE-L; and the stem of a word that was there before.
    """
    stemmer = SimpleNamespace(stem=lru_cache(1 << 16)(PorterStemmer().stem)) if stemming else None

    def score(prediction: str, reference: str) -> Row:
        # rouge-score takes lines for sentences.
        lines_found, lines_target = (
            [tokens for line in text.split("\n") if (tokens := tokenize(line, stemmer))]
            for text in (prediction, reference)
        )
        found, target = (list(chain.from_iterable(lines)) for lines in (lines_found, lines_target))
        one, two = (
            rouge_scorer._score_ngrams(
                rouge_scorer._create_ngrams(target, n), rouge_scorer._create_ngrams(found, n)
            ).fmeasure
            for n in (1, 2)
        )
        common = longest_common_subsequence(found, target)
        longest = scoring.fmeasure(common / len(found), common / len(target)) if common else 0.0
        if len(lines_found) <= 1 and len(lines_target) <= 1:
            return one, two, longest, longest
        return one, two, longest, _of_lines(lines_found, lines_target)

    return score


def _of_lines(found: list[list[str]], target: list[list[str]]) -> float:
    """ROUGE-Lsum. A token that the prediction does not have leaves its row of rouge-score's table as the row before,
    and reading the table back steps over it: without it the same tokens are hit, sooner."""
    known = set(chain.from_iterable(found))
    pruned = [[token for token in line if token in known] for line in target]
    precision = rouge_scorer._summary_level_lcs(pruned, found).precision
    hits = round(precision * sum(map(len, found)))
    return scoring.fmeasure(precision, hits / sum(map(len, target))) if hits else 0.0


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Its length, a row of the table at a time as the bits of one number (Hyyrö 2004, "Bit-parallel LCS-length
    computation revisited", fig. 3)."""
    places: dict[str, int] = {}
    for place, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << place
    every = row = (1 << len(a)) - 1
    for token in b:
        hits = row & places.get(token, 0)
        row = (row + hits | row - hits) & every
    return len(a) - row.bit_count()


def _have_helped(waiting: Iterator, found: dict[int, list[Row]], stemming: bool) -> None:
    """Pass chunks to a process of its own until none is left; what it took and did not answer is not in `found`."""
    with (
        contextlib.suppress(OSError, ValueError),
        # Not multiprocessing's spawn, which would run the main module (torch, kfp) in there once more.
        subprocess.Popen(
            [sys.executable, "-m", "rlhf.rouge", *(["--stemming"] if stemming else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # an interrupt is this process's to tell of
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        ) as process,
    ):
        for number, chunk in waiting:
            print(json.dumps(chunk), file=process.stdin, flush=True)
            found[number] = json.loads(process.stdout.readline())


if __name__ == "__main__":
    score = scorer("--stemming" in sys.argv)
    for line in sys.stdin:
        print(json.dumps([score(*pair) for pair in json.loads(line)]), flush=True)
