"""Texts that differ in a few words only, found without comparing every text with every other."""

import re
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rensa import RMinHash

# Words of a shingle: with five, as in FineWeb (Penedo et al. 2024) and Lee et al. 2022, texts of one subject share few.
SHINGLE_WORDS = 5
# A pair of similarity s shares a band, and is found, with probability 1 - (1 - s^6)^20: 0.998 at 0.8, 0.92 at 0.7,
# 0.08 at 0.4. FineWeb's 14 bands of 8 find 0.92 at 0.8; what 20 find too much, the exact similarity sorts out.
BANDS = 20
ROWS_PER_BAND = 6
LOWEST_THRESHOLD = 0.7
# How far below the threshold the share of equal MinHashes may lie: three standard deviations of it at 120 of them.
_MARGIN = 0.11
# Most comparisons for a text: with the next ones of its bucket in a band, and by the exact similarity without success.
# They keep the time linear where thousands of texts are made from one template.
_NEIGHBOURS = 20
_TRIES = 20
_AT_ONCE = 1 << 16
# Every character of a script that puts no spaces between words counts as a word: Thai, Lao, Burmese, Khmer, kana, Han.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


@dataclass(frozen=True)
class NearDuplicates:
    """Texts with a near duplicate among the others, exact duplicates aside."""

    texts: int
    """How many texts there are with one, each copy of a text counted."""
    pairs: tuple[tuple[int, int, float], ...]
    """(position, later position, similarity in [threshold, 1]), the most similar first. Every text with a near
    duplicate is in one pair at least, the first of its copies standing for all; not every pair is listed."""


def near_duplicates(texts: Sequence[str], threshold: float = 0.8, seed: int = 0) -> NearDuplicates:
    """Find texts whose words are nearly the same.

    Candidates come from MinHash (Broder 1997) with bands (Leskovec et al., Mining of Massive Datasets, ch. 3). A pair
    is kept by its exact Jaccard similarity: shared word shingles / all word shingles of both, case and punctuation
    aside. So none is reported wrongly, and few are overlooked (`BANDS`). A word changed in the middle of n takes the
    similarity to (n - 9) / (n + 1), to 0.8 at 49: shorter texts resemble those that differ at an end, or in case and
    punctuation. A text shorter than a shingle is one itself; a text without words resembles none.

    Args:
        texts: Any number; time and memory grow linearly with them.
        threshold: Least similarity, from `LOWEST_THRESHOLD` to 1.
        seed: Of the hashes. With one seed `texts` does not depend on the order of the texts.

    Raises:
        ValueError: The threshold is out of range.
    """
    if not LOWEST_THRESHOLD <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}, expected {LOWEST_THRESHOLD} to 1: below, too many are overlooked")
    positions = defaultdict(list)
    for position, text in enumerate(texts):
        positions[text.strip()].append(position)
    distinct = sorted(text for text in positions if _WORD.search(text))
    if len(distinct) < 2:
        return NearDuplicates(0, ())

    matrix = RMinHash.digest_matrix_from_token_sets(map(shingles, distinct), BANDS * ROWS_PER_BAND, seed)
    candidates = _most_similar_first(np.array(matrix.to_rows(), dtype=np.uint32), threshold - _MARGIN)

    # Interned, shingles that texts share are kept once.
    sets = {i: {sys.intern(shingle) for shingle in shingles(distinct[i])} for i in set(candidates.ravel().tolist())}
    matched: set[int] = set()
    tries: Counter[int] = Counter()
    pairs = []
    for a, b in candidates.tolist():
        if matched.issuperset((a, b)) or min(tries[a], tries[b]) >= _TRIES:
            continue
        similarity = jaccard(sets[a], sets[b])
        if similarity >= threshold:
            matched.update((a, b))
            first, second = sorted((positions[distinct[a]][0], positions[distinct[b]][0]))
            pairs.append((first, second, similarity))
        else:
            tries.update((a, b))
    pairs.sort(key=lambda pair: (-pair[2], pair))
    return NearDuplicates(sum(len(positions[distinct[i]]) for i in matched), tuple(pairs))


def shingles(text: str) -> list[str]:
    """Every run of `SHINGLE_WORDS` words, case and punctuation aside; all words at once where there are fewer."""
    words = _WORD.findall(text.casefold())
    return [" ".join(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1))]


def jaccard(a: set[str], b: set[str]) -> float:
    """What two sets share of all that they have, in [0, 1]."""
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


def _most_similar_first(signatures: np.ndarray, least: float) -> np.ndarray:
    """Pairs of rows that share a band and at least the share `least` of MinHashes, the most similar first.

    Args:
        signatures: (texts, BANDS * ROWS_PER_BAND) MinHashes.

    Returns:
        (pairs, 2) rows, the lower one first.
    """
    texts = len(signatures)
    found = [np.empty(0, dtype=np.int64)]
    for band in np.split(signatures, BANDS, axis=1):
        bucket = np.unique(band, axis=0, return_inverse=True)[1].ravel()
        rows = np.argsort(bucket, kind="stable")
        bucket = bucket[rows]
        for step in range(1, min(_NEIGHBOURS, texts - 1) + 1):
            together = bucket[:-step] == bucket[step:]
            if not together.any():
                break
            found.append(rows[:-step][together] * texts + rows[step:][together])
    codes = np.sort(np.concatenate(found))
    codes = codes[np.diff(codes, prepend=-1) > 0]  # np.unique takes ten times as long here
    pairs = np.stack(np.divmod(codes, texts), axis=1)
    shares = np.concatenate(
        [
            (signatures[chunk[:, 0]] == signatures[chunk[:, 1]]).mean(axis=1)
            for chunk in np.array_split(pairs, len(pairs) // _AT_ONCE + 1)
        ]
    )
    near = shares >= least
    return pairs[near][np.argsort(-shares[near], kind="stable")]
