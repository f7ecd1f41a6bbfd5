"""What a careful reader would notice in the data: measured, compared with what is tolerated, said in words."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer

from rlhf.data.chat import MESSAGES
from rlhf.data.intake import Intake
from rlhf.data.sources import Source
from rlhf.data.store import take_rows
from rlhf.data.template import Template
from rlhf.data_validation import findings
from rlhf.data_validation.canonical import Written
from rlhf.data_validation.characters import (
    NO_LANGUAGE,
    UNDETERMINED,
    Languages,
    Occurrence,
    Oddity,
    languages,
    odd_characters,
)
from rlhf.data_validation.checks import Example, Verdict, at_least, at_most, near_half
from rlhf.data_validation.config import DataValidationConfig
from rlhf.data_validation.index import Index
from rlhf.data_validation.near_duplicates import near_duplicates
from rlhf.data_validation.private_data import LOOKED_FOR, find_private
from rlhf.data_validation.resolve import Resolved
from rlhf.data_validation.tokens import TokenLengths, token_lengths
from rlhf.metrics import share

SAMPLE_ROWS = 5_000  # of each dataset: what needs every text in memory looks at no more
MASKED_SHOWN = 5
LANGUAGES_SHOWN = 6

TEXT_COLUMNS = ("prompt", "chosen", "rejected", "completion", "reference")


@dataclass
class Audit:
    """Everything the report shows beyond counts of rows."""

    metrics: dict[str, float] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    sampled: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By dataset: rows looked at, of how many."""
    characters: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    """By dataset and column: lengths of the texts sampled."""
    tokens: dict[str, TokenLengths] = field(default_factory=dict)
    """By dataset; empty where the model has no tokenizer.json."""
    texts: int = 0
    """Prompts and completions whose writing was looked at, which the next three are about."""
    private: dict[str, tuple[int, list[str]]] = field(default_factory=dict)
    """By kind: texts with it, and what some of it looks like, masked."""
    odd: dict[Oddity, Occurrence] = field(default_factory=dict)
    languages: Languages | None = None


@dataclass(frozen=True)
class Sample:
    """Some rows of a dataset, and where they come from."""

    dataset: str
    rows: list[dict[str, Any]]
    source: Source
    origins: list[tuple[int, int]]

    def example(self, index: int, text: str) -> Example:
        file, line = self.origins[index]
        return Example.of(f"{self.source.files[file]}:{line}", text)


def audit(
    config: DataValidationConfig,
    template: Template,
    tokenizer: Tokenizer | None,
    intakes: dict[str, Intake],
    written: dict[str, Written],
    resolved: Resolved,
    index: Index,
) -> Audit:
    """Look at the datasets as they were written.

    Args:
        tokenizer: The model's; None leaves lengths in tokens out.
        resolved: What was found before rows were put aside.
    """
    result = Audit()
    samples = [_sample(name, data, intakes, index) for name, data in written.items() if data.manifest.rows]
    result.sampled = {sample.dataset: (len(sample.rows), written[sample.dataset].manifest.rows) for sample in samples}
    _sizes(config, result, resolved, index)
    _pairs(config, result, resolved)
    _overlaps(config, result, resolved)
    _near_duplicates(config, template, result, samples)
    for sample in samples:
        result.characters[sample.dataset] = _characters(sample)
    if tokenizer is not None:
        _tokens(config, template, tokenizer, result, samples)
    _writing(config, result, samples)
    return result


def _sample(dataset: str, data: Written, intakes: dict[str, Intake], index: Index) -> Sample:
    numbers = findings.sample(index, dataset, SAMPLE_ROWS)
    origins = index.query(
        f"select file, line from {dataset} where number in (select unnest($1)) order by number", numbers
    )
    intake = intakes.get(dataset) or intakes["prompts"]
    return Sample(dataset, take_rows(data.path, data.manifest, numbers), intake.source, origins)


def _sizes(config: DataValidationConfig, result: Audit, resolved: Resolved, index: Index) -> None:
    prompts, evaluation = (
        index.column(f"select count(distinct prompt_key) from {name}")[0] for name in ("prompts", "evaluation")
    )
    checks, pairs = config.checks, resolved.pairs_train
    if config.preference_dataset:
        result.verdicts.append(at_least("pairs", "preferences", pairs, checks.pairs, f"{pairs:,} pairs to train on."))
    result.verdicts += [
        at_least("prompts", "prompts", prompts, checks.prompts, f"{prompts:,} distinct prompts to train on."),
        at_least(
            "evaluation",
            "evaluation",
            evaluation,
            checks.evaluation,
            f"{evaluation:,} distinct prompts to evaluate on.",
        ),
    ]


def _pairs(config: DataValidationConfig, result: Audit, resolved: Resolved) -> None:
    pairs, checks = resolved.pairs, config.checks
    if not config.preference_dataset:
        return
    aside = {
        "duplicates": "they are in quarantine" if config.duplicates == "quarantine" else "they are kept",
        "contradictions": "all are in quarantine" if config.contradictions == "quarantine" else "all are kept",
    }
    result.verdicts += [
        at_most(
            "duplicates",
            "preferences",
            pairs.duplicates / pairs.rows,
            checks.duplicates,
            f"{pairs.duplicates:,} of {pairs.rows:,} pairs repeat another one; {aside['duplicates']}.",
            lambda: resolved.examples["duplicates"],
        ),
        at_most(
            "contradictions",
            "preferences",
            pairs.contradictory / pairs.rows,
            checks.contradictions,
            f"Two candidates labelled both ways: {pairs.contradictions:,}, in {pairs.contradictory:,} of "
            f"{pairs.rows:,} pairs; {aside['contradictions']}.",
            lambda: resolved.examples["contradictions"],
        ),
        near_half(
            "position_bias",
            "preferences",
            pairs.first_chosen,
            checks.position_bias,
            f"The first candidate is chosen in {pairs.first_chosen.in_words()}."
            if pairs.first_chosen.of
            else "The shape does not tell in which order candidates were shown.",
        ),
        near_half(
            "length_bias",
            "preferences",
            pairs.longer_chosen,
            checks.length_bias,
            f"The longer candidate is chosen in {pairs.longer_chosen.in_words()} of the pairs unequal in length."
            if pairs.longer_chosen.of
            else "No two candidates differ in length.",
            lambda: resolved.examples["lengths"],
        ),
    ]
    # Each comparison counts for both annotators, and is one all the same.
    compared = sum(annotator.agreement.of for annotator in pairs.annotators) // 2
    if pairs.annotators:
        agreement = share(sum(annotator.agreement.hits for annotator in pairs.annotators) // 2, compared)
        result.verdicts.append(
            at_least(
                "annotator_agreement",
                "preferences",
                agreement.rate,
                checks.annotator_agreement,
                f"Annotators: {len(pairs.annotators):,}; where two saw the same candidates they agree in "
                f"{agreement.in_words()} of {compared:,} comparisons."
                if compared
                else f"Annotators: {len(pairs.annotators):,}; no two saw the same candidates.",
            )
        )
    result.metrics |= {
        "duplicate_pairs": pairs.duplicates,
        "contradictory_pairs": pairs.contradictions,
        "longer_wins_share": 0.5 if pairs.longer_chosen.rate is None else pairs.longer_chosen.rate,
    }
    if pairs.first_chosen.rate is not None:
        result.metrics["first_wins_share"] = pairs.first_chosen.rate
    if pairs.margins:
        result.metrics["pairs_with_margin"] = pairs.margins


def _overlaps(config: DataValidationConfig, result: Audit, resolved: Resolved) -> None:
    metric = {
        "prompts": "shared_prompts",
        "preferences": "shared_with_preferences",
        "demonstrations": "shared_with_demonstrations",
    }
    for overlap in resolved.overlaps:
        result.metrics[metric[overlap.dataset]] = overlap.prompts + overlap.held_out
        if overlap.dataset not in result.sampled:
            continue
        done = "they are in quarantine there" if config.shared_prompts == "quarantine" else "they are kept"
        further = f"; {overlap.held_out:,} more are in its held-out part" if overlap.held_out else ""
        result.verdicts.append(
            at_most(
                "shared_prompts",
                overlap.dataset,
                overlap.prompts / overlap.of,
                config.checks.shared_prompts,
                f"{overlap.prompts:,} of {overlap.of:,} evaluation prompts are trained on, too; {done}{further}."
                if overlap.prompts
                else f"No evaluation prompt is trained on{further}.",
                lambda finding=f"shared_prompts_{overlap.dataset}": resolved.examples[finding],
            )
        )


def _near_duplicates(config: DataValidationConfig, template: Template, result: Audit, samples: list[Sample]) -> None:
    texts = [
        (sample, index, template.body(row["prompt"], row.get(MESSAGES)))
        for sample in samples
        for index, row in enumerate(sample.rows)
    ]
    near = near_duplicates([text for _, _, text in texts], seed=config.seed)
    found = share(near.texts, len(texts))

    # Pairs name the first row of each text, and another row of it may be elsewhere.
    evaluated_texts, trained_texts = set(), set()
    for sample, row, text in texts:
        if sample.dataset == "evaluation":
            evaluated_texts.add(text.strip())
        elif sample.dataset in findings.TRAINED_ON and sample.rows[row].get("split") != "eval":
            trained_texts.add(text.strip())

    def evaluated(index: int) -> bool:
        return texts[index][2].strip() in evaluated_texts

    def trained_on(index: int) -> bool:
        return texts[index][2].strip() in trained_texts

    leaks = [
        (one, other)
        for one, other, _ in near.pairs
        if (evaluated(one) and trained_on(other)) or (trained_on(one) and evaluated(other))
    ]
    leaked = {index for pair in leaks for index in pair if evaluated(index)}
    across = f"; {len(leaked):,} or more are evaluation prompts with one that is trained on" if leaked else ""
    if any(looked_at < rows for looked_at, rows in result.sampled.values()):
        across += "; among all rows there are more, for those looked at were compared with each other only"
    result.metrics["near_duplicate_share"] = found.rate or 0.0

    def shown() -> list[Example]:
        pair = leaks[0] if leaks else near.pairs[0][:2]
        return [texts[i][0].example(texts[i][1], texts[i][2]) for i in pair]

    result.verdicts.append(
        at_most(
            "near_duplicates",
            "all prompts",
            found.rate,
            config.checks.near_duplicates,
            f"{near.texts:,} of {len(texts):,} prompts looked at nearly repeat another: {found.in_words()}{across}."
            if near.texts
            else f"None of {len(texts):,} prompts looked at nearly repeats another.",
            shown,
        )
    )


def _tokens(
    config: DataValidationConfig, template: Template, tokenizer: Tokenizer, result: Audit, samples: list[Sample]
) -> None:
    for sample in samples:
        counted = result.tokens[sample.dataset] = token_lengths(sample.rows, template, tokenizer)
        for check, column, what in (
            ("prompts_cut", counted.prompts_cut, f"longer than {template.prompt_sequence_length:,} tokens and are cut"),
            ("completions_over", counted.completions_over, f"longer than {template.target_sequence_length:,} tokens"),
        ):
            if not column.of:
                continue
            kind = "prompts" if check == "prompts_cut" else "completions"
            result.metrics[f"{check}_share_{sample.dataset}"] = column.rate

            def shown(indexes: Sequence[int] = counted.examples[check], sample: Sample = sample) -> list[Example]:
                return [sample.example(i, _shown(sample.rows[i])) for i in indexes]

            result.verdicts.append(
                at_most(
                    check,
                    sample.dataset,
                    column.rate,
                    getattr(config.checks, check),
                    f"{column.in_words()} of the {kind} looked at are {what}.",
                    shown,
                )
            )


def _writing(config: DataValidationConfig, result: Audit, samples: list[Sample]) -> None:
    """Languages, characters and private data of every text sampled."""
    places = [
        (sample, index, row[column])
        for sample in samples
        for index, row in enumerate(sample.rows)
        for column in TEXT_COLUMNS
        if row.get(column)
    ]
    texts = [text for _, _, text in places]
    result.texts = len(texts)
    checks, subject = config.checks, "all texts"

    def shown(positions: Iterable[int]) -> Callable[[], list[Example]]:
        return lambda: [
            sample.example(index, text) for sample, index, text in (places[position] for position in positions)
        ]

    private = find_private(texts)
    with_private = list(dict.fromkeys(finding.index for finding in private.findings))
    for kind, count in private.texts.items():
        masked = [finding.masked for finding in private.findings if finding.kind == kind]
        result.private[kind] = count, list(dict.fromkeys(masked))[:MASKED_SHOWN]
    named = ", ".join(f"{kind} in {count:,}" for kind, (count, _) in result.private.items())
    found = share(len(with_private), len(texts))
    result.metrics["private_data_share"] = found.rate
    result.verdicts.append(
        at_most(
            "private_data",
            subject,
            found.rate,
            checks.private_data,
            (
                f"{len(with_private):,} of {len(texts):,} texts looked at, {found.in_words()}: {named}. {LOOKED_FOR}"
                if named
                else f"None in {len(texts):,} texts looked at. {LOOKED_FOR}"
            ),
            shown(with_private[:2]),
        )
    )

    anywhere, kinds = odd_characters(texts)
    result.odd = {kind: where for kind, where in kinds.items() if where.texts}
    odd = share(anywhere.texts, len(texts))
    named = ", ".join(f"{kind} in {where.texts:,}" for kind, where in result.odd.items())
    result.metrics["odd_characters_share"] = odd.rate
    result.verdicts.append(
        at_most(
            "control_characters",
            subject,
            odd.rate,
            checks.control_characters,
            f"{named[:1].upper()}{named[1:]} of {len(texts):,} texts looked at; any of them in {odd.in_words()}."
            if named
            else f"No text of {len(texts):,} looked at has characters that hide, reorder or are damaged.",
            shown(anywhere.examples),
        )
    )

    spoken = result.languages = languages(texts)
    told = {language: where for language, where in spoken.found.items() if language not in (UNDETERMINED, NO_LANGUAGE)}
    main = next(iter(told), None)
    others = {language: where for language, where in told.items() if language != main}
    other = share(sum(where.texts for where in others.values()), sum(where.texts for where in told.values()))
    if other.rate is not None:
        result.metrics["other_languages_share"] = other.rate
    listed = ", ".join(f"{language} {where.texts:,}" for language, where in list(told.items())[:LANGUAGES_SHOWN])
    result.verdicts.append(
        at_most(
            "other_languages",
            subject,
            other.rate,
            checks.other_languages,
            f"Languages of the {other.of:,} texts long enough to tell: {listed}; others than {main} in "
            f"{other.in_words()}."
            if main
            else f"None of {spoken.read:,} texts is long enough to tell its language.",
            shown([where.examples[0] for where in others.values()][:2]),
        )
    )


def _characters(sample: Sample) -> dict[str, list[int]]:
    lengths = {name: [len(row[name]) for row in sample.rows if row.get(name)] for name in TEXT_COLUMNS}
    return {name: values for name, values in lengths.items() if values}


def _shown(row: dict[str, Any]) -> str:
    return "\n\n".join(f"{name}: {row[name]}" for name in TEXT_COLUMNS if row.get(name))
