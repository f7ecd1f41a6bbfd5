"""Runs data validation on small files, for tests."""

import json
from pathlib import Path

from rlhf.data.store import read_dataset
from rlhf.data_validation import DataValidationConfig
from rlhf.data_validation.stage import run
from tests.intake import write_rows

OUTPUTS = ("preferences", "prompts", "evaluation", "demonstrations", "quarantine")


def pair(prompt: str, chosen: str = "a good one", rejected: str = "bad") -> dict:
    return {"input_text": f"{prompt} [summary]: ", "candidate_0": rejected, "candidate_1": chosen, "choice": 1}


def options_that_pass(folder: Path) -> dict:
    """Options of a run that passes: 40 pairs, 5 prompts, 4 to evaluate on, 3 demonstrations."""
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model" / "model.safetensors").touch()
    prompts = [{"input_text": f"Prompt {i} [summary]: "} for i in range(5)]
    evaluation = [{"input_text": f"Held out {i} [summary]: ", "output_text": f"reference {i}"} for i in range(4)]
    demonstrations = [row | {"output_text": "x"} for row in prompts[:3]]
    return {
        "preference_dataset": write_rows(folder / "pairs.jsonl", [pair(f"Post {i}") for i in range(40)]),
        "prompt_dataset": write_rows(folder / "prompts.jsonl", prompts),
        "eval_dataset": write_rows(folder / "eval.jsonl", evaluation),
        "demonstration_dataset": write_rows(folder / "demos.jsonl", demonstrations),
        "large_model_reference": str(folder / "model"),
    }


def validate(options: dict, folder: Path) -> dict[str, float]:
    """Run the stage into `folder`/out."""
    out = folder / "out"
    paths = {name: out / name for name in OUTPUTS}
    pages = {"report": out / "report.html", "findings": out / "findings.json"}
    return run(DataValidationConfig.parse(options, "data_validation"), **paths, **pages)


def written(folder: Path, name: str) -> list[dict]:
    """The rows of a dataset that `validate` wrote."""
    return read_dataset(folder / "out" / name, "prompts" if name == "evaluation" else name)[0]


def said(folder: Path) -> dict:
    """The report's JSON twin."""
    return json.loads((folder / "out" / "findings.json").read_text())


def verdict(folder: Path, check: str, subject: str = "preferences") -> dict:
    """What became of one check."""
    (found,) = [v for v in said(folder)["verdicts"] if (v["check"], v["subject"]) == (check, subject)]
    return found
