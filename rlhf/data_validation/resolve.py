"""What follows from whole datasets: prompts held out, rows put aside, both sides of the split filled."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import duckdb
import numpy as np
import pyarrow as pa

from rlhf.data.formats import Reason
from rlhf.data.sources import Source
from rlhf.data.store import SCHEMAS, DatasetWriter, read_tables, rewrite_dataset, take_rows
from rlhf.data.template import Template
from rlhf.data_validation.canonical import Written
from rlhf.data_validation.checks import Example
from rlhf.data_validation.config import DataValidationConfig
from rlhf.data_validation.findings import Overlap, Pairs, overlaps, pair_findings
from rlhf.errors import DataError

DUPLICATES = """
    select number from preferences
    qualify row_number() over (partition by prompt_key, one_key, other_key order by number) > 1
"""
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
    """By finding: duplicates, contradictions, longer, and shared_prompts_<dataset>."""
    quarantined: dict[str, pa.Table] = field(default_factory=dict)
    """By dataset: rows put aside."""
    prompts_held_out: int = 0
    pairs_train: int = 0
    pairs_eval: int = 0


def resolve(
    config: DataValidationConfig,
    template: Template,
    sources: dict[str, Source],
    written: dict[str, Written],
    database: duckdb.DuckDBPyConnection,
) -> Resolved:
    """Bring the datasets written into their final state; `written` and the index follow.

    Raises:
        DataError: There are fewer than two prompts with preferences, or, without eval_dataset, than two prompts.
    """
    held_out = 0 if config.eval_dataset else _hold_out_prompts(config, template, written, database)
    pairs = pair_findings(database)
    shared = overlaps(database, config.preference_eval_fraction)
    resolved = Resolved(pairs, shared, prompts_held_out=held_out)
    numbers = {
        "duplicates": ("preferences", pairs.duplicate_examples),
        "contradictions": ("preferences", pairs.contradiction_examples),
        "longer": ("preferences", pairs.longer_examples),
        **{f"shared_prompts_{overlap.dataset}": ("evaluation", overlap.examples) for overlap in shared},
    }
    for finding, (dataset, rows) in numbers.items():
        source = sources.get(dataset) or sources["prompts"]
        resolved.examples[finding] = examples(dataset, rows, source, written, database)

    _put_aside(config, sources, written, database, resolved)
    _split(config, written, database)
    resolved.pairs_eval, resolved.pairs_train = database.execute(
        "select count(*) filter (held_out), count(*) filter (not held_out) from preferences"
    ).fetchone()
    return resolved


def examples(
    dataset: str,
    numbers: Sequence[int],
    source: Source,
    written: dict[str, Written],
    database: duckdb.DuckDBPyConnection,
) -> list[Example]:
    """Rows of a dataset for people to look at."""
    if not numbers:
        return []
    numbers = sorted(set(numbers))
    origins = database.execute(
        f"select file, line from {dataset} where number in ({', '.join(map(str, numbers))}) order by number"
    ).fetchall()
    found = []
    for (file, line), row in zip(origins, take_rows(written[dataset].path, numbers), strict=True):
        texts = "\n\n".join(f"{name}: {row[name]}" for name in row if name not in ("id", "split") and row[name])
        found.append(Example(f"{source.files[file]}:{line}", texts))
    return found


def _hold_out_prompts(
    config: DataValidationConfig, template: Template, written: dict[str, Written], database: duckdb.DuckDBPyConnection
) -> int:
    """Move a part of the prompts to the evaluation; the rows moved. The draw is that of the preferences' split, so
    that a reward model is not trained on pairs of these prompts either, fractions being equal."""
    rows, distinct = database.execute("select count(*), count(distinct prompt_key) from prompts").fetchone()
    if distinct < 2:
        raise DataError(
            f"prompt_dataset: {rows} usable rows of 1 prompt cannot be split into prompts to train on and prompts "
            "to evaluate on; give eval_dataset, or two prompts or more"
        )
    _mark_held_out("prompts", config.prompt_eval_fraction, database)
    (marks,) = database.execute("select held_out from prompts order by number").fetchnumpy().values()
    held_out = np.ma.getdata(marks).astype(bool)
    writer = DatasetWriter(written["evaluation"].path, "prompts", template)
    tables, _, _ = read_tables(written["prompts"].path, "prompts")
    before = 0
    for table in tables:
        writer.write(table.filter(pa.array(held_out[before : before + len(table)])))
        before += len(table)
    written["evaluation"].manifest = writer.finish()
    _keep(written["prompts"], "prompts", ~held_out)
    database.execute("create or replace table evaluation as select * exclude held_out from prompts where held_out")
    database.execute("delete from prompts where held_out; alter table prompts drop column held_out")
    _renumber("prompts", database)
    _renumber("evaluation", database)
    return int(held_out.sum())


def _put_aside(
    config: DataValidationConfig,
    sources: dict[str, Source],
    written: dict[str, Written],
    database: duckdb.DuckDBPyConnection,
    resolved: Resolved,
) -> None:
    """Quarantine what the config says is to be: a row for the first reason that applies."""
    shared = "select number from {} where prompt_key in (select prompt_key from evaluation)"
    wanted = [
        ("preferences", Reason.CONTRADICTORY, CONTRADICTIONS, config.contradictions),
        ("preferences", Reason.DUPLICATE, DUPLICATES, config.duplicates),
        *((name, Reason.SHARED_PROMPT, shared.format(name), config.shared_prompts)
          for name in ("preferences", "prompts", "demonstrations")),
    ]  # fmt: skip
    aside: dict[str, dict[int, Reason]] = {}
    for dataset, reason, query, treatment in wanted:
        if treatment == "quarantine":
            for (number,) in database.execute(query).fetchall():
                aside.setdefault(dataset, {}).setdefault(number, reason)
    for dataset, reasons in aside.items():
        source = sources[dataset]
        numbers = pa.table({"number": pa.array(sorted(reasons), pa.int64())})
        origins = (
            database.from_arrow(numbers)
            .query("wanted", f"select number, file, line, offset_ from {dataset} join wanted using (number) order by 1")
            .fetchall()
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
        resolved.quarantined[dataset] = pa.Table.from_pylist(rows, SCHEMAS["quarantine"])
        keep = np.ones(written[dataset].manifest.rows, bool)
        keep[[number for number, *_ in origins]] = False
        _keep(written[dataset], "prompts" if dataset == "prompts" else dataset, keep)
        database.from_arrow(numbers).query("gone", f"delete from {dataset} where number in (select number from gone)")
        _renumber(dataset, database)


def _split(config: DataValidationConfig, written: dict[str, Written], database: duckdb.DuckDBPyConnection) -> None:
    """See to it that neither side of the preferences' split is empty."""
    rows, distinct = database.execute("select count(*), count(distinct prompt_key) from preferences").fetchone()
    if distinct < 2:
        raise DataError(
            f"preference_dataset: {rows} usable pairs of {distinct} prompt{'s' if distinct != 1 else ''} cannot be "
            "split into pairs to train on and pairs to measure with; expected two prompts or more"
        )
    if not _mark_held_out("preferences", config.preference_eval_fraction, database):
        return
    (marks,) = database.execute("select held_out from preferences order by number").fetchnumpy().values()
    splits = np.where(np.ma.getdata(marks).astype(bool), "eval", "train")

    def with_split(table: pa.Table, before: int) -> pa.Table:
        column = pa.array(splits[before : before + len(table)], pa.string())
        return table.set_column(table.schema.get_field_index("split"), "split", column)

    written["preferences"].manifest = rewrite_dataset(written["preferences"].path, "preferences", with_split)


def _mark_held_out(dataset: str, fraction: float, database: duckdb.DuckDBPyConnection) -> bool:
    """Add the column `held_out`: about `fraction` of the distinct prompts, of which there are two or more.

    A prompt keeps its side when rows are added or reordered. Neither side is left empty: with very few prompts the
    one whose draw comes nearest changes sides. With one seed, what a small fraction holds out a larger one does, too.

    Returns:
        Whether a prompt changed sides.
    """
    lowest, highest = database.execute(f"select min(draw), max(draw) from {dataset}").fetchone()
    rule = "draw < $1"
    if lowest >= fraction:
        rule = "draw < $1 or draw = $2"
    elif highest < fraction:
        rule = "draw < $1 and draw <> $2"
    nearest = lowest if lowest >= fraction else highest
    database.execute(f"alter table {dataset} add column held_out boolean")
    parameters = [fraction] if "$2" not in rule else [fraction, nearest]
    database.execute(f"update {dataset} set held_out = {rule}", parameters)
    return "$2" in rule


def _keep(data: Written, kind: str, keep: np.ndarray) -> None:
    def kept(table: pa.Table, before: int) -> pa.Table:
        return table.filter(pa.array(keep[before : before + len(table)]))

    data.manifest = rewrite_dataset(data.path, kind, kept)


def _renumber(dataset: str, database: duckdb.DuckDBPyConnection) -> None:
    number = "row_number() over (order by number) - 1 as number"
    database.execute(f"create or replace table {dataset} as select * replace ({number}) from {dataset}")
