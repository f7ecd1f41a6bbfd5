"""Decide whether the data is worth a training run: read it, check it, convert it, and say what was found."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlhf.data.formats import MEANINGS, Converted, Kind, Reason, convert_source
from rlhf.data.sources import Source
from rlhf.data.store import Manifest, write_dataset
from rlhf.data.template import Template
from rlhf.data_validation.config import DataValidationConfig
from rlhf.data_validation.page import report_page
from rlhf.data_validation.suffix import detect, without_marker
from rlhf.data_validation.tokens import load_tokenizer, too_long
from rlhf.errors import DataError
from rlhf.metrics import percent
from rlhf.models import references
from rlhf.progress import Progress, say
from rlhf.report.page import write_page

STAGE = "data_validation"

# Dataset: the parameter it comes from, and its kind.
DATASETS: dict[str, tuple[str, Kind]] = {
    "preferences": ("preference_dataset", "preferences"),
    "prompts": ("prompt_dataset", "prompts"),
    "evaluation": ("eval_dataset", "prompts"),
    "demonstrations": ("demonstration_dataset", "demonstrations"),
}


def run(
    config: DataValidationConfig,
    *,
    preferences: str | Path,
    prompts: str | Path,
    evaluation: str | Path,
    demonstrations: str | Path,
    quarantine: str | Path,
    report: str | Path,
) -> dict[str, float]:
    """Check every input of the pipeline and write canonical datasets.

    Args:
        config: URIs, prompt layout, limits, and the other stages' options.
        preferences: Dataset written, of kind preferences; its split is by prompt, so no prompt is on both sides.
        prompts: Dataset written, of kind prompts, for reinforcement learning.
        evaluation: Dataset written, of kind prompts; where no eval_dataset was given, a part of prompt_dataset that
            is then not in `prompts`.
        demonstrations: Dataset written, of kind demonstrations; without rows where none were given.
        quarantine: Dataset written, of kind quarantine: rows that cannot be used, whole, with file, line and reason.
        report: HTML page written.

    Returns:
        rows_<dataset>, pairs_train and pairs_eval (rows written); prompts_held_out (rows of prompt_dataset that became
        the evaluation); quarantined, and quarantined_share of all rows read; the measures of `pair_findings` and of
        `too_long` (absent where the model has no tokenizer.json); shared_prompts, shared_with_preferences and
        shared_with_demonstrations (distinct prompts of the evaluation that are among those).

    Raises:
        ConfigError: An option of another stage is unknown, of the wrong type or out of range.
        ModelError: The model reference cannot be used.
        DataError: A source cannot be read, has too many rows that cannot be used, or none that can; the prompts of
            two sources end differently; there are fewer than two prompts with preferences, or, without eval_dataset,
            than two prompts; instruction and suffix leave no token for a prompt.
    """
    _check_options_and_models(config)
    converted = _read(config)
    quarantined = [row for result in converted.values() for row in result.quarantined]
    write_dataset(quarantine, "quarantine", quarantined, Template())  # rendered by none
    for result in converted.values():
        _check_share(result, config.max_quarantined_share)

    suffix, found = (config.suffix, "given") if config.suffix is not None else _detect_suffix(converted)
    template = Template(
        instruction=config.instruction,
        suffix=suffix,
        prompt_sequence_length=config.prompt_sequence_length,
        target_sequence_length=config.target_sequence_length,
    )
    markers_removed = _remove_markers(converted, suffix)
    pairs = converted["preferences"].rows
    split_by_prompt(pairs, template, config.preference_eval_fraction, config.seed)
    held_out = 0 if config.eval_dataset else _hold_out_prompts(converted, template, config)
    tokenizer, not_counted = load_tokenizer(config.large_model_reference)
    token_lengths = {} if tokenizer is None else too_long(converted, template, tokenizer)

    manifests: dict[str, Manifest] = {}
    for name, path in {
        "preferences": preferences,
        "prompts": prompts,
        "evaluation": evaluation,
        "demonstrations": demonstrations,
    }.items():
        manifests[name] = write_dataset(path, DATASETS[name][1], converted[name].rows, template)

    bodies = {name: {template.body(row["prompt"]) for row in result.rows} for name, result in converted.items()}
    read = sum(count.read for result in converted.values() for count in result.counts.values())
    metrics = {
        **{f"rows_{name}": manifest.rows for name, manifest in manifests.items()},
        "pairs_train": sum(pair["split"] == "train" for pair in pairs),
        "pairs_eval": sum(pair["split"] == "eval" for pair in pairs),
        "prompts_held_out": held_out,
        "quarantined": len(quarantined),
        "quarantined_share": len(quarantined) / read,
        **pair_findings(pairs, template),
        **token_lengths,
        "shared_prompts": len(bodies["evaluation"] & bodies["prompts"]),
        "shared_with_preferences": len(bodies["evaluation"] & bodies["preferences"]),
        "shared_with_demonstrations": len(bodies["evaluation"] & bodies["demonstrations"]),
    }
    write_page(report, report_page(converted, manifests, template, found, markers_removed, not_counted, metrics))
    if held_out:
        say(STAGE, f"no eval_dataset: {held_out:,} rows of prompt_dataset are held out for evaluation, not trained on")
    if tokenizer is None:
        say(STAGE, f"token lengths were not counted: {not_counted}")
    for name, share in token_lengths.items():
        if share:
            say(STAGE, f"{name} {percent(share)}")
    say(STAGE, f"{read:,} rows read, {len(quarantined):,} in quarantine; prompt template {template.digest}")
    return metrics


def split_by_prompt(pairs: list[dict[str, Any]], template: Template, eval_fraction: float, seed: int) -> None:
    """Set each pair's `split` to train or eval by a hash of its prompt.

    Raises:
        DataError: There are fewer than two prompts, which cannot be split.
    """
    bodies = [template.body(pair["prompt"]) for pair in pairs]
    if len(set(bodies)) < 2:
        raise DataError(
            f"preference_dataset: {len(pairs)} usable pairs of 1 prompt cannot be split into pairs to train on and "
            "pairs to measure with; expected two prompts or more"
        )
    held_out = held_out_bodies(bodies, eval_fraction, seed)
    for pair, body in zip(pairs, bodies, strict=True):
        pair["split"] = "eval" if body in held_out else "train"


def held_out_bodies(bodies: Iterable[str], fraction: float, seed: int) -> set[str]:
    """About `fraction` of the distinct prompts, of which there are two or more, by a hash of each.

    A prompt keeps its side when rows are added or reordered. Neither side is left empty: with very few prompts the
    one whose hash comes nearest changes sides. With one seed, what a small fraction holds out a larger one does, too.
    """
    draws = {body: _draw(body, seed) for body in bodies}
    held_out = {body for body, draw in draws.items() if draw < fraction} or {min(draws, key=draws.__getitem__)}
    if len(held_out) == len(draws):
        held_out.remove(max(draws, key=draws.__getitem__))
    return held_out


def pair_findings(pairs: list[dict[str, Any]], template: Template) -> dict[str, float]:
    """What is odd about preference pairs, whitespace around texts aside.

    Returns:
        duplicate_pairs: pairs beyond the first of the same prompt, chosen and rejected. contradictory_pairs: distinct
        pairs of candidates labelled both ways. longer_wins_share: share of the pairs of unequal length, in
        characters, in which the longer candidate was chosen; 0.5 where there are none.
    """
    keys = [(template.body(pair["prompt"]), pair["chosen"].strip(), pair["rejected"].strip()) for pair in pairs]
    distinct = set(keys)
    unequal = [(len(chosen), len(rejected)) for _, chosen, rejected in keys if len(chosen) != len(rejected)]
    return {
        "duplicate_pairs": len(keys) - len(distinct),
        "contradictory_pairs": sum((prompt, b, a) in distinct for prompt, a, b in distinct) // 2,
        "longer_wins_share": sum(a > b for a, b in unequal) / len(unequal) if unequal else 0.5,
    }


def _check_options_and_models(config: DataValidationConfig) -> None:
    from rlhf.bulk_inference.config import BulkInferenceConfig
    from rlhf.evaluator.config import EvaluatorConfig
    from rlhf.ppo_trainer.config import PPOTrainerConfig
    from rlhf.reward_trainer.config import RewardTrainerConfig
    from rlhf.sft_trainer.config import SFTTrainerConfig

    SFTTrainerConfig.parse(config.sft, "sft")
    reward = RewardTrainerConfig.parse(config.reward, "reward")
    PPOTrainerConfig.parse(config.ppo, "ppo")
    BulkInferenceConfig.parse(config.inference, "inference")
    EvaluatorConfig.parse(config.evaluation, "evaluation")

    models = {"large_model_reference": config.large_model_reference, "reward.base_model": reward.base_model}
    for parameter, reference in models.items():
        if reference:
            say(STAGE, f"checking {parameter} {reference}")
            references.check(reference, parameter)


def _read(config: DataValidationConfig) -> dict[str, Converted]:
    """Every dataset by name. All files are found before the first is read."""
    uris = {name: getattr(config, parameter) for name, (parameter, _) in DATASETS.items()}
    sources = {name: Source(uri, DATASETS[name][0]) for name, uri in uris.items() if uri}
    total = sum(source.size for source in sources.values())
    converted = {}
    with Progress(STAGE, max(1, total // 1000), unit="kB") as progress:
        for name, source in sources.items():

            def tick(rows: int) -> None:
                if rows % 1000 == 0:
                    progress.update(sum(s.bytes_read for s in sources.values()) // 1000, rows=rows)

            converted[name] = convert_source(source, DATASETS[name][1], config.suffix, tick)
        progress.update(max(1, total // 1000), rows=sum(len(c.rows) + len(c.quarantined) for c in converted.values()))
    for name, (parameter, _) in DATASETS.items():
        converted.setdefault(name, Converted(parameter))
    return converted


def _hold_out_prompts(converted: Mapping[str, Converted], template: Template, config: DataValidationConfig) -> int:
    """Move a part of the prompts to the evaluation; the rows moved. The draw is that of the preferences' split, so
    that a reward model is not trained on pairs of these prompts either, fractions being equal."""
    rows = converted["prompts"].rows
    bodies = [template.body(row["prompt"]) for row in rows]
    if len(set(bodies)) < 2:
        raise DataError(
            f"prompt_dataset: {len(rows)} usable rows of 1 prompt cannot be split into prompts to train on and prompts "
            "to evaluate on; give eval_dataset, or two prompts or more"
        )
    held_out = held_out_bodies(bodies, config.prompt_eval_fraction, config.seed)
    for name, in_it in (("prompts", False), ("evaluation", True)):
        converted[name].rows = [row for row, body in zip(rows, bodies, strict=True) if (body in held_out) is in_it]
    return len(converted["evaluation"].rows)


def _check_share(result: Converted, limit: float) -> None:
    read = sum(count.read for count in result.counts.values())
    if not read:
        return  # none was given
    share = len(result.quarantined) / read
    if result.rows and share <= limit:
        return
    (reason, field), count = Counter((row["reason"], row["field"]) for row in result.quarantined).most_common(1)[0]
    example = next(row for row in result.quarantined if (row["reason"], row["field"]) == (reason, field))
    named = f"{reason} ({field})" if field else reason
    excess = f"more than max_quarantined_share = {percent(limit)}" if result.rows else "so none is left"
    raise DataError(
        f"{result.parameter}: {len(result.quarantined)} of {read} rows ({percent(share)}) cannot be used, {excess}; "
        f"most often ({count}) because of {named}: {MEANINGS[Reason(reason)]}, for example "
        f"{example['file']}:{example['line']}: {_shortened(example['row'])!r}"
    )


def _detect_suffix(converted: Mapping[str, Converted]) -> tuple[str, str]:
    prompts = {r.parameter: [row["prompt"] for row in r.rows] for r in converted.values()}
    completions = {
        r.parameter: [row[name] for row in r.rows for name in ("chosen", "rejected", "completion") if name in row]
        for r in converted.values()
    }
    return detect(prompts, completions)


def _remove_markers(converted: Mapping[str, Converted], suffix: str) -> int:
    """Take the suffix off the beginning of candidates, completions and references, which follow it; count the texts."""
    removed = 0
    for result in converted.values():
        for row in result.rows:
            for name in row.keys() & {"chosen", "rejected", "completion", "reference"}:
                if row[name] is not None:
                    text = without_marker(row[name], suffix)
                    removed += text != row[name]
                    row[name] = text
    return removed


def _draw(body: str, seed: int) -> float:
    """A number in [0, 1) that depends on the prompt and the seed only."""
    return int(hashlib.sha256(f"{seed}:{body}".encode()).hexdigest()[:12], 16) / 16**12


def _shortened(text: str, length: int = 160) -> str:
    return text if len(text) <= length else text[:length] + " ..."
