"""Follow a run until it ends: one line whenever something changes."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from pipelines.submit.errors import Unreachable

# A service that does not answer for so long while a run is followed is given up; the run goes on.
PATIENCE_SECONDS = 600.0
# Of tasks that share a name, the first that one of them is in is shown.
_WORST_FIRST = ("FAILED", "CANCELING", "CANCELLING", "CANCELED", "CANCELLED", "PAUSED", "RUNNING", "PENDING")


@dataclass(frozen=True)
class Status:
    """A run as its platform tells it."""

    state: str
    """Of the run, in the platform's words less their prefix: PENDING, RUNNING, SUCCEEDED, FAILED ..."""
    tasks: dict[str, str] = field(default_factory=dict)
    """States by name of task."""
    errors: dict[str, str] = field(default_factory=dict)
    """What the platform says of a task, or of the run (""), that failed."""

    @property
    def ended(self) -> bool:
        return self.state in {"SUCCEEDED", "FAILED", "CANCELED", "CANCELLED", "SKIPPED", "ERROR"}


def by_name(states: Iterable[tuple[str, str]]) -> dict[str, str]:
    """States by name of task; of tasks that share one, as the shards of a loop do, the worst."""
    found: dict[str, list[str]] = {}
    for name, state in states:
        found.setdefault(name, []).append(state)
    return {
        name: next((state for state in _WORST_FIRST if state in together), together[-1])
        for name, together in found.items()
    }


def follow(ask: Callable[[], Status], every: float, say: Callable[[str], None]) -> Status:
    """Ask for the run's status, again and again, until it has ended.

    Args:
        ask: Gives the status, or raises Unreachable.
        every: Seconds between two questions.
        say: Takes each line.

    Raises:
        SubmitError: The service refuses to tell, or does not answer for ten minutes.
    """
    state, tasks, silent_since = None, {}, None
    began = time.monotonic()
    while True:
        try:
            status = ask()
        except Unreachable as error:
            if silent_since is None:
                silent_since = time.monotonic()
                say(f"no answer, asking again: {error}")
            if time.monotonic() - silent_since > PATIENCE_SECONDS:
                raise
            time.sleep(every)
            continue
        silent_since = None
        for name, of_task in status.tasks.items():
            if tasks.get(name) != of_task:
                say(f"  {name}: {of_task.lower()}")
        tasks = status.tasks
        if status.state != state:
            state = status.state
            took = f" after {_duration(time.monotonic() - began)}" if status.ended else ""
            say(f"run: {state.lower()}{took}")
        if status.ended:
            return status
        time.sleep(every)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
