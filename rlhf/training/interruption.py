"""SIGTERM, which clusters send before they take a machine away: remembered, so that a step can be finished first."""

import contextlib
import signal
import threading
from collections.abc import Iterator


class Interruption:
    """Whether SIGTERM came."""

    requested = False


@contextlib.contextmanager
def heed_sigterm() -> Iterator[Interruption]:
    """Let SIGTERM only set a flag while the body runs, which is to look at it between steps."""
    interruption = Interruption()
    # Handlers can be set in the main thread only; elsewhere SIGTERM ends the process at once, as it does by default.
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return

    def remember(number: int, frame: object) -> None:
        interruption.requested = True

    before = signal.signal(signal.SIGTERM, remember)
    try:
        yield interruption
    finally:
        signal.signal(signal.SIGTERM, before)
