"""What a trained reward model is worth: every measure, and each in a plain sentence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rlhf.errors import TrainingError
from rlhf.metrics import Accuracy, accuracy, ignores_prompt, then_and_now
from rlhf.reward_trainer.measures import (
    Baseline,
    Calibration,
    Correlation,
    Drop,
    Group,
    Roc,
    Sensitivity,
    baseline,
    by_length,
    by_size,
    calibration,
    confusion,
    drop,
    orientation,
    pairwise_loss,
    pearson,
    roc,
    sensitivity,
    share_of,
    spearman,
)
from rlhf.reward_trainer.statements import CHANGES, Verdict, statements, verdict

MEMORISED = 0.1  # gap of accuracy between pairs seen and held out
LARGE_DROP = 0.15  # of accuracy with prompts exchanged
OVERFIT = 1.1  # loss on the selection pairs at the end, over their lowest


@dataclass(frozen=True)
class HeldOut:
    """Scores of held-out pairs, one entry a pair, in the order of the data."""

    ids: Sequence[str]
    prompts: Sequence[int]
    """What stands for each pair's prompt, the same for the same: such pairs are not independent."""
    chosen: Sequence[float]
    rejected: Sequence[float]
    """Shifted scores."""
    swapped_chosen: Sequence[float | None] | None
    swapped_rejected: Sequence[float | None] | None
    """Read with another pair's prompt, and None where a pair fits the model's positions under none; None where all have
    one prompt."""
    chosen_length: Sequence[int]
    rejected_length: Sequence[int]
    """Tokens of the completions."""
    position: Sequence[int | None]
    """Which candidate was chosen as laid out in the data: 0, 1, or None for unknown."""
    margin: Sequence[float | None]
    """By how much the data's labellers preferred the chosen response (TRL's field `margin`); None for unknown."""
    changed: Mapping[str, Sequence[float | None]]
    """{one of `CHANGES`: score of the chosen response so changed}; None where it was not measured."""

    @property
    def exchanged(self) -> list[int]:
        """Places of the pairs that were read with another pair's prompt."""
        return [place for place, score in enumerate(self.swapped_chosen or ()) if score is not None]

    @property
    def with_prompts_exchanged(self) -> tuple[list[float], list[float]]:
        """Their scores so read: of the chosen responses, of the rejected ones."""
        return self._scores(self.swapped_chosen), self._scores(self.swapped_rejected)

    @property
    def with_own_prompts(self) -> tuple[list[float], list[float]]:
        """The same with their own prompts."""
        return self._scores(self.chosen), self._scores(self.rejected)

    def _scores(self, column: Sequence[float]) -> list[float]:
        return [column[place] for place in self.exchanged]


@dataclass(frozen=True)
class Training:
    """How training went."""

    history: Mapping[str, Sequence[tuple[int, float]]]
    """{tag: [(step, value), ...]}: `rank_loss` and `reward_model/accuracy` on training batches,
    `reward_model/eval_loss` and `reward_model/eval_accuracy` on selection pairs, `learning_rate`."""
    steps: int
    planned_steps: int
    best_step: int
    """That of the model that is kept."""
    passes: float
    """Over the training pairs, until then."""
    stopped_early: bool
    skipped_steps: int
    """Whose loss or gradient was not finite."""
    seen_chosen: Sequence[float]
    seen_rejected: Sequence[float]
    """Its scores of a sample of the pairs that it trained on."""
    seen_prompts: Sequence[int]
    """What stands for their prompts."""


@dataclass(frozen=True)
class Findings:
    """Measures of a reward model on held-out pairs, beside how it was trained (`examine`)."""

    accuracy: Accuracy
    accuracy_swapped: Accuracy | None
    """With prompts exchanged between pairs; None with one prompt only, or where no pair fits under another."""
    accuracy_unswapped: Accuracy | None
    """Of the same pairs with their own prompts."""
    drop: Drop | None
    """From these to those with prompts exchanged."""
    prompts: int
    """Different ones among the held-out pairs."""
    unswappable: int
    """Pairs that fit the model's positions under no prompt but their own."""
    accuracy_seen: Accuracy | None
    """On pairs that it trained on; None where none was scored."""
    loss: float
    loss_seen: float | None
    """Pairwise logistic loss in nats a pair; ln 2 is that of a coin."""
    constant: bool
    """Every text has one score."""
    by_length: Sequence[Group]
    by_own_margin: Sequence[Group]
    """By quarters of |score difference|."""
    by_margin: Sequence[Group]
    """By the data's margin; empty where there is none."""
    by_position: Sequence[Group]
    """By which candidate was chosen as laid out; empty where that is not known, or always the same."""
    baselines: Mapping[str, Baseline]
    """"longer wins" and "first wins", and their opposites where those are significantly better than a coin. A rule that
    decides no pair is not among them; nor is "first wins" where the chosen response always lies in one place, for that
    is how the data is written down and no preference."""
    calibration: Calibration
    roc: Roc | None
    """None where all pairs are of one class: for example of a single pair."""
    confusion: Sequence[Sequence[int]]
    """Labels by row, model by column, over ("first preferred", "second preferred")."""
    length: Mapping[str, Correlation | None]
    """Of score and length: {"pearson", "spearman"} over responses, {"pearson_within", "spearman_within"} over
    differences within a pair; None where either does not vary."""
    sensitivity: Mapping[str, Sensitivity]
    """By `CHANGES`; those that were measured."""
    overfit_after: int | None
    """Step from which training overfitted (`examine`)."""
    training: Training

    @property
    def not_exchanged(self) -> str:
        """In words, why no prompts were exchanged, where none were."""
        if self.unswappable:
            return "No held-out pair has room for another pair's prompt in the model's positions"
        return "All held-out pairs have one prompt"

    @property
    def ignores_prompt(self) -> bool | None:
        """By the rule of `rlhf.metrics.ignores_prompt`; None where no prompts were exchanged, or for too few pairs to
        tell: it reads the prompt only where a drop is shown, and ignores it only where none of 15 points is likely.
        """
        if self.drop is None:
            return None
        if ignores_prompt(self.accuracy_unswapped.rate, self.accuracy_swapped.rate):
            return True if self.drop.high <= LARGE_DROP else None
        return False if self.drop.low > 0 else None

    @property
    def memorised(self) -> bool | None:
        """Whether accuracy on pairs that it trained on lies at least 10 points above that on held-out pairs, and above
        it beyond chance: the two 95 % intervals do not meet. None where no seen pair was scored.

        The gap is what tells: a network with enough parameters fits random labels without a mistake (Zhang et al. 2017,
        "Understanding deep learning requires rethinking generalization"), so accuracy on seen pairs alone, or a
        training loss near 0, says nothing about others. Accuracy rather than loss, because a loss is ruined by a few
        sure mistakes of a model that ranks as well as before. Intervals that do not meet are a stricter test than one
        of the difference; 10 points are twice what counts as reading the prompt, and our choice.
        """
        if self.accuracy_seen is None:
            return None
        return self.wide_gap and self.accuracy_seen.low > self.accuracy.high

    @property
    def wide_gap(self) -> bool:
        """Whether seen pairs are ranked right at least 10 points more often, be it by chance."""
        return self.accuracy_seen is not None and self.accuracy_seen.rate - self.accuracy.rate >= MEMORISED

    @property
    def verdict(self) -> Verdict:
        """Whether to believe the model, by the rule of `rlhf.reward_trainer.statements.verdict`."""
        return verdict(self)

    def statements(self) -> list[tuple[bool | None, str]]:
        """What was found in sentences, each with whether it is good news (None: neither), the bad first."""
        return statements(self)

    def metrics(self) -> dict[str, float]:
        """Flat scalars for KFP; what is not known is absent. Shares in [0, 1], losses in nats a pair, flags 0 or 1."""
        length = self.length["spearman"]
        known = {
            "accuracy": self.accuracy.rate,
            "accuracy_low": self.accuracy.low,
            "accuracy_high": self.accuracy.high,
            "accuracy_prompt_swapped": self.accuracy_swapped and self.accuracy_swapped.rate,
            "accuracy_unswapped": self.accuracy_unswapped and self.accuracy_unswapped.rate,
            "accuracy_seen": self.accuracy_seen and self.accuracy_seen.rate,
            "loss": self.loss,
            "loss_seen": self.loss_seen,
            "ignores_prompt": self.ignores_prompt,
            "memorised": self.memorised,
            "ece": self.calibration.ece,
            "roc_auc": self.roc and self.roc.area,
            "length_correlation": length and length.value,
        }
        for name, rule in self.baselines.items():
            known[name.replace(" ", "_")] = rule.rule.rate
            known[f"beats_{name.replace(' ', '_')}"] = rule.beaten
        for change, found in self.sensitivity.items():
            known[f"{change}_falls"] = found.falls.rate
        return {name: float(value) for name, value in known.items() if value is not None}


def examine(held_out: HeldOut, training: Training) -> Findings:
    """Measure a reward model on pairs that neither trained nor selected it.

    Training overfitted from the step on at which the loss on the selection pairs was lowest, where that loss ended at
    least a tenth above its lowest while the loss on training batches went on falling.

    Raises:
        ValueError: There is no held-out pair, or entries do not pair up.
        TrainingError: A score is not finite.
    """
    _check(held_out, training)
    chosen, rejected = np.array(held_out.chosen, dtype=float), np.array(held_out.rejected, dtype=float)
    difference, right = chosen - rejected, chosen > rejected
    lengths = [np.array(side, dtype=float) for side in (held_out.chosen_length, held_out.rejected_length)]
    position = np.array(held_out.position, dtype=float)
    if np.unique(position[~np.isnan(position)]).size < 2:  # how the data is written down
        position = np.full(position.size, np.nan)
    margin = np.array(held_out.margin, dtype=float)
    given = ~np.isnan(margin)
    chosen_first = orientation(held_out.ids, position)
    place_of = {prompt: place for place, prompt in enumerate(dict.fromkeys(held_out.prompts))}
    prompts = np.array([place_of[prompt] for prompt in held_out.prompts])
    scores, tokens = np.concatenate([chosen, rejected]), np.concatenate(lengths)
    seen = np.array(training.seen_chosen, dtype=float) - np.array(training.seen_rejected, dtype=float)
    changed = {
        name: sensitivity(chosen, held_out.changed[name], prompts) for name in CHANGES if name in held_out.changed
    }
    exchanged = prompts[held_out.exchanged] if held_out.exchanged else None
    swapped = unswapped = fall = None
    if exchanged is not None:
        with_own, with_others = held_out.with_own_prompts, held_out.with_prompts_exchanged
        unswapped, swapped = (accuracy(*sides, exchanged.tolist()) for sides in (with_own, with_others))
        fall = drop(np.greater(*with_own), np.greater(*with_others), exchanged)
    return Findings(
        accuracy=accuracy(held_out.chosen, held_out.rejected, held_out.prompts),
        accuracy_swapped=swapped,
        accuracy_unswapped=unswapped,
        drop=fall,
        prompts=len(place_of),
        unswappable=0 if held_out.swapped_chosen is None else len(held_out.ids) - len(held_out.exchanged),
        accuracy_seen=(
            accuracy(training.seen_chosen, training.seen_rejected, training.seen_prompts) if seen.size else None
        ),
        loss=pairwise_loss(difference),
        loss_seen=pairwise_loss(seen) if seen.size else None,
        constant=bool(np.ptp(scores) <= 1e-6 * max(1.0, abs(scores).max())),  # what is left of float32
        by_length=by_length(*lengths, right, prompts),
        by_own_margin=by_size(abs(difference), right, prompts),
        by_margin=by_size(margin[given], right[given], prompts[given]) if given.any() else [],
        by_position=[
            Group(f"{name} candidate chosen", share_of(right[position == place], prompts[position == place]))
            for place, name in enumerate(("first", "second"))
            if (position == place).any()
        ],
        baselines=_baselines(np.sign(lengths[0] - lengths[1]), 1 - 2 * position, right, prompts),
        calibration=calibration(difference, prompts),
        roc=roc(difference, chosen_first),
        confusion=confusion(difference, chosen_first),
        length={
            "pearson": pearson(scores, tokens),
            "spearman": spearman(scores, tokens),
            "pearson_within": pearson(difference, lengths[0] - lengths[1]),
            "spearman_within": spearman(difference, lengths[0] - lengths[1]),
        },
        sensitivity={name: found for name, found in changed.items() if found},
        overfit_after=_overfit_after(training.history),
        training=training,
    )


def _baselines(longer: np.ndarray, first: np.ndarray, right: np.ndarray, prompts: np.ndarray) -> dict[str, Baseline]:
    """Rules that take the chosen response where `longer` or `first` is 1, the rejected one where -1; else undecided.

    The opposite of a rule that is worse than a coin is a better rule, so the model has to beat that one, too.
    """
    found = {}
    for name, opposite, takes in (("longer wins", "shorter wins", longer), ("first wins", "second wins", first)):
        decides = np.where(abs(takes) == 1, takes, np.nan)
        rule = baseline((decides + 1) / 2, right, prompts)
        if rule.rule.of:
            found[name] = rule
            if rule.rule.high < 0.5:
                found[opposite] = baseline((1 - decides) / 2, right, prompts)
    return found


def _overfit_after(history: Mapping[str, Sequence[tuple[int, float]]]) -> int | None:
    losses, selection = (
        [(step, value) for step, value in history.get(tag, ()) if np.isfinite(value)]
        for tag in ("rank_loss", "reward_model/eval_loss")
    )
    if not losses or not selection:
        return None
    step, lowest = min(selection, key=lambda point: point[1])
    then, now = then_and_now(losses, step)
    overfits = selection[-1][1] >= OVERFIT * lowest and now < then
    return step if overfits and selection[-1][0] > step else None


def _check(held_out: HeldOut, training: Training) -> None:
    pairs = len(held_out.ids)
    if not pairs:
        raise ValueError("there is no held-out pair to examine")
    columns = {name: value for name, value in vars(held_out).items() if value is not None and name != "changed"}
    for name, column in {**columns, **held_out.changed}.items():
        if len(column) != pairs:
            raise ValueError(f"{name}: found {len(column)} entries, expected one for each of {pairs} held-out pairs")
    scores = {name: columns[name] for name in columns if name.endswith(("chosen", "rejected"))}
    scores |= held_out.changed | {"seen_chosen": training.seen_chosen, "seen_rejected": training.seen_rejected}
    for name, column in scores.items():
        if bad := sum(value is not None and not np.isfinite(value) for value in column):
            raise TrainingError(
                f"reward_trainer: {bad} of {len(column)} scores ({name}) of the trained model are not finite; "
                "lower the learning rate, or train in float32"
            )
