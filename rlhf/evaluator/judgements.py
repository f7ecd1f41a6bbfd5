"""Who says which of two completions is better, and what comes of it."""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rlhf.data.template import Template
from rlhf.errors import ModelError, TrainingError
from rlhf.evaluator.compare import Controlled, length_controlled, outcomes_of
from rlhf.evaluator.config import EvaluatorConfig
from rlhf.evaluator.judge import judge
from rlhf.evaluator.pairs import Pair
from rlhf.metrics import WinRate, win_rate_of
from rlhf.models.card import ModelCard
from rlhf.progress import Progress
from rlhf.words import percent

if TYPE_CHECKING:
    from rlhf.models.scoring import RewardModel

STAGE = "evaluator"
REWARD_MODEL, GRADER = "reward model", "grader"
OWNED = {REWARD_MODEL: "reward", GRADER: "grade"}
"""Slugs of who may decide, by name. Nobody else gets either, whether they judge in this run or not."""
MEASURED = {
    *("rouge_1", "rouge_2", "rouge_l", "rouge_lsum", "bleu", "chrf", "bertscore"),
    *("tokens", "words", "ended", "empty", "repetition", "copied", "distinct_1", "distinct_2", "entropy"),
    *("reward_beyond_training", "rows_with"),
}
"""What stands before `_before`, `_after` or `_reference` in other metrics, and so is no judge's slug."""


@dataclass(frozen=True)
class Judgement:
    """What one judge makes of the completions before and after."""

    name: str
    outcomes: Sequence[float | None]
    """By position: 1 where after wins, 0.5 for a tie, 0 where before wins, None where nobody judged."""
    wins: WinRate
    controlled: Controlled
    before: Sequence[float | None] | None = None
    after: Sequence[float | None] | None = None
    """Scores by position, where the judge gives scores."""
    reference: Mapping[str, float] = field(default_factory=dict)
    """Scores of the references by id."""
    others: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    """Scores of further models by name."""
    remarks: Sequence[str] = ()
    slug: str = ""
    """The name as part of a metric's; empty until `told_apart` gives one, but for who may decide."""


def told_apart(judgements: Sequence[Judgement]) -> list[Judgement]:
    """The same, in their order, each with a name and a slug that no other has.

    Who may decide keeps name and slug. Of others of one name, or of one that is taken, later ones are numbered from 2
    as in training: two graders `grade` are `grade_2` and `grade_3`, for `grade` is the run's grader.
    """
    names, slugs = set(OWNED), {*OWNED.values(), *MEASURED}
    found = []
    for judgement in judgements:
        name, slug, number = judgement.name, judgement.slug, 1
        if not slug:
            while name in names or (slug := _slug(name)) in slugs:
                number += 1
                name = f"{judgement.name}_{number}"
        names.add(name)
        slugs.add(slug)
        found.append(replace(judgement, name=name, slug=slug))
    return found


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name.lower())


def by_reward_model(
    config: EvaluatorConfig, pairs: Sequence[Pair], folder: str, template: Template
) -> tuple[Judgement, ModelCard | None]:
    """The reward model's judgement, of references and further models too.

    Raises:
        ModelError: The model cannot be loaded, was trained with another template, or gives a score that is not finite.
    """
    from rlhf.models.loading import prepare_torch
    from rlhf.models.scoring import RewardModel

    prepare_torch(config.seed)
    model = RewardModel.load(folder, template)
    if model.card is not None and model.card.template_digest not in ("", template.digest):
        raise ModelError(
            f"reward_model {folder}: trained with template {model.card.template_digest}, the evaluation dataset has "
            f"{template.digest}; use the reward model that was trained on this run's data"
        )
    texts = {"before": [p.before.prediction for p in pairs], "after": [p.after.prediction for p in pairs]}
    with_reference = [p for p in pairs if p.reference is not None]
    texts |= {name: [p.others[name].prediction for p in pairs] for name in pairs[0].others}
    rows = [(p, text) for found in texts.values() for p, text in zip(pairs, found, strict=True)]
    rows += [(p, p.reference) for p in with_reference]
    # Each text once: in another batch, rounding would give the same text another score, and a win where there is none.
    distinct = list(dict.fromkeys((p.prompt, text) for p, text in rows))
    try:
        with Progress(STAGE, len(distinct), unit="completion") as progress:
            found = model.score(*map(list, zip(*distinct, strict=True)), config.batch_size, progress.update)
    except ModelError as error:
        raise ModelError(f"{error}; the first such row has id {_first_that_fails(model, rows)!r}") from error
    score_of = dict(zip(distinct, found, strict=True))
    scores = [score_of[p.prompt, text] for p, text in rows]
    bad = [p.id for (p, _), score in zip(rows, scores, strict=True) if not math.isfinite(score)]
    if bad:
        raise ModelError(
            f"reward_model {folder}: {len(bad):,} of {len(scores):,} scores are not finite, the first for id "
            f"{bad[0]!r}; the model's weights are damaged or its training diverged"
        )
    parts = {name: scores[i * len(pairs) : (i + 1) * len(pairs)] for i, name in enumerate(texts)}
    references = scores[len(texts) * len(pairs) :]
    judgement = _by_scores(
        REWARD_MODEL,
        config,
        pairs,
        parts.pop("before"),
        parts.pop("after"),
        reference=dict(zip((p.id for p in with_reference), references, strict=True)),
        others=parts,
        tie_margin=config.tie_margin,
        slug=OWNED[REWARD_MODEL],
    )
    return judgement, model.card


def by_run_grader(config: EvaluatorConfig, pairs: Sequence[Pair], template: Template, decides: bool) -> list[Judgement]:
    """The judgement of the grader that the policy was tuned with, of references and further models too; and of each of
    its parts, where there are several.

    Args:
        decides: Whether no reward model does: `config.tie_margin` is in the unit of who decides.

    Raises:
        ConfigError: It cannot be loaded.
        ModelError: A reward model that is part of it cannot be loaded.
        TrainingError: It fails, or grades none of the completions.
    """
    from rlhf.rewards.combined import Rewards, Scored
    from rlhf.rewards.groups import flattened, make_grader

    texts = {"before": [p.before.prediction for p in pairs], "after": [p.after.prediction for p in pairs]}
    texts |= {name: [p.others[name].prediction for p in pairs] for name in pairs[0].others}
    with_reference = [p for p in pairs if p.reference is not None]
    with ExitStack() as stack:
        parts = [stack.enter_context(closing(make_grader(each, template))) for each in flattened(config.grader)]
        rewards = Rewards(None, 1.0, parts)

        def graded(rows: Sequence[Pair], completions: Sequence[str]) -> Scored:
            columns = {"id": [p.id for p in rows], "reference": [p.reference for p in rows]}
            return rewards.score([p.prompt for p in rows], [p.original for p in rows], list(completions), columns)

        found = {name: graded(pairs, said) for name, said in texts.items()}
        references = graded(with_reference, [p.reference for p in with_reference]) if with_reference else None
    faults = [words for each in (found["before"], found["after"]) for words in each.faults.values()]
    totals = {name: [_finite(grade) for grade in each.total] for name, each in found.items()}
    if not any(grade is not None for grade in totals["before"] + totals["after"]):
        raise TrainingError(
            f"evaluation.grader: it gave no completion a grade ({faults[0] if faults else 'only None'})"
        )
    known = [] if references is None else zip(with_reference, references.total, strict=True)
    main = _by_scores(
        GRADER,
        config,
        pairs,
        totals.pop("before"),
        totals.pop("after"),
        reference={p.id: grade for p, grade in known if math.isfinite(grade)},
        others=totals,
        tie_margin=config.tie_margin if decides else 0.0,
        remarks=_on_faults(faults),
        slug=OWNED[GRADER],
    )
    names = list(found["before"].parts) if len(parts) > 1 else []
    of_parts = [
        _by_scores(
            name, config, pairs, *([_finite(g) for g in found[when].parts[name]] for when in ("before", "after"))
        )
        for name in names
    ]
    return [main, *of_parts]


def _finite(grade: float | None) -> float | None:
    return grade if grade is not None and math.isfinite(grade) else None


def _on_faults(faults: Sequence[str]) -> list[str]:
    return [f"{len(faults):,} completions could not be graded, the first: {faults[0]}."] if faults else []


def by_graders(config: EvaluatorConfig, pairs: Sequence[Pair], template: Template) -> list[Judgement]:
    """Judgements of the functions that the options name.

    Raises:
        ConfigError: One cannot be loaded.
        TrainingError: One raises, hangs or does not return a grade for each completion.
    """
    from rlhf.rewards.combined import Rewards
    from rlhf.rewards.groups import make_grader

    found = []
    texts, prompts = [p.prompt for p in pairs], [p.original for p in pairs]
    columns = {"id": [p.id for p in pairs], "reference": [p.reference for p in pairs]}
    for grader in config.graders:
        with Rewards(None, 1.0, [make_grader(grader, template)]) as rewards:
            scored = [
                rewards.score(texts, prompts, completions, columns)
                for completions in ([p.before.prediction for p in pairs], [p.after.prediction for p in pairs])
            ]
        # The part, not the total: weights do not matter here.
        before, after = ([_finite(grade) for grade in each.parts[grader.name]] for each in scored)
        faults = [words for each in scored for words in each.faults.values()]
        found.append(_by_scores(grader.name, config, pairs, before, after, remarks=_on_faults(faults)))
    return found


def by_language_model(config: EvaluatorConfig, pairs: Sequence[Pair], template: Template) -> Judgement:
    """The judge's, asked about both orders of each pair.

    It reads prompts without the chat template's control tokens: a server would take them for its own, and the question
    for ended where the prompt is.

    Raises:
        ConfigError: The endpoint or its key cannot be used.
        DataError: Too many pairs could not be judged.
    """
    with Progress(STAGE, min(len(pairs), config.judge.max_rows), unit="pair") as progress:
        judged = judge(
            config.judge,
            [template.without_control_tokens(p.prompt) for p in pairs],
            [p.before.prediction for p in pairs],
            [p.after.prediction for p in pairs],
            progress.update,
        )
    remarks = []
    if judged.disagreed:
        answered = sum(
            outcome is not None and pair.before.prediction != pair.after.prediction
            for pair, outcome in zip(pairs, judged.outcomes, strict=True)
        )
        remarks.append(
            f"{judged.disagreed:,} of the {answered:,} pairs that it was asked about and answered "
            f"({percent(judged.disagreed / answered)}) were judged the other way round when the two completions were "
            "shown in the other order; they count as ties."
        )
    failed = sum(judged.failures.values())
    if failed:
        causes = ", ".join(f"{cause}: {count:,}" for cause, count in sorted(judged.failures.items()))
        remarks.append(f"{failed:,} pairs could not be judged ({causes}) and count for nothing.")
    not_asked = sum(outcome is None for outcome in judged.outcomes) - failed
    if not_asked:
        remarks.append(
            f"{not_asked:,} pairs were not asked about, for more than judge.max_rows ({config.judge.max_rows:,}) were "
            "there; they count for nothing."
        )
    return _judgement(f"judge {config.judge.model}", config, pairs, judged.outcomes, remarks=remarks)


def _first_that_fails(model: "RewardModel", rows: Sequence[tuple[Pair, str]]) -> str | None:
    for pair, text in rows:
        try:
            model.encode(pair.prompt, text)
        except ModelError:
            return pair.id
    return None


def _by_scores(
    name: str,
    config: EvaluatorConfig,
    pairs: Sequence[Pair],
    before: Sequence[float | None],
    after: Sequence[float | None],
    tie_margin: float = 0.0,
    **more: Any,
) -> Judgement:
    known = [[math.nan if score is None else score for score in scores] for scores in (before, after)]
    by_score = outcomes_of(*known, tie_margin)
    # A grader that draws gives the same text two grades.
    outcomes = [
        0.5 if outcome is not None and pair.before.prediction == pair.after.prediction else outcome
        for pair, outcome in zip(pairs, by_score, strict=True)
    ]
    return _judgement(name, config, pairs, outcomes, before=before, after=after, **more)


def _judgement(
    name: str, config: EvaluatorConfig, pairs: Sequence[Pair], outcomes: Sequence[float | None], **more
) -> Judgement:
    lengths = ([len(p.before.prediction) for p in pairs], [len(p.after.prediction) for p in pairs])
    controlled = length_controlled(outcomes, *lengths, seed=config.seed)
    return Judgement(name, outcomes, win_rate_of(outcomes), controlled, **more)
