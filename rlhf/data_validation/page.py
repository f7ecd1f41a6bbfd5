"""The report of data validation."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from rlhf.data.chat import MESSAGES, TODAY, without_marks
from rlhf.data.formats import FIELDS, MEANINGS, Reason, Shape
from rlhf.data.intake import Intake
from rlhf.data.store import take_rows
from rlhf.data.template import Template
from rlhf.data_validation.audit import Audit
from rlhf.data_validation.canonical import Written
from rlhf.data_validation.characters import MEANINGS as MEANINGS_OF_ODD
from rlhf.data_validation.checks import LONGEST_EXAMPLE, Example, Verdict, limit_in_words
from rlhf.data_validation.private_data import mask_private
from rlhf.data_validation.rejects import Rejects
from rlhf.data_validation.resolve import Resolved
from rlhf.data_validation.steps import StepCount
from rlhf.report import figures
from rlhf.report.page import (
    Page,
    Section,
    figure,
    figures_row,
    fold,
    note,
    paragraph,
    table,
    text_block,
    tiles,
    verdict,
)
from rlhf.words import percent

_MOST_FILES = 50  # named one by one
_MOST_ANNOTATORS = 30
_OUTCOMES = {"failed": "fails", "warning": "look at this", "passed": "passed", "ignored": "ignored"}


@dataclass(frozen=True)
class Facts:
    """Everything that was found."""

    intakes: Mapping[str, Intake]
    """By dataset; those that were given."""
    written: Mapping[str, Written]
    template: Template
    suffix_found: str
    """In words, where the suffix comes from; empty where there is none."""
    chat_template_found: str
    """In words, where the chat template comes from; empty for plain text."""
    rejects: Rejects
    resolved: Resolved
    audit: Audit
    verdicts: Sequence[Verdict]
    steps: Mapping[str, StepCount]
    not_counted: str
    """In words, why there are no token lengths; empty where there are."""
    metrics: Mapping[str, float]


def report_page(facts: Facts) -> Page:
    """Everything that was found, for a person to judge: the verdict first."""
    return Page(
        "Data validation",
        "What was read, what can be used, and how prompts are laid out.",
        [
            Section("In short", _summary(facts), "summary"),
            Section("Checks", _checks(facts), "checks"),
            Section("Sources", _sources(facts), "sources"),
            Section("Quarantine", _quarantine(facts.rejects), "quarantine"),
            Section("Pairs", _pairs(facts), "pairs"),
            Section("Lengths", _lengths(facts), "lengths"),
            Section("What texts are written in", _writing(facts), "writing"),
            Section("Prompt template", _template(facts), "template"),
            Section("Steps and epochs", _steps(facts), "steps"),
            Section("Datasets written", _written(facts), "written"),
        ],
    )


def _summary(facts: Facts) -> Markup:
    metrics = facts.metrics
    by_outcome = Counter(check.outcome for check in facts.verdicts)
    beyond = [check for check in facts.verdicts if check.outcome in ("failed", "warning")]
    reasons = [
        (
            False if check.outcome == "failed" else None,
            f"{check.subject}: {check.text} The limit of checks.{check.check} is {limit_in_words(check)}.",
        )
        for check in beyond
    ]
    if by_outcome["failed"]:
        word, good, headline = "Fail", False, "This data is not fit to train on as it is."
    elif beyond:
        word, good = "Look", None
        headline = (
            f"The data can be trained on; {by_outcome['warning']} of {len(facts.verdicts)} checks found something."
        )
    else:
        word, good, headline = "Good", True, f"All {len(facts.verdicts)} checks passed."
    return verdict(word, headline, reasons, good) + tiles(
        [
            ("pairs to train on", f"{metrics['pairs_train']:,}", f"{metrics['pairs_eval']:,} held out"),
            ("prompts", f"{metrics['rows_prompts']:,}", "for reinforcement learning"),
            ("evaluation", f"{metrics['rows_evaluation']:,}", "prompts"),
            ("demonstrations", f"{metrics['rows_demonstrations']:,}", "for SFT"),
            ("in quarantine", f"{metrics['quarantined']:,}", percent(metrics["quarantined_share"]) + " of all rows"),
        ]
    )


def _checks(facts: Facts) -> Markup:
    order = list(_OUTCOMES)
    checks = sorted(facts.verdicts, key=lambda check: order.index(check.outcome))
    body = table(
        ["check", "of", "verdict", "found", "limit", "beyond it"],
        [
            (*map(_unbroken, (c.check, c.subject, _OUTCOMES[c.outcome])), c.text, limit_in_words(c), c.threshold.action)
            for c in checks
        ],
        "Limits, and what happens beyond them, are the option checks of data_validation.",
    )
    if facts.audit.sampled:
        parts = [
            f"{looked_at:,} of {rows:,} rows of {name}"
            for name, (looked_at, rows) in facts.audit.sampled.items()
            if looked_at < rows
        ]
        if parts:
            body += paragraph(
                f"Checks of what texts say, of near duplicates and of tokens looked at {', '.join(parts)}, drawn by a "
                "hash; the intervals are what that leaves uncertain."
            )
    for check in checks:
        body += _examples(f"{check.check} of {check.subject}", check.examples)
    return body


def _unbroken(name: str) -> Markup:
    """In a narrow column, names are cut anywhere."""
    return Markup('<span style="white-space: nowrap">{}</span>').format(name)


def _examples(of: str, examples: Sequence[Example]) -> Markup:
    return Markup("").join(fold(f"{of}: {example.place}", text_block(example.text)) for example in examples)


def _sources(facts: Facts) -> Markup:
    rows = [
        (
            _unbroken(intake.source.parameter),
            file,
            str(intake.shape or "none recognised"),
            c.read,
            c.kept,
            c.quarantined,
        )
        for intake in facts.intakes.values()
        for file, c in intake.counts.items()
    ]
    worst = sorted(rows, key=lambda row: -row[-1])[:_MOST_FILES] if len(rows) > _MOST_FILES else rows
    caption = (
        f"The {_MOST_FILES} of {len(rows):,} files with most rows in quarantine." if len(worst) < len(rows) else ""
    )
    body = table(["parameter", "file", "shape", "rows read", "rows kept", "rows in quarantine"], worst, caption)
    shapes = dict.fromkeys(intake.shape for intake in facts.intakes.values() if intake.shape)
    body += table(["shape", "recognised by"], [(str(shape), FIELDS[shape]) for shape in shapes])
    if {Shape.VERTEX_CHAT, Shape.TRL_CHAT} & set(shapes) and not facts.chat_template_found:
        body += paragraph(
            "Conversations are rendered as plain text, a line `role: content` for each message and `assistant:` at "
            "the end; the model's own chat template is not used."
        )
    repeated = sum(data.repeated_ids for data in facts.written.values())
    if repeated:
        body += paragraph(f"{repeated:,} rows have an id that another row has, too; theirs got a counter.")
    if held_out := facts.resolved.prompts_held_out:
        body += paragraph(
            f"No eval_dataset was given: {held_out:,} rows of prompt_dataset, chosen by a hash of "
            "the prompt, are held out for evaluation. They are not among the prompts that the policy is tuned on."
        )
    if "demonstrations" not in facts.intakes:
        body += paragraph("No demonstrations were given, so there is no supervised fine-tuning.")
    return body


def _quarantine(rejects: Rejects) -> Markup:
    if not rejects.rows:
        return paragraph("Every row can be used.")
    counts: Counter[str] = Counter()
    for (*_, reason, _), rows in rejects.counts.items():
        counts[reason] += rows
    body = paragraph("These rows are kept whole in the quarantine dataset and used nowhere.")
    body += table(["reason", "meaning", "rows"], [(r, MEANINGS[Reason(r)], n) for r, n in counts.most_common()])
    for (_, reason, field), rows in rejects.examples.items():
        named = f"{reason} ({field})" if field else reason
        body += _examples(named, [Example.of_row(f"{row['file']}, line {row['line']}", row["row"]) for row in rows])
    return body


def _pairs(facts: Facts) -> Markup:
    pairs = facts.resolved.pairs
    body = paragraph(
        f"{pairs.rows:,} pairs of {pairs.prompts:,} distinct prompts. The checks say what repeats, contradicts or "
        "leaks, and what is chosen; the options duplicates, contradictions and shared_prompts put such rows in "
        "quarantine. Far from 50\u00a0%, a reward model may learn position or length in place of quality."
    )
    if pairs.margins:
        body += paragraph(f"{pairs.margins:,} of the pairs have a margin: by how much the chosen candidate is better.")
    if pairs.annotators:
        shown = pairs.annotators[:_MOST_ANNOTATORS]
        body += table(
            ["annotator", "pairs", "agrees with others", "compared with"],
            [(a.name, a.rows, a.agreement.in_words(), a.agreement.of) for a in shown],
            f"The {len(shown)} annotators of most pairs, of {len(pairs.annotators):,}. Labels of others for the same "
            "two candidates are what each is compared with.",
        )
    return body


def _lengths(facts: Facts) -> Markup:
    audit, template = facts.audit, facts.template
    if facts.not_counted:
        body = note(
            f"Token lengths were not counted: {facts.not_counted}. How many prompts are cut, each later stage reports."
        )
    else:
        body = table(
            [
                "dataset",
                f"prompts of more than {template.prompt_sequence_length:,} tokens, which are cut",
                f"completions of more than {template.target_sequence_length:,} tokens",
            ],
            [
                (
                    name,
                    counted.prompts_cut.in_words(),
                    counted.completions_over.in_words() if counted.completions else None,
                )
                for name, counted in audit.tokens.items()
            ],
            "Counted with the tokenizer of large_model_reference. Demonstrations are cut to their limit; candidates of "
            "pairs are read whole.",
        )
        body += figures_row(
            [
                figure(
                    figures.histogram("Prompts in tokens", {n: c.prompts for n, c in audit.tokens.items()}, "tokens"),
                    "Distribution of the prompts' lengths in tokens by dataset",
                    "Prompts as the model reads them, in its tokens.",
                ),
                figure(
                    figures.histogram(
                        "Completions in tokens",
                        {n: c.completions for n, c in audit.tokens.items() if c.completions},
                        "tokens",
                    ),
                    "Distribution of the completions' lengths in tokens by dataset",
                    "Candidates and completions, in the model's tokens.",
                ),
            ]
        )
    prompts = {name: columns["prompt"] for name, columns in audit.characters.items()}
    completions = {
        name if column == "completion" else column: lengths
        for name, columns in audit.characters.items()
        for column, lengths in columns.items()
        if column in ("chosen", "rejected", "completion")
    }
    return body + figures_row(
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


def _writing(facts: Facts) -> Markup:
    audit = facts.audit
    body = paragraph(f"{audit.texts:,} prompts, candidates, completions and references were looked at.")
    if audit.private:
        body += table(
            ["private data", "texts with it", "such as, masked"],
            [(kind, count, ", ".join(masked)) for kind, (count, masked) in audit.private.items()],
        )
    if audit.odd:
        body += table(
            ["characters", "what they are", "texts with them"],
            [(str(kind), MEANINGS_OF_ODD[kind], where.texts) for kind, where in audit.odd.items()],
        )
    if audit.languages and audit.languages.found:
        body += table(
            ["language", "texts"],
            [
                *((language, where.texts) for language, where in audit.languages.found.items()),
                ("too short to tell", audit.languages.too_short.texts),
            ],
            "ISO 639 codes, by py3langid; und where it is not sure, zxx where it is no language.",
        )
    return body


def _template(facts: Facts) -> Markup:
    template = facts.template
    fields = [
        ("chat template", facts.chat_template_found or "none: plain text"),
        ("instruction", repr(template.instruction) if template.instruction else "none"),
        ("suffix", f"{template.suffix!r} ({facts.suffix_found})" if template.suffix else "none"),
        ("prompt_sequence_length", f"{template.prompt_sequence_length} tokens"),
        ("target_sequence_length", f"{template.target_sequence_length} tokens"),
        ("digest", template.digest),
    ]
    body = paragraph("Every later stage renders prompts with this template, and refuses data or models of another.")
    body += table(["field", "value"], fields)
    if removed := sum(data.markers_removed for data in facts.written.values()):
        body += paragraph(f"{removed:,} completions began with the suffix's marker, which was taken off.")
    if facts.chat_template_found:
        body += paragraph(
            "Prompts and conversations are rendered by the model's own chat template, up to where the assistant "
            "answers; a bare prompt is one user message, the instruction a system message where the template takes "
            "one. A template that asks for the date is told "
            f"{TODAY:%d %B %Y}, so that results do not depend on the day."
        )
        body += fold("The chat template", text_block(template.chat_template[:LONGEST_EXAMPLE]))
    prompts = facts.written["prompts"]
    row = take_rows(prompts.path, prompts.manifest, [0])[0]
    example = without_marks(template.render(row["prompt"], row.get(MESSAGES)))
    return body + fold(
        "The first prompt as a model reads it, when it is not too long", text_block(mask_private(example))
    )


def _steps(facts: Facts) -> Markup:
    return table(
        [
            "stage",
            "rows",
            "batch size",
            "steps an epoch is",
            "steps configured",
            "epochs these are",
            "counted by epoch",
        ],
        [
            (
                stage,
                count.rows,
                count.batch_size,
                count.running_on(),
                count.steps,
                f"{count.epochs_made:,.2f}",
                count.steps_by_epoch,
            )
            for stage, count in facts.steps.items()
        ],
        "Steps an epoch is: rows / batch size, rounded up. Stages count ceil(rows x epochs / batch size). Counted by "
        "epoch, ceil(rows / batch size) x epochs, as other pipelines do, the same epochs are the steps of the last "
        "column.",
    )


def _written(facts: Facts) -> Markup:
    rows = [(name, data.manifest.rows, data.manifest.digest) for name, data in facts.written.items()]
    return table(["dataset", "rows", "digest"], rows) + paragraph(
        f"Preferences are split by a hash of the prompt: {facts.resolved.pairs_train:,} pairs to train on, "
        f"{facts.resolved.pairs_eval:,} held out, and no prompt on both sides."
    )
