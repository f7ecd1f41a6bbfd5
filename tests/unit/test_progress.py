"""What a stage's log says of how far it is."""

import math
import time

import pytest

from rlhf.progress import Progress


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_not_finite_is_said_and_ends_nothing(value, capsys):
    with Progress("ppo_trainer", 1, unit="update") as progress:
        progress.update(1, kl=value, score=0.4125, tokens=12_345.0)
    said = "[ppo_trainer] update 1/1 (100%) kl not finite score 0.412 tokens 12,345, "
    assert capsys.readouterr().out.startswith(said)


def test_time_left_is_told_by_what_was_done_in_this_attempt(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Progress("ppo_trainer", 1000, unit="update") as progress:
        progress.go_on_from(900)
        now[0] = 60.0
        progress.update(901)
    assert "update 901/1,000 (90%), 5940 s left" in capsys.readouterr().out
