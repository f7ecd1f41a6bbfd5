"""Statistics of pairwise scores: pure functions over numpy arrays, one entry a pair. None warns or gives NaN."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from scipy.special import expit
from scipy.stats import ConstantInputWarning, NearConstantInputWarning, binomtest, norm, pearsonr, spearmanr
from sklearn.metrics import auc, roc_curve

from rlhf.metrics import Share, independent, share
from rlhf.words import three

AS_LONG = 0.1  # lengths that differ by at most this share of the longer one are about the same
FAR_APART = 1 / 3  # ... and beyond this, one is over 1.5 times the other
BINS = 10
OVER_CONFIDENT = 0.05  # difference of mean confidence and share right that is worth a word
PUNISHED = 0.9
ROC_POINTS = 200
SIGNIFICANT = 0.05
Z = float(norm.ppf(0.975))


@dataclass(frozen=True)
class Group:
    """Some of the pairs, and how many of them are ranked right."""

    label: str
    share: Share


@dataclass(frozen=True)
class Baseline:
    """A rule that needs no model, on the pairs that it decides, and the model on the very same pairs."""

    rule: Share
    model: Share
    p: float | None
    """Two-sided exact McNemar test: could rule and model be right equally often? None where no pair is decided."""

    @property
    def beaten(self) -> bool:
        """Whether the model is right more often than the rule, at the 5 % level."""
        return self.p is not None and self.p < SIGNIFICANT and self.model.hits > self.rule.hits


@dataclass(frozen=True)
class Bin:
    """Pairs of like confidence."""

    confidence: float
    """Their mean, in [0.5, 1]."""
    right: Share


@dataclass(frozen=True)
class Calibration:
    """Whether the model is right as often as it is sure (`calibration`)."""

    bins: Sequence[Bin]
    """Those that hold pairs, least sure first."""
    ece: float | None
    confidence: float | None
    """Mean over pairs."""
    right: Share

    @property
    def leaning(self) -> str:
        """ "over" or "under" where mean confidence lies outside the interval of the share right, and at least 5 points
        from that share; "" otherwise, and of nothing."""
        if self.confidence is None or abs(self.confidence - self.right.rate) < OVER_CONFIDENT:
            return ""
        return "over" if self.confidence > self.right.high else "under" if self.confidence < self.right.low else ""


@dataclass(frozen=True)
class Roc:
    """Points of the curve for "the first candidate is preferred", at most 200, all finite."""

    fpr: list[float]
    tpr: list[float]
    threshold: list[float]
    """Least probability of the first candidate at which it counts as preferred, falling."""
    area: float
    """Under the whole curve, before thinning."""


@dataclass(frozen=True)
class Correlation:
    """A coefficient with its 95 % interval; without the interval for fewer than four values."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Sensitivity:
    """What a change of the response does to its score."""

    mean_change: float
    falls: Share
    """How often the score is lower than before."""

    @property
    def punished(self) -> bool | None:
        """True where nine scores of ten fall; False where it is not shown that most do; None between the two."""
        if self.falls.rate >= PUNISHED:
            return True
        return False if self.falls.low <= 0.5 else None


def pairwise_loss(difference: np.ndarray) -> float:
    """Mean of -log sigmoid(chosen - rejected), in nats a pair (Stiennon et al. 2020, eq. 1)."""
    return float(np.logaddexp(0.0, -difference).mean())


@dataclass(frozen=True)
class Drop:
    """By how much a share falls, with its 95 % interval."""

    mean: float
    low: float
    high: float


def drop(before: np.ndarray, after: np.ndarray, prompts: np.ndarray) -> Drop:
    """Fall of the share of pairs ranked right, from `before` to `after`, of the same pairs.

    The interval is that of Agresti and Min 2005 for matched pairs, who add two pairs of which either is right in one
    half; its variance is that over prompts, as pairs of one prompt are not independent, and at least that of pairs that
    are. Of one prompt nothing is known of others.

    Args:
        before, after: (pairs,) whether the model ranks the pair right.
        prompts: (pairs,) what stands for each pair's prompt.
    """
    change = before.astype(float) - after
    members = np.unique(prompts, return_inverse=True)[1]
    sums = np.bincount(members, weights=change - change.mean())
    groups, pairs = sums.size, change.size + 2
    if groups < 2:
        return Drop(float(change.mean()), -1.0, 1.0)
    of_pairs = change.size * change.var(ddof=1)
    spread = max((sums**2).sum() * groups / (groups - 1), of_pairs) + 1
    centre, half = change.sum() / pairs, Z * np.sqrt(spread) / pairs
    return Drop(float(change.mean()), float(centre - half), float(centre + half))


def baseline(rule: np.ndarray, right: np.ndarray, prompts: np.ndarray) -> Baseline:
    """Compare a rule with the model, pair by pair.

    Args:
        rule: (pairs,) whether the rule takes the chosen response, NaN where it does not decide: such pairs count for
            neither, as in data validation's own share of longer candidates that were chosen.
        right: (pairs,) whether the model ranks the pair right.
        prompts: (pairs,) what stands for each pair's prompt.

    The exact test of McNemar 1947: of the pairs where just one of the two is right, each is so in half of them. Pairs
    of one prompt count for as many as they are worth (`rlhf.metrics.independent`).
    """
    decided = ~np.isnan(rule)
    rule, right, prompts = rule[decided] == 1, right[decided], prompts[decided]
    p = None
    if rule.size:
        only_one = right != rule
        worth = round(_worth(right[only_one], prompts[only_one]))
        p = float(binomtest(round(right[only_one].mean() * worth), worth).pvalue) if worth else 1.0
    return Baseline(share_of(rule, prompts), share_of(right, prompts), p)


def share_of(hits: np.ndarray, prompts: np.ndarray) -> Share:
    """Of booleans; pairs of one prompt are not independent."""
    return share(int(hits.sum()), hits.size, _worth(hits, prompts))


def _worth(hits: np.ndarray, prompts: np.ndarray) -> float:
    return independent(hits.tolist(), prompts.tolist()) if hits.size else 0.0


def by_length(chosen: np.ndarray, rejected: np.ndarray, right: np.ndarray, prompts: np.ndarray) -> list[Group]:
    """Pairs by how long the chosen response is beside the rejected one; only groups that hold pairs.

    Args:
        chosen, rejected: (pairs,) lengths in tokens.
        right: (pairs,) whether the model ranks the pair right.
    """
    relative = (chosen - rejected) / np.maximum(np.maximum(chosen, rejected), 1)
    groups = (
        ("under ⅔ as long", relative < -FAR_APART),
        ("shorter", (relative >= -FAR_APART) & (relative < -AS_LONG)),
        ("about as long (±10 %)", abs(relative) <= AS_LONG),
        ("longer", (relative > AS_LONG) & (relative <= FAR_APART)),
        ("over 1.5 times as long", relative > FAR_APART),
    )
    return [Group(label, share_of(right[inside], prompts[inside])) for label, inside in groups if inside.any()]


def by_size(values: np.ndarray, right: np.ndarray, prompts: np.ndarray, parts: int = 4) -> list[Group]:
    """Pairs in `parts` of about the same size, by quantiles of `values`; by value where there are no more values."""
    distinct = np.unique(values)
    if distinct.size <= parts:
        member = np.searchsorted(distinct, values)
    else:
        member = np.searchsorted(np.quantile(values, np.arange(1, parts) / parts), values)
    groups = []
    for part in np.unique(member):
        inside = member == part
        low, high = (three(edge) for edge in (values[inside].min(), values[inside].max()))
        found = share_of(right[inside], prompts[inside])
        groups.append(Group(low if low == high else f"{low} to {high}", found))
    return groups


def calibration(difference: np.ndarray, prompts: np.ndarray) -> Calibration:
    """Reliability bins and expected calibration error (Guo et al. 2017, eq. 2 and 3), over 10 bins of equal width.

    By the Bradley-Terry model that the loss fits, the probability that the higher scored response is the better one is
    sigmoid(|difference|), in [0.5, 1]. Pairs that tie are left out: of them the model claims nothing.

    Args:
        difference: (pairs,) score of the chosen response less that of the rejected one.
        prompts: (pairs,) what stands for each pair's prompt.
    """
    prompts, difference = prompts[difference != 0], difference[difference != 0]
    if not difference.size:
        return Calibration([], None, None, share(0, 0))
    confidence, right = expit(abs(difference)), difference > 0
    member = np.digitize(confidence, np.linspace(0.5, 1, BINS + 1)[1:-1], right=True)
    bins = [
        Bin(float(confidence[inside].mean()), share_of(right[inside], prompts[inside]))
        for inside in (member == part for part in np.unique(member))
    ]
    ece = sum(b.right.of * abs(b.right.rate - b.confidence) for b in bins) / difference.size
    return Calibration(bins, ece, float(confidence.mean()), share_of(right, prompts))


def orientation(ids: Sequence[str], position: np.ndarray) -> np.ndarray:
    """Which candidate counts as first, for measures that need two classes.

    As laid out in the data; where that is not known, by the parity of a hash of the pair's id, the same in every run.

    Args:
        position: (pairs,) 0 or 1, NaN where not known.

    Returns:
        (pairs,) whether the chosen response is the first.
    """
    hashed = np.array([xxhash.xxh3_64_intdigest(name.encode()) % 2 == 0 for name in ids], dtype=bool)
    return np.where(np.isnan(position), hashed, position == 0)


def roc(difference: np.ndarray, chosen_first: np.ndarray) -> Roc | None:
    """ROC of the probability of the first candidate against whether it was chosen; None if all are of one class.

    scikit-learn begins the curve at an infinite threshold, which no JSON and no KFP metric can hold: it becomes 1.
    """
    if np.unique(chosen_first).size < 2:
        return None
    fpr, tpr, threshold = roc_curve(chosen_first, np.where(chosen_first, difference, -difference))
    area = float(auc(fpr, tpr))
    kept = np.unique(np.linspace(0, fpr.size - 1, min(ROC_POINTS, fpr.size)).round().astype(int))
    return Roc(fpr[kept].tolist(), tpr[kept].tolist(), expit(threshold[kept]).tolist(), area)


def confusion(difference: np.ndarray, chosen_first: np.ndarray) -> list[list[int]]:
    """[[first preferred by both, first by the labels only], [second by the labels only, second by both]]: rows are the
    labels, columns the model. A tie counts as wrong, as in `rlhf.metrics.accuracy`."""
    right = difference > 0
    matrix = []
    for row, of_class in enumerate((chosen_first, ~chosen_first)):
        hits, misses = int((right & of_class).sum()), int((~right & of_class).sum())
        matrix.append([hits, misses] if row == 0 else [misses, hits])
    return matrix


def pearson(x: np.ndarray, y: np.ndarray) -> Correlation | None:
    """Pearson's correlation, its interval by Fisher's transformation; None where either is constant."""
    found = _varying(pearsonr, x, y)
    if found is None:
        return None
    if x.size < 4:  # the transformation's variance is 1 / (n - 3)
        return Correlation(float(found.statistic), None, None)
    interval = found.confidence_interval()
    return Correlation(float(found.statistic), float(interval.low), float(interval.high))


def spearman(x: np.ndarray, y: np.ndarray) -> Correlation | None:
    """Spearman's rank correlation, its interval after Bonett and Wright 2000; None where either is constant."""
    found = _varying(spearmanr, x, y)
    if found is None:
        return None
    value = float(np.clip(found.statistic, -1, 1))
    if x.size < 4:
        return Correlation(value, None, None)
    if abs(value) == 1:
        return Correlation(value, value, value)
    half = Z * np.sqrt((1 + value**2 / 2) / (x.size - 3))
    return Correlation(value, *(float(np.tanh(np.arctanh(value) + side * half)) for side in (-1, 1)))


def sensitivity(before: np.ndarray, after: Sequence[float | None], prompts: np.ndarray) -> Sensitivity | None:
    """How scores change, over those measured; None where nothing was."""
    after = np.array(after, dtype=float)
    known = ~np.isnan(after)
    changes = (after - before)[known]
    return Sensitivity(float(changes.mean()), share_of(changes < 0, prompts[known])) if changes.size else None


def _varying(correlate, x: np.ndarray, y: np.ndarray):
    """A correlation of SciPy, or None where it is not defined."""
    if x.size < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConstantInputWarning)
        warnings.simplefilter("error", NearConstantInputWarning)
        try:
            return correlate(x, y)
        except (ConstantInputWarning, NearConstantInputWarning):
            return None
