"""What the alarms of all trainers are made of: what was seen, when, and how a course is read without its noise.

Medians over a few logged points keep the noise of one from raising anything.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

FIRST = 3  # points that "now" is compared with: the policy has hardly moved in them, and each alone is noisy
LATE = 5  # points whose median is "now": two wild ones among them change nothing

History = Mapping[str, Sequence[tuple[int, float]]]
"""{tag: [(update, value), ...]} as logged. Tags may be absent, and values not finite."""


@dataclass(frozen=True)
class Alarm:
    """What was seen, when. JSON-able with `dataclasses.asdict`."""

    kind: str
    """A key of the trainer's `ADVICE`."""
    update: int
    words: str


@dataclass(frozen=True)
class Course:
    """What was logged up to now."""

    history: History

    def values(self, tag: str) -> list[float]:
        """What is finite of it, in order."""
        return [value for _, value in self.history.get(tag, ()) if math.isfinite(value)]

    def late(self, tag: str, points: int = LATE) -> float | None:
        """The median of the last points; None before there are so many."""
        values = self.values(tag)
        return median(values[-points:]) if len(values) >= points else None

    def first_and_late(self, tag: str, first: int = FIRST, late: int = LATE) -> tuple[float, float] | None:
        """Where it started and where it is; None while the two would overlap."""
        values = self.values(tag)
        return (median(values[:first]), median(values[-late:])) if len(values) >= first + late else None

    def until(self, update: int) -> "Course":
        """As it was seen at an update."""
        return Course({tag: [point for point in points if point[0] <= update] for tag, points in self.history.items()})
