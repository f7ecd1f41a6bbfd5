"""Did it get better: two models' completions of the same prompts, with each other and with human references."""

import json
from collections.abc import Sequence
from pathlib import Path

import xxhash

from rlhf.data.chat import without_marks
from rlhf.data.file_systems import redacted
from rlhf.errors import ConfigError
from rlhf.evaluator.config import EvaluatorConfig
from rlhf.evaluator.judgements import (
    Judgement,
    by_graders,
    by_language_model,
    by_reward_model,
    by_run_grader,
    told_apart,
)
from rlhf.evaluator.measures import Measures, measure
from rlhf.evaluator.page import Evaluation, evaluation_page
from rlhf.evaluator.pairs import Pair, Paths, read_pairs
from rlhf.evaluator.summary import markdown
from rlhf.evaluator.texts import check_bertscore
from rlhf.evaluator.verdict import decide
from rlhf.metrics import late_mean
from rlhf.progress import say
from rlhf.report.page import write_page
from rlhf.tracking import read_scalars

STAGE = "evaluator"

Scalars = dict[str, list[tuple[int, float]]]


def run(
    config: EvaluatorConfig,
    *,
    predictions_before: Paths,
    predictions_after: Paths,
    evaluation: str,
    report: str,
    reward_model: str = "",
    summary: str | None = None,
    side_by_side: str | None = None,
    sft_logs: str | None = None,
    reward_logs: str | None = None,
    ppo_logs: str | None = None,
    grpo_logs: str | None = None,
) -> dict[str, float]:
    """Compare the models before and after tuning and write the report.

    Args:
        config: The rule of the verdict, who judges besides the reward model, and how the page is made.
        predictions_before, predictions_after: Files of bulk_inference, one or one for each shard; or files of the
            closed Vertex pipeline's bulk inferrer.
        evaluation: Canonical prompts with references; rows without one are left out of ROUGE, and counted.
        reward_model: Model that scores both completions and the reference; empty where the grader does.
        report: HTML file to write.
        summary: Markdown file to write: the verdict and the key numbers.
        side_by_side: File for JSON lines `id, prompt, before, after, reference, outcomes, scores`, one a row.
        sft_logs, reward_logs, ppo_logs, grpo_logs: Folders of TensorBoard event files of the trainers, for curves;
            `ppo/kl`, or `grpo/kl`, is part of the verdict, which says so where its folder is not there. A folder that
            a skipped trainer did not write has no curves.

    Returns:
        Flat metrics: `rouge_{1,2,l,lsum}_{before,after}`, `rouge_l_change_{low,high}` (ends of a 95 % interval),
        `bleu_...`, `chrf_...` (0 to 100),
        `reward_{before,after,reference}`, `reward_change_{low,high}` (`grade_...`), `win_rate{,_low,_high}`,
        `win_rate_controlled{,_low,_high}` (at equal lengths), `wins`, `losses`, `ties`, `rows_needed`, the same of
        each further judge behind its name, `kl` (nats per completion), `tokens_...` (mean; `words_...` where
        tokens were not counted), `ended_...`, `empty_...` (shares), `repetition_...`, `copied_...`,
        `distinct_{1,2}_...`, `entropy_...`, `reward_beyond_training_...`, `rows`, `rows_with_reference`,
        `promote` (0 or 1). What cannot be measured (no reference, no decided pair, no log) is left out.

    Raises:
        ConfigError: There is neither a reward model nor a grader, a folder of logs is a URI, a grader
            cannot be loaded, the judge cannot be asked, or BERTScore is asked for and cannot be had.
        DataError: The inputs do not pair up or were made with other templates, or too many pairs were not judged.
        ModelError: The reward model cannot be loaded, was trained with another template, or gives a score that is
            not finite.
        TrainingError: A grader failed.
    """
    if config.bertscore_model:
        check_bertscore(config.bertscore_model)
    pairs, template = read_pairs(predictions_before, predictions_after, evaluation, config.others)
    folders = {"sft": sft_logs, "reward": reward_logs, "ppo": ppo_logs, "grpo": grpo_logs}
    logs = {name: _scalars(f"{name}_logs", folder) for name, folder in folders.items()}
    not_there = [f"{name}_logs" for name in ("ppo", "grpo") if folders[name] and not Path(folders[name]).is_dir()]
    judgements, card = [], None
    if reward_model:
        main, card = by_reward_model(config, pairs, reward_model, template)
        judgements.append(main)
    if config.grader is not None:
        judgements += by_run_grader(config, pairs, template, decides=not reward_model)
    if not judgements:
        raise ConfigError("evaluation.grader: found none, and no reward model either, so nobody decides; give one")
    main = judgements[0]
    judgements += by_graders(config, pairs, template)
    if config.judge is not None:
        judgements.append(by_language_model(config, pairs, template))
    judgements = told_apart(judgements)
    measures = measure(config, pairs, judgements, card)
    measured = logs["ppo"].get("ppo/kl") or logs["grpo"].get("grpo/kl")
    kl = late_mean(measured) if measured else None
    ended = (measures.flat.get("ended_before"), measures.flat.get("ended_after"))
    not_judged = sum(outcome is None for outcome in main.outcomes)
    verdict = decide(
        config, main.wins, main.controlled, kl, *ended, judge=main.name, not_judged=not_judged, not_there=not_there
    )
    metrics = measures.flat | ({} if kl is None else {"kl": kl}) | {"promote": float(verdict.promote)}
    result = Evaluation(pairs, judgements, measures, verdict, metrics, logs, _digest(pairs))
    write_page(report, evaluation_page(config, result))
    if summary is not None:
        Path(summary).parent.mkdir(parents=True, exist_ok=True)
        Path(summary).write_text(markdown(result), encoding="utf-8")
    if side_by_side is not None:
        _write_side_by_side(Path(side_by_side), pairs, judgements, measures)
    say(STAGE, f"{'promote' if verdict.promote else 'hold'}: {verdict.headline}")
    return metrics


def _write_side_by_side(path: Path, pairs: Sequence[Pair], judgements: Sequence[Judgement], measures: Measures) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for place, pair in enumerate(pairs):
            row = {
                "id": pair.id,
                "prompt": without_marks(pair.prompt),
                "before": pair.before.prediction,
                "after": pair.after.prediction,
                "reference": pair.reference,
                "outcomes": {j.name: j.outcomes[place] for j in judgements},
                "scores": {
                    j.name: [j.before[place], j.after[place], j.reference.get(pair.id)]
                    for j in judgements
                    if j.before is not None and j.after is not None
                },
                "rouge_l": [measures.rouge_before.get(pair.id), measures.rouge_after.get(pair.id)],
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _digest(pairs: Sequence[Pair]) -> str:
    texts = [[pair.id, pair.before.prediction, pair.after.prediction] for pair in pairs]
    return xxhash.xxh3_128_hexdigest(json.dumps(texts).encode())


def _scalars(name: str, folder: str | None) -> Scalars:
    if folder and "://" in folder:
        raise ConfigError(
            f"{name}: found {redacted(folder)!r}, expected a local folder of event files; copy it here first"
        )
    return read_scalars(folder) if folder and Path(folder).is_dir() else {}
