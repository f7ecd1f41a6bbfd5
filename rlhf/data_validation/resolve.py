"""What follows from whole datasets: prompts held out, rows put aside, both sides of the split filled."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from rlhf.data.formats import MEANINGS, Reason
from rlhf.data.intake import TEXTS
from rlhf.data.sources import Source
from rlhf.data.store import SCHEMAS, DatasetWriter, read_tables, rewrite_dataset, take_rows
from rlhf.data.template import Template
from rlhf.data_validation.canonical import Written
from rlhf.data_validation.checks import Example
from rlhf.data_validation.config import DataValidationConfig
from rlhf.data_validation.findings import TRAINED_ON, Overlap, Pairs, overlaps, pair_findings
from rlhf.data_validation.index import Index
from rlhf.errors import DataError

DUPLICATES = """
    select number from preferences
    qualify row_number() over (partition by prompt_key, one_key, other_key order by number) > 1
"""
EQUAL_CANDIDATES = "select number from preferences where one_key = other_key"
CONTRADICTIONS = """
    select number from preferences
    where (prompt_key, one_key, other_key) in (select (prompt_key, other_key, one_key) from preferences)
"""


@dataclass
class Resolved:
    """What was found before anything was put aside, and what was."""

    pairs: Pairs
    overlaps: list[Overlap]
    examples: dict[str, list[Example]] = field(default_factory=dict)
    """By finding: duplicates, contradictions, lengths, and shared_prompts_<dataset>."""
    quarantined: dict[str, pa.Table] = field(default_factory=dict)
    """By dataset: rows put aside."""
    prompts_held_out: int = 0
    pairs_train: int = 0
    pairs_eval: int = 0


def take_out_equal(source: Source, preferences: Written, index: Index) -> pa.Table:
    """Take out pairs whose candidates became the same when the suffix's marker was taken off.

    Returns:
        What is to be added to the quarantine; all pairs, where none is left.
    """
    equal = dict.fromkeys(index.column(EQUAL_CANDIDATES), Reason.EQUAL_CANDIDATES)
    if not equal:
        return SCHEMAS["quarantine"].empty_table()
    return _take_out("preferences", equal, source, preferences, index)


def resolve(
    config: DataValidationConfig,
    template: Template,
    sources: dict[str, Source],
    written: dict[str, Written],
    index: Index,
) -> Resolved:
    """Bring the datasets written into their final state; `written` and the index follow.

    Raises:
        DataError: There are fewer than two prompts with preferences, or, without eval_dataset, than two prompts; no
            row of a dataset is left to train on.
    """
    held_out = 0 if config.eval_dataset else _hold_out_prompts(config, template, written, index)
    _hold_out_pairs(config, written["preferences"], index)
    pairs, shared = pair_findings(index), overlaps(index)
    resolved = Resolved(pairs, shared, prompts_held_out=held_out)
    numbers = {
        "duplicates": ("preferences", pairs.duplicate_examples),
        "contradictions": ("preferences", pairs.contradiction_examples),
        "lengths": ("preferences", pairs.length_examples),
        **{f"shared_prompts_{overlap.dataset}": ("evaluation", overlap.examples) for overlap in shared},
    }
    for finding, (dataset, rows) in numbers.items():
        source = sources.get(dataset) or sources["prompts"]
        resolved.examples[finding] = examples(dataset, rows, source, written, index)

    _put_aside(config, sources, written, index, resolved)
    if "preferences" in resolved.quarantined:
        _hold_out_pairs(config, written["preferences"], index, again=True)
    resolved.pairs_eval, resolved.pairs_train = index.query(
        "select count(*) filter (held_out), count(*) filter (not held_out) from preferences"
    )[0]
    return resolved


def examples(
    dataset: str,
    numbers: Sequence[int],
    source: Source,
    written: dict[str, Written],
    index: Index,
) -> list[Example]:
    """Rows of a dataset for people to look at."""
    if not numbers:
        return []
    numbers = sorted(set(numbers))
    origins = index.query(
        f"select file, line from {dataset} where number in ({', '.join(map(str, numbers))}) order by number"
    )
    found = []
    data = written[dataset]
    for (file, line), row in zip(origins, take_rows(data.path, data.manifest, numbers), strict=True):
        names = [name for name in TEXTS[data.manifest.kind] if row[name]]
        texts = "\n\n".join(f"{name}: {row[name]}" for name in names)
        found.append(Example.of(f"{source.files[file]}:{line}", texts))
    return found


def _hold_out_prompts(
    config: DataValidationConfig, template: Template, written: dict[str, Written], index: Index
) -> int:
    """Move a part of the prompts to the evaluation; the rows moved. The draw is that of the preferences' split, so
    that a reward model is not trained on pairs of these prompts either, fractions being equal."""
    rows, distinct = index.query("select count(*), count(distinct prompt_key) from prompts")[0]
    if distinct < 2:
        raise DataError(
            f"prompt_dataset: {rows} usable rows of 1 prompt cannot be split into prompts to train on and prompts "
            "to evaluate on; give eval_dataset, or two prompts or more"
        )
    _mark_held_out("prompts", config.prompt_eval_fraction, index)
    held_out = np.array(index.column("select held_out from prompts order by number"))
    writer = DatasetWriter(written["evaluation"].path, "prompts", template)
    tables, _, _ = read_tables(written["prompts"].path, "prompts", written["prompts"].manifest)
    before = 0
    for table in tables:
        writer.write(table.filter(pa.array(held_out[before : before + len(table)])))
        before += len(table)
    written["evaluation"].manifest = writer.close()
    _keep(written["prompts"], "prompts", ~held_out)
    index.replace("evaluation", "from prompts where held_out")
    index.replace("prompts", "from prompts where not held_out")
    return int(held_out.sum())


def _put_aside(
    config: DataValidationConfig,
    sources: dict[str, Source],
    written: dict[str, Written],
    index: Index,
    resolved: Resolved,
) -> None:
    """Quarantine what the config says is to be: a row for the first reason that applies.

    Pairs that are held out stay though their prompts are evaluated on: no stage trains on them.
    """
    shared = "select number from {} where prompt_key in (select prompt_key from evaluation) and {}"
    wanted = [
        ("preferences", Reason.CONTRADICTORY, CONTRADICTIONS, config.contradictions),
        ("preferences", Reason.DUPLICATE, DUPLICATES, config.duplicates),
        *((name, Reason.SHARED_PROMPT, shared.format(name, rows), config.shared_prompts)
          for name, rows in TRAINED_ON.items()),
    ]  # fmt: skip
    aside: dict[str, dict[int, Reason]] = {}
    for dataset, reason, query, treatment in wanted:
        if treatment == "quarantine":
            for number in index.column(query):
                aside.setdefault(dataset, {}).setdefault(number, reason)
    for dataset, reasons in aside.items():
        left = TRAINED_ON[dataset] if Reason.SHARED_PROMPT in reasons.values() else "true"
        resolved.quarantined[dataset] = _quarantine(dataset, reasons, sources[dataset], written[dataset], index, left)


def _quarantine(
    dataset: str, reasons: dict[int, Reason], source: Source, data: Written, index: Index, left: str
) -> pa.Table:
    """Take rows out of a dataset.

    Args:
        reasons: By number of row.
        left: Condition that at least one of the rows that stay must fulfil.

    Returns:
        What is to be added to the quarantine.
    """
    aside = _take_out(dataset, reasons, source, data, index)
    if not index.query(f"select count(*) from {dataset} where {left}")[0][0]:
        counts = Counter(reasons.values())
        said = ", ".join(f"{count:,} {reason} ({MEANINGS[reason]})" for reason, count in counts.items())
        raise DataError(
            f"{source.parameter}: no row is left to train on, as these were to be put in quarantine: {said}"
        )
    return aside


def _take_out(dataset: str, reasons: dict[int, Reason], source: Source, data: Written, index: Index) -> pa.Table:
    numbers = pa.table({"number": pa.array(sorted(reasons), pa.int64())})
    origins = index.join(
        numbers, f"select number, file, line, offset_ from {dataset} join given using (number) order by number"
    )
    lines: dict[str, set[int]] = {}
    for _, file, line, _ in origins:
        lines.setdefault(source.files[file], set()).add(line)
    texts = {(file, line): text for file, line, text in source.texts(lines)}
    rows = [
        {
            "file": source.files[file],
            "line": line,
            "offset": offset,
            "reason": str(reasons[number]),
            "field": "",
            "row": texts[source.files[file], line],
        }
        for number, file, line, offset in origins
    ]
    keep = np.ones(data.manifest.rows, bool)
    keep[list(reasons)] = False
    _keep(data, dataset, keep)
    index.replace(dataset, f"from {dataset} where number not in (select number from given)", numbers)
    return pa.Table.from_pylist(rows, SCHEMAS["quarantine"])


def _hold_out_pairs(config: DataValidationConfig, data: Written, index: Index, again: bool = False) -> None:
    """Mark the pairs held out, and where a side of the split would be empty, or was before, write the split again."""
    if not config.preference_dataset:  # a grader takes their place
        index.add_column("preferences", "held_out", "false")
        return
    rows, distinct = index.query("select count(*), count(distinct prompt_key) from preferences")[0]
    if distinct < 2:
        raise DataError(
            f"preference_dataset: {rows} usable pairs of {distinct} prompt{'s' if distinct != 1 else ''} cannot be "
            "split into pairs to train on and pairs to measure with; expected two prompts or more"
        )
    if not _mark_held_out("preferences", config.preference_eval_fraction, index) and not again:
        return
    held_out = np.array(index.column("select held_out from preferences order by number"))
    splits = np.where(held_out, "eval", "train")

    def with_split(table: pa.Table, before: int) -> pa.Table:
        column = pa.array(splits[before : before + len(table)], pa.string())
        return table.set_column(table.schema.get_field_index("split"), "split", column)

    data.manifest = rewrite_dataset(data.path, "preferences", data.manifest, with_split)


def _mark_held_out(dataset: str, fraction: float, index: Index) -> bool:
    """Add or renew the column `held_out`: about `fraction` of the distinct prompts, of which there are two or more.

    A prompt keeps its side when rows are added or reordered. Neither side is left empty: with very few prompts the
    one whose draw comes nearest changes sides. With one seed, what a small fraction holds out a larger one does, too.

    Returns:
        Whether a prompt changed sides.
    """
    lowest, highest = index.query(f"select min(draw), max(draw) from {dataset}")[0]
    rule, changed = f"draw < '{fraction!r}'::double", True
    if lowest >= fraction:
        rule = f"draw <= '{lowest!r}'::double"
    elif highest < fraction:
        rule = f"draw < '{highest!r}'::double"
    else:
        changed = False
    index.add_column(dataset, "held_out", rule)
    return changed


def _keep(data: Written, kind: str, keep: np.ndarray) -> None:
    def kept(table: pa.Table, before: int) -> pa.Table:
        return table.filter(pa.array(keep[before : before + len(table)]))

    data.manifest = rewrite_dataset(data.path, kind, data.manifest, kept)
