"""Write the reference of data: `python -m docs.data > docs/data.md`."""

import sys

from docs.parameters import table
from rlhf.data.formats import FIELDS, MEANINGS, Kind
from rlhf.data.store import SCHEMAS

INTRODUCTION = """<!-- Made from the code by `make docs`; do not edit. -->

# Data

What `data_validation` reads, what it writes, and what it does with rows that it cannot use.

## Where from

`preference_dataset`, `prompt_dataset`, `eval_dataset` and `demonstration_dataset` take paths, globs, and URIs of
`gs://`, `s3://`, `hf://` and `https://`, several separated by commas: `.jsonl`, `.json` and `.parquet`, each also
packed as `.gz`. Credentials come from where each store's own tools take them; another endpoint of S3 from
`AWS_ENDPOINT_URL`, of GCS from `STORAGE_EMULATOR_HOST`, of the Hugging Face Hub from `HF_ENDPOINT`. Links are
followed, but `**` goes into no folder that is a link.

A file that is HTML, a git-LFS pointer, UTF-16, not UTF-8, cut off within a row, damaged or empty ends the run with
its name, the line and the cause. A byte order mark, CRLF, blank lines, a missing line break at the end and a JSON
array are no errors.

## Shapes

A row's fields say what it is. All rows of one parameter have one shape; two in one source are an error that names
both.
"""

QUARANTINE = """
A preference of any shape may have a `margin` beside its other fields: by how much the chosen candidate is better, zero
or more, as TRL's RewardTrainer takes it. A row of `prompt`, `chosen` and `rejected` serves as a demonstration, too: of
its chosen text; so do `messages` beside a `prompt` where nothing else in the row answers it. Where `label` is true or
false beside a `completion`, as TRL's KTOTrainer takes it, a completion labelled false is no demonstration and no
reference.

## Quarantine

No row is lost: rows read = rows written + rows in quarantine, for each file. A row in quarantine is kept whole, with
its `file`, `line` (of a JSON array the element, of Parquet the row), `offset` (bytes before it; none for arrays and
Parquet), `reason` and `field`. The reasons are these, and no others:
"""

OUTPUT = """
## What is written

Parquet in shards, with `manifest.json` (rows, columns, digest of the content) and `template.json` (how prompts are
rendered) beside them. Later stages refuse a folder without a manifest, rows of another digest, and data or models of
another template. The digest is in the artifact's metadata, too: where something else lies under an artifact's URI
than was described, the next stage says so. In the pipeline `data_validation` is taken from the cache only while its
files are what they were: [what is run again](serving.md#what-is-run-again).
"""

CHECKS = """
`position` is 0 or 1, which candidate was chosen as laid out, and null where the layout names the chosen one; `margin`
and `reference` are null where the row has none.

With `chat_template: model` each has `messages` besides: the prompt's `[{role, content}]` as JSON where the row came as
a conversation, null where it did not. Prompts are then the same when their turns are, whatever the layout they came
in; a text is one turn of the user.

## Checks

After rows come datasets as wholes. Each check has a limit, and what happens beyond it: `fail` ends the run before a
later stage asks for a GPU, `warn` says so in the log and the report, `ignore` only reports it. All are listed in
[parameters.md](parameters.md#data_validationchecks); `data_validation: {checks: {duplicates: {limit: 0.02, action:
fail}}}` sets one. Duplicates, contradictory labels and training rows with a prompt of `eval_dataset` are kept, or
with `duplicates`, `contradictions` and `shared_prompts` set to `quarantine` put aside. Checks that need the texts
themselves look at 5,000 rows of each dataset, drawn by a hash; the report gives 95 % intervals.

Pairs and overlaps between datasets are judged as they came, before such rows are put aside; all else as it is written.

E-mail addresses, phone numbers (with `+`, or as they are written in North America or the UK) and keys are counted, and
masked wherever rows are shown. They stay in the data. Names, postal addresses and other numbers are not looked for.
"""


def render() -> str:
    """The reference, as Markdown."""
    kinds = [kind for kind in SCHEMAS if kind != "quarantine"]
    assert set(kinds) == set(Kind.__args__)
    shapes = [(str(shape), fields) for shape, fields in FIELDS.items()]
    reasons = [(f"`{reason}`", meaning) for reason, meaning in MEANINGS.items()]
    columns = [(kind, ", ".join(f"`{name}`" for name in SCHEMAS[kind].names)) for kind in kinds]
    parts = [
        INTRODUCTION,
        *table(("Shape", "Recognised by"), shapes),
        QUARANTINE,
        *table(("Reason", "Meaning"), reasons),
        OUTPUT,
        *table(("Dataset", "Columns"), columns),
        CHECKS,
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(render())
