"""The evaluator's page in a few lines of Markdown, for a pipeline's run page."""

from rlhf.evaluator.page import Evaluation, remarks
from rlhf.report.markdown import plain
from rlhf.words import percent

_MARKS = {True: "✓", False: "✗", None: "–"}


def markdown(result: Evaluation) -> str:
    """The verdict with its reasons, what should be known before believing it, and the key numbers."""
    verdict, m = result.verdict, result.metrics
    lines = [f"# {'Promote' if verdict.promote else 'Hold'}", "", plain(verdict.headline), ""]
    lines += [f"- {_MARKS[met]} {plain(reason)}" for met, reason in verdict.reasons]
    warnings = [remark.text for remark in remarks(result) if remark.warning]
    if warnings:
        lines += ["", "## Before you believe it", "", *(f"- {plain(text)}" for text in warnings)]
    lines += ["", "## Key numbers", "", "| | before | after |", "| --- | ---: | ---: |"]
    for label, name, digits in (
        (result.unit.capitalize(), result.main.slug, 3),
        ("ROUGE-L", "rouge_l", 3),
        (result.measures.length.capitalize(), result.measures.length, 1),
    ):
        if f"{name}_after" in m:
            lines.append(f"| {label} | {m[f'{name}_before']:.{digits}f} | {m[f'{name}_after']:.{digits}f} |")
    if result.measures.endings_known:
        lines.append(f"| Ended by themselves | {percent(m['ended_before'])} | {percent(m['ended_after'])} |")
    lines += ["", "| judge | win rate | at equal lengths |", "| --- | ---: | ---: |"]
    lines += [f"| {plain(j.name)} | {_share(j.wins)} | {_share(j.controlled)} |" for j in result.judgements]
    return "\n".join(lines) + "\n"


def _share(found) -> str:
    return "–" if found.rate is None else f"{percent(found.rate)} ({percent(found.low)} to {percent(found.high)})"
