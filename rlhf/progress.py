"""Progress of long work: a bar on a terminal, a line at intervals elsewhere."""

import math
import os
import sys
import time
from typing import Self

from tqdm import tqdm

LINE_INTERVAL_SECONDS = 5.0
TERMINAL_VARIABLE = "RLHF_TERMINAL"


def say(stage: str, text: str) -> None:
    """Print one line of a stage's own log."""
    print(f"[{stage}] {text}", flush=True)


class Progress:
    """Shows how far a stage is and what it last measured.

    On a terminal (stderr, or the one a local runner names in `RLHF_TERMINAL` because it captures the stage's
    output) a tqdm bar; otherwise one line every few seconds:

        [ppo_trainer] update 12/40 (30 %) score 0.412 kl 1.03, 21 s left
    """

    def __init__(self, stage: str, total: int, unit: str = "step", shown: bool = True):
        self.stage, self.total, self.unit, self.shown = stage, total, unit, shown
        self._done = self._before = 0

    def __enter__(self) -> Self:
        self._started = self._last_line = time.monotonic()
        self._terminal = _open_terminal() if self.shown else None
        self._bar = None
        if self._terminal:
            self._bar = tqdm(
                total=self.total,
                desc=f"  {self.stage}",
                unit=self.unit,
                file=self._terminal,
                leave=False,
                dynamic_ncols=True,
            )
        return self

    def go_on_from(self, done: int) -> None:
        """An earlier attempt finished `done` units, in time that was not this one's."""
        self._done = self._before = done
        if self._bar is not None:
            self._bar.initial = self._bar.n = done

    def update(self, done: int, **measured: float) -> None:
        """Report that `done` of `total` units are finished; `measured` are the latest values by name."""
        text = " ".join(f"{name} {_short(value)}" for name, value in measured.items())
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(done - self._done)
        elif self.shown and done > self._done:
            now = time.monotonic()
            if now - self._last_line >= LINE_INTERVAL_SECONDS or done >= self.total:
                self._last_line = now
                left = (now - self._started) / (done - self._before) * max(self.total - done, 0)
                share = done / self.total if self.total else 1.0
                counted = f"{self.unit} {done:,}/{self.total:,} ({share:.0%}) {text}".rstrip()
                say(self.stage, f"{counted}, {left:.0f} s left")
        self._done = done

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()
            if self._terminal is not sys.stderr:
                self._terminal.close()


def _short(value: float) -> str:
    if not math.isfinite(value):
        return "not finite"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


def _open_terminal():
    path = os.environ.get(TERMINAL_VARIABLE)
    if path:
        return open(path, "w")
    return sys.stderr if sys.stderr.isatty() else None
