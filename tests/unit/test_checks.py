"""Thresholds, and what becomes of a run by them."""

import pytest

from rlhf.data_validation import DataValidationConfig
from rlhf.data_validation.checks import Checks, Example, Threshold, at_least, at_most, near_half, refuse_failed
from rlhf.errors import ConfigError, DataError
from rlhf.metrics import share
from tests.intake import write_rows
from tests.validation import options_that_pass, pair, said, validate, verdict

REQUIRED = {"preference_dataset": "a", "prompt_dataset": "b", "large_model_reference": "c"}


def checks(**given) -> Checks:
    return DataValidationConfig.parse(REQUIRED | {"checks": given}, "data_validation").checks


# Settings


def test_what_is_not_given_of_a_check_keeps_its_default():
    assert checks(quarantined={"limit": 0.2}).quarantined == Threshold(limit=0.2, action="fail")
    assert checks(pairs={"action": "fail"}).pairs == Threshold(limit=100, action="fail")
    assert checks(pairs={}) == checks() == Checks()
    assert checks(duplicates={"limit": 1}).near_duplicates == Checks().near_duplicates


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"duplicates": {"limt": 0.2}},
            "unknown option 'data_validation.checks.duplicates.limt': did you mean 'limit'? valid names are limit",
        ),
        ({"duplicates": {"max": 1}}, "'data_validation.checks.duplicates.max': valid names are limit, action"),
        (
            {"duplicate": {}},
            "unknown option 'data_validation.checks.duplicate': did you mean 'duplicates'? valid names",
        ),
        ({"duplicates": {"limit": "0.2"}}, "data_validation.checks.duplicates.limit: found '0.2', expected: .*number"),
        ({"duplicates": {"limit": -0.1}}, "data_validation.checks.duplicates.limit: found -0.1, expected: .* 0"),
        ({"duplicates": {"limit": True}}, "data_validation.checks.duplicates.limit: found True"),
        ({"duplicates": {"limit": None}}, "data_validation.checks.duplicates.limit: found None"),
        ({"duplicates": {"limit": float("nan")}}, "data_validation.checks.duplicates.limit: found nan"),
        ({"duplicates": {"limit": float("inf")}}, "data_validation.checks.duplicates.limit: found inf"),
        (
            {"duplicates": {"action": "stop"}},
            "data_validation.checks.duplicates.action: found 'stop', .*'fail', 'warn'",
        ),
        ({"duplicates": 0.2}, "data_validation.checks.duplicates: found 0.2, expected"),
        (None, "data_validation.checks: found None, expected"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_path(given, says):
    with pytest.raises(ConfigError, match=says.replace("?", r"\?")):
        DataValidationConfig.parse(REQUIRED | {"checks": given}, "data_validation")


def test_an_unknown_check_is_answered_with_all_that_there_are():
    with pytest.raises(ConfigError) as error:
        checks(unheard_of={})
    assert str(error.value).endswith("valid names are " + ", ".join(Checks.model_fields))


def test_every_wrong_setting_is_named_at_once():
    with pytest.raises(ConfigError, match=r"checks.pairs.limit: found 'x'.*; .*'data_validation.checks.prompts.a'"):
        checks(pairs={"limit": "x"}, prompts={"a": 1})


# Outcomes


@pytest.mark.parametrize(("action", "outcome"), [("fail", "failed"), ("warn", "warning"), ("ignore", "ignored")])
def test_beyond_the_limit_the_action_is_the_outcome_and_at_the_limit_all_is_well(action, outcome):
    threshold = Threshold(limit=0.25, action=action)
    most = [at_most("duplicates", "x", value, threshold, "").outcome for value in (0.0, 0.25, 0.2501)]
    assert most == ["passed", "passed", outcome]
    least = [at_least("pairs", "x", value, threshold, "").outcome for value in (0.25, 3.0, 0.2499)]
    assert least == ["passed", "passed", outcome]


def test_what_could_not_be_measured_passes():
    threshold = Threshold(limit=0.9, action="fail")
    found = [
        at_most("duplicates", "x", None, threshold, ""),
        at_least("annotator_agreement", "x", None, threshold, ""),
        near_half("length_bias", "x", share(0, 0), Threshold(limit=0, action="fail"), ""),
    ]
    assert [(check.outcome, check.value) for check in found] == [("passed", None)] * 3


@pytest.mark.parametrize(
    ("hits", "of", "outcome"),
    [
        (3, 4, "passed"),  # 30 % to 95 %: could be 50 %
        (4, 4, "passed"),  # 51 % to 100 %
        (3_000, 4_000, "warning"),  # 74 % to 76 %
        (1_000, 4_000, "warning"),
        (2_800, 4_000, "passed"),  # 69 % to 71 %: could be 70 %
        (2_900, 4_000, "warning"),  # 71 % to 74 %
        (1_200, 4_000, "passed"),
        (1_100, 4_000, "warning"),
        (2_000, 4_000, "passed"),
        (0, 40, "warning"),
        (40, 40, "warning"),
    ],
)
def test_a_bias_counts_by_the_end_of_its_interval_that_is_nearest_to_half(hits, of, outcome):
    found = near_half("length_bias", "x", share(hits, of), Threshold(limit=0.2), "")
    assert found.outcome == outcome
    assert found.value == pytest.approx(abs(hits / of - 0.5))


def test_examples_are_looked_up_only_where_something_was_found():
    def none() -> list[Example]:
        raise AssertionError("looked up")

    threshold = Threshold(limit=0.5)
    at_most("duplicates", "x", 0.0, threshold, "", none)
    at_most("duplicates", "x", None, threshold, "", none)
    near_half("length_bias", "x", share(5, 10), threshold, "", none)
    examples = [Example("a:1", "text")]
    assert at_most("duplicates", "x", 0.1, threshold, "", lambda: examples).examples == examples
    assert near_half("length_bias", "x", share(6, 10), threshold, "", lambda: examples).examples == examples


# The end of a run


def test_every_failed_check_is_named_with_its_limit_and_two_rows_of_each():
    fail = Threshold(limit=0.05, action="fail")
    rows = [Example(f"f.jsonl:{line}", f"row {line}\n") for line in (1, 22, 333)]
    found = [
        at_most("duplicates", "preferences", 0.2, fail, "20 repeat.", lambda: rows),
        at_most("contradictions", "preferences", 0.2, Threshold(limit=0, action="warn"), "A warning."),
        at_most("private_data", "prompts", 0.0, fail, "None found."),
        at_least("pairs", "preferences", 7, Threshold(limit=1_500, action="fail"), "7 pairs."),
        at_most("near_duplicates", "prompts", 0.9, fail, "Many.", lambda: [Example("g.jsonl:4", "x" * 500)]),
    ]
    with pytest.raises(DataError) as error:
        refuse_failed(found)
    assert str(error.value).split(" | ") == [
        "preferences: 20 repeat. The limit of checks.duplicates is 5.0\u00a0%; for example f.jsonl:1: 'row 1\\n'; "
        "f.jsonl:22: 'row 22\\n'",
        "preferences: 7 pairs. The limit of checks.pairs is 1500",
        f"prompts: Many. The limit of checks.near_duplicates is 5.0\u00a0%; for example g.jsonl:4: '{'x' * 160} ...'",
    ]


def test_without_a_failed_check_the_run_goes_on():
    refuse_failed([])
    refuse_failed([at_most("duplicates", "x", 1.0, Threshold(limit=0, action=a), "") for a in ("warn", "ignore")])


def test_a_run_ends_with_every_check_that_fails_and_still_leaves_its_report(tmp_path):
    rows = [*(pair(f"Post {i}") for i in range(40)), *[pair("Post 3")] * 10]
    options = options_that_pass(tmp_path)
    pairs = write_rows(tmp_path / "pairs.jsonl", rows)
    fail = {"action": "fail"}
    with pytest.raises(DataError) as error:
        validate(options | {"checks": {"duplicates": fail, "pairs": fail, "prompts": {"action": "ignore"}}}, tmp_path)
    of_pairs, of_duplicates = str(error.value).split(" | ")
    assert of_pairs.startswith("preferences: ")
    assert of_pairs.endswith(" The limit of checks.pairs is 100")
    assert of_duplicates.startswith(
        "preferences: 10 of 50 pairs repeat another one; they are kept. The limit of checks.duplicates is 10\u00a0%; "
        f"for example {pairs}:4: 'prompt: Post 3 [summary]: \\n\\nchosen: a good one\\n\\nrejected: bad'; {pairs}:50: '"
    )
    assert "\n" not in str(error.value)
    assert [verdict(tmp_path, *of)["outcome"] for of in (("duplicates",), ("prompts", "prompts"))] == [
        "failed",
        "ignored",
    ]
    assert "This data is not fit to train on as it is." in (tmp_path / "out" / "report.html").read_text()
    assert not (tmp_path / "out" / "preferences" / "manifest.json").exists()
    assert said(tmp_path)["metrics"]["duplicate_pairs"] == 10
    metrics = validate(options | {"checks": {"duplicates": {"limit": 0.2, "action": "fail"}}}, tmp_path)
    assert metrics["warnings"] == sum(check["outcome"] == "warning" for check in said(tmp_path)["verdicts"])
