"""What is odd about datasets as wholes, found by their keys in the index (`rlhf.data_validation.canonical`)."""

from dataclasses import dataclass, field

from rlhf.data_validation.index import Index
from rlhf.metrics import Share, share

# Datasets that a stage trains on, and which of their rows.
TRAINED_ON = {"prompts": "true", "preferences": "not held_out", "demonstrations": "true"}


@dataclass(frozen=True)
class Pairs:
    """About preference pairs, whitespace around texts aside."""

    rows: int
    prompts: int
    """Distinct ones."""
    duplicates: int
    """Rows beyond the first of the same prompt, chosen and rejected."""
    contradictions: int
    """Distinct pairs of candidates labelled both ways."""
    contradictory: int
    """Rows that these are."""
    first_chosen: Share
    """How often the first candidate as laid out was chosen; of no rows where the shape does not tell."""
    longer_chosen: Share
    """How often the longer candidate was chosen, in characters, of pairs unequal in length."""
    margins: int
    """Rows with a margin."""
    annotators: list["Annotator"]
    """By rows; empty where the data names none."""
    duplicate_examples: list[int] = field(default_factory=list)
    """Numbers of rows."""
    contradiction_examples: list[int] = field(default_factory=list)
    """Numbers of rows, two for each contradiction."""
    length_examples: list[int] = field(default_factory=list)
    """Numbers of the rows whose candidates differ most in length, the one being chosen that mostly is."""


@dataclass(frozen=True)
class Annotator:
    """How often who chose agrees with others about the same two candidates."""

    name: str
    rows: int
    agreement: Share


@dataclass(frozen=True)
class Overlap:
    """Evaluation prompts that are also trained on."""

    dataset: str
    prompts: int
    """Distinct prompts of the evaluation in `dataset`; of the preferences, in those that are not held out."""
    of: int
    """Distinct prompts of the evaluation."""
    held_out: int = 0
    """Further ones in the preferences' held-out part, which the reward model is measured on."""
    examples: list[int] = field(default_factory=list)
    """Numbers of rows of the evaluation."""


def pair_findings(index: Index) -> Pairs:
    """Look at the table `preferences`."""
    rows, first, positioned, longer, unequal, margins = index.query("""
        select count(*), count(*) filter (position = 0), count(position), count(*) filter (one_chars > other_chars),
            count(*) filter (one_chars <> other_chars), count(margin)
        from preferences
        """)[0]
    index.query("""
        create or replace temp table labels as
        select prompt_key, one_key, other_key, count(*) as rows, min(number) as number, max(number) as last
        from preferences group by all
        """)
    prompts, distinct = index.query("select count(distinct prompt_key), count(*) from labels")[0]
    both = """
        from labels as a join labels as b
        on a.prompt_key = b.prompt_key and a.one_key = b.other_key and a.other_key = b.one_key
        where a.one_key < a.other_key
    """
    contradictions, contradictory = index.query(f"select count(*), coalesce(sum(a.rows + b.rows), 0) {both}")[0]
    return Pairs(
        rows=rows,
        prompts=prompts,
        duplicates=rows - distinct,
        contradictions=contradictions,
        contradictory=int(contradictory),
        first_chosen=share(first, positioned),
        longer_chosen=share(longer, unequal),
        margins=margins,
        annotators=_annotators(index),
        duplicate_examples=index.column(
            "select unnest([number, last]) from (from labels where rows > 1 order by rows desc, number limit 1)",
        ),
        contradiction_examples=index.column(
            f"select unnest([n, m]) from (select a.number as n, b.number as m {both} order by n limit 1)"
        ),
        length_examples=index.column(
            "select number from preferences where one_chars <> other_chars "
            f"order by one_chars - other_chars {'desc' if 2 * longer >= unequal else 'asc'}, number limit 2",
        ),
    )


def overlaps(index: Index) -> list[Overlap]:
    """Which prompts of the table `evaluation` are in each of those that are trained on."""
    (of,) = index.column("select count(distinct prompt_key) from evaluation")
    found = []
    for name, trained_on in TRAINED_ON.items():
        shared = f"from evaluation where prompt_key in (select prompt_key from {name}"
        (anywhere,) = index.column(f"select count(distinct prompt_key) {shared})")
        (prompts,) = index.column(f"select count(distinct prompt_key) {shared} where {trained_on})")
        examples = index.column(f"select number {shared} where {trained_on}) order by number limit 2")
        found.append(Overlap(name, prompts, of, anywhere - prompts, examples))
    return found


def sample(index: Index, dataset: str, most: int) -> list[int]:
    """Numbers of all rows, or of `most` drawn by a hash, ascending."""
    return index.column(
        f"from (select number from {dataset} order by hash(prompt_key, number), number limit {most}) order by 1",
    )


def _annotators(index: Index) -> list[Annotator]:
    found = index.query(
        """
        with votes as (
            select annotator, prompt_key, least(one_key, other_key) as a, greatest(one_key, other_key) as b,
                one_key < other_key as vote
            from preferences where annotator is not null
        ), compared as (
            select x.annotator, count(*) filter (x.vote = y.vote) as agreed, count(*) as compared
            from votes as x join votes as y using (prompt_key, a, b) where x.annotator <> y.annotator
            group by x.annotator
        )
        select annotator, count(*) as rows, any_value(coalesce(agreed, 0)), any_value(coalesce(compared, 0))
        from votes left join compared using (annotator) group by annotator order by rows desc, annotator
        """
    )
    return [Annotator(name, rows, share(agreed, compared)) for name, rows, agreed, compared in found]
