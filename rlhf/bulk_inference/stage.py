"""Answer a dataset of prompts with a model."""

import json
import time
from pathlib import Path
from typing import Any

from rlhf.bulk_inference.config import BulkInferenceConfig
from rlhf.data.store import read_dataset
from rlhf.errors import DataError
from rlhf.progress import Progress

STAGE = "bulk_inference"


def run(config: BulkInferenceConfig, *, prompts: str, model: str, predictions: str) -> dict[str, float]:
    """Generate one completion for every prompt.

    Args:
        prompts: Canonical prompts from data_validation.
        model: Folder of the Model artifact.
        predictions: File for JSON lines `id, prompt, prediction, finish_reason, tokens, model, template_digest` in
            the order of the prompts; `prompt` is the text as the model read it.

    Returns:
        prompts, tokens, tokens_per_second, ended (share that stopped by itself), prompts_cut (share).

    Raises:
        DataError: The prompts cannot be read, or there are none.
        ModelError: The model cannot be loaded, cannot generate, or was made with another template.
    """
    rows, _, template = read_dataset(prompts, "prompts")
    if not rows:
        raise DataError(f"prompts {prompts}: found no rows, expected at least one")

    from rlhf.models.loading import prepare_torch
    from rlhf.models.policy import Policy

    prepare_torch(config.seed)
    policy = Policy.load(model, template)
    if policy.card is not None:
        policy.card.require_template(template, model)
    fitted = [template.fit(row["prompt"], policy.count_tokens, row.get("messages")) for row in rows]
    texts, cuts = zip(*fitted, strict=True)
    started = time.monotonic()
    with Progress(STAGE, len(rows), unit="prompt") as progress:
        completions = policy.generate(
            [policy.encode_prompt(text) for text in texts],
            template.target_sequence_length,
            config.temperature,
            config.batch_size,
            lambda done, tokens: progress.update(done, tokens_per_s=tokens / (time.monotonic() - started)),
        )
    seconds = time.monotonic() - started
    ended = [ids[-1] == policy.eos for ids in completions]
    lines = [
        {
            "id": row["id"],
            "prompt": text,
            "prediction": policy.decode(ids),
            "finish_reason": "stop" if stopped else "length",
            "tokens": len(ids),
            "model": _name(policy, model),
            "template_digest": template.digest,
        }
        for row, text, ids, stopped in zip(rows, texts, completions, ended, strict=True)
    ]
    path = Path(predictions)
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    unfinished.replace(path)
    tokens = sum(map(len, completions))
    return {
        "prompts": len(rows),
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "ended": sum(ended) / len(rows),
        "prompts_cut": sum(cuts) / len(rows),
    }


def _name(policy: Any, folder: str) -> str:
    """What to call the model in reports: its artifact's name and its base, never where a pod happened to find it."""
    return f"{Path(folder).name} of {policy.card.base}" if policy.card else folder
