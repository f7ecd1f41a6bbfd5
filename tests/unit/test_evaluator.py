import json
import random
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.store import write_dataset
from rlhf.data.template import Template
from rlhf.errors import ConfigError, DataError, ModelError, TrainingError
from rlhf.evaluator import EvaluatorConfig
from rlhf.evaluator import stage as evaluator
from rlhf.evaluator.compare import Controlled
from rlhf.evaluator.verdict import decide
from rlhf.metrics import WinRate, win_rate
from rlhf.models.card import ModelCard
from tests.pages import browsed

TEMPLATE = Template(suffix="TL;DR:")
WORDS = ["cat", "dog", "fish", "ran", "sat", "slept", "the", "a", "home", "TL;DR:"]


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory) -> Path:
    """A tiny random classifier, as an ordinary Hugging Face folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("reward_model")
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        eos_token="[SEP]",
        model_max_length=64,
    ).save_pretrained(folder)
    torch.manual_seed(0)
    BertForSequenceClassification(
        BertConfig(
            vocab_size=len(names),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=64,
            num_labels=1,
            initializer_range=1.0,
        )
    ).save_pretrained(folder)
    return folder


class Job:
    """Inputs of the evaluator on disk, to be changed by a test before it runs."""

    def __init__(self, folder: Path, reward_model: Path):
        self.folder, self.reward_model = folder, reward_model
        self.rows: list[dict[str, Any]] = [
            {"id": f"row-{i}", "prompt": f"the {noun} ran home", "reference": f"a {noun} ran home"}
            for i, noun in enumerate(["cat", "dog", "fish"] * 4)
        ]
        # As many letters, so that length explains nothing.
        self.before = self.predictions("sleptsat homerun", "sft")
        self.after = self.predictions("a dog slept home", "tuned")
        self.logs: dict[str, str] = {}

    def predictions(self, text: str, model: str) -> list[dict[str, Any]]:
        return [
            {
                "id": row["id"],
                "prompt": TEMPLATE.render(row["prompt"]),
                "prediction": text,
                "finish_reason": "stop",
                "tokens": len(text.split()),
                "model": model,
                "template_digest": TEMPLATE.digest,
            }
            for row in self.rows
        ]

    def log(self, name: str, series: dict[str, list[float]]) -> None:
        from rlhf.tracking import Tracker

        self.logs[name] = str(self.folder / name)
        tracker = Tracker(self.logs[name])
        for tag, values in series.items():
            for step, value in enumerate(values):
                tracker.scalars(step, {tag: value})
        tracker.close()

    def run(self, **options: Any) -> dict[str, float]:
        write_dataset(self.folder / "evaluation", "prompts", self.rows, TEMPLATE)
        for name in ("before", "after"):
            lines = [json.dumps(row, ensure_ascii=False) for row in getattr(self, name)]
            (self.folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return evaluator.run(
            EvaluatorConfig(**options),
            predictions_before=str(self.folder / "before.jsonl"),
            predictions_after=str(self.folder / "after.jsonl"),
            evaluation=str(self.folder / "evaluation"),
            reward_model=str(self.reward_model),
            report=str(self.folder / "report.html"),
            summary=str(self.folder / "summary.md"),
            side_by_side=str(self.folder / "side_by_side.jsonl"),
            **self.logs,
        )

    @property
    def report(self) -> str:
        """The page's text, as a reader sees it."""
        parts: list[str] = []
        parser = HTMLParser()
        parser.handle_data = parts.append
        parser.feed((self.folder / "report.html").read_text(encoding="utf-8"))
        return " ".join("".join(parts).split())


@pytest.fixture
def job(tmp_path, reward_model) -> Job:
    return Job(tmp_path, reward_model)


@pytest.fixture
def scored(job, monkeypatch) -> Job:
    """The job with a reward model that counts words: more words, higher score."""
    monkeypatch.setattr("rlhf.models.scoring.RewardModel.load", lambda folder, template: WordCounter())
    return job


class WordCounter:
    card = None

    def score(self, prompts, completions, batch_size, on_batch):
        return [float(len(text.split())) for text in completions]


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


def test_a_reward_model_that_ignores_the_prompt_is_called_out(scored):
    scored.log(
        "reward_logs",
        {"reward_model/eval_accuracy": [0.6, 0.83], "reward_model/accuracy_prompt_swapped": [0.80], "rank_loss": [0.6]},
    )
    scored.run()
    assert "The reward model ignores the prompt" in scored.report
    assert "Reward model: loss" in scored.report


def test_a_reward_model_that_reads_the_prompt_has_its_drop_shown(scored):
    scored.log("reward_logs", {"reward_model/eval_accuracy": [0.83], "reward_model/accuracy_prompt_swapped": [0.55]})
    scored.run()
    assert "The reward model reads the prompt: its accuracy on held-out pairs drops from 83 % to 55 %" in scored.report


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


def test_a_model_that_wins_by_length_alone_is_held():
    wins = win_rate([0.0] * 100, [1.0] * 80 + [-1.0] * 20)
    verdict = decide(EvaluatorConfig(), wins, Controlled(0.52, 0.44, 0.61, 1.5, 100), 1.0, 1.0, 1.0)
    assert not verdict.promote
    assert "not by more than its other length explains" in verdict.headline


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
    monkeypatch.setattr(WordCounter, "score", lambda self, prompts, *a, **k: [0.0, float("nan")] + [1.0] * 34)
    with pytest.raises(ModelError, match="1 of 36 scores are not finite, the first for id 'row-1'"):
        scored.run()


# The page


def test_texts_are_no_markup_of_the_page(scored):
    scored.after[2]["prediction"] = "<script>alert(1)</script> \u202eevil \x07 \u2028 next"
    scored.before[2]["model"] = "<img src=x onerror=alert(1)>"
    scored.run()
    html = (scored.folder / "report.html").read_text(encoding="utf-8")
    assert "alert(1)</script>" not in html
    assert "<img" not in html
    assert "\u202e" not in html


def test_of_many_rows_the_browser_has_a_seeded_choice(scored):
    def said(**options: Any) -> str:
        scored.run(**options)
        return scored.report

    assert "5 of 12 prompts, drawn at random (seed 3)" in said(side_by_side_rows=5, seed=3)
    assert "drawn at random" not in said()


def test_rows_are_written_side_by_side(scored):
    scored.rows[1]["reference"] = None
    scored.run()
    rows = [json.loads(line) for line in (scored.folder / "side_by_side.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [row["id"] for row in scored.rows]
    assert rows[0]["outcomes"] == {"reward model": 1.0}
    assert rows[0]["scores"] == {"reward model": [2.0, 4.0, 4.0]}
    assert rows[1]["scores"]["reward model"][2] is None


def test_the_summary_says_the_verdict_and_cannot_be_broken_by_a_name(scored):
    scored.run()
    text = (scored.folder / "summary.md").read_text(encoding="utf-8")
    assert text.startswith("# Promote\n")
    assert "| reward model | 100\u00a0%" in text


# Further judges


GRADER = """
def dogs(prompts, completions, reference, **columns):
    return [None if "fish" in (r or "") else float("dog" in c) for c, r in zip(completions, reference)]
"""


def test_a_grader_judges_beside_the_reward_model(scored):
    place = scored.folder / "grader.py"
    place.write_text(GRADER)
    metrics = scored.run(graders=[{"function": f"{place}:dogs"}])
    assert (metrics["dogs_wins"], metrics["dogs_not_judged"]) == (8, 4)
    assert (metrics["dogs_before"], metrics["dogs_after"]) == (0.0, 1.0)
    assert "dogs" in scored.report


def test_a_grader_that_fails_is_named(scored):
    place = scored.folder / "grader.py"
    place.write_text("def bad(prompts, completions, **columns):\n    raise KeyError('no such word')\n")
    with pytest.raises(TrainingError, match=r"bad.*KeyError"):
        scored.run(graders=[{"function": f"{place}:bad"}])


def test_without_a_reward_model_the_run_s_grader_decides(job):
    place = job.folder / "grader.py"
    place.write_text(GRADER)
    parts = [{"function": f"{place}:dogs", "weight": 2.0}, {"builtin": "length", "options": {"most": 9}}]
    job.reward_model = ""
    metrics = job.run(grader={"sum": parts}, kl_limit=3.0)
    assert (metrics["grade_before"], metrics["grade_after"]) == (1.0, pytest.approx((8 * 3 + 4 * 1) / 12))
    assert (metrics["wins"], metrics["ties"], metrics["promote"]) == (8, 4, 1.0)
    assert (metrics["dogs_wins"], metrics["dogs_not_judged"], metrics["length_ties"]) == (8, 4, 12)
    assert not any(name.startswith("reward") for name in metrics)
    assert "By the grader, the tuned model is better than the one before" in job.report
    assert "By the reward model" not in job.report
    assert "| Grade | 1.000 |" in (job.folder / "summary.md").read_text(encoding="utf-8")


def test_a_completion_that_the_run_s_grader_cannot_grade_is_left_out_and_said(job):
    place = job.folder / "grader.py"
    place.write_text(
        "def grade(completions, id, **_): return ['x' if i == 'row-3' else len(c) for i, c in zip(id, completions)]"
    )
    job.reward_model = ""
    metrics = job.run(grader={"function": str(place)})
    assert metrics["not_judged"] == 1
    assert "grader: 2 completions could not be graded, the first: reward function" in job.report


def test_nobody_who_decides_is_refused(job):
    job.reward_model = ""
    with pytest.raises(ConfigError, match=r"evaluation.grader: found none, and no reward model either"):
        job.run()


def test_further_models_are_ranked(scored):
    other = scored.predictions("a dog slept home and sat", "third")
    path = scored.folder / "third.jsonl"
    path.write_text("\n".join(map(json.dumps, other)))
    scored.run(others={"third": str(path)})
    strengths = (scored.folder / "report.html").read_text(encoding="utf-8").split("Bradley-Terry")[-1]
    places = [strengths.index(f">{name}<") for name in ("third", "after", "before")]
    assert places == sorted(places)


# Predictions of the closed Vertex pipeline


def vertex_lines(job: "Job", text: str, nested: bool) -> list[dict[str, Any]]:
    prompts = [f"Summarize in less than 50 words.\n\n\n{row['prompt']} [summary]: " for row in job.rows]
    if nested:
        inputs = [{"inputs_pretokenized": prompt, "targets_pretokenized": ""} for prompt in prompts]
        return [{"inputs": each, "prediction": text} for each in inputs]
    return [{"input_text": row["prompt"], "prediction": text} for row in job.rows]


def test_predictions_of_the_old_pipeline_are_joined_by_position(scored):
    scored.before = vertex_lines(scored, "the cat", nested=False)
    scored.after = vertex_lines(scored, "a dog slept home", nested=True)
    metrics = scored.run()
    assert (metrics["wins"], metrics["tokens_before"]) == (12, 2.0)
    assert "ended_after" not in metrics
    assert "Endings: not checked" in scored.report


def test_predictions_of_the_old_pipeline_in_another_order_are_refused(scored):
    scored.rows = [
        {"id": f"row-{i}", "prompt": f"{noun} likes {verb} when home", "reference": "a"}
        for i, (noun, verb) in enumerate([("bob", "tea"), ("ann", "rice"), ("zoe", "figs")])
    ]
    scored.before = vertex_lines(scored, "the cat", nested=False)
    scored.after = [
        {"input_text": "nothing of the kind at all", "prediction": "x"},
        *vertex_lines(scored, "a dog", nested=False)[1:],
    ]
    with pytest.raises(DataError, match=r"predictions_after: .* 1 of 3 were made for another prompt .*'row-0'"):
        scored.run()


def test_predictions_without_ids_that_are_fewer_are_counted(scored):
    scored.after = vertex_lines(scored, "a dog", nested=True)[:-2]
    with pytest.raises(DataError, match="predictions_after: 10 predictions without ids, the evaluation dataset has 12"):
        scored.run()


def test_several_samples_of_a_prompt_are_refused(scored):
    scored.after += [{**row, "sample": 1} for row in scored.after]
    with pytest.raises(DataError, match="found 2 samples of a prompt, expected one"):
        scored.run()


def test_shards_are_read_one_after_the_other(scored):
    whole = scored.run()
    lines = (scored.folder / "after.jsonl").read_text().splitlines()
    parts = [scored.folder / "after-0.jsonl", scored.folder / "after-1.jsonl"]
    parts[0].write_text("\n".join(lines[:5]))
    parts[1].write_text("\n".join(lines[5:]))
    pairs, _ = evaluator.read_pairs(scored.folder / "before.jsonl", parts, scored.folder / "evaluation")
    assert len(pairs) == whole["rows"]


# How the page is made


def test_the_page_has_its_sections_in_reading_order(scored):
    scored.log("sft_logs", {"sft/loss": [3.0, 2.0, 1.0]})
    scored.run()
    html = (scored.folder / "report.html").read_text(encoding="utf-8")
    order = [
        html.index(f'<section id="{name}"')
        for name in ("verdict", "numbers", "judges", "training", "rewards", "health", "side-by-side")
    ]
    assert order == sorted(order)
    assert "Promote" in scored.report


def test_of_long_rows_the_browser_has_as_many_as_keep_the_page_small(scored):
    rng = random.Random(0)
    row, before, after = scored.rows[0], scored.before[0], scored.after[0]
    posts = [rng.randbytes(3000).hex() for _ in range(2000)]  # text that hardly compresses
    scored.rows = [{**row, "id": str(i)} for i in range(2000)]
    scored.before = [{**before, "id": str(i), "prompt": post} for i, post in enumerate(posts)]
    scored.after = [{**after, "id": str(i), "prompt": post} for i, post in enumerate(posts)]
    scored.run()
    page = (scored.folder / "report.html").read_text(encoding="utf-8")
    shown = len(browsed(page)["rows"])
    assert f"{shown:,} of 2,000 prompts, drawn at random (seed 0); with more of this length" in page
    assert 3e6 < len(page.encode()) < 5e6


# The shell and the config


def test_the_config_is_importable_without_torch():
    code = "import sys, rlhf.evaluator; assert not {'torch', 'matplotlib', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_every_option_has_a_default_and_says_what_it_is():
    EvaluatorConfig()
    assert all(field.description for field in EvaluatorConfig.model_fields.values())
    with pytest.raises(ConfigError, match="did you mean 'kl_limit'"):
        EvaluatorConfig.parse({"kl_limt": 3}, "evaluation")


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
