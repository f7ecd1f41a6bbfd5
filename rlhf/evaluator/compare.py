"""Which of two models is better, and how sure that is: win rates at equal lengths, differences, strengths of several.

An *outcome* of a row is a float in [0, 1]: 1 where after wins, 0 where before does, 0.5 for a tie, None where nobody
judged.
"""

import math
import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit
from scipy.stats import bootstrap, norm
from sklearn.linear_model import LogisticRegression

from rlhf.metrics import WinRate

# Weak: ten wins of ten have log-odds of 5, not of infinity. AlpacaEval's, where it does not search for one.
INVERSE_PENALTY = 100.0
Z = float(norm.ppf(0.975))


@dataclass(frozen=True)
class Controlled:
    """A win rate at equal lengths with its 95 % interval; None's where nothing can be said."""

    rate: float | None
    low: float | None
    high: float | None
    length_effect: float | None
    """Log-odds by tanh(difference of lengths / its standard deviation): above 0, the longer one wins more often."""
    of: int
    """Rows that were judged."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval."""

    mean: float
    low: float
    high: float


def outcomes_of(before: Sequence[float], after: Sequence[float], tie_margin: float = 0.0) -> list[float | None]:
    """Outcomes by scores of the same prompts, by position; None where one of the two is not finite.

    Args:
        tie_margin: Differences up to this, in the score's unit, are ties; so is what the rounding of sums may leave.

    Raises:
        ValueError: The two are not of one length.
    """
    return [_outcome(b, a, tie_margin) for b, a in zip(before, after, strict=True)]


def _outcome(before: float, after: float, tie_margin: float) -> float | None:
    if not (math.isfinite(before) and math.isfinite(after)):
        return None
    tied = abs(after - before) <= tie_margin or math.isclose(after, before, rel_tol=1e-9, abs_tol=1e-12)
    return 0.5 if tied else float(after > before)


def length_controlled(
    outcomes: Sequence[float | None],
    lengths_before: Sequence[float],
    lengths_after: Sequence[float],
    seed: int = 0,
    resamples: int = 1000,
) -> Controlled:
    """What the win rate would be if the two completions of every row were of one length.

    AlpacaEval 2's idea (Dubois et al. 2024, "Length-Controlled AlpacaEval", sec. 3) for one pair of models: a logistic
    regression of the outcome on an intercept and tanh(difference of lengths / its standard deviation); the rate is that
    of the intercept alone. Ties count half, so without an effect of length this is (wins + ties / 2) / judged. The
    term for a prompt's difficulty is left out, for its values are of AlpacaEval's own prompts. A weak L2 penalty
    keeps the rate below 1 when all rows are won.

    The interval is, at each end, the wider of two: the percentile bootstrap over rows, and the regression's own after
    two wins and two losses at equal lengths were added (Agresti and Coull 1998). The first alone has no width when all
    rows are won, and would promote on three of three.

    Nothing can be said when equal lengths are out of reach of the data: no spread of differences that are not 0, or
    their tanh on average more than ten of its standard deviations from 0.

    Args:
        lengths_before, lengths_after: Of the completions, by position, in any one unit.

    Raises:
        ValueError: The three are not of one length, or an outcome is outside [0, 1].
    """
    rows = [row for row in zip(outcomes, lengths_before, lengths_after, strict=True) if row[0] is not None]
    if not rows:
        return Controlled(None, None, None, None, 0)
    judged, before, after = np.array(rows, dtype=float).T
    feature = after - before
    equal = not feature.any()
    if np.ptp(feature):
        feature = np.tanh(feature / feature.std())
    if abs(feature.mean()) > 10 * feature.std():
        return Controlled(None, None, None, None, len(rows))
    design = np.column_stack([np.ones(len(rows)), feature])
    at_equal = np.array([[1.0, 0.0]])
    found, low, high = _logistic(design, judged, np.arange(len(rows)), np.eye(2), at_equal, seed, resamples)
    rate, low, high = (float(expit(ends[0])) for ends in (found, low, high))
    return Controlled(rate, low, high, None if equal else float(found[1]), len(rows))


def ties_half(wins: WinRate) -> float | None:
    """(wins + ties / 2) / judged: what `length_controlled` gives where length has no effect; None of nothing judged."""
    judged = wins.wins + wins.losses + wins.ties
    return (wins.wins + wins.ties / 2) / judged if judged else None


def paired_difference(before: Sequence[float], after: Sequence[float], seed: int = 0) -> Interval | None:
    """Mean of after - before with its bootstrap interval over rows; None of fewer than two rows.

    The interval is bias-corrected and accelerated (Efron 1987) where that is defined, and makes a difference: up to
    5,000 rows, of which not all are alike. Else it is the percentile one.

    Args:
        before, after: Finite scores of the same prompts, by position.

    Raises:
        ValueError: The two are not of one length.
    """
    change = np.array([a - b for b, a in zip(before, after, strict=True)])
    if len(change) < 2:
        return None
    low, high = math.nan, math.nan
    if len(change) <= 5000:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # rows that are all alike: not finite, which is seen below
            low, high = _bootstrap(change, "BCa", seed)
    if not (math.isfinite(low) and math.isfinite(high)):
        low, high = _bootstrap(change, "percentile", seed)
    return Interval(float(change.mean()), low, high)


def _bootstrap(values: np.ndarray, method: str, seed: int) -> tuple[float, float]:
    found = bootstrap(
        (values,),
        np.mean,
        n_resamples=2000,
        batch=max(1, 10_000_000 // len(values)),  # 80 MB at once, however many rows
        method=method,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def rows_needed(rate: float, power: float = 0.8, confidence: float = 0.95) -> int | None:
    """Decided pairs after which a win rate of this size is told from one half, with this probability.

    Sample size of the two-sided test of one proportion by the normal approximation (Fleiss, Levin and Paik 2003,
    "Statistical Methods for Rates and Proportions", 3rd ed., ch. 2, without the correction for continuity), which
    is the same test as whether Wilson's interval leaves out one half.

    Args:
        rate: The true win rate, in [0, 1].

    Returns:
        None at exactly one half: no number is enough.

    Raises:
        ValueError: The rate is outside [0, 1].
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate: found {rate}, expected a share from 0 to 1")
    if rate == 0.5:
        return None
    z_confidence, z_power = norm.ppf(0.5 + confidence / 2), norm.ppf(power)
    return math.ceil(((z_confidence / 2 + z_power * math.sqrt(rate * (1 - rate))) / (rate - 0.5)) ** 2)


def bradley_terry(
    comparisons: Sequence[tuple[str, str, float]],
    prompts: Sequence[Hashable] | None = None,
    seed: int = 0,
    resamples: int = 200,
) -> dict[str, Interval]:
    """Strengths of models of which any two, or some, were compared (Bradley and Terry 1952).

    By logistic regression as Chatbot Arena does (Chiang et al. 2024, sec. 4), ties counting half: the log-odds of a
    winning against b are a's strength less b's. A weak L2 penalty keeps a model that never lost finite; intervals are
    made as those of `length_controlled`.

    Args:
        comparisons: (a, b, outcome for a).
        prompts: What each comparison is of, by position. Comparisons of one prompt are drawn together, for a good
            completion wins several of them. None: each stands alone.

    Returns:
        {model: strength in log-odds}, in order of appearance; the mean of the strengths is 0. Empty of none.

    Raises:
        ValueError: `prompts` is not as long as `comparisons`, or an outcome is outside [0, 1].
    """
    if not comparisons:
        return {}
    models = list(dict.fromkeys(model for a, b, _ in comparisons for model in (a, b)))
    place = {model: column for column, model in enumerate(models)}
    design = np.zeros((len(comparisons), len(models)))
    for row, (a, b, _) in enumerate(comparisons):
        design[row, place[a]] += 1
        design[row, place[b]] -= 1
    of = list(range(len(comparisons)) if prompts is None else prompts)
    number = {prompt: n for n, prompt in enumerate(dict.fromkeys(of))}
    groups = np.array([number[prompt] for (*_,), prompt in zip(comparisons, of, strict=True)])
    outcomes = np.array([outcome for *_, outcome in comparisons], dtype=float)
    centred = np.eye(len(models)) - 1 / len(models)
    # Of a pair's two signs one, so that it gets its added wins and losses once.
    met = np.unique(design * np.sign(design @ np.arange(len(models)))[:, None], axis=0)
    fitted = _logistic(design, outcomes, groups, centred, met, seed, resamples)
    return {model: Interval(*map(float, found)) for model, *found in zip(models, *fitted, strict=True)}


def _logistic(
    design: np.ndarray,
    outcomes: np.ndarray,
    groups: np.ndarray,
    contrasts: np.ndarray,
    added: np.ndarray,
    seed: int,
    resamples: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Contrasts of a logistic regression's coefficients, and the ends of their 95 % intervals.

    Args:
        design: (rows, coefficients).
        outcomes: (rows,), in [0, 1].
        groups: (rows,), numbers from 0: rows of one group are drawn together.
        contrasts: (contrasts, coefficients).
        added: (kinds, coefficients): where the regression's own interval has two wins and two losses more.

    Returns:
        Three of (contrasts,).

    Raises:
        ValueError: An outcome is outside [0, 1].
    """
    if not ((outcomes >= 0) & (outcomes <= 1)).all():
        raise ValueError("outcomes: found one outside 0 to 1, expected 1 for a win, 0.5 for a tie and 0 for a loss")
    # Rows that are alike are fitted as one with their weight: lengths are whole numbers and models few.
    alike, kind = np.unique(np.column_stack([design, outcomes]), axis=0, return_inverse=True)
    design, outcomes = alike[:, :-1], alike[:, -1]
    size = groups.max() + 1

    def drawn(times: np.ndarray) -> np.ndarray:
        return np.bincount(kind, weights=times[groups], minlength=len(alike))

    all_rows = drawn(np.ones(size))
    estimate = contrasts @ _fit(design, outcomes, all_rows)
    draw = np.random.default_rng(seed)
    resampled = [
        contrasts @ _fit(design, outcomes, drawn(draw.multinomial(size, np.full(size, 1 / size))))
        for _ in range(resamples)
    ]
    low, high = np.percentile(resampled, [2.5, 97.5], axis=0)

    ties = np.average(outcomes * (1 - outcomes), weights=all_rows)
    design, outcomes = np.concatenate([design, added]), np.append(outcomes, np.full(len(added), 0.5))
    counts = np.append(all_rows, np.full(len(added), 4.0))
    coefficients = _fit(design, outcomes, counts)
    rate = expit(design @ coefficients)
    # The variance of an outcome is p (1 - p), less what ties take from it: E[y (1 - y)].
    variance = np.maximum(0, rate * (1 - rate) - np.append(np.full(len(all_rows), ties), np.zeros(len(added))))
    penalty = np.eye(design.shape[1]) / INVERSE_PENALTY
    bread = contrasts @ np.linalg.inv(design.T * (counts * rate * (1 - rate)) @ design + penalty)
    meat = design.T * (counts * variance) @ design + penalty
    error = Z * np.sqrt(np.einsum("ij,jk,ik->i", bread, meat, bread))
    middle = contrasts @ coefficients
    ends = np.array([estimate, low, high, middle - error, middle + error])
    return estimate, ends.min(axis=0), ends.max(axis=0)


def _fit(design: np.ndarray, outcomes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Coefficients, for rows that are there so often; a row of outcome y is y wins and 1 - y losses."""
    weights = np.concatenate([counts * outcomes, counts * (1 - outcomes)])
    # No intercept of its own, which it would not penalise.
    model = LogisticRegression(C=INVERSE_PENALTY, fit_intercept=False, tol=1e-6)
    won = np.repeat([1, 0], len(design))
    return model.fit(np.concatenate([design, design]), won, sample_weight=weights).coef_[0]
