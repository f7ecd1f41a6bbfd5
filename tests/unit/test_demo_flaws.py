"""Flaws planted in the demo's data are those that data validation finds."""

import json

from examples.demo import flaws, posts
from tests.validation import said, validate

SIZES = {"preferences": 400, "prompts": 60, "evaluation": 60, "demonstrations": 60}


def test_data_validation_finds_every_flaw_that_was_planted_and_no_other(tmp_path):
    posts.generate(tmp_path / "data", tmp_path / "gold", **SIZES)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    (model / "model.safetensors").touch()
    options = {f"{name}_dataset": str(tmp_path / "data" / f"{file}.jsonl") for name, file in _FILES.items()}
    options |= {"large_model_reference": str(model), "checks": {"quarantined": {"action": "warn"}}}
    before = validate(options, tmp_path)
    assert (before["quarantined"], before["contradictory_pairs"], before["private_data_share"]) == (0, 0, 0)

    planted = flaws.plant(tmp_path / "data")

    assert planted == {
        **{"duplicates": 50, "contradictions": 8, "blank_candidate": 4, "bad_choice": 2},
        **{"shared_prompts": 20, "private_data": 3},
    }
    after = validate(options, tmp_path)
    assert after["duplicate_pairs"] - before["duplicate_pairs"] == 50
    assert (after["contradictory_pairs"], after["shared_prompts"]) == (8, 20)
    (private,) = [found["text"] for found in said(tmp_path)["verdicts"] if found["check"] == "private_data"]
    assert "e-mail address in 3. Looked for: " in private
    aside = {}
    for found in said(tmp_path)["quarantine"]:
        aside[found["reason"]] = aside.get(found["reason"], 0) + found["rows"]
    assert aside == {"blank_candidate": 4, "bad_choice": 2}


def test_the_same_seed_plants_the_same(tmp_path):
    for name in ("one", "same", "other"):
        posts.generate(tmp_path / name, tmp_path / "gold", **SIZES)
        flaws.plant(tmp_path / name, seed=1 if name == "other" else 0)
    texts = {path.name: (path / "preferences.jsonl").read_text() for path in tmp_path.iterdir() if path.name != "gold"}
    assert texts["one"] == texts["same"] != texts["other"]
    assert all(json.loads(line) for line in texts["one"].splitlines())


_FILES = {"preference": "preferences", "prompt": "prompts", "eval": "evaluation", "demonstration": "demonstrations"}
