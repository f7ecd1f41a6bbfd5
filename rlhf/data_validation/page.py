"""The report of data validation."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from rlhf.data.formats import FIELDS, MEANINGS, Converted, Reason, Shape
from rlhf.data.store import Manifest
from rlhf.data.template import Template
from rlhf.metrics import percent
from rlhf.report import figures
from rlhf.report.page import Page, Section, figure, figures_row, fold, note, paragraph, table, text_block, tiles

EXAMPLES_PER_REASON = 2
_LONGEST_EXAMPLE = 4000


def report_page(
    converted: Mapping[str, Converted],
    manifests: Mapping[str, Manifest],
    template: Template,
    suffix_found: str,
    markers_removed: int,
    not_counted: str,
    metrics: Mapping[str, float],
) -> Page:
    """Everything that was found, for a person to judge.

    Args:
        converted, manifests: By dataset.
        template: How prompts are rendered.
        suffix_found: In words, where the suffix comes from; empty where there is none.
        markers_removed: Completions that began with the suffix's marker.
        not_counted: In words, why there are no token lengths; empty where there are.
        metrics: As the stage returns them.
    """
    return Page(
        "Data validation",
        "What was read, what can be used, and how prompts are laid out.",
        [
            Section("In short", _summary(metrics), "summary"),
            Section("Sources", _sources(converted, metrics), "sources"),
            Section("Quarantine", _quarantine(converted), "quarantine"),
            Section("Pairs and overlaps", _pairs(metrics), "pairs"),
            Section("Lengths", _lengths(converted, template, not_counted, metrics), "lengths"),
            Section("Prompt template", _template(converted, template, suffix_found, markers_removed), "template"),
            Section("Datasets written", _written(manifests, metrics), "written"),
        ],
    )


def _summary(metrics: Mapping[str, float]) -> Markup:
    return tiles(
        [
            ("pairs to train on", f"{metrics['pairs_train']:,}", f"{metrics['pairs_eval']:,} held out"),
            ("prompts", f"{metrics['rows_prompts']:,}", "for reinforcement learning"),
            ("evaluation", f"{metrics['rows_evaluation']:,}", "prompts"),
            ("demonstrations", f"{metrics['rows_demonstrations']:,}", "for SFT"),
            ("in quarantine", f"{metrics['quarantined']:,}", percent(metrics["quarantined_share"]) + " of all rows"),
        ]
    )


def _sources(converted: Mapping[str, Converted], metrics: Mapping[str, float]) -> Markup:
    rows = [
        (result.parameter, file, str(result.shape or "none recognised"), count.read, count.kept, count.quarantined)
        for result in converted.values()
        for file, count in result.counts.items()
    ]
    body = table(["parameter", "file", "shape", "rows read", "rows kept", "rows in quarantine"], rows)
    shapes = dict.fromkeys(result.shape for result in converted.values() if result.shape)
    body += table(["shape", "recognised by"], [(str(shape), FIELDS[shape]) for shape in shapes])
    if {Shape.VERTEX_CHAT, Shape.TRL_CHAT} & set(shapes):
        body += paragraph(
            "Conversations are rendered as plain text, a line `role: content` for each message and `assistant:` at "
            "the end; the model's own chat template is not used."
        )
    repeated = sum(result.repeated_ids for result in converted.values())
    if repeated:
        body += paragraph(f"{repeated:,} rows have an id that another row has, too; theirs got a counter.")
    if metrics["prompts_held_out"]:
        body += paragraph(
            f"No eval_dataset was given: {metrics['prompts_held_out']:,} rows of prompt_dataset, chosen by a hash of "
            "the prompt, are held out for evaluation. They are not among the prompts that the policy is tuned on."
        )
    if not converted["demonstrations"].counts:
        body += paragraph("No demonstrations were given, so there is no supervised fine-tuning.")
    return body


def _quarantine(converted: Mapping[str, Converted]) -> Markup:
    quarantined = [row for result in converted.values() for row in result.quarantined]
    if not quarantined:
        return paragraph("Every row can be used.")
    counts = Counter(row["reason"] for row in quarantined)
    body = paragraph("These rows are kept whole in the quarantine dataset and used nowhere.")
    body += table(["reason", "meaning", "rows"], [(r, MEANINGS[Reason(r)], n) for r, n in counts.most_common()])
    for reason in counts:
        examples = [row for row in quarantined if row["reason"] == reason][:EXAMPLES_PER_REASON]
        for row in examples:
            body += fold(f"{_named(row)}: {row['file']}, line {row['line']}", text_block(row["row"][:_LONGEST_EXAMPLE]))
    return body


def _named(row: Mapping[str, Any]) -> str:
    return f"{row['reason']} ({row['field']})" if row["field"] else row["reason"]


def _pairs(metrics: Mapping[str, float]) -> Markup:
    return table(
        ["finding", "value", "what is done about it"],
        [
            ("exact duplicates of another pair", metrics["duplicate_pairs"], "kept: repetition may be meant as weight"),
            (
                "pairs of candidates labelled both ways",
                metrics["contradictory_pairs"],
                "kept: people disagree, and both labels together say so",
            ),
            (
                "the longer candidate is chosen, of pairs unequal in length",
                percent(metrics["longer_wins_share"]),
                "nothing; far from 50\u00a0%, a reward model may learn length in place of quality",
            ),
            (
                "evaluation prompts also among the prompts",
                metrics["shared_prompts"],
                "kept: the policy will have trained on them",
            ),
            (
                "evaluation prompts also among the preferences",
                metrics["shared_with_preferences"],
                "kept: the reward model will have trained on those that its split does not hold out",
            ),
            (
                "evaluation prompts also among the demonstrations",
                metrics["shared_with_demonstrations"],
                "kept: the policy will have been fine-tuned on them before it is compared",
            ),
        ],
    )


def _lengths(
    converted: Mapping[str, Converted], template: Template, not_counted: str, metrics: Mapping[str, float]
) -> Markup:
    if not_counted:
        tokens = note(
            f"Token lengths were not counted: {not_counted}. How many prompts are cut, each later stage reports."
        )
    else:
        shares = {
            name: [metrics.get(f"{kind}_share_{name}") for kind in ("prompts_cut", "completions_over")]
            for name, result in converted.items()
            if result.rows
        }
        tokens = table(
            [
                "dataset",
                f"prompts of more than {template.prompt_sequence_length:,} tokens, which are cut",
                f"completions of more than {template.target_sequence_length:,} tokens",
            ],
            [(name, *(None if share is None else percent(share) for share in row)) for name, row in shares.items()],
            "Counted with the tokenizer of large_model_reference. Demonstrations are cut to their limit; candidates of "
            "pairs are read whole.",
        )
    prompts = {name: [len(row["prompt"]) for row in result.rows] for name, result in converted.items() if result.rows}
    pairs = converted["preferences"].rows
    completions = {name: [len(row[name]) for row in pairs] for name in ("chosen", "rejected")}
    if converted["demonstrations"].rows:
        completions["demonstrations"] = [len(row["completion"]) for row in converted["demonstrations"].rows]
    return tokens + figures_row(
        [
            figure(
                figures.histogram("Prompts", prompts, "characters"),
                "Distribution of the prompts' lengths by dataset",
                "Prompts, in characters, without instruction.",
            ),
            figure(
                figures.histogram("Completions", completions, "characters"),
                "Distribution of the completions' lengths",
                "Candidates of the pairs, and demonstrations where there are any, in characters.",
            ),
        ]
    )


def _template(
    converted: Mapping[str, Converted], template: Template, suffix_found: str, markers_removed: int
) -> Markup:
    fields = [
        ("instruction", repr(template.instruction) if template.instruction else "none"),
        ("suffix", f"{template.suffix!r} ({suffix_found})" if template.suffix else "none"),
        ("prompt_sequence_length", f"{template.prompt_sequence_length} tokens"),
        ("target_sequence_length", f"{template.target_sequence_length} tokens"),
        ("digest", template.digest),
    ]
    body = paragraph("Every later stage renders prompts with this template, and refuses data or models of another.")
    body += table(["field", "value"], fields)
    if markers_removed:
        body += paragraph(f"{markers_removed:,} completions began with the suffix's marker, which was taken off.")
    example = template.render(converted["prompts"].rows[0]["prompt"])
    return body + fold("The first prompt as a model reads it, when it is not too long", text_block(example))


def _written(manifests: Mapping[str, Manifest], metrics: Mapping[str, float]) -> Markup:
    body = table(["dataset", "rows", "digest"], [(name, m.rows, m.digest) for name, m in manifests.items()])
    return body + paragraph(
        f"Preferences are split by a hash of the prompt: {metrics['pairs_train']:,} pairs to train on, "
        f"{metrics['pairs_eval']:,} held out, and no prompt on both sides."
    )
