"""The probe: only the fact asked about differs, on posts that nothing was trained on."""

import json
import re
import subprocess
import sys

import pytest

from examples.demo import one_fact, posts

KINDS = (*posts.FACTS, one_fact.TEMPTATION)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, gold, rows of evaluation)."""
    folder = tmp_path_factory.mktemp("one_fact")
    sizes = {"preferences": 40, "prompts": 20, "evaluation": 60, "demonstrations": 20}
    posts.generate(folder / "data", folder / "gold", 3, **sizes)
    lines = (folder / "data" / "evaluation.jsonl").read_text().splitlines()
    return folder, posts.load_gold(folder / "gold"), [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def probes(made):
    _, gold, rows = made
    return one_fact.probes(gold, [row["id"] for row in rows])


def test_the_right_summary_is_faultless_and_one_word_of_the_probed_kind_is_all_that_differs(made, probes):
    _, gold, _ = made
    for probe in probes:
        facts = gold[probe.id]["facts"]
        kind = "question" if probe.kind == one_fact.TEMPTATION else probe.kind
        assert posts.gold_score(facts, probe.right) == 5
        assert posts.gold_score(facts, probe.wrong) == 3
        (right, wrong), *others = [
            pair for pair in zip(probe.right.split(), probe.wrong.split(), strict=True) if pair[0] != pair[1]
        ]
        assert not others
        assert right == facts[kind]
        assert wrong in posts.FACTS[kind]


def test_the_temptation_is_a_kind_of_its_own_and_in_no_other(made, probes):
    _, gold, rows = made
    for probe in probes:
        asked = gold[probe.id]["facts"]["question"] == "sue"
        assert ("sue" in probe.wrong.split()) is (
            probe.kind == one_fact.TEMPTATION or (asked and probe.kind != "question")
        )
    asking = sum(gold[row["id"]]["facts"]["question"] == "sue" for row in rows)
    assert asking
    count = {kind: sum(probe.kind == kind for probe in probes) for kind in KINDS}
    assert count == {**dict.fromkeys(posts.FACTS, len(rows)), one_fact.TEMPTATION: len(rows) - asking}


def test_probes_are_the_same_each_time(made, probes):
    _, gold, rows = made
    assert one_fact.probes(gold, [row["id"] for row in rows]) == probes


class _Reads:
    """A reward model that reads everything but the day."""

    def __init__(self):
        self.prompts = set()

    def score(self, prompts, completions, batch_size):
        self.prompts |= set(prompts)
        return [self._score(*both) for both in zip(prompts, completions, strict=True)]

    @staticmethod
    def _score(prompt, completion):
        told, claimed = (set(re.findall("[a-z]+", text.lower())) for text in (prompt, completion))
        return sum(word in told for word in claimed - set(posts.FACTS["day"]))


def test_a_reward_model_is_scored_on_rendered_prompts_of_held_out_posts_kind_by_kind(made, tmp_path, monkeypatch):
    from rlhf.models import scoring

    folder, gold, rows = made
    model = _Reads()
    monkeypatch.setattr(scoring.RewardModel, "load", lambda folder: model)
    monkeypatch.setattr(one_fact, "POSTS", 50)
    rendered = {row["id"]: f"Sum up.\n\n{row['input_text']}" for row in rows}
    predictions = tmp_path / "predictions"
    predictions.write_text("".join(json.dumps({"id": key, "prompt": text}) + "\n" for key, text in rendered.items()))

    one_fact.score(folder / "gold", predictions, tmp_path / "model", tmp_path / "scores")

    found = one_fact.read(tmp_path / "scores")
    assert {kind: share.rate for kind, share in found.items()} == {kind: float(kind != "day") for kind in KINDS}
    assert {share.of for kind, share in found.items() if kind in posts.FACTS} == {50}
    assert model.prompts <= set(rendered.values())
    scored = {json.loads(line)["id"] for line in (tmp_path / "scores").read_text().splitlines()}
    assert all(posts.is_held_out(gold[key]["facts"]) for key in scored)


def test_the_driver_reads_it_without_torch():
    code = "import sys, examples.demo.gold; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
