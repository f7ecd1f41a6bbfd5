"""What a stage's log says of how far it is."""

import math

import pytest

from rlhf.progress import Progress


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_not_finite_is_said_and_ends_nothing(value, capsys):
    with Progress("ppo_trainer", 1, unit="update") as progress:
        progress.update(1, kl=value, score=0.4125, tokens=12_345.0)
    said = "[ppo_trainer] update 1/1 (100%) kl not finite score 0.412 tokens 12,345, "
    assert capsys.readouterr().out.startswith(said)
