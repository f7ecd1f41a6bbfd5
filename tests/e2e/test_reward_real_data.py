"""A reward model on real preferences that are too few for it: it must be said that it learned them by heart."""

import html
import json
import re

import pytest

from examples.demo.base_models import write_llama
from tests import reward
from tests.validation import options_that_pass, validate

pytestmark = pytest.mark.slow


def test_a_model_that_only_memorised_real_preferences_is_called_out(real_data, tmp_path):
    rows = [json.loads(line) for line in (real_data / "vertex_text/preference.jsonl").read_text().splitlines()]
    texts = [text for row in rows for text in (row["input_text"], row["candidate_0"], row["candidate_1"])]
    write_llama(tmp_path / "llama", texts)
    options = options_that_pass(tmp_path) | {
        "preference_dataset": str(real_data / "vertex_text/preference.jsonl"),
        "preference_eval_fraction": 0.3,
        "prompt_sequence_length": 96,
        "target_sequence_length": 64,
    }
    validate(options, tmp_path)
    metrics = reward.train(
        tmp_path / "out/preferences",
        tmp_path / "llama",
        tmp_path / "reward",
        train_steps=100,
        batch_size=32,
        learning_rate=1e-3,
        early_stopping_patience=0,
        selection_fraction=0.0,
    )
    assert metrics["pairs"] + metrics["held_out"] == 599, "one row has a blank candidate"
    assert metrics["accuracy_seen"] > 0.95
    assert metrics["accuracy"] < 0.75
    assert metrics["memorised"] == 1
    assert 0.5 < metrics["longer_wins"] < 0.75
    assert metrics["beats_longer_wins"] == 0
    page = html.unescape((tmp_path / "reward/report.html").read_text())
    assert "It memorised: after" in page
    assert 'It does not beat "longer wins"' in page
    assert not re.search(r">\s*Usable\s*<", page)
