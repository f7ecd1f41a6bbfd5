"""The reward of an episode: the weighted sum of what a reward model and functions give for it."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from rlhf.errors import ConfigError
from rlhf.rewards.groups import Grader


class Scorer(Protocol):
    """A reward model, such as `rlhf.models.scoring.RewardModel`."""

    def score_each(self, prompts: list[str], completions: list[str]) -> tuple[list[float], dict[int, str]]: ...


@dataclass
class Scored:
    """Rewards of some completions, in their order."""

    total: list[float]  # the weighted sum, or NaN where that is no finite number or nothing judged
    parts: dict[str, list[float | None]]  # before their weights, by name; None where a function does not judge
    faults: dict[int, str] = field(default_factory=dict)
    """What was wrong with rows, in words; their total is NaN."""

    @property
    def bad(self) -> int:
        """Rows whose total is no finite number, though something judged them."""
        return sum(not math.isfinite(total) for total in self.total) - self.not_judged

    @property
    def not_judged(self) -> int:
        """Rows that no part judged: they earn nothing, and nothing is wrong with them."""
        return sum(all(grade is None for grade in row) for row in zip(*self.parts.values(), strict=True))

    def too_many_bad(self, most: float, group_size: int) -> bool:
        """Whether more rows are bad than are left out.

        Args:
            most: Share of the rows; 0 allows none.
            group_size: Rows of one prompt, all of which may have its fault, and are left out whatever their share.
        """
        return self.bad > (max(group_size, most * len(self.total)) if most else 0)


class Rewards:
    """What earns a reward in a run. As a context manager it ends the functions' processes."""

    def __init__(self, reward_model: Scorer | None, reward_model_weight: float, functions: Sequence[Grader]):
        """
        Raises:
            ConfigError: There is neither a reward model nor a function.
        """
        if reward_model is None and not functions:
            raise ConfigError(
                "reward_functions: found none, and no reward model either, so nothing would earn a reward; give a "
                "reward model, or name at least one function in reward_functions"
            )
        self.reward_model = reward_model
        self.functions: dict[str, Grader] = {}
        self.weights = {} if reward_model is None else {"reward_model": reward_model_weight}
        for function in functions:
            name, number = function.config.name, 1
            while name in self.weights:
                number += 1
                name = f"{function.config.name}_{number}"
            self.functions[name] = function
            self.weights[name] = function.config.weight

    def score(
        self,
        texts: list[str],
        prompts: list[str | list[dict[str, str]]],
        completions: list[str],
        columns: Mapping[str, list[Any]],
    ) -> Scored:
        """
        Args:
            texts: Rendered prompts, as the policy and the reward model read them.
            prompts: The same as they were given: texts, or lists of messages. With the latter, functions get each
                completion as a list of one message too, as from TRL.
            completions: What the policy said to each.
            columns: What else functions are given of each row, such as `id` and `reference`.

        Raises:
            TrainingError: A function fails; see `FunctionReward.grade`.
        """
        parts: dict[str, list[float | None]] = {}
        faults: dict[int, str] = {}
        if self.reward_model is not None:
            parts["reward_model"], faults = self.reward_model.score_each(texts, completions)
        said = [
            completion if isinstance(prompt, str) else [{"role": "assistant", "content": completion}]
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        for name, function in self.functions.items():
            if not completions:  # of several processes, one may have none: functions are not asked about nothing
                parts[name] = []
                continue
            rendered = function.reads_rendered
            parts[name] = function.grade(texts if rendered else prompts, completions if rendered else said, columns)
            faults = function.faults | faults
        if ids := columns.get("id"):
            named = ((row, words, f" (id {ids[row]!r})") for row, words in faults.items())
            faults = {row: words if "(id " in words else words + name for row, words, name in named}
        weights = list(self.weights.values())
        return Scored([weighted_sum(weights, row) for row in zip(*parts.values(), strict=True)], parts, faults)

    def close(self) -> None:
        for function in self.functions.values():
            function.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def group_measures(totals: Sequence[float], group_size: int) -> dict[str, float]:
    """What there is to learn from groups of completions of one prompt, which stand one after the other.

    Returns:
        spread: mean standard deviation within groups. no_signal: share of groups whose known rewards are all the same,
        of which nothing is learned. Groups without a known reward count for neither.
    """
    groups = [totals[i : i + group_size] for i in range(0, len(totals), group_size)]
    known = [[value for value in group if math.isfinite(value)] for group in groups]
    spreads = [statistics.stdev(group) if len(group) > 1 else 0.0 for group in known if group] or [0.0]
    return {
        "spread": statistics.fmean(spreads),
        "no_signal": sum(math.isclose(spread, 0.0, abs_tol=1e-8) for spread in spreads) / len(spreads),
    }


def weighted_sum(weights: Sequence[float], row: Sequence[float | None]) -> float:
    """The sum over the parts that judged, as TRL's `nansum`; NaN if none did, or if it is not finite.

    Unlike there, a part that is NaN or infinite is not taken for one that did not judge: it makes the sum NaN.
    """
    judged = [weight * reward for weight, reward in zip(weights, row, strict=True) if reward is not None]
    total = sum(judged)
    return total if judged and math.isfinite(total) else math.nan
