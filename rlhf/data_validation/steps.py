"""How many optimiser steps an epoch is: two formulas are in use, and they differ."""

from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True)
class StepCount:
    """What so many rows are in steps of a batch size.

    For 3,000 rows in batches of 64, 30 epochs are 1,410 steps by ceil(rows / batch) x epochs, as Google's notebooks for
    the Vertex pipeline and Hugging Face's Trainer count: each epoch ends in a batch that may be smaller. They are 1,407
    by ceil(rows x epochs / batch), as our stages count: batches run over the ends of epochs, and all are of one size.
    """

    rows: int
    batch_size: int
    configured: int | None
    """Steps the stage will make; None where it makes `epochs`."""
    epochs: float = 1.0

    def running_on(self, epochs: float = 1.0) -> int:
        """ceil(rows x epochs / batch)."""
        return ceil(self.rows * epochs / self.batch_size)

    def by_epoch(self, epochs: float) -> int:
        """ceil(rows / batch) x epochs."""
        return ceil(ceil(self.rows / self.batch_size) * epochs)

    @property
    def steps(self) -> int:
        """Steps the stage will make."""
        return self.running_on(self.epochs) if self.configured is None else self.configured

    @property
    def epochs_made(self) -> float:
        """How often each row will be seen on average."""
        return self.steps * self.batch_size / self.rows

    @property
    def steps_by_epoch(self) -> int:
        """What the same epochs are, counted by the epoch."""
        return self.by_epoch(self.epochs if self.configured is None else self.epochs_made)

    def as_json(self) -> dict[str, float | str]:
        return {
            "rows": self.rows,
            "batch_size": self.batch_size,
            "steps_per_epoch": self.running_on(),
            "steps": self.steps,
            "epochs": self.epochs_made,
            "formula": "ceil(rows * epochs / batch_size)",
            "steps_by_epoch": self.steps_by_epoch,
        }
