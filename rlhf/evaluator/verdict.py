"""The rule that says promote or hold. ROUGE is not in it: it falls while people's preference rises (trlx,
Stiennon et al. 2020), so nothing is gated on it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf.evaluator.compare import Controlled, rows_needed, ties_half
from rlhf.evaluator.config import EvaluatorConfig
from rlhf.metrics import WinRate
from rlhf.words import listed, percent

BY_LENGTH = 0.005  # of a win rate: what equal lengths take from it that is worth a word


@dataclass(frozen=True)
class Verdict:
    """Promote or hold, with each condition of the rule in words: met, not met, or None for not checked."""

    promote: bool
    headline: str
    reasons: list[tuple[bool | None, str]]


def decide(
    config: EvaluatorConfig,
    win_rate: WinRate,
    controlled: Controlled,
    kl: float | None,
    ended_before: float | None,
    ended_after: float | None,
    judge: str = "reward model",
    not_judged: int = 0,
    not_there: Sequence[str] = (),
) -> Verdict:
    """Promote if no condition is violated. What was not measured, KL or endings, is not checked and violates nothing.

    Args:
        win_rate, controlled: Of the tuned model against the one before by the judge, as it is, and as it would
            be were all completions of a prompt equally long.
        kl: Nats per completion from the policy before tuning; None if it was not measured.
        ended_before, ended_after: Shares of completions that ended by themselves; None where nobody wrote it down.
        judge: By whom `win_rate` is.
        not_judged: Pairs that the judge said nothing of.
        not_there: Inputs of logs that were given, and whose folders do not exist.
    """
    reasons = [
        _win_rate(config, win_rate, controlled),
        _kl(config, kl, not_there),
        _ended(config, ended_before, ended_after),
    ]
    enough = True
    if not_judged:
        reasons.append(_judged(config, win_rate, judge, not_judged))
        enough = reasons[-1][0]
    promote = all(met is not False for met, _ in reasons)
    # The limit is the user's; better and worse are not: they are the sides of one half.
    better = controlled.low is not None and controlled.low > 0.5
    limit = f"{percent(config.min_win_rate)} (evaluation.min_win_rate)"
    more = max(0.5, config.min_win_rate)
    if not enough:
        headline = f"The {judge} left too many pairs without a judgement to say which of the two models is better."
    elif win_rate.rate is None:
        headline = f"The {judge} scores the two models' completions alike, so there is nothing to promote."
    elif controlled.rate is None:
        headline = (
            "The two models' completions differ in length everywhere alike, so that nobody can tell whether the one "
            "wins by more than that."
        )
    elif promote and better:
        headline = (
            f"By the {judge}, the tuned model is better than the one before: at equal lengths in "
            f"{percent(controlled.rate)} of the pairs."
        )
    elif promote:
        headline = (
            f"By the {judge}, the tuned model wins at equal lengths in {percent(controlled.rate)} of the pairs: more "
            f"than the {limit} that is asked for, but it is not shown that it is better than the one before."
        )
    elif reasons[0][0] and better:
        headline = f"By the {judge} the tuned model is better, but it paid for that in a way that does not pass."
    elif reasons[0][0]:
        headline = f"By the {judge} the tuned model wins more than {limit}, but it paid for that."
    elif better:
        headline = f"By the {judge} the tuned model is better, but it is not shown that it wins more than {limit}."
    elif win_rate.low > more and _is_length(win_rate, controlled):
        headline = f"By the {judge} the tuned model wins more often, but not by more than its other length explains."
    elif win_rate.low > more and win_rate.ties:
        headline = (
            f"By the {judge} the tuned model wins more of the decided pairs, but with ties counted half it is not "
            "shown that it is better."
        )
    elif controlled.high < 0.5:
        headline = f"By the {judge}, the tuned model is worse than the one before."
    else:
        headline = "It is not shown that the tuned model is better than the one before."
    return Verdict(promote, headline, reasons)


def _win_rate(config: EvaluatorConfig, win_rate: WinRate, controlled: Controlled) -> tuple[bool, str]:
    if win_rate.low is None:
        return False, f"Win rate: {win_rate.in_words()}."
    if controlled.low is None:
        return False, f"Win rate: not known at equal lengths; as the lengths are: {win_rate.in_words()}."
    met = controlled.low > config.min_win_rate
    side = "above" if met else "not above"
    text = (
        f"Win rate: {percent(controlled.rate)} at equal lengths, 95\u00a0% interval {percent(controlled.low)} to "
        f"{percent(controlled.high)}; the lower end is {side} {percent(config.min_win_rate)}. As the lengths are: "
        f"{win_rate.in_words()}."
    )
    decided = win_rate.wins + win_rate.losses
    if not met and min(controlled.rate, win_rate.rate) > config.min_win_rate:
        needed = rows_needed(win_rate.rate)
        if needed is not None and needed > decided:
            text += f" To tell a win rate of this size from chance takes about {needed:,} decided pairs."
    if win_rate.ties:
        half = percent(ties_half(win_rate))
        text += f" With ties counted half, as they are at equal lengths, it is {half} as the lengths are."
    return met, text


def _is_length(win_rate: WinRate, controlled: Controlled) -> bool:
    """Whether equal lengths, and not ties alone, make the win rate smaller."""
    return controlled.length_effect is not None and controlled.rate < ties_half(win_rate) - BY_LENGTH


def _judged(config: EvaluatorConfig, win_rate: WinRate, judge: str, not_judged: int) -> tuple[bool, str]:
    pairs = win_rate.wins + win_rate.losses + win_rate.ties + not_judged
    met = not_judged <= config.max_not_judged * pairs + 1e-9
    text = f"Judged: of {not_judged:,} of {pairs:,} pairs ({percent(not_judged / pairs)}) the {judge} said nothing"
    limit = "" if met else f"; more than {percent(config.max_not_judged)} (evaluation.max_not_judged) is not allowed"
    return met, f"{text}{limit}."


def _kl(config: EvaluatorConfig, kl: float | None, not_there: Sequence[str]) -> tuple[bool | None, str]:
    if kl is None and not_there:
        return None, f"KL: not checked, because there is no such folder as was given for {listed(not_there)}."
    if kl is None:
        return None, "KL: not checked, because no log of the tuning with `ppo/kl` or `grpo/kl` was given."
    if not math.isfinite(kl):
        return False, f"KL: the last values logged in tuning are not finite ({kl})."
    met = kl <= config.kl_limit
    side = "within" if met else "above"
    text = f"KL: {kl:.3g} nats per completion away from the policy before, {side} the limit of {config.kl_limit:g}."
    return met, text


def _ended(config: EvaluatorConfig, before: float | None, after: float | None) -> tuple[bool | None, str]:
    if before is None or after is None:
        return None, "Endings: not checked, because the predictions do not say which completions were cut off."
    # A hair's breadth for sums of floats: a fall of exactly the permitted two points is permitted.
    met = before - after <= config.max_ended_drop + 1e-9
    text = f"Endings: {percent(after)} of the completions end by themselves, {percent(before)} before tuning"
    return met, text + ("." if met else f"; a fall of more than {100 * config.max_ended_drop:g} points is not allowed.")
