"""What a person who gave something wrong sees: soon, one line that names it, and no traceback."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WITHIN_SECONDS = 60
DATASETS = ("preference_dataset", "prompt_dataset", "eval_dataset", "demonstration_dataset")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Parameters that name data that is there, and what looks like a model to those who do not load it."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "model").mkdir()
    (folder / "model/config.json").write_text('{"model_type": "llama"}')
    (folder / "model/model.safetensors").touch()
    pairs = [{"input_text": f"Post {i}", "candidate_0": "a", "candidate_1": f"b {i}", "choice": 0} for i in range(40)]
    prompts = [{"input_text": f"Post {i}", "output_text": "a"} for i in range(8)]
    for name, rows in {"pairs": pairs, "prompts": prompts}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "preference_dataset": str(folder / "pairs.jsonl"),
        "prompt_dataset": str(folder / "prompts.jsonl"),
        "eval_dataset": str(folder / "prompts.jsonl"),
        "large_model_reference": str(folder / "model"),
    }


def fails(tmp_path: Path, parameters: Path, code: int) -> tuple[str, str]:
    """Run the command, which must soon end with exit status `code`: its one line on stderr, and its stdout."""
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "pipelines.run", "--params", str(parameters), "--out", str(tmp_path / "out")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=2 * WITHIN_SECONDS,
        check=False,
    )
    assert time.monotonic() - began < WITHIN_SECONDS
    assert ended.returncode == code
    (line,) = ended.stderr.splitlines()
    assert "Traceback" not in ended.stdout + ended.stderr
    return line, ended.stdout


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1, 2]", "{path}: found [1, 2] (a list), expected a mapping of parameter names to values"),
        ("seed: [\n", "{path}, line 2: not YAML (expected the node content, but found '<stream end>')"),
        (None, "{path}: cannot be read (No such file or directory)"),
    ],
    ids=["not a mapping", "not YAML", "no file"],
)
def test_a_parameter_file_that_is_none(tmp_path, text, says):
    path = tmp_path / "params.yaml"
    if text is not None:
        path.write_text(text)
    assert fails(tmp_path, path, code=2) == (f"error: {says.format(path=path)}", "")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kl_coef": 0.1}, "kl_coef: unknown parameter, did you mean kl_coeff?"),
        ({"seed": "one"}, "seed: found 'one' (text), expected a whole number"),
        ({"ppo": "fast"}, "ppo: found 'fast' (text), expected a mapping of option names to values"),
        ({"prompt_dataset": None}, "prompt_dataset: missing, expected text"),
    ],
    ids=["unknown", "wrong type", "no struct", "missing"],
)
def test_a_wrong_parameter_ends_before_anything_starts(inputs, tmp_path, change, says):
    path = tmp_path / "params.yaml"
    path.write_text(json.dumps({**inputs, **change}))
    assert fails(tmp_path, path, code=2) == (f"error: {says}", "")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"prompt_dataset": "/no/such/file.jsonl"}, "prompt_dataset: /no/such/file.jsonl: no such file"),
        (
            {"eval_dataset": "abfs://bucket/a.jsonl"},
            "eval_dataset: abfs://bucket/a.jsonl: needs a package that is not installed where data_validation runs "
            "(Install adlfs",
        ),
        ({"large_model_reference": "/no/such/model"}, "large_model_reference '/no/such/model': no such folder"),
        ({"publish_to": "hf://me/model"}, "publish_to: found 'hf://me/model', expected a folder on disk, or its URI: "),
        ({"ppo": {"learning_rat": 1}}, "unknown option 'ppo.learning_rat': did you mean 'learning_rate'? "),
        ({"reward": {"learning_rate": "fast"}}, "reward.learning_rate: found 'fast', expected: "),
        ({"reinforcement_learning_train_steps": -2}, "reinforcement_learning_train_steps: found -2, expected: "),
        ({"kl_coeff": 0.2, "ppo": {"kl_coeff": 0.1}}, "kl_coeff: found 0.1 in ppo, but it has a parameter of its own"),
    ],
    ids=[
        "no file",
        "no package",
        "no model",
        "no place",
        "unknown option",
        "wrong option",
        "out of range",
        "given twice",
    ],
)
def test_what_only_the_first_stage_can_know_ends_the_run_there(inputs, tmp_path, change, says):
    path = tmp_path / "params.yaml"
    path.write_text(json.dumps({**inputs, **change}))
    line, shown = fails(tmp_path, path, code=1)
    assert line.startswith(f"[data_validation] error: {says}")
    assert "sft-trainer" not in shown


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "no config.json there, expected a Hugging Face model folder"),
        ({"config.json": '{"model_type": "llama"}'}, "no weights there, expected *.safetensors beside config.json"),
        (
            {"config.json": '{"model_type": "llama"}', "pytorch_model.bin": "pickled"},
            "only has pickle weights (pytorch_model.bin), which can run code when loaded and are refused; ",
        ),
    ],
    ids=["empty folder", "no weights", "pickle"],
)
def test_a_folder_without_a_model_that_may_be_loaded(inputs, tmp_path, files, says):
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(content)
    path = tmp_path / "params.yaml"
    path.write_text(json.dumps({**inputs, "large_model_reference": str(folder)}))
    line, _ = fails(tmp_path, path, code=1)
    assert line.startswith(f"[data_validation] error: large_model_reference '{folder}': {says}")


@pytest.mark.parametrize("parameter", DATASETS)
def test_a_web_page_saved_under_a_data_name(inputs, tmp_path, parameter):
    page = tmp_path / "page.jsonl"
    page.write_text("<!DOCTYPE html>\n<html><body>Sign in</body></html>\n")
    path = tmp_path / "params.yaml"
    path.write_text(json.dumps({**inputs, parameter: str(page)}))
    line, _ = fails(tmp_path, path, code=1)
    assert line == (
        f"[data_validation] error: {parameter}: {page}:1: is a web page (HTML or XML), not data; download the raw file"
    )
