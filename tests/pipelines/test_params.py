"""Parameter files: what is taken, what is refused, and in which words."""

import pytest

from pipelines.params import ParameterError, check, read
from pipelines.placement.local import place
from pipelines.rlhf import build

REQUIRED = {"prompt_dataset": "p", "preference_dataset": "q", "large_model_reference": "t5-small"}


@pytest.fixture(scope="module")
def pipeline():
    return build(place)


def file(tmp_path, text: str):
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"kl_coef": 0.1}, "kl_coef: unknown parameter, did you mean kl_coeff?"),
        ({"kl_coeff": "0.1"}, "kl_coeff: found '0.1' (text), expected a number"),
        ({"kl_coeff": True}, "kl_coeff: found True (a truth value), expected a number"),
        ({"seed": 1.5}, "seed: found 1.5 (a number), expected a whole number"),
        ({"seed": False}, "seed: found False (a truth value), expected a whole number"),
        ({"deploy_model": "yes"}, "deploy_model: found 'yes' (text), expected true or false"),
        ({"instruction": 3}, "instruction: found 3 (a number), expected text"),
        ({"ppo": [1]}, "ppo: found [1] (a list), expected a mapping of option names to values"),
        ({"prompt_dataset": None}, "prompt_dataset: missing, expected text"),
    ],
)
def test_a_wrong_parameter_is_named_with_what_was_found_and_expected(pipeline, given, line):
    with pytest.raises(ParameterError) as error:
        check({**REQUIRED, **given}, pipeline)
    assert str(error.value) == line


def test_a_parameter_like_no_other_lists_the_valid_ones(pipeline):
    with pytest.raises(ParameterError, match="zzz: unknown parameter, expected one of data_validation, "):
        check({**REQUIRED, "zzz": 1}, pipeline)


def test_all_wrong_parameters_are_named_at_once(pipeline):
    with pytest.raises(ParameterError) as error:
        check({"prompt_dataset": 1, "sed": 0}, pipeline)
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == [
        "large_model_reference",
        "preference_dataset",
        "prompt_dataset",
        "sed",
    ]


def test_whole_floats_are_integers_and_integers_are_floats(pipeline):
    arguments, _ = check({**REQUIRED, "seed": 3.0, "kl_coeff": 1}, pipeline)
    assert arguments["seed"] == 3
    assert isinstance(arguments["seed"], int)
    assert arguments["kl_coeff"] == 1


def test_a_dictionary_of_the_closed_pipeline_runs_with_warnings(pipeline):
    arguments, warnings = check(
        {
            **REQUIRED,
            "model_display_name": "my-model",
            "deploy_model": True,
            "project": "p",
            "location": "europe-west4",
            "accelerator_type": "TPU",
            "eval_dataset": None,
            "tensorboard_resource_id": None,
            "instruction": None,
        },
        pipeline,
    )
    assert {warning.split(":")[0] for warning in warnings} == {
        "model_display_name",
        "deploy_model",
        "project",
        "location",
        "accelerator_type",
    }
    assert set(arguments) == {*REQUIRED, "model_display_name", "deploy_model"}


def test_a_name_for_a_model_that_is_published_is_used(pipeline):
    assert check({**REQUIRED, "model_display_name": "my-model", "publish_to": "out"}, pipeline)[1] == []


def test_an_exponent_without_a_point_is_a_number(tmp_path):
    """PyYAML alone reads 3e-4 as text, which no user means, and json.dumps writes 1e-05 so."""
    values = read(file(tmp_path, "kl_coeff: 1e-1\nppo: {learning_rate: 3e-4, note: 3e}\n"))
    assert values == {"kl_coeff": 0.1, "ppo": {"learning_rate": 3e-4, "note": "3e"}}


def test_json_is_taken_too(tmp_path):
    assert read(file(tmp_path, '{"seed": 1, "ppo": {"gamma": 1e-3}}')) == {"seed": 1, "ppo": {"gamma": 1e-3}}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- 1\n- 2\n", r"found \[1, 2\] \(a list\), expected a mapping"),
        ("", "expected a mapping"),
        ("seed: [\n", "line 2: not YAML"),
        ("seed: 1\nseed: 2\n", "seed is given twice"),
        ("sft: {day: 2024-01-01}\n", "sft: found .*, expected what JSON can carry"),
        ("kl_coeff: .nan\n", "kl_coeff: found nan"),
        ("a: !!python/object/apply:os.system [ls]\n", "not YAML"),
    ],
)
def test_a_file_that_is_no_mapping_of_plain_values_is_refused_in_one_line(tmp_path, text, says):
    with pytest.raises(ParameterError, match=says) as error:
        read(file(tmp_path, text))
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_text_is_refused_in_one_line(tmp_path):
    (tmp_path / "params.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ParameterError, match="cannot be read") as error:
        read(tmp_path / "params.yaml")
    assert "\n" not in str(error.value)
