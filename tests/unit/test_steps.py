"""How many optimiser steps data is worth, and that the report says so."""

import math

import pytest

from rlhf.data_validation.steps import StepCount
from tests.intake import write_rows
from tests.validation import pair, said, validate


def test_30_epochs_of_3000_rows_are_1410_steps_by_the_epoch_and_1407_running_on():
    count = StepCount(rows=3_000, batch_size=64, configured=None, epochs=30)
    assert (count.by_epoch(30), count.running_on(30)) == (1_410, 1_407)
    assert count.steps == 1_407
    assert count.epochs_made == pytest.approx(30.016)


@pytest.mark.parametrize(
    ("rows", "batch_size", "epochs", "by_epoch", "running_on"),
    [(64, 64, 1, 1, 1), (65, 64, 1, 2, 2), (65, 64, 64, 128, 65), (1, 512, 1, 1, 1), (1, 512, 3, 3, 1)],
)
def test_the_formulas_differ_by_the_batches_that_epochs_do_not_fill(rows, batch_size, epochs, by_epoch, running_on):
    count = StepCount(rows, batch_size, None)
    assert (count.by_epoch(epochs), count.running_on(epochs)) == (by_epoch, running_on)


def test_epochs_that_are_set_are_counted_by_the_epoch_as_they_are_set():
    assert StepCount(rows=3_000, batch_size=64, configured=None, epochs=1).as_json()["steps_by_epoch"] == 47
    assert StepCount(rows=3_000, batch_size=64, configured=None, epochs=30).as_json()["steps_by_epoch"] == 1_410


def test_configured_steps_count_before_epochs():
    count = StepCount(rows=3_000, batch_size=64, configured=1_000, epochs=30)
    assert count.steps == 1_000
    assert count.as_json() == {
        "rows": 3_000,
        "batch_size": 64,
        "steps_per_epoch": 47,
        "steps": 1_000,
        "epochs": pytest.approx(21.333, abs=1e-3),
        "formula": "ceil(rows * epochs / batch_size)",
        "steps_by_epoch": 1_003,
    }


def test_the_report_and_its_twin_say_what_each_stage_will_make_of_its_rows(options, tmp_path):
    write_rows(tmp_path / "demos.jsonl", [{"input_text": f"P {i} [summary]: ", "output_text": "x"} for i in range(30)])
    write_rows(tmp_path / "prompts.jsonl", [{"input_text": f"P {i} [summary]: "} for i in range(40)])
    write_rows(tmp_path / "pairs.jsonl", [pair(f"P {i}") for i in range(100)])
    stages = {
        "sft": {"batch_size": 8, "epochs": 4},
        "reward": {"batch_size": 16, "train_steps": 20},
        "ppo": {"batch_size": 16, "minibatch_size": 8, "train_steps": 5},
    }
    metrics = validate(options | stages, tmp_path)
    pairs = metrics["pairs_train"]
    steps = said(tmp_path)["steps"]
    assert [steps[stage].pop("steps_by_epoch") for stage in steps] == [16, math.ceil(-(-pairs // 16) * 320 / pairs), 6]
    assert {steps[stage].pop("formula") for stage in steps} == {"ceil(rows * epochs / batch_size)"}
    assert steps == {
        "sft_trainer": {"rows": 30, "batch_size": 8, "steps_per_epoch": 4, "steps": 15, "epochs": 4},
        "reward_trainer": {
            "rows": pairs,
            "batch_size": 16,
            "steps_per_epoch": -(-pairs // 16),
            "steps": 20,
            "epochs": 320 / pairs,
        },
        "ppo_trainer": {"rows": 40, "batch_size": 16, "steps_per_epoch": 3, "steps": 5, "epochs": 2},
    }
    page = (tmp_path / "out" / "report.html").read_text()
    section = page[page.index('id="steps"') :]
    for stage, numbers in (
        ("sft_trainer", ("30", "8", "4", "15", "4.00", "16")),
        ("reward_trainer", (f"{pairs:g}", "16", "6", "20", f"{320 / pairs:.2f}", f"{math.ceil(6 * 320 / pairs)}")),
        ("ppo_trainer", ("40", "16", "3", "5", "2.00", "6")),
    ):
        row = section[section.index(f"{stage}</td>") :].split("</tr>")[0]
        assert row.split("</td>")[1:-1] == [f'<td class="num">{number}' for number in numbers]


def test_a_stage_without_rows_has_no_steps(options, tmp_path):
    validate(options | {"demonstration_dataset": ""}, tmp_path)
    assert list(said(tmp_path)["steps"]) == ["reward_trainer", "ppo_trainer"]
