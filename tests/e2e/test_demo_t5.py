"""The demo with a T5 policy and a BERT reward model."""

import pytest

from tests import demo

pytestmark = pytest.mark.slow


def test_the_demo_makes_a_t5_better_by_a_score_that_no_stage_saw(tmp_path):
    demo.run(tmp_path, "examples.demo", "--arch", "t5")
    demo.assert_better_by_gold(tmp_path)
