"""The stage as a whole: datasets written, rows put aside, prompts held out, parameters checked."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.data.store import read_dataset
from rlhf.data.template import Template
from rlhf.data_validation import stage
from rlhf.errors import ConfigError, DataError, ModelError, RlhfError
from tests.intake import write_rows
from tests.validation import OUTPUTS, pair, validate


def test_a_run_writes_every_dataset_with_one_template(options, tmp_path):
    metrics = validate(options | {"instruction": "Sum up.", "prompt_sequence_length": 99.0}, tmp_path)
    template = Template(instruction="Sum up.", suffix=" [summary]: ", prompt_sequence_length=99)
    kinds = {"preferences": 40, "prompts": 5, "evaluation": 4, "demonstrations": 3}
    for name, count in kinds.items():
        rows, _, saved = read_dataset(tmp_path / "out" / name, "prompts" if name == "evaluation" else name)
        assert (len(rows), saved) == (count, template)
        assert metrics[f"rows_{name}"] == count
    assert rows[0]["completion"] == "x"
    rows, _, _ = read_dataset(tmp_path / "out" / "evaluation", "prompts")
    assert [row["reference"] for row in rows] == [f"reference {i}" for i in range(4)]
    rows, _, _ = read_dataset(tmp_path / "out" / "preferences", "preferences")
    assert {row["chosen"] for row in rows} == {"a good one"}
    assert metrics["pairs_train"] + metrics["pairs_eval"] == 40
    assert metrics["pairs_eval"] == sum(row["split"] == "eval" for row in rows) > 0


def test_without_demonstrations_an_empty_dataset_is_written(options, tmp_path):
    del options["demonstration_dataset"]
    assert validate(options, tmp_path)["rows_demonstrations"] == 0
    assert read_dataset(tmp_path / "out" / "demonstrations", "demonstrations")[0] == []


def test_the_same_input_gives_the_same_datasets(options, tmp_path):
    digests = []
    for _ in range(2):
        validate(options, tmp_path)
        digests.append([json.loads((tmp_path / "out" / n / "manifest.json").read_text())["digest"] for n in OUTPUTS])
    assert digests[0] == digests[1]


def test_nothing_is_a_dataset_before_all_that_changes_or_refuses_it_is_through(unsplit, tmp_path, monkeypatch):
    datasets = [tmp_path / "out" / name / "manifest.json" for name in OUTPUTS if name != "quarantine"]
    seen = []

    def watched(name: str):
        whole = getattr(stage, name)

        def watch(*given):
            seen.append((name, sum(path.exists() for path in datasets)))
            return whole(*given)

        return watch

    for name in ("resolve", "audit", "refuse_failed"):
        monkeypatch.setattr(stage, name, watched(name))
    for _ in range(2):  # what a run before it wrote is none either
        validate(unsplit, tmp_path)
        assert seen == [("resolve", 0), ("audit", 0), ("refuse_failed", 0)]
        assert all(path.exists() for path in datasets)
        seen.clear()
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == sorted(OUTPUTS)


def test_many_cores_do_not_make_many_blocks_in_memory(monkeypatch):
    for cores, threads in ((None, 2), (2, 3), (224, 8)):
        monkeypatch.setattr(stage.os, "cpu_count", lambda cores=cores: cores)
        with stage.threads_at_work() as found:
            assert found == threads


def test_positions_and_margins_stay_with_their_pairs_when_others_are_put_aside(options, tmp_path):
    rows = [pair(f"Post {i}", f"good {i}", f"bad {i}") for i in range(40)]
    for i, row in enumerate(rows):
        row |= {"margin": i / 4} if i % 3 else {}
        if i % 2:
            row |= {"candidate_0": row["candidate_1"], "candidate_1": row["candidate_0"], "choice": 0}
    write_rows(tmp_path / "pairs.jsonl", [*rows, rows[4] | {"margin": 99}, rows[7] | {"margin": -1}])
    metrics = validate(options | {"duplicates": "quarantine"}, tmp_path)
    kept, _, _ = read_dataset(tmp_path / "out" / "preferences", "preferences")
    assert [(r["chosen"], r["position"], r["margin"]) for r in kept] == [
        (f"good {i}", row["choice"], row.get("margin")) for i, row in enumerate(rows)
    ]
    aside, _, _ = read_dataset(tmp_path / "out" / "quarantine", "quarantine")
    assert [(r["line"], r["reason"], r["field"]) for r in aside] == [
        (42, "bad_margin", "margin"),
        (41, "duplicate", ""),
    ]
    # Findings are of the data as it came.
    assert (metrics["pairs_with_margin"], metrics["first_wins_share"]) == (27, 20 / 41)
    assert "27 of the pairs have a margin" in (tmp_path / "out" / "report.html").read_text()


def test_without_margins_none_are_spoken_of(options, tmp_path):
    assert "pairs_with_margin" not in validate(options, tmp_path)
    assert "have a margin" not in (tmp_path / "out" / "report.html").read_text()


BAD_ROWS = [pair("P", chosen=" "), pair("P", rejected="TL;DR:"), "no json", pair("P") | {"choice": 2}]


def test_rows_that_cannot_be_used_are_kept_whole_in_quarantine(options, tmp_path):
    write_rows(tmp_path / "pairs.jsonl", [*(pair(f"Post {i}") for i in range(96)), *BAD_ROWS])
    metrics = validate(options, tmp_path)
    rows, _, _ = read_dataset(tmp_path / "out" / "quarantine", "quarantine")
    file = str(tmp_path / "pairs.jsonl")
    assert [(r["file"], r["line"], r["reason"], r["field"]) for r in rows] == [
        (file, 97, "blank_candidate", "chosen"),
        (file, 98, "bare_suffix", "rejected"),
        (file, 99, "not_json", ""),
        (file, 100, "bad_choice", "choice"),
    ]
    assert [r["row"] for r in rows] == [r if isinstance(r, str) else json.dumps(r) for r in BAD_ROWS]
    assert metrics["quarantined"] == 4
    assert metrics["quarantined_share"] == pytest.approx(4 / 112)


def test_too_many_of_them_fail_the_run_and_the_worst_reason_is_named_with_an_example(options, tmp_path):
    rows = [*(pair(f"Post {i}") for i in range(95)), *BAD_ROWS, pair("P") | {"choice": "1"}, pair("P") | {"choice": 3}]
    write_rows(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(DataError) as error:
        validate(options, tmp_path)
    said = str(error.value)
    assert said.startswith(
        "preference_dataset: 6 of 101 rows (5.9\u00a0%) cannot be used, most often (3) because of bad_choice"
    )
    assert re.search(r"The limit of checks.quarantined is 5.0.%; for example .*pairs.jsonl:99: '{\"input_text", said)
    assert re.search(r"; \S*pairs.jsonl:100: '{\"input_text", said)
    assert len(read_dataset(tmp_path / "out" / "quarantine", "quarantine")[0]) == 6
    assert not (tmp_path / "out" / "preferences" / "manifest.json").exists()
    assert validate(options | {"checks": {"quarantined": {"limit": 0.06}}}, tmp_path)["quarantined"] == 6


@pytest.mark.parametrize("dataset", ["preference_dataset", "prompt_dataset", "eval_dataset", "demonstration_dataset"])
def test_a_source_without_a_usable_row_is_an_error_even_when_all_may_be_put_aside(options, tmp_path, dataset):
    options[dataset] = write_rows(tmp_path / "none.jsonl", [{"input_text": "TL;DR:"}] * 3)
    with pytest.raises(DataError, match=rf"^{dataset}: 3 of 3 rows \(100.%\) cannot be used, .* so none is left"):
        validate(options | {"checks": {"quarantined": {"limit": 1.0}}}, tmp_path)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"ppo": {"kl_coef": 0.1}}, ConfigError, "unknown option 'ppo.kl_coef': did you mean 'kl_coeff'"),
        ({"sft": {"batch_size": "32"}}, ConfigError, "sft.batch_size: found '32'"),
        ({"reward": {"learning_rate": 0}}, ConfigError, "reward.learning_rate: found 0"),
        ({"inference": {"x": 1}}, ConfigError, "inference.x"),
        ({"evaluation": {"x": 1}}, ConfigError, "evaluation.x"),
        (
            {"inference": {"format": "vertex", "samples": 4}},
            ConfigError,
            "inference.samples: found 4 with format vertex",
        ),
        (
            {"evaluation": {"others": {"third": "/no/file.jsonl"}}},
            ConfigError,
            "evaluation.others.third: /no/file.jsonl: cannot be read as predictions",
        ),
        ({"preference_dataset": ""}, ConfigError, "preference_dataset"),
        ({"sufix": "TL;DR:"}, ConfigError, "did you mean 'suffix'"),
        ({"preference_eval_fraction": 0}, ConfigError, "preference_eval_fraction: found 0"),
        ({"large_model_reference": "/no/model"}, ModelError, "large_model_reference '/no/model': no such folder"),
        ({"reward": {"base_model": "/no/model"}}, ModelError, "reward.base_model '/no/model': no such folder"),
        ({"publish_to": "hf://me/mine"}, ConfigError, "publish_to: found 'hf://me/mine', expected a folder on disk"),
        ({"publish_to": "/proc/mine"}, ConfigError, "publish_to '/proc/mine': cannot be written to"),
        (
            {"publish_to": "/tmp/mine", "model_display_name": "x" * 129},
            ConfigError,
            "model_display_name: found .* at most 128",
        ),
        ({"eval_dataset": "/no/file.jsonl"}, DataError, "eval_dataset: /no/file.jsonl: no such file"),
    ],
)
def test_a_wrong_parameter_fails_by_name_before_any_data_is_read(options, tmp_path, monkeypatch, change, error, says):
    def reads(*args):
        raise AssertionError("data was read")

    monkeypatch.setattr("rlhf.data.sources.Source.pieces", reads)
    with pytest.raises(error, match=says):
        validate(options | change, tmp_path)


def test_a_model_that_is_published_there_already_is_a_warning_and_other_files_are_an_error(options, tmp_path, capsys):
    """A run of cached steps publishes what it published before."""
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"digest": "ab12", "files": {}}')
    validate(options | {"publish_to": str(folder)}, tmp_path)
    assert "warning: publish_to holds the model ab12, and any other will be refused" in capsys.readouterr().out
    (folder / "manifest.json").rename(folder / "other.json")
    with pytest.raises(ConfigError, match=r"holds 1 files .* that are no model published by this pipeline"):
        validate(options | {"publish_to": str(folder)}, tmp_path)


def test_bert_score_that_is_not_here_is_a_warning_for_the_evaluator_may_have_it(options, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "bert_score", None)
    validate(options | {"evaluation": {"bertscore_model": "roberta-large"}}, tmp_path)
    assert "warning: evaluation.bertscore_model needs the package bert-score" in capsys.readouterr().out


def test_options_of_other_stages_that_are_right_pass(options, tmp_path):
    options |= {
        "inference": {"samples": 4},
        "ppo": {"kl_coeff": 0, "batch_size": 8.0, "minibatch_size": 8},
        "sft": {"epochs": 2},
        "evaluation": {"seed": 1},
    }
    validate(options, tmp_path)


def bodies(rows: list[dict], split: str) -> set[str]:
    return {row["prompt"].removesuffix(" [summary]: ") for row in rows if row["split"] == split}


def test_no_prompt_is_on_both_sides_and_none_changes_sides_when_rows_are_added(options, tmp_path):
    sides = []
    for count in (200, 400):
        rows = [pair(f"Post {i}", chosen=f"good {n}") for i in range(count) for n in range(3)]
        rows += [row | {"input_text": row["input_text"].removesuffix(" [summary]: ")} for row in rows[:30]]
        write_rows(tmp_path / "pairs.jsonl", rows[:: 1 if count == 200 else -1])
        validate(options, tmp_path)
        written, _, _ = read_dataset(tmp_path / "out" / "preferences", "preferences")
        sides.append((bodies(written, "train"), bodies(written, "eval")))
        assert not sides[-1][0] & sides[-1][1]
    (train, held_out), (more_train, more_held_out) = sides
    assert train < more_train
    assert held_out < more_held_out
    assert 20 < len(more_held_out) < 60


def test_the_seed_draws_other_prompts(options, tmp_path):
    def held_out(seed):
        validate(options | {"seed": seed}, tmp_path)
        return bodies(read_dataset(tmp_path / "out" / "preferences", "preferences")[0], "eval")

    assert held_out(0) == held_out(0) != held_out(1)


@pytest.mark.parametrize("fraction", [0.001, 0.5])
@pytest.mark.parametrize("count", [2, 3])
def test_neither_side_of_the_split_is_left_empty(options, tmp_path, fraction, count):
    write_rows(
        tmp_path / "pairs.jsonl", [pair(f"Post {i}", chosen=f"good {n}") for i in range(count) for n in range(2)]
    )
    for seed in range(10):
        metrics = validate(options | {"seed": seed, "preference_eval_fraction": fraction}, tmp_path)
        rows, _, _ = read_dataset(tmp_path / "out" / "preferences", "preferences")
        assert {row["split"] for row in rows} == {"train", "eval"}
        assert not bodies(rows, "train") & bodies(rows, "eval")
        assert metrics["pairs_eval"] == sum(row["split"] == "eval" for row in rows)


def test_one_prompt_cannot_be_split(options, tmp_path):
    write_rows(tmp_path / "pairs.jsonl", [pair("Same"), pair("Same", "c", "d")])
    with pytest.raises(DataError, match="preference_dataset: 2 usable pairs of 1 prompt cannot be split"):
        validate(options, tmp_path)


@pytest.fixture
def unsplit(options, tmp_path) -> dict:
    """Options without eval_dataset; 200 prompts, each with and without the suffix, all with preferences."""
    texts = [f"Post {i}" for i in range(200)]
    prompts = [{"input_text": f"{text}{ending}"} for text in texts for ending in (" [summary]: ", "")]
    write_rows(tmp_path / "prompts.jsonl", [*prompts, *({"input_text": f"More {i} [summary]: "} for i in range(4000))])
    write_rows(tmp_path / "pairs.jsonl", [pair(text) for text in texts])
    return {name: value for name, value in options.items() if name not in ("eval_dataset", "demonstration_dataset")}


def written(tmp_path: Path, name: str) -> list[str]:
    rows, _, template = read_dataset(tmp_path / "out" / name, "prompts")
    return [template.body(row["prompt"]) for row in rows]


def test_without_eval_dataset_a_tenth_of_the_prompts_is_evaluated_on_and_not_trained_on(unsplit, tmp_path, capsys):
    metrics = validate(unsplit, tmp_path)
    trained, held_out = written(tmp_path, "prompts"), written(tmp_path, "evaluation")
    assert not set(trained) & set(held_out)
    assert len(trained) + len(held_out) == 4400 == metrics["rows_prompts"] + metrics["rows_evaluation"]
    assert metrics["prompts_held_out"] == len(held_out) == pytest.approx(440, abs=80)
    assert metrics["shared_prompts"] == 0
    said = f"{len(held_out)} rows of prompt_dataset"
    assert f"[data_validation] no eval_dataset: {said} are held out for evaluation" in capsys.readouterr().out
    assert f"No eval_dataset was given: {said}" in (tmp_path / "out" / "report.html").read_text()


def test_what_is_evaluated_on_is_not_in_the_pairs_that_the_reward_model_learns_from(unsplit, tmp_path):
    validate(unsplit, tmp_path)
    pairs, _, _ = read_dataset(tmp_path / "out" / "preferences", "preferences")
    shared = bodies(pairs, "eval") & set(written(tmp_path, "evaluation"))
    assert shared
    assert not bodies(pairs, "train") & set(written(tmp_path, "evaluation"))


def test_prompts_stay_held_out_when_rows_are_added_and_with_another_seed_others_are(unsplit, tmp_path):
    validate(unsplit, tmp_path)
    before, trained = set(written(tmp_path, "evaluation")), set(written(tmp_path, "prompts"))
    rows = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    write_rows(
        tmp_path / "prompts.jsonl", [*({"input_text": f"New {i} [summary]: "} for i in range(50)), *reversed(rows)]
    )
    validate(unsplit, tmp_path)
    assert before <= set(written(tmp_path, "evaluation"))
    assert not trained & set(written(tmp_path, "evaluation"))
    validate(unsplit | {"seed": 1}, tmp_path)
    assert not before <= set(written(tmp_path, "evaluation"))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("fraction", [0.01, 0.5])
def test_neither_none_nor_all_of_very_few_prompts_are_held_out(unsplit, tmp_path, seed, fraction):
    write_rows(tmp_path / "prompts.jsonl", [{"input_text": f"Post {i} [summary]: "} for i in range(2)])
    validate(unsplit | {"seed": seed, "prompt_eval_fraction": fraction}, tmp_path)
    assert len(written(tmp_path, "prompts")) == len(written(tmp_path, "evaluation")) == 1


def test_one_prompt_cannot_be_trained_on_and_evaluated_on(unsplit, tmp_path):
    write_rows(tmp_path / "prompts.jsonl", [{"input_text": "Post 1 [summary]: "}, {"input_text": "Post 1"}])
    with pytest.raises(DataError, match=r"^prompt_dataset: 2 usable rows of 1 prompt cannot be split.*eval_dataset"):
        validate(unsplit, tmp_path)


def test_an_eval_dataset_leaves_the_prompts_whole(options, tmp_path):
    metrics = validate(options, tmp_path)
    assert (metrics["prompts_held_out"], metrics["rows_prompts"], metrics["rows_evaluation"]) == (0, 5, 4)
    assert "No eval_dataset was given" not in (tmp_path / "out" / "report.html").read_text()


NOT_IN_THE_IMAGE = ["torch", "transformers", "datasets", "scipy", "rouge_score", "tensorboard", "kfp"]


def test_the_stage_needs_no_torch_and_nothing_else_that_only_other_stages_need(options, tmp_path):
    out = tmp_path / "out"
    job = {
        "options": options | {"publish_to": str(tmp_path / "published")},
        "outputs": {
            **{name: str(out / name) for name in OUTPUTS},
            "report": str(out / "r.html"),
            "findings": str(out / "f.json"),
        },
    }
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    code = (
        f"import sys, runpy; sys.modules.update(dict.fromkeys({NOT_IN_THE_IMAGE}));"
        f"sys.argv = ['x', '--config', {str(tmp_path / 'job.yaml')!r}];"
        "runpy.run_module('rlhf.data_validation', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "[data_validation] rows_preferences 40" in done.stdout


def test_a_failed_run_from_the_shell_says_one_line_and_exits_with_1(options, tmp_path):
    job = {
        "options": options | {"eval_dataset": "/no/file.jsonl"},
        "outputs": dict.fromkeys((*OUTPUTS, "report", "findings"), "/x"),
    }
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    command = [sys.executable, "-m", "rlhf.data_validation", "--config", str(tmp_path / "job.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "[data_validation] error: eval_dataset: /no/file.jsonl: no such file" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_real_vertex_files(real_data, options, tmp_path):
    options |= {
        "preference_dataset": f"{real_data}/vertex_text/preference.jsonl",
        "prompt_dataset": f"{real_data}/vertex_text/course_prompt.jsonl",
        "eval_dataset": f"{real_data}/vertex_text/eval_with_references.jsonl",
        "demonstration_dataset": "",
    }
    metrics = validate(options, tmp_path)
    assert Template.load(tmp_path / "out" / "preferences").suffix == " [summary]: "
    assert metrics["rows_preferences"] == 599
    assert (metrics["quarantined"], metrics["duplicate_pairs"], metrics["contradictory_pairs"]) == (1, 4, 1)
    assert metrics["longer_wins_share"] == pytest.approx(0.62, abs=0.005)
    assert 40 <= metrics["pairs_eval"] <= 80


def test_real_carperai_files(real_data, options, tmp_path):
    options |= {
        "preference_dataset": f"{real_data}/carperai/comparisons.jsonl",
        "prompt_dataset": f"{real_data}/carperai/tldr_train.jsonl",
        "eval_dataset": f"{real_data}/carperai/tldr_test.jsonl",
        "demonstration_dataset": f"{real_data}/carperai/tldr_train.jsonl",
    }
    metrics = validate(options, tmp_path)
    assert (metrics["duplicate_pairs"], metrics["contradictory_pairs"]) == (27, 3)
    rows, _, template = read_dataset(tmp_path / "out" / "preferences", "preferences")
    assert template.suffix == "\nTL;DR: "
    assert not any(row[name].lstrip().startswith("TL;DR") for row in rows for name in ("chosen", "rejected"))


@pytest.mark.parametrize("file", ["vertex_text/eval_predictions_tuned.jsonl", "hostile/html_named.jsonl"])
def test_real_files_that_are_no_input_are_refused(real_data, options, tmp_path, file):
    with pytest.raises(RlhfError, match=r"^preference_dataset: .*jsonl:1: "):
        validate(options | {"preference_dataset": f"{real_data}/{file}"}, tmp_path)
