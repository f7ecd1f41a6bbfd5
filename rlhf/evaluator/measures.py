"""What the evaluator measures of two models' completions, as flat metrics."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from rlhf.data.predictions import Prediction
from rlhf.evaluator import health
from rlhf.evaluator.compare import Interval, bradley_terry, outcomes_of, paired_difference, rows_needed
from rlhf.evaluator.config import EvaluatorConfig
from rlhf.evaluator.health import Health
from rlhf.evaluator.judgements import Judgement
from rlhf.evaluator.pairs import Pair
from rlhf.evaluator.texts import bertscore, bleu, chrf
from rlhf.metrics import ROUGE_TYPES, Rouge, Share, rouge
from rlhf.models.card import ModelCard

LOWEST, HIGHEST = "score_lowest", "score_highest"
"""Of a reward model's training pairs, in its card."""


@dataclass(frozen=True)
class Measures:
    """Everything that is known of the two models."""

    rouge_before: Mapping[str, float]
    rouge_after: Mapping[str, float]
    """ROUGE-L by id."""
    health_before: Health
    health_after: Health
    length: Literal["tokens", "words"]
    """In what lengths are measured: words where somebody's tokens were not counted."""
    strengths: Mapping[str, Interval]
    """Bradley-Terry, by model."""
    card: ModelCard | None
    """The reward model's."""
    beyond: tuple[Share, Share] | None
    """Completions before and after whose reward lies outside what the reward model was trained on."""
    flat: dict[str, float]

    @property
    def endings_known(self) -> bool:
        """Whether it was written down on both sides which completions ended by themselves."""
        return None not in (self.health_before.ended, self.health_after.ended)


def measure(
    config: EvaluatorConfig, pairs: Sequence[Pair], judgements: Sequence[Judgement], card: ModelCard | None
) -> Measures:
    """Measure.

    Args:
        judgements: The main one first.
        card: The reward model's.
    """
    sides = {"before": [p.before for p in pairs], "after": [p.after for p in pairs]}
    with_reference = [p for p in pairs if p.reference is not None]
    references = [p.reference for p in with_reference]
    flat: dict[str, float | None] = {"rows": len(pairs), "rows_with_reference": len(references)}
    counted = all(p.tokens is not None for predictions in sides.values() for p in predictions)
    length: Literal["tokens", "words"] = "tokens" if counted else "words"
    by_id, found = {}, {}
    for side, predictions in sides.items():
        texts = [getattr(p, side).prediction for p in with_reference]
        scores = rouge(texts, references, config.rouge_stemming)
        by_id[side] = dict(zip((p.id for p in with_reference), scores.rows["rougeL"], strict=True))
        flat |= _against_references(config, side, texts, references, scores)
        ended = [None if p.finish_reason is None else not p.is_cut for p in predictions]
        found[side] = health.health([p.prompt for p in pairs], [p.prediction for p in predictions], ended)
        flat |= _of_health(side, found[side])
        flat[f"{length}_{side}"] = fmean(length_of(p, length) for p in predictions)
    changed = paired_difference(list(by_id["before"].values()), list(by_id["after"].values()), config.seed)
    flat |= {"rouge_l_change_low": changed.low, "rouge_l_change_high": changed.high} if changed else {}
    for judgement in judgements:
        flat |= _of_judgement(config, judgement, judgement is judgements[0])
    beyond = _beyond(judgements[0], card)
    if beyond:
        flat |= {"reward_beyond_training_before": beyond[0].rate, "reward_beyond_training_after": beyond[1].rate}
    return Measures(
        rouge_before=by_id["before"],
        rouge_after=by_id["after"],
        health_before=found["before"],
        health_after=found["after"],
        length=length,
        strengths=_strengths(config, pairs, judgements[0]),
        card=card,
        beyond=beyond,
        flat={name: float(value) for name, value in flat.items() if value is not None},
    )


def length_of(prediction: Prediction, unit: Literal["tokens", "words"]) -> int:
    return prediction.tokens if unit == "tokens" else len(health.words(prediction.prediction))


def _against_references(
    config: EvaluatorConfig, side: str, texts: Sequence[str], references: Sequence[str], scores: Rouge
) -> dict[str, float | None]:
    flat = {f"{kind.replace('rouge', 'rouge_').lower()}_{side}": scores.mean.get(kind) for kind in ROUGE_TYPES}
    flat |= {f"bleu_{side}": bleu(texts, references), f"chrf_{side}": chrf(texts, references)}
    if config.bertscore_model and references:
        flat[f"bertscore_{side}"] = fmean(bertscore(texts, references, config.bertscore_model))
    return flat


def _of_health(side: str, found: Health) -> dict[str, float | None]:
    names = ("ended", "empty", "repetition", "copied", "distinct_1", "distinct_2", "entropy")
    return {f"{name}_{side}": getattr(found, name) for name in names}


def _of_judgement(config: EvaluatorConfig, judgement: Judgement, main: bool) -> dict[str, float | None]:
    prefix = "" if main else f"{judgement.slug}_"
    wins, controlled = judgement.wins, judgement.controlled
    flat: dict[str, float | None] = {
        f"{prefix}win_rate": wins.rate,
        f"{prefix}win_rate_low": wins.low,
        f"{prefix}win_rate_high": wins.high,
        f"{prefix}win_rate_controlled": controlled.rate,
        f"{prefix}win_rate_controlled_low": controlled.low,
        f"{prefix}win_rate_controlled_high": controlled.high,
        f"{prefix}wins": wins.wins,
        f"{prefix}losses": wins.losses,
        f"{prefix}ties": wins.ties,
        f"{prefix}not_judged": sum(outcome is None for outcome in judgement.outcomes) or None,
        f"{prefix}rows_needed": None if wins.rate is None else rows_needed(wins.rate),
    }
    if judgement.before is not None and judgement.after is not None:
        name = judgement.slug
        both = [
            (b, a)
            for b, a, outcome in zip(judgement.before, judgement.after, judgement.outcomes, strict=True)
            if outcome is not None
        ]
        if both:
            before, after = zip(*both, strict=True)
            change = paired_difference(before, after, config.seed)
            flat |= {f"{name}_before": fmean(before), f"{name}_after": fmean(after)}
            flat |= {f"{name}_change_low": change.low, f"{name}_change_high": change.high} if change else {}
        if judgement.reference:
            flat[f"{name}_reference"] = fmean(judgement.reference.values())
    return flat


def _strengths(config: EvaluatorConfig, pairs: Sequence[Pair], judgement: Judgement) -> Mapping[str, Interval]:
    """Of all models, and of the people who wrote the references, by the main judge."""
    scores: dict[str, Mapping[str, float]] = {
        name: {p.id: score for p, score in zip(pairs, values, strict=True) if score is not None}
        for name, values in {"before": judgement.before, "after": judgement.after, **judgement.others}.items()
    }
    if judgement.reference:
        scores["reference"] = judgement.reference
    if len(scores) < 3:
        return {}
    comparisons, prompts = [], []
    for pair in pairs:
        known = [(name, found[pair.id]) for name, found in scores.items() if pair.id in found]
        for (a, score_a), (b, score_b) in itertools.combinations(known, 2):
            (outcome,) = outcomes_of([score_b], [score_a], config.tie_margin)
            comparisons.append((a, b, outcome))
            prompts.append(pair.id)
    return bradley_terry(comparisons, prompts, config.seed)


def _beyond(judgement: Judgement, card: ModelCard | None) -> tuple[Share, Share] | None:
    if card is None or LOWEST not in card.training or HIGHEST not in card.training:
        return None
    ends = card.training[LOWEST], card.training[HIGHEST]
    return health.beyond(judgement.before, *ends), health.beyond(judgement.after, *ends)
