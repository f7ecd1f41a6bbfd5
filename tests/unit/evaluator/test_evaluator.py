import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf.errors import ConfigError, DataError, ModelError
from rlhf.evaluator import EvaluatorConfig
from rlhf.evaluator import stage as evaluator
from rlhf.evaluator.compare import Controlled, rows_needed
from rlhf.evaluator.verdict import decide
from rlhf.metrics import WinRate, share, win_rate
from rlhf.models.card import ModelCard
from tests.evaluation import TEMPLATE, Job, WordCounter

# With a real model


def test_rewards_are_those_of_the_reward_model_on_the_rendered_prompt(job):
    from rlhf.models.scoring import RewardModel

    metrics = job.run()

    model = RewardModel.load(job.reward_model)
    prompts = [TEMPLATE.render(row["prompt"]) for row in job.rows]
    expected = {
        "before": [row["prediction"] for row in job.before],
        "after": [row["prediction"] for row in job.after],
        "reference": [row["reference"] for row in job.rows],
    }
    for name, texts in expected.items():
        scores = model.score(prompts, texts)
        assert metrics[f"reward_{name}"] == pytest.approx(sum(scores) / len(scores), abs=1e-5)
    assert metrics["wins"] + metrics["losses"] + metrics["ties"] == metrics["rows"] == 12
    assert all(isinstance(value, float) for value in metrics.values())


def test_the_same_inputs_give_the_same_metrics(job):
    assert job.run() == job.run()


def test_a_reward_model_of_another_template_is_refused(job, tmp_path):
    import shutil

    copy = tmp_path / "other_reward_model"
    shutil.copytree(job.reward_model, copy)
    ModelCard(kind="reward_model", base="x", template_digest="0123456789abcdef").save(copy)
    job.reward_model = copy
    with pytest.raises(ModelError, match=f"template 0123456789abcdef.*{TEMPLATE.digest}"):
        job.run()


# Measures


def test_rouge_is_taken_against_the_human_reference_and_may_fall(scored):
    scored.before = scored.predictions("a cat ran home........", "sft")
    scored.after = scored.predictions("fish slept the a a dog", "tuned")
    metrics = scored.run()
    # References: "a {cat, dog, fish} ran home". Before: 4/4 words right for a third of the rows, 3/4 for the others.
    assert metrics["rouge_1_before"] == pytest.approx((1 + 0.75 + 0.75) / 3)
    # After: "a" is right everywhere, the noun for dog and fish; 6 words against 4.
    assert metrics["rouge_1_after"] == pytest.approx((0.2 + 0.4 + 0.4) / 3)
    assert metrics["rouge_l_after"] < metrics["rouge_l_before"]
    assert "By the reward model the tuned model is better, by ROUGE-L it is worse" in scored.report
    assert metrics["promote"] == 1.0  # ROUGE decides nothing


def test_rows_without_a_reference_are_counted_and_left_out_of_rouge(scored):
    for row in scored.rows[:3]:
        row["reference"] = None
    scored.rows[3]["reference"] = "  "
    metrics = scored.run()
    assert (metrics["rows"], metrics["rows_with_reference"]) == (12, 8)
    assert "4 prompts have no reference" in scored.report


def test_without_any_reference_there_is_no_rouge_and_still_a_verdict(scored):
    for row in scored.rows:
        row["reference"] = None
    metrics = scored.run()
    assert not [name for name in metrics if name.startswith("rouge") or name == "reward_reference"]
    assert metrics["promote"] == 1.0


def test_win_rate_and_shares(scored):
    scored.after[0]["prediction"] = "cat"  # fewer words: a loss
    scored.after[1]["prediction"] = "dog sat"  # as many: a tie
    scored.after[2]["prediction"] = " "
    scored.after[3]["finish_reason"] = "length"
    metrics = scored.run()
    assert (metrics["wins"], metrics["losses"], metrics["ties"]) == (9, 2, 1)
    assert metrics["win_rate"] == pytest.approx(9 / 11)
    assert metrics["win_rate_low"] < 9 / 11 < metrics["win_rate_high"]
    assert metrics["ended_after"] == pytest.approx(11 / 12)
    assert metrics["empty_after"] == pytest.approx(1 / 12)
    assert "8.3 % of the tuned model's completions are empty" in scored.report


def test_a_tie_everywhere_has_no_win_rate_and_holds(scored):
    scored.after = scored.predictions("the dog", "tuned")
    metrics = scored.run()
    assert "win_rate" not in metrics
    assert metrics["promote"] == 0.0
    assert "no pair is decided (12 ties)" in scored.report


def test_one_row_is_enough_to_compare(scored):
    scored.rows, scored.before, scored.after = scored.rows[:1], scored.before[:1], scored.after[:1]
    assert scored.run()["rows"] == 1


def test_joins_are_by_id_not_by_position(scored):
    scored.after[0]["prediction"] = "cat"
    in_order = scored.run()
    scored.after.reverse()
    scored.before.sort(key=lambda row: row["id"])
    assert scored.run() == in_order


# Curves and what they say


def test_kl_is_the_mean_of_the_last_updates_and_is_part_of_the_verdict(scored):
    scored.log("ppo_logs", {"ppo/kl": [100.0] * 18 + [2.0, 4.0], "ppo/score": [0.0] * 20})
    metrics = scored.run()
    assert metrics["kl"] == pytest.approx(3.0)
    assert metrics["promote"] == 1.0
    assert scored.run(kl_limit=2.9)["promote"] == 0.0


def with_prompts_exchanged(monkeypatch, right: float, swapped: float, **ignores: float) -> None:
    measured = {"accuracy_unswapped": right, "accuracy_prompt_swapped": swapped, **ignores}
    card = ModelCard(kind="reward_model", base="x", template_digest="", training=measured)
    monkeypatch.setattr(WordCounter, "card", card)


def test_a_reward_model_that_ignores_the_prompt_is_called_out(scored, monkeypatch):
    with_prompts_exchanged(monkeypatch, 0.83, 0.80, ignores_prompt=1.0)
    scored.log("reward_logs", {"reward_model/eval_accuracy": [0.6, 0.83], "rank_loss": [0.6]})
    scored.run()
    assert "The reward model ignores the prompt: its accuracy on held-out pairs is 83 % with" in scored.report
    assert "Reward model: loss" in scored.report


def test_a_reward_model_that_reads_the_prompt_has_its_drop_shown(scored, monkeypatch):
    with_prompts_exchanged(monkeypatch, 0.83, 0.55, ignores_prompt=0.0)
    scored.run()
    assert "The reward model reads the prompt: its accuracy on held-out pairs drops from 83 % to 55 %" in scored.report


def test_nothing_is_said_of_the_prompt_where_too_few_pairs_were_there_to_tell(scored, monkeypatch):
    with_prompts_exchanged(monkeypatch, 0.83, 0.75)
    scored.run()
    assert "the prompt: its accuracy" not in scored.report


def test_a_folder_of_logs_that_is_not_there_is_said_where_the_kl_is_missing(scored):
    scored.logs = {"ppo_logs": str(scored.folder / "nowhere")}
    scored.run()
    assert "KL: not checked, because there is no such folder as was given for ppo_logs." in scored.report


def test_a_uri_of_logs_is_refused_by_name(scored):
    scored.logs = {"ppo_logs": "gs://bucket/run/tensorboard"}
    with pytest.raises(ConfigError, match=r"ppo_logs: found 'gs://bucket/run/tensorboard', expected a local folder"):
        scored.run()


def test_a_trainer_that_was_skipped_has_no_curves(scored):
    scored.logs = {"sft_logs": str(scored.folder / "never_written")}
    scored.run()
    assert "Training" not in scored.report


# The rule


@pytest.mark.parametrize(
    ("won", "kl", "ended", "promote", "reason"),
    [
        (90, 3.0, (0.95, 0.96), True, "the lower end is above 50 %"),
        (55, 3.0, (0.95, 0.96), False, "the lower end is not above 50 %"),
        (55, 3.0, (0.95, 0.96), False, "To tell a win rate of this size from chance takes about 783 decided pairs"),
        (10, 3.0, (0.95, 0.96), False, "the lower end is not above 50 %"),
        (90, 20.0, (0.95, 0.96), True, "within the limit of 20"),
        (90, 20.1, (0.95, 0.96), False, "above the limit of 20"),
        (90, float("nan"), (0.95, 0.96), False, "not finite"),
        (90, None, (0.95, 0.96), True, "KL: not checked"),
        (90, 3.0, (0.98, 0.96), True, "96.0 % of the completions end by themselves, 98.0 % before"),
        (90, 3.0, (0.95, 0.92), False, "a fall of more than 2 points is not allowed"),
        (90, 3.0, (None, None), True, "Endings: not checked"),
    ],
)
def test_the_rule_promotes_or_holds_with_its_reason(won, kl, ended, promote, reason):
    wins = win_rate([0.0] * 100, [1.0] * won + [-1.0] * (100 - won))
    verdict = decide(EvaluatorConfig(), wins, as_it_is(wins), kl, *ended)
    assert verdict.promote is promote
    assert reason in " ".join(text for _, text in verdict.reasons).replace("\u00a0", " ")


def as_it_is(wins: WinRate) -> Controlled:
    """A win rate that length has nothing to do with."""
    return Controlled(wins.rate, wins.low, wins.high, 0.0, wins.wins + wins.losses)


def test_a_worse_model_is_called_worse():
    wins = win_rate([1.0] * 9, [0.0] * 9)
    assert "worse" in decide(EvaluatorConfig(), wins, as_it_is(wins), 1.0, 1.0, 1.0).headline


@pytest.mark.parametrize(
    ("won", "lost", "config", "kl", "headline"),
    [
        (9, 10, {}, 1.0, "It is not shown that the tuned model is better than the one before."),
        (30, 70, {}, 1.0, "the tuned model is worse than the one before"),
        (47, 53, {"min_win_rate": 0.3}, 1.0, "more than the 30 % (evaluation.min_win_rate) that is asked for, but"),
        (47, 53, {"min_win_rate": 0.3}, 1e3, "wins more than 30 % (evaluation.min_win_rate), but it paid for that"),
        (75, 25, {}, 1e3, "the tuned model is better, but it paid for that"),
        (65, 35, {"min_win_rate": 0.6}, 1.0, "is better, but it is not shown that it wins more than 60 %"),
    ],
)
def test_better_and_worse_are_what_the_interval_says_of_one_half(won, lost, config, kl, headline):
    wins = win_rate([0.0] * (won + lost), [1.0] * won + [-1.0] * lost)
    assert headline in decide(EvaluatorConfig(**config), wins, as_it_is(wins), kl, 1.0, 1.0).headline


def test_a_model_that_wins_by_length_alone_is_held():
    wins = win_rate([0.0] * 100, [1.0] * 80 + [-1.0] * 20)
    verdict = decide(EvaluatorConfig(), wins, Controlled(0.52, 0.44, 0.61, 1.5, 100), 1.0, 1.0, 1.0)
    assert not verdict.promote
    assert "not by more than its other length explains" in verdict.headline


def test_where_length_has_no_effect_ties_are_named_and_not_length():
    wins = WinRate(70, 30, 900, *(share(70, 100).rate, share(70, 100).low, share(70, 100).high))
    verdict = decide(EvaluatorConfig(), wins, Controlled(0.52, 0.49, 0.55, None, 1000), 1, 1, 1)
    assert not verdict.promote
    assert "length" not in verdict.headline
    assert "with ties counted half it is not shown" in verdict.headline
    assert "With ties counted half, as they are at equal lengths, it is 52\u00a0%" in verdict.reasons[0][1]


@pytest.mark.parametrize(("controlled", "by_length"), [(0.515, False), (0.50, True)])
def test_length_is_named_where_it_takes_more_than_a_hair_from_the_rate_with_ties_half(controlled, by_length):
    wins = WinRate(70, 30, 900, 0.7, 0.6, 0.78)
    verdict = decide(EvaluatorConfig(), wins, Controlled(controlled, 0.49, 0.53, 0.1, 1000), 1, 1, 1)
    assert ("its other length explains" in verdict.headline) is by_length


def test_pairs_needed_are_decided_ones_and_only_said_where_there_are_fewer():
    few = WinRate(60, 40, 900, 0.6, 0.502, 0.69)
    text = decide(EvaluatorConfig(), few, Controlled(0.51, 0.49, 0.53, None, 1000), 1, 1, 1).reasons[0][1]
    assert f"takes about {rows_needed(0.6)} decided pairs" in text
    many = WinRate(800, 200, 0, 0.8, 0.77, 0.82)
    text = decide(EvaluatorConfig(), many, Controlled(0.52, 0.44, 0.61, 1.5, 1000), 1, 1, 1).reasons[0][1]
    assert "decided pairs." not in text


@pytest.mark.parametrize(("not_judged", "promote"), [(0, True), (11, True), (12, False)])
def test_too_many_pairs_without_a_judgement_hold(not_judged, promote):
    wins = win_rate([0.0] * 100, [1.0] * 100)
    verdict = decide(EvaluatorConfig(), wins, as_it_is(wins), 1, 1, 1, judge="grader", not_judged=not_judged)
    assert verdict.promote is promote
    said = [text.replace("\u00a0", " ") for _, text in verdict.reasons]
    if not_judged:
        assert f"Judged: of {not_judged} of {100 + not_judged} pairs (" in said[-1]
    if not promote:
        assert "more than 10 % (evaluation.max_not_judged) is not allowed" in said[-1]
        assert "left too many pairs without a judgement" in verdict.headline
    assert decide(EvaluatorConfig(max_not_judged=0.2), wins, as_it_is(wins), 1, 1, 1, "g", not_judged).promote


def test_where_one_is_always_longer_nothing_is_promoted(scored):
    scored.before = scored.predictions("the cat", "sft")
    metrics = scored.run()
    assert (metrics["wins"], metrics["promote"]) == (12, 0.0)
    assert "win_rate_controlled" not in metrics
    assert "nobody can tell whether the one wins by more than that" in scored.report


def test_one_won_pair_promotes_nothing(scored):
    scored.rows, scored.before, scored.after = scored.rows[:1], scored.before[:1], scored.after[:1]
    metrics = scored.run()
    assert (metrics["wins"], metrics["promote"]) == (1, 0.0)


# Inputs that do not fit


def test_predictions_that_do_not_pair_up_are_counted_and_named(scored):
    del scored.after[1:3]
    scored.before[0]["id"] = "stranger"
    with pytest.raises(DataError) as caught:
        scored.run()
    message = str(caught.value)
    assert "9 ids are in all of them" in message
    assert "predictions_after lacks 3 ('row-1', 'row-2', 'stranger')" in message
    assert "predictions_before lacks 1 ('row-0')" in message
    assert "evaluation lacks 1 ('stranger')" in message


def test_predictions_of_another_template_are_refused(scored):
    scored.after[4]["template_digest"] = "feedfacefeedface"
    with pytest.raises(DataError, match=f"predictions_after: made with template feedfacefeedface.*{TEMPLATE.digest}"):
        scored.run()


def test_repeated_ids_are_refused(scored):
    scored.before.append(scored.before[5])
    with pytest.raises(DataError, match=r"predictions_before: 1 ids stand in more than one row \('row-5'\)"):
        scored.run()


def test_models_that_were_given_other_prompts_are_not_compared(scored):
    scored.after[7]["prompt"] = "something else TL;DR:"
    with pytest.raises(DataError, match=r"1 of 12 ids have another prompt in each \('row-7'\)"):
        scored.run()


@pytest.mark.parametrize(
    ("line", "message"),
    [("{broken", "line 2: not JSON"), ("[1]", "line 2: "), ('{"id": "row-1"}', "line 2: prompt: Field required")],
)
def test_a_broken_line_is_named(scored, line, message):
    scored.run()
    path = scored.folder / "after.jsonl"
    lines = path.read_text().split("\n")
    path.write_text("\n".join([lines[0], line, *lines[2:]]))
    with pytest.raises(DataError, match=f"after.jsonl, {message}"):
        evaluator.read_pairs(scored.folder / "before.jsonl", path, scored.folder / "evaluation")


def test_a_missing_file_is_named(scored):
    scored.run()
    with pytest.raises(DataError, match=r"nothing\.jsonl: cannot be read"):
        evaluator.read_pairs(
            scored.folder / "nothing.jsonl", scored.folder / "after.jsonl", scored.folder / "evaluation"
        )


def test_no_rows_are_nothing_to_compare(scored):
    scored.rows, scored.before, scored.after = [], [], []
    with pytest.raises(DataError, match="found no rows"):
        scored.run()


def test_a_score_that_is_not_finite_is_an_error_that_names_the_row(scored, monkeypatch):
    second = lambda self, prompts, *_: [math.nan if place == 1 else 1.0 for place in range(len(prompts))]  # noqa: E731
    monkeypatch.setattr(WordCounter, "score", second)
    with pytest.raises(ModelError, match="4 of 36 scores are not finite, the first for id 'row-1'"):
        scored.run()


# Predictions of the closed Vertex pipeline


def vertex_lines(job: Job, text: str, nested: bool) -> list[dict[str, Any]]:
    prompts = [f"Summarize in less than 50 words.\n\n\n{row['prompt']} [summary]: " for row in job.rows]
    if nested:
        inputs = [{"inputs_pretokenized": prompt, "targets_pretokenized": ""} for prompt in prompts]
        return [{"inputs": each, "prediction": text} for each in inputs]
    return [{"input_text": row["prompt"], "prediction": text} for row in job.rows]


def test_predictions_of_the_old_pipeline_are_joined_by_position(scored):
    scored.before = vertex_lines(scored, "the cat", nested=False)
    scored.after = vertex_lines(scored, "a dog slept home", nested=True)
    metrics = scored.run()
    assert (metrics["wins"], metrics["words_before"], metrics["words_after"]) == (12, 2.0, 4.0)
    assert not {"ended_after", "tokens_after"} & set(metrics)
    assert "Endings: not checked" in scored.report
    assert "are cut off" not in scored.report
    assert "not cut off" not in scored.report


def test_one_file_of_the_old_pipeline_has_the_other_measured_in_words_and_says_nothing_of_endings(scored):
    for row in scored.before:
        row["tokens"] = 1000
    scored.after = vertex_lines(scored, "a dog slept home", nested=True)
    metrics = scored.run()
    assert (metrics["words_before"], metrics["words_after"]) == (2.0, 4.0)
    assert "Length, mean words" in scored.report
    assert "Endings: not checked" in scored.report
    assert "are cut off" not in scored.report
    assert "not cut off" not in scored.report


# From one template, so that each has most of the others' words; the last two have the same ones.
TEMPLATED = [
    *(f"tell me whether {noun} likes {food} when home" for noun, food in [("bob", "tea"), ("ann", "rice")]),
    *(f"tell me whether {one} likes {other} when home" for one, other in [("max", "zoe"), ("zoe", "max")]),
]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("order", "named"), [((1, 0, 2, 3), "2 of 4 .*'row-0', 'row-1'"), ((0, 1, 3, 2), "2 of 4 .*'row-2', 'row-3'")]
)
def test_predictions_of_the_old_pipeline_in_another_order_are_refused(scored, order, named, nested):
    scored.rows = [{"id": f"row-{i}", "prompt": prompt, "reference": "a"} for i, prompt in enumerate(TEMPLATED)]
    scored.before = vertex_lines(scored, "the cat", nested=False)
    lines = vertex_lines(scored, "a dog", nested=nested)
    scored.after = [lines[place] for place in order]
    said = named.replace(" .*", " were made for another prompt .*")
    with pytest.raises(DataError, match=f"predictions_after: .* {said}"):
        scored.run()


def test_predictions_of_the_old_pipeline_for_other_prompts_are_refused(scored):
    scored.before = vertex_lines(scored, "the cat", nested=False)
    scored.after = [{"input_text": "nothing of the kind at all", "prediction": "x"}, *scored.before[1:]]
    with pytest.raises(DataError, match=r"predictions_after: .* 1 of 12 were made for another prompt .*'row-0'"):
        scored.run()


def test_prompts_that_the_old_pipeline_cut_within_a_word_are_those_of_their_rows(scored):
    nouns = ["cathedral", "doghouse", "fisherman"] * 4
    scored.rows = [{**row, "prompt": f"the home is of a {noun}"} for row, noun in zip(scored.rows, nouns, strict=True)]
    scored.run()
    paths = [scored.folder / f"{name}.jsonl" for name in ("before", "after")]
    for path in paths:
        lines = [{"input_text": row["prompt"][: 21 + i % 3], "prediction": "x"} for i, row in enumerate(scored.rows)]
        path.write_text("\n".join(map(json.dumps, lines)))
    pairs, _ = evaluator.read_pairs(*paths, scored.folder / "evaluation")
    assert len(pairs) == 12


def test_predictions_without_ids_that_are_fewer_are_counted(scored):
    scored.after = vertex_lines(scored, "a dog", nested=True)[:-2]
    with pytest.raises(DataError, match="predictions_after: 10 predictions without ids, the evaluation dataset has 12"):
        scored.run()


def test_of_several_samples_of_a_prompt_the_first_is_compared(scored):
    scored.run()
    path = scored.folder / "after.jsonl"
    several = [{**row, "sample": n, "prediction": f"sample {n}"} for row in scored.after for n in (1, 0, 2)]
    path.write_text("\n".join(map(json.dumps, several)))
    pairs, _ = evaluator.read_pairs(scored.folder / "before.jsonl", path, scored.folder / "evaluation")
    assert [(pair.id, pair.after.prediction) for pair in pairs] == [(row["id"], "sample 0") for row in scored.rows]


def test_shards_are_read_one_after_the_other(scored):
    whole = scored.run()
    lines = (scored.folder / "after.jsonl").read_text().splitlines()
    parts = [scored.folder / "after-0.jsonl", scored.folder / "after-1.jsonl"]
    parts[0].write_text("\n".join(lines[:5]))
    parts[1].write_text("\n".join(lines[5:]))
    pairs, _ = evaluator.read_pairs(scored.folder / "before.jsonl", parts, scored.folder / "evaluation")
    assert len(pairs) == whole["rows"]


# The shell and the config


def test_the_config_is_importable_without_torch():
    code = "import sys, rlhf.evaluator; assert not {'torch', 'matplotlib', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


def test_every_option_has_a_default_and_says_what_it_is():
    EvaluatorConfig()
    assert all(field.description for field in EvaluatorConfig.model_fields.values())
    with pytest.raises(ConfigError, match="did you mean 'kl_limit'"):
        EvaluatorConfig.parse({"kl_limt": 3}, "evaluation")


def test_a_further_model_cannot_take_the_place_of_what_is_compared():
    for name in ("before", "after", "reference", "predictions_before", "predictions_after", "evaluation"):
        with pytest.raises(ConfigError, match=f"evaluation.others: found .* rename '{name}'"):
            EvaluatorConfig.parse({"others": {name: "x.jsonl"}}, "evaluation")
    EvaluatorConfig.parse({"others": {"third": "x.jsonl"}}, "evaluation")


def test_without_bert_score_nothing_is_scored_before_that_is_said(scored, monkeypatch):
    monkeypatch.setitem(sys.modules, "bert_score", None)
    monkeypatch.setattr(WordCounter, "score", lambda *_: pytest.fail("scored"))
    with pytest.raises(ConfigError, match="pip install bert-score"):
        scored.run(bertscore_model="roberta-large")


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"judge": {"model": "m", "api_key": "sk-secret"}}, "evaluation.judge.api_key"),
        ({"graders": [{"functon": "g.py:f"}]}, "evaluation.graders.0.functon"),
    ],
)
def test_an_unknown_option_of_a_judge_is_named_and_its_value_is_not_shown(options, name):
    with pytest.raises(ConfigError, match=f"unknown option '{name}'") as caught:
        EvaluatorConfig.parse(options, "evaluation")
    assert "secret" not in str(caught.value)
