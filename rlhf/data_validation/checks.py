"""Verdicts: what was measured, what is tolerated, and two rows to look at."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from rlhf.config import StageConfig
from rlhf.data_validation.private_data import mask_private, mask_private_json
from rlhf.errors import DataError
from rlhf.metrics import Share
from rlhf.words import percent

Action = Literal["fail", "warn", "ignore"]
Outcome = Literal["passed", "warning", "failed", "ignored"]


class Threshold(StageConfig):
    """How much of something is tolerated, and what happens beyond."""

    limit: float = Field(ge=0, allow_inf_nan=False, description="What is tolerated; each check says in which unit.")
    action: Action = Field("warn", description="Beyond the limit: fail ends the run, warn and ignore do not.")


def _threshold(limit: float, action: Action, description: str) -> Threshold:
    return Field(Threshold(limit=limit, action=action), description=description)


class Checks(StageConfig):
    """What is tolerated of the data. Shares lie between 0 and 1."""

    quarantined: Threshold = _threshold(
        0.05, "fail", "Share of a source's rows that cannot be used; beyond, the data is not what it is taken for."
    )
    pairs: Threshold = _threshold(
        100, "warn", "Pairs to train on, at least; published reward models are trained on 10,000 and more."
    )
    prompts: Threshold = _threshold(
        100, "warn", "Distinct prompts for reinforcement learning, at least; of fewer, each is seen again and again."
    )
    evaluation: Threshold = _threshold(
        50, "warn", "Prompts to evaluate on, at least: 50 decided pairs tell a win rate of 0.64 from 0.5."
    )
    duplicates: Threshold = _threshold(0.1, "warn", "Share of the pairs that another pair repeats.")
    near_duplicates: Threshold = _threshold(
        0.1, "warn", "Share of the sampled prompts that are nearly, but not quite, another one."
    )
    contradictions: Threshold = _threshold(
        0.05, "warn", "Share of the pairs whose candidates other rows label the other way."
    )
    shared_prompts: Threshold = _threshold(
        0.0, "warn", "Share of the evaluation's prompts that a stage trains on: what is measured on them is memory."
    )
    position_bias: Threshold = _threshold(
        0.1, "warn", "Distance from 0.5 of how often the first candidate is chosen, chance aside."
    )
    length_bias: Threshold = _threshold(
        0.2,
        "warn",
        "Distance from 0.5 of how often the longer candidate is chosen, chance aside: the strongest predictor of a "
        "reward that pays for length (Singhal et al. 2023).",
    )
    annotator_agreement: Threshold = _threshold(
        0.6, "warn", "Agreement of annotators with each other, at least; Stiennon et al. 2020 report 0.77."
    )
    prompts_cut: Threshold = _threshold(0.1, "warn", "Share of a dataset's prompts that are cut to their length.")
    completions_over: Threshold = _threshold(
        0.1, "warn", "Share of a dataset's completions that are longer than the policy may write."
    )
    private_data: Threshold = _threshold(
        0.0, "warn", "Share of the sampled texts with an e-mail address, a phone number or a key."
    )
    control_characters: Threshold = _threshold(
        0.01, "warn", "Share of the sampled texts with characters that do not show, or that tell of a wrong encoding."
    )
    other_languages: Threshold = _threshold(
        0.1, "warn", "Share of the sampled texts in other languages than most are in."
    )

    @model_validator(mode="before")
    @classmethod
    def _what_is_not_given_stays(cls, values: Any) -> Any:
        """So that `{"duplicates": {"action": "fail"}}` keeps the limit."""
        if not isinstance(values, dict):
            return values
        defaults = {name: field.default.model_dump() for name, field in cls.model_fields.items()}
        return {
            name: defaults[name] | value if name in defaults and isinstance(value, dict) else value
            for name, value in values.items()
        }


LONGEST_EXAMPLE = 4000  # characters shown


@dataclass(frozen=True)
class Example:
    """A row to look at."""

    place: str
    """file:line."""
    text: str
    """Without private data: reports are passed around."""

    @classmethod
    def of(cls, place: str, text: str) -> Self:
        """With what is private masked, and the end left out where it is long."""
        return cls(place, mask_private(text[: 2 * LONGEST_EXAMPLE])[:LONGEST_EXAMPLE])

    @classmethod
    def of_row(cls, place: str, row: str) -> Self:
        """The same of a row as it stands in its file."""
        return cls(place, mask_private_json(row[: 2 * LONGEST_EXAMPLE])[:LONGEST_EXAMPLE])


@dataclass(frozen=True)
class Verdict:
    """What became of one check."""

    check: str
    """A field of `Checks`."""
    subject: str
    """What was looked at: a parameter or a dataset."""
    outcome: Outcome
    text: str
    """What was measured, in words, and what to do about it."""
    threshold: Threshold
    value: float | None
    """None where nothing could be measured."""
    examples: Sequence[Example] = field(default_factory=tuple)


def at_most(
    check: str,
    subject: str,
    value: float | None,
    threshold: Threshold,
    text: str,
    examples: Callable[[], Sequence[Example]] = tuple,
) -> Verdict:
    """The value may be up to the limit. Examples are looked up only where it is more, or not zero."""
    return _verdict(check, subject, value, value is not None and value > threshold.limit, threshold, text, examples)


def at_least(check: str, subject: str, value: float | None, threshold: Threshold, text: str) -> Verdict:
    """The value must be the limit or more."""
    return _verdict(check, subject, value, value is not None and value < threshold.limit, threshold, text, tuple)


def near_half(
    check: str,
    subject: str,
    share: Share,
    threshold: Threshold,
    text: str,
    examples: Callable[[], Sequence[Example]] = tuple,
) -> Verdict:
    """The share must be within the limit of 0.5, or its 95 % interval must reach into it."""
    if share.rate is None:
        return _verdict(check, subject, None, False, threshold, text, tuple)
    nearest = min(max(share.low, 0.5), share.high)
    distance = abs(nearest - 0.5)
    return _verdict(check, subject, abs(share.rate - 0.5), distance > threshold.limit, threshold, text, examples)


def _verdict(
    check: str,
    subject: str,
    value: float | None,
    beyond: bool,
    threshold: Threshold,
    text: str,
    examples: Callable[[], Sequence[Example]],
) -> Verdict:
    outcomes: dict[Action, Outcome] = {"fail": "failed", "warn": "warning", "ignore": "ignored"}
    outcome: Outcome = outcomes[threshold.action] if beyond else "passed"
    return Verdict(check, subject, outcome, text, threshold, value, examples() if value else ())


def refuse_failed(verdicts: Sequence[Verdict]) -> None:
    """End the run where a check failed.

    Raises:
        DataError: One line for all of them, each with two examples where there are.
    """
    failed = [verdict for verdict in verdicts if verdict.outcome == "failed"]
    if not failed:
        return
    parts = []
    for verdict in failed:
        shown = "; ".join(f"{example.place}: {_shortened(example.text)!r}" for example in verdict.examples[:2])
        parts.append(
            f"{verdict.subject}: {verdict.text} The limit of checks.{verdict.check} is "
            f"{limit_in_words(verdict)}{'; for example ' + shown if shown else ''}"
        )
    raise DataError(" | ".join(parts))


def limit_in_words(verdict: Verdict) -> str:
    """A limit below 1 is a share."""
    limit = verdict.threshold.limit
    return percent(limit) if limit < 1 else f"{limit:g}"


def _shortened(text: str, length: int = 160) -> str:
    return text if len(text) <= length else text[:length] + " ..."
