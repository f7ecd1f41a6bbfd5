"""Decide whether the data is worth a training run: read it, check it, convert it, and say what was found."""

import contextlib
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from rlhf.data.chat import MESSAGES
from rlhf.data.formats import MEANINGS, Kind, Reason
from rlhf.data.intake import TEXTS, Intake, Part
from rlhf.data.predictions import read_predictions
from rlhf.data.sources import Source
from rlhf.data.store import MANIFEST_NAME, publish
from rlhf.data.template import Template
from rlhf.data_validation.audit import audit
from rlhf.data_validation.canonical import Written, take_some, write_canonical
from rlhf.data_validation.chat_template import ChatTemplate, load_chat_template
from rlhf.data_validation.checks import Example, Threshold, Verdict, at_most, refuse_failed
from rlhf.data_validation.config import DataValidationConfig
from rlhf.data_validation.index import Index
from rlhf.data_validation.page import Facts, report_page
from rlhf.data_validation.rejects import Rejects
from rlhf.data_validation.resolve import resolve, take_out_equal
from rlhf.data_validation.steps import StepCount
from rlhf.data_validation.suffix import detect
from rlhf.data_validation.tokens import load_tokenizer
from rlhf.errors import ConfigError, DataError
from rlhf.models import references
from rlhf.progress import Progress, say
from rlhf.report.page import write_page
from rlhf.words import percent

if TYPE_CHECKING:
    from rlhf.evaluator.config import EvaluatorConfig

STAGE = "data_validation"
MOST_THREADS = 8
ROWS_FOR_SUFFIX = 10_000  # of each source, from its beginning, tell how prompts end

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
    findings: str | Path,
) -> dict[str, float]:
    """Check every input of the pipeline and write canonical datasets.

    Args:
        config: URIs, prompt layout, limits, and the other stages' options.
        preferences: Dataset written, of kind preferences; its split is by prompt, so no prompt is on both sides.
        prompts: Dataset written, of kind prompts, for reinforcement learning.
        evaluation: Dataset written, of kind prompts; where no eval_dataset was given, a part of prompt_dataset that
            is then not in `prompts`.
        demonstrations: Dataset written, of kind demonstrations; without rows where none were given.
        quarantine: Dataset written, of kind quarantine: rows that cannot be used, whole, with file, line, byte offset
            and reason.
        report: HTML page written.
        findings: JSON file written: what the report says, for programs.

    Returns:
        The audit's metrics (`Audit.metrics`), and: rows_<dataset>, pairs_train and pairs_eval (rows written);
        prompts_held_out (rows of prompt_dataset that became the evaluation); rows_read; quarantined, and its share of
        all rows read; warnings (checks that warn).

    Raises:
        ConfigError: An option of another stage is unknown, of the wrong type or out of range; a grader's file cannot
            be read or has no such function; a file of `evaluation.others` cannot be read; or no model can be written
            to `publish_to`.
        ModelError: The model reference cannot be used, or it has no chat template and is to have one.
        DataError: A source cannot be read or has no row that can be used; a check fails whose action is fail; the
            prompts of two sources end differently; there are fewer than two prompts with preferences, or, without
            eval_dataset, than two prompts; instruction and suffix leave no token for a prompt.
    """
    _check_options_and_models(config)
    paths = {"preferences": preferences, "prompts": prompts, "evaluation": evaluation, "demonstrations": demonstrations}
    sources = _find(config)
    for path in paths.values():  # a run that fails leaves no dataset, not even another run's
        Path(path, MANIFEST_NAME).unlink(missing_ok=True)
    facts = _look(config, sources, paths, quarantine)
    write_page(report, report_page(facts))
    _write_findings(findings, facts)
    _say(facts)
    refuse_failed(facts.verdicts)
    for data in facts.written.values():
        publish(data.path, data.manifest)
    return facts.metrics


def _look(
    config: DataValidationConfig, sources: dict[str, Source], paths: dict[str, str | Path], quarantine: str | Path
) -> Facts:
    """Read, write, and look at what was written."""
    tokenizer, not_counted = load_tokenizer(config.large_model_reference)
    chat = ChatTemplate()
    if config.chat_template == "model":
        chat = load_chat_template(config.large_model_reference, tokenizer)
    with (
        threads_at_work() as threads,
        tempfile.TemporaryDirectory(prefix="data_validation-") as scratch,
        ThreadPoolExecutor(threads) as pool,
        Index(scratch) as index,
    ):
        rejects = Rejects(quarantine, pool)
        renderer = Template(instruction=config.instruction, **chat.fields) if chat.text else None
        intakes = {name: Intake(source, DATASETS[name][1], config.suffix, renderer) for name, source in sources.items()}
        written, template, suffix_found = _write(config, chat, intakes, paths, rejects, index, pool, threads + 2)
        if "preferences" in sources:
            equal = take_out_equal(sources["preferences"], written["preferences"], index)
            rejects.add(equal, sources["preferences"].parameter)
            intakes["preferences"].move_to_quarantine(equal)
        quarantined = [_usable(intake, written[name], rejects, config) for name, intake in intakes.items()]
        if any(check.outcome == "failed" for check in quarantined):
            rejects.finish()
            refuse_failed(quarantined)

        resolved = resolve(config, template, sources, written, index)
        for name, rows in resolved.quarantined.items():
            rejects.add(rows, sources[name].parameter)
            intakes[name].move_to_quarantine(rows)
        rejects.finish()
        audited = audit(config, template, tokenizer, intakes, written, resolved, index)

    verdicts = [*quarantined, *audited.verdicts]
    read = sum(count.read for intake in intakes.values() for count in intake.counts.values())
    metrics = {
        **{f"rows_{name}": data.manifest.rows for name, data in written.items()},
        "pairs_train": resolved.pairs_train,
        "pairs_eval": resolved.pairs_eval,
        "prompts_held_out": resolved.prompts_held_out,
        "rows_read": read,
        "quarantined": rejects.rows,
        "quarantined_share": rejects.rows / read,
        **audited.metrics,
        "warnings": sum(verdict.outcome == "warning" for verdict in verdicts),
    }
    return Facts(
        intakes=intakes,
        written=written,
        template=template,
        suffix_found=suffix_found,
        chat_template_found=chat.source,
        rejects=rejects,
        resolved=resolved,
        audit=audited,
        verdicts=verdicts,
        steps=_steps(config, metrics),
        not_counted=not_counted,
        metrics=metrics,
    )


def _write(
    config: DataValidationConfig,
    chat: ChatTemplate,
    intakes: dict[str, Intake],
    paths: dict[str, str | Path],
    rejects: Rejects,
    index: Index,
    pool: Executor,
    ahead: int,
) -> tuple[dict[str, Written], Template, str]:
    """Every dataset; the template; and in words where its suffix was found."""
    sources = [intake.source for intake in intakes.values()]
    with Progress(STAGE, max(1, sum(source.size for source in sources) // 1000), unit="kB") as progress:

        def counted(intake: Intake) -> Iterator[Part]:
            for part in intake.parts(pool, ahead):
                rejects.add(part.quarantined, intake.source.parameter)
                progress.update(sum(source.bytes_read for source in sources) // 1000)
                yield part

        parts = {name: counted(intake) for name, intake in intakes.items()}
        heads = {name: take_some(stream, ROWS_FOR_SUFFIX) for name, stream in parts.items()}
        suffix, found = (config.suffix, "given") if config.suffix is not None else _detect_suffix(heads)
        template = Template(
            instruction=config.instruction,
            suffix=suffix,
            **chat.fields,
            prompt_sequence_length=config.prompt_sequence_length,
            target_sequence_length=config.target_sequence_length,
        )
        written: dict[str, Written] = {}
        for name, (_, kind) in DATASETS.items():
            stream = chain(heads.pop(name, []), parts.get(name, ()))
            fraction, path = config.preference_eval_fraction, paths[name]
            written[name] = write_canonical(
                name, kind, stream, path, template, fraction, config.seed, index, pool, ahead
            )
        progress.update(progress.total, rows=sum(data.manifest.rows for data in written.values()))
    return written, template, found


@contextlib.contextmanager
def threads_at_work() -> Iterator[int]:
    """How many threads read, check and write; they are all there are, and take turns often enough.

    Each has a block in memory, and waits for Python's lock, so that more than `MOST_THREADS` gain nothing.

    Between two of Arrow's functions a thread holds Python's lock for a moment only, but may wait for another that
    holds it up to the switch interval.
    """
    arrow, interval = pa.cpu_count(), sys.getswitchinterval()
    pa.set_cpu_count(1)
    sys.setswitchinterval(0.0005)
    try:
        # One may be waiting for the thread that reads on behalf of Arrow.
        yield min(MOST_THREADS, 1 + (os.cpu_count() or 1))
    finally:
        pa.set_cpu_count(arrow)
        sys.setswitchinterval(interval)


def _find(config: DataValidationConfig) -> dict[str, Source]:
    """Every dataset's files. All are found before the first is read."""
    uris = {name: getattr(config, parameter) for name, (parameter, _) in DATASETS.items()}
    return {name: Source(uri, DATASETS[name][0]) for name, uri in uris.items() if uri}


def _usable(intake: Intake, data: Written, rejects: Rejects, config: DataValidationConfig) -> Verdict:
    """The check of a source's share of rows that cannot be used.

    Raises:
        DataError: None can.
    """
    threshold = config.checks.quarantined
    read = sum(count.read for count in intake.counts.values())
    aside = read - data.manifest.rows
    text = f"{aside:,} of {read:,} rows ({percent(aside / read)}) cannot be used"
    parameter = intake.source.parameter
    examples: list[Example] = []
    if aside:
        reason, field, count = rejects.worst(parameter)
        named = f"{reason} ({field})" if field else reason
        text += f", most often ({count:,}) because of {named}: {MEANINGS[Reason(reason)]}"
        rows = rejects.examples[parameter, reason, field]
        examples = [Example.of_row(f"{row['file']}:{row['line']}", row["row"]) for row in rows]
    if not data.manifest.rows:
        text, threshold = f"{text}, so none is left", Threshold(limit=0, action="fail")
    return at_most("quarantined", parameter, aside / read, threshold, f"{text}.", lambda: examples)


def _detect_suffix(heads: dict[str, list[Part]]) -> tuple[str, str]:
    prompts, completions = {}, {}
    for name, parts in heads.items():
        parameter, kind = DATASETS[name]
        # That conversations end in `assistant:` is no suffix where they are rendered by a chat template.
        bare = [
            part.kept.filter(pc.is_null(part.kept[MESSAGES])) for part in parts if MESSAGES in part.kept.column_names
        ]
        tables = bare or [part.kept for part in parts]
        texts = {column: _column(tables, column) for column in TEXTS[kind]}
        prompts[parameter] = texts.pop("prompt")
        texts.pop("reference", None)
        completions[parameter] = [text for column in texts.values() for text in column]
    return detect(prompts, completions)


def _column(tables: Sequence[pa.Table], name: str) -> list[str]:
    return [text for table in tables for text in table[name].to_pylist()]


def _check_options_and_models(config: DataValidationConfig) -> None:
    from rlhf.bulk_inference.config import BulkInferenceConfig
    from rlhf.evaluator.config import EvaluatorConfig
    from rlhf.grpo_trainer.config import GRPOTrainerConfig
    from rlhf.ppo_trainer.config import PPOTrainerConfig
    from rlhf.reward_trainer.config import RewardTrainerConfig
    from rlhf.rewards.check import check_grader
    from rlhf.sft_trainer.config import SFTTrainerConfig

    SFTTrainerConfig.parse(config.sft, "sft")
    reward = RewardTrainerConfig.parse(config.reward, "reward")
    ppo = PPOTrainerConfig.parse(config.ppo, "ppo")
    grpo = GRPOTrainerConfig.parse(config.grpo, "grpo")
    inference = BulkInferenceConfig.parse(config.inference, "inference")
    if inference.format == "vertex" and inference.samples > 1:
        raise ConfigError(
            f"inference.samples: found {inference.samples} with format vertex, expected 1: its lines have no ids, so "
            "the evaluator joins them by position; take format canonical for several"
        )
    evaluation = EvaluatorConfig.parse(config.evaluation, "evaluation")
    if not config.preference_dataset and grpo.grader is None:
        raise ConfigError(
            "preference_dataset: found '', expected a URI of preferences; only a grader makes them unnecessary"
        )
    for grader in (grpo.grader, *ppo.reward_functions, evaluation.grader, *evaluation.graders):
        if grader is not None:
            check_grader(grader)
    _check_evaluation(evaluation)

    models = {"large_model_reference": config.large_model_reference, "reward.base_model": reward.base_model}
    for parameter, reference in models.items():
        if reference:
            say(STAGE, f"checking {parameter} {reference}")
            references.check(reference, parameter)
    if config.publish_to:
        _check_destination(config)


def _check_evaluation(evaluation: "EvaluatorConfig") -> None:
    """What would end the last stage. The judge's key is not looked for: it may be in the evaluator's pod alone."""
    for name, path in evaluation.others.items():
        try:
            read_predictions(path)
        except DataError as error:
            raise ConfigError(f"evaluation.others.{name}: {error}") from error
    if evaluation.bertscore_model and importlib.util.find_spec("bert_score") is None:
        # The evaluator may run in another image.
        say(
            STAGE,
            "warning: evaluation.bertscore_model needs the package bert-score, which is not installed here and in no "
            "image of the project; add it to the evaluator's, or leave the option empty",
        )


def _check_destination(config: DataValidationConfig) -> None:
    from rlhf.models.destination import Destination
    from rlhf.publisher.config import PublisherConfig

    PublisherConfig.parse({"publish_to": config.publish_to, "model_display_name": config.model_display_name})
    destination = Destination(config.publish_to)
    say(STAGE, f"checking publish_to {destination.name}")
    # A run of cached steps may be about to publish what it published before.
    if found := destination.check():
        say(STAGE, f"warning: publish_to holds the model {found}, and any other will be refused there")


def _steps(config: DataValidationConfig, metrics: dict[str, float]) -> dict[str, StepCount]:
    """How many steps an epoch is for each trainer, and how many are configured (None: as its epochs say)."""
    from rlhf.ppo_trainer.config import PPOTrainerConfig
    from rlhf.reward_trainer.config import RewardTrainerConfig
    from rlhf.sft_trainer.config import SFTTrainerConfig

    sft = SFTTrainerConfig.parse(config.sft, "sft")
    reward = RewardTrainerConfig.parse(config.reward, "reward")
    ppo = PPOTrainerConfig.parse(config.ppo, "ppo")
    counts = {
        "sft_trainer": StepCount(int(metrics["rows_demonstrations"]), sft.batch_size, sft.train_steps, sft.epochs),
        "reward_trainer": StepCount(int(metrics["pairs_train"]), reward.batch_size, reward.train_steps),
        "ppo_trainer": StepCount(int(metrics["rows_prompts"]), ppo.batch_size // ppo.group_size, ppo.train_steps),
    }
    if config.is_graded:
        from rlhf.grpo_trainer.config import GRPOTrainerConfig

        grpo = GRPOTrainerConfig.parse(config.grpo, "grpo")
        groups = grpo.batch_size // grpo.group_size
        counts = {"grpo_trainer": StepCount(int(metrics["rows_prompts"]), groups, grpo.train_steps)}
    return {stage: count for stage, count in counts.items() if count.rows}


def _write_findings(path: str | Path, facts: Facts) -> None:
    """The report's content as JSON."""
    content = {
        "verdicts": [asdict(verdict) | {"threshold": verdict.threshold.model_dump()} for verdict in facts.verdicts],
        "sources": [
            {"parameter": intake.source.parameter, "shape": intake.shape, "file": file, **asdict(count)}
            for intake in facts.intakes.values()
            for file, count in intake.counts.items()
        ],
        "quarantine": [
            {"parameter": parameter, "file": file, "reason": reason, "field": field, "rows": rows}
            for (parameter, file, reason, field), rows in sorted(facts.rejects.counts.items())
        ],
        "datasets": {name: data.manifest.model_dump() for name, data in facts.written.items()},
        "template": facts.template.model_dump()
        | {
            "digest": facts.template.digest,
            "suffix_found": facts.suffix_found,
            "chat_template_found": facts.chat_template_found,
        },
        "steps": {stage: count.as_json() for stage, count in facts.steps.items()},
        "metrics": facts.metrics,
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _say(facts: Facts) -> None:
    if held_out := facts.resolved.prompts_held_out:
        say(STAGE, f"no eval_dataset: {held_out:,} rows of prompt_dataset are held out for evaluation, not trained on")
    if facts.not_counted:
        say(STAGE, f"token lengths were not counted: {facts.not_counted}")
    for verdict in facts.verdicts:
        if verdict.outcome == "warning":
            say(STAGE, f"warning: {verdict.check} of {verdict.subject}: {verdict.text}")
    read, aside = facts.metrics["rows_read"], facts.metrics["quarantined"]
    say(STAGE, f"{read:,} rows read, {aside:,} in quarantine; prompt template {facts.template.digest}")
