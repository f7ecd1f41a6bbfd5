"""Sums and products of graders, and a grader of any kind from its options."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rlhf.data.template import Template
from rlhf.errors import TrainingError
from rlhf.rewards.builtin import BY_STAGE
from rlhf.rewards.config import RewardFunction
from rlhf.rewards.functions import FunctionReward, read_source
from rlhf.rewards.service import ServiceGrader

Prompts = Sequence[str | list[dict[str, str]]]


class Grader(Protocol):
    """Gives each completion a number."""

    config: RewardFunction
    faults: dict[int, str]
    """In words, of rows of the last batch that have NaN because something was wrong with them."""
    reads_rendered: bool
    """Whether it takes prompts as the policy reads them, and completions as texts."""

    def grade(
        self, prompts: Prompts, completions: Prompts, columns: Mapping[str, Sequence[Any]]
    ) -> list[float | None]: ...

    def close(self) -> None: ...


def make_grader(config: RewardFunction, template: Template | None = None) -> Grader:
    """A grader, ready to grade.

    Args:
        template: Of the data; what a reward model among them must have been trained with.

    Raises:
        ConfigError: It cannot be loaded.
        ModelError: A reward model cannot be loaded, or was trained with another template.
    """
    if config.parts:
        return Group(config, template)
    if config.http:
        return ServiceGrader(config)
    if config.builtin in BY_STAGE:
        return ModelGrader(config, template)
    return FunctionReward(config)


def flattened(config: RewardFunction) -> list[RewardFunction]:
    """The graders whose weighted sum it is: of an outermost sum its parts, so that each is logged by itself."""
    if not config.sum:
        return [config]
    parts = [each for part in config.sum for each in flattened(part)]
    return [each.model_copy(update={"weight": each.weight * config.weight}) for each in parts]


def fingerprint(config: RewardFunction) -> str:
    """What tells a grader from another with the same options: of its function's file, or its reward model.

    Raises:
        ConfigError: The file cannot be read.
        ModelError: There is no such reward model.
    """
    if config.builtin in BY_STAGE:
        from rlhf.models.loading import Source

        return Source.of(config.options["model"]).fingerprint
    text = read_source(config) if config.is_file else ""
    return hashlib.sha256("\0".join([text, *map(fingerprint, config.parts)]).encode()).hexdigest()[:16]


class ModelGrader:
    """The score of a reward model, in the process that trains."""

    reads_rendered = True

    def __init__(self, config: RewardFunction, template: Template | None):
        from rlhf.models.scoring import RewardModel

        self.config, self.faults = config, {}
        self._model = RewardModel.load(config.options["model"], template or Template(), merged=True)
        if template is not None and self._model.card is not None:
            self._model.card.require_template(template, config.options["model"])

    def grade(self, prompts: Prompts, completions: Prompts, columns: Mapping[str, Sequence[Any]]) -> list[float | None]:
        scores, self.faults = self._model.score_each(list(prompts), list(completions))
        return scores

    def close(self) -> None:
        del self._model


class Group:
    """A weighted sum, or a weighted product, of graders.

    No group holds a reward model, see `flattened`. A part that does not judge a row (None) is left out; where none
    judges, the group does not.
    """

    reads_rendered = False

    def __init__(self, config: RewardFunction, template: Template | None = None):
        self.config, self.faults = config, {}
        self.parts: list[Grader] = []
        try:
            for part in config.parts:
                self.parts.append(make_grader(part, template))
        except Exception:
            self.close()
            raise

    def grade(self, prompts: Prompts, completions: Prompts, columns: Mapping[str, Sequence[Any]]) -> list[float | None]:
        """As `FunctionReward.grade`.

        Raises:
            TrainingError: A part fails, or a part of a product gave a negative grade.
        """
        found = [part.grade(prompts, completions, columns) for part in self.parts]
        self.faults = {row: words for part in reversed(self.parts) for row, words in part.faults.items()}
        weights = [part.config.weight for part in self.parts]
        if self.config.sum:
            return [_sum(weights, row) for row in zip(*found, strict=True)]
        for part, grades in zip(self.parts, found, strict=True):
            row = next((i for i, grade in enumerate(grades) if grade is not None and grade < 0), None)
            if row is not None:
                where = f" (id {columns['id'][row]!r})" if columns.get("id") else ""
                raise TrainingError(
                    f"{part.config.words}: gave {grades[row]:g} for row {row + 1} of {len(grades)}{where}, and stands "
                    "in a product, which takes no grade below 0; let it give 0 or more, or take a sum"
                )
        return [_product(weights, row) for row in zip(*found, strict=True)]

    def close(self) -> None:
        for part in self.parts:
            part.close()


def _sum(weights: Sequence[float], row: Sequence[float | None]) -> float | None:
    judged = [weight * grade for weight, grade in zip(weights, row, strict=True) if grade is not None]
    return sum(judged) if judged else None


def _product(weights: Sequence[float], row: Sequence[float | None]) -> float | None:
    judged = [(weight, grade) for weight, grade in zip(weights, row, strict=True) if grade is not None]
    if not judged:
        return None
    try:
        return math.prod(grade**weight for weight, grade in judged)
    except (OverflowError, ZeroDivisionError):  # 0 to a negative power
        return math.nan
