"""Answer a dataset of prompts with a model."""

import json
import time
from pathlib import Path
from typing import Any

import xxhash

from rlhf.bulk_inference.config import BulkInferenceConfig
from rlhf.bulk_inference.journal import Journal, Line
from rlhf.data.file_systems import redacted
from rlhf.data.store import read_dataset
from rlhf.errors import ConfigError, DataError, Stopped
from rlhf.progress import Progress, say

STAGE = "bulk_inference"
SECONDS_BETWEEN_PARTS = 10.0  # of completions kept for a restart
# Options that may be others when a run goes on: they change nothing that is generated.
_MAY_CHANGE = {"checkpoint_dir", "tokens_at_once", "format"}


def run(config: BulkInferenceConfig, *, prompts: str, model: str, predictions: str, shard: int = 0) -> dict[str, float]:
    """Generate completions for every prompt of a shard.

    They are kept as they come: a run that was ended goes on where it stopped, with no prompt twice and none lost.

    Args:
        prompts: Canonical prompts from data_validation.
        model: Folder of the Model artifact, or any Hugging Face folder, id or short name.
        predictions: File for JSON lines in the order of the prompts: `id, prompt, prediction, finish_reason, tokens,
            model, template_digest`, where `prompt` is the text as the model read it, and `sample` where there are
            several of a prompt. With format "vertex": `inputs` and `prediction`.
        shard: Which of the `shards` parts of the prompts, cut in order, from 0.

    Returns:
        prompts, tokens, tokens_per_second (of this start), ended (share that stopped by itself), prompts_cut (share).

    Raises:
        ConfigError: The shard does not exist, vLLM is asked for and cannot be had, or what is kept in
            `checkpoint_dir` belongs to another run.
        DataError: The prompts cannot be read, there are none, or one leaves no room for a completion.
        ModelError: The model cannot be loaded, cannot generate, was made with another template, or takes more memory
            than there is for a single prompt.
        Stopped: SIGTERM came before all was generated.
    """
    shards = config.shards
    if not 0 <= shard < shards:
        raise ConfigError(f"shard: found {shard} of {shards}, expected 0 to {shards - 1}")
    rows, manifest, template = read_dataset(prompts, "prompts")
    if not rows:
        raise DataError(f"prompts {prompts}: found no rows, expected at least one")
    rows = rows[len(rows) * shard // shards : len(rows) * (shard + 1) // shards]

    from rlhf.models.draws import draws_of
    from rlhf.models.engines import inference_engine
    from rlhf.models.loading import Source, prepare_torch
    from rlhf.training.interruption import heed_sigterm

    prepare_torch(config.seed)
    source = Source.of(model)
    if source.card is not None:
        source.card.require_template(template, model)
    job = {
        **config.model_dump(mode="json", exclude=_MAY_CHANGE),
        "prompts": manifest.digest,
        "template": template.digest,
        "model": source.fingerprint,
        "shard": shard,
    }
    journal = Journal(_kept_in(config.checkpoint_dir, source.fingerprint, shard) or f"{predictions}.parts", job)
    done = len(journal.lines)
    work = [(row, sample) for row in rows for sample in range(config.samples)]
    if done:
        say(STAGE, f"going on: {done:,} of {len(work):,} completions were there")
    left = [place for place in range(len(work)) if place not in journal.lines]
    started, tokens = time.monotonic(), 0
    if left:
        policy, engine = inference_engine(config.engine, model, template, config.tokens_at_once, config.precision)
        name = _name(policy, model)
        fitted = {
            row["id"]: template.fit(row["prompt"], policy.count_tokens, row.get("messages"))
            for row in {work[place][0]["id"]: work[place][0] for place in left}.values()
        }
        ids = {id_: policy.encode_prompt(text) for id_, (text, _) in fitted.items()}
        length = template.target_sequence_length
        for id_, prompt in ids.items():
            policy.require_room(id_, prompt, length)
        draws = draws_of([(work[place][0]["id"], work[place][1]) for place in left], length, config.seed)
        waiting: dict[int, Line] = {}
        kept = started = time.monotonic()
        with heed_sigterm() as interruption, Progress(STAGE, len(work), unit="completion") as progress:
            for batch in engine.batches([ids[work[place][0]["id"]] for place in left], draws, config.temperature):
                for index, answer in batch:
                    row, sample = work[left[index]]
                    text, cut = fitted[row["id"]]
                    waiting[left[index]] = {
                        "id": row["id"],
                        "prompt": text,
                        "prediction": policy.decode(answer),
                        "finish_reason": "stop" if answer[-1:] == [policy.eos] else "length",
                        "tokens": len(answer),
                        "model": name,
                        "template_digest": template.digest,
                        **({"sample": sample} if config.samples > 1 else {}),
                        "prompt_cut": cut,
                    }
                    tokens += len(answer)
                done += len(batch)
                progress.update(done, tokens_per_s=tokens / (time.monotonic() - started))
                if time.monotonic() - kept > SECONDS_BETWEEN_PARTS or interruption.requested:
                    journal.write(waiting)
                    waiting, kept = {}, time.monotonic()
                if interruption.requested and done < len(work):
                    raise Stopped(
                        f"stopped by SIGTERM after {done:,} of {len(work):,} completions, which are kept in "
                        f"{redacted(journal.uri)}; run again to go on"
                    )
        journal.lines.update(waiting)
    seconds = time.monotonic() - started
    lines = [journal.lines[place] for place in range(len(work))]
    cuts = [line.pop("prompt_cut") for line in lines]
    _write(Path(predictions), [_shaped(config, line, row) for line, (row, _) in zip(lines, work, strict=True)])
    journal.remove()
    return {
        "prompts": len(rows),
        "completions": len(lines),
        "tokens": sum(line["tokens"] for line in lines),
        "tokens_per_second": tokens / seconds if tokens else 0.0,
        "ended": sum(line["finish_reason"] == "stop" for line in lines) / max(1, len(lines)),
        "prompts_cut": sum(cuts) / max(1, len(lines)),
    }


def _kept_in(checkpoint_dir: str, model: str, shard: int) -> str:
    """A pipeline gives several tasks, side by side, one checkpoint_dir: each has a folder of its own there."""
    task = f"{xxhash.xxh3_64_hexdigest(model.encode())}-{shard}"
    return checkpoint_dir and f"{checkpoint_dir.rstrip('/')}/{task}"


def _shaped(config: BulkInferenceConfig, line: Line, row: dict[str, Any]) -> Line:
    if config.format == "canonical":
        return line
    inputs = {"inputs_pretokenized": line["prompt"], "targets_pretokenized": row["reference"] or ""}
    return {"inputs": inputs, "prediction": line["prediction"]}


def _write(path: Path, lines: list[Line]) -> None:
    """Put a whole file in place in one rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    unfinished.replace(path)


def _name(policy: Any, folder: str) -> str:
    """What to call the model in reports: its artifact's name and its base, never where a pod happened to find it."""
    return f"{Path(folder).name} of {policy.card.base}" if policy.card else folder
