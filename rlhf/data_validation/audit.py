"""What a careful reader would notice in the data: measured, compared with what is tolerated, said in words."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb
from tokenizers import Tokenizer

from rlhf.data.intake import Intake
from rlhf.data.sources import Source
from rlhf.data.store import take_rows
from rlhf.data.template import Template
from rlhf.data_validation import findings
from rlhf.data_validation.canonical import Written
from rlhf.data_validation.checks import Example, Verdict, at_least, at_most, near_half
from rlhf.data_validation.config import DataValidationConfig
from rlhf.data_validation.near_duplicates import NearDuplicates, near_duplicates
from rlhf.data_validation.resolve import Resolved
from rlhf.data_validation.tokens import TokenLengths, token_lengths
from rlhf.metrics import share

SAMPLE_ROWS = 5_000  # of each dataset: what needs every text in memory looks at no more
LENGTHS_SHOWN = 20_000  # texts of each dataset that the plots are made of

TEXT_COLUMNS = ("prompt", "chosen", "rejected", "completion", "reference")


@dataclass
class Audit:
    """Everything the report shows beyond counts of rows."""

    metrics: dict[str, float] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    sampled: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By dataset: rows looked at, of how many."""
    characters: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    """By dataset and column: lengths, of at most `LENGTHS_SHOWN` texts."""
    tokens: dict[str, TokenLengths] = field(default_factory=dict)
    """By dataset; empty where the model has no tokenizer.json."""
    near: NearDuplicates | None = None


@dataclass(frozen=True)
class Sample:
    """Some rows of a dataset, and where they come from."""

    dataset: str
    numbers: list[int]
    rows: list[dict[str, Any]]
    source: Source
    origins: list[tuple[int, int]]

    def example(self, index: int, text: str) -> Example:
        file, line = self.origins[index]
        return Example(f"{self.source.files[file]}:{line}", text)


def audit(
    config: DataValidationConfig,
    template: Template,
    tokenizer: Tokenizer | None,
    intakes: dict[str, Intake],
    written: dict[str, Written],
    resolved: Resolved,
    database: duckdb.DuckDBPyConnection,
) -> Audit:
    """Look at the datasets as they were written.

    Args:
        tokenizer: The model's; None leaves lengths in tokens out.
        resolved: What was found before rows were put aside.
    """
    result = Audit()
    samples = [_sample(name, data, intakes, database) for name, data in written.items() if data.manifest.rows]
    result.sampled = {sample.dataset: (len(sample.rows), written[sample.dataset].manifest.rows) for sample in samples}
    _sizes(config, result, resolved, database)
    _pairs(config, result, resolved)
    _overlaps(config, result, resolved)
    _near_duplicates(config, template, result, samples)
    for sample in samples:
        result.characters[sample.dataset] = _characters(sample.dataset, sample.rows[0], database)
    if tokenizer is not None:
        _tokens(config, template, tokenizer, result, samples)
    return result


def _sample(dataset: str, data: Written, intakes: dict[str, Intake], database: duckdb.DuckDBPyConnection) -> Sample:
    numbers = findings.sample(database, dataset, SAMPLE_ROWS)
    origins = database.execute(
        f"select file, line from {dataset} where number in (select unnest($1)) order by number", [numbers]
    ).fetchall()
    intake = intakes.get(dataset) or intakes["prompts"]
    return Sample(dataset, numbers, take_rows(data.path, numbers), intake.source, origins)


def _sizes(
    config: DataValidationConfig, result: Audit, resolved: Resolved, database: duckdb.DuckDBPyConnection
) -> None:
    prompts, evaluation = (
        database.execute(f"select count(distinct prompt_key) from {name}").fetchone()[0]
        for name in ("prompts", "evaluation")
    )
    checks = config.checks
    result.verdicts += [
        at_least(
            "pairs", "preferences", resolved.pairs_train, checks.pairs, f"{resolved.pairs_train:,} pairs to train on."
        ),
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
            f"{pairs.contradictions:,} pairs of candidates are labelled both ways, in {pairs.contradictory:,} rows; "
            f"{aside['contradictions']}.",
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
            lambda: resolved.examples["longer"],
        ),
    ]
    compared = sum(annotator.agreement.of for annotator in pairs.annotators)
    if pairs.annotators:
        agreement = share(sum(annotator.agreement.hits for annotator in pairs.annotators), compared)
        result.verdicts.append(
            at_least(
                "annotator_agreement",
                "preferences",
                agreement.rate,
                checks.annotator_agreement,
                f"{len(pairs.annotators):,} annotators; where two saw the same candidates they agree in "
                f"{agreement.in_words()}."
                if compared
                else f"{len(pairs.annotators):,} annotators, of whom no two saw the same candidates.",
            )
        )
    result.metrics |= {
        "duplicate_pairs": pairs.duplicates,
        "contradictory_pairs": pairs.contradictions,
        "longer_wins_share": 0.5 if pairs.longer_chosen.rate is None else pairs.longer_chosen.rate,
    }
    if pairs.first_chosen.rate is not None:
        result.metrics["first_wins_share"] = pairs.first_chosen.rate


def _overlaps(config: DataValidationConfig, result: Audit, resolved: Resolved) -> None:
    metric = {
        "prompts": "shared_prompts",
        "preferences": "shared_with_preferences",
        "demonstrations": "shared_with_demonstrations",
    }
    for overlap in resolved.overlaps:
        result.metrics[metric[overlap.dataset]] = overlap.prompts + overlap.held_out
        done = "they are in quarantine there" if config.shared_prompts == "quarantine" else "they are kept"
        further = f"; {overlap.held_out:,} more are in its held-out part" if overlap.held_out else ""
        result.verdicts.append(
            at_most(
                "shared_prompts",
                overlap.dataset,
                overlap.prompts / overlap.of,
                config.checks.shared_prompts,
                f"{overlap.prompts:,} of {overlap.of:,} evaluation prompts are trained on, too; {done}{further}.",
                lambda finding=f"shared_prompts_{overlap.dataset}": resolved.examples[finding],
            )
        )


def _near_duplicates(config: DataValidationConfig, template: Template, result: Audit, samples: list[Sample]) -> None:
    texts = [
        (sample, index, template.body(row["prompt"])) for sample in samples for index, row in enumerate(sample.rows)
    ]
    near = result.near = near_duplicates([text for _, _, text in texts], seed=config.seed)
    found = share(near.texts, len(texts))
    evaluated = {
        max(pair, key=lambda i: texts[i][0].dataset == "evaluation")
        for *pair, _ in near.pairs
        if len({texts[i][0].dataset == "evaluation" for i in pair}) == 2
    }
    across = f", of which {len(evaluated):,} evaluation prompts with one that is trained on" if evaluated else ""
    result.metrics["near_duplicate_share"] = found.rate or 0.0

    def shown() -> list[Example]:
        first, second, _ = near.pairs[0]
        return [texts[i][0].example(texts[i][1], texts[i][2]) for i in (first, second)]

    result.verdicts.append(
        at_most(
            "near_duplicates",
            "all prompts",
            found.rate,
            config.checks.near_duplicates,
            f"{near.texts:,} of {len(texts):,} prompts looked at nearly repeat another: {found.in_words()}{across}.",
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


def _characters(dataset: str, row: dict[str, Any], database: duckdb.DuckDBPyConnection) -> dict[str, list[int]]:
    columns = {"prompt": "prompt_chars"}
    names = [name for name in TEXT_COLUMNS[1:] if name in row]
    columns |= dict(zip(names, ("one_chars", "other_chars"), strict=False))
    return {name: findings.lengths(database, dataset, column, LENGTHS_SHOWN) for name, column in columns.items()}


def _shown(row: dict[str, Any]) -> str:
    return "\n\n".join(f"{name}: {row[name]}" for name in TEXT_COLUMNS if row.get(name))
