import json

import pyarrow.parquet as pq
import pytest

from rlhf.data.store import SCHEMAS, publish, read_dataset, rewrite_dataset, write_dataset
from rlhf.data.template import Template
from rlhf.errors import DataError

TEMPLATE = Template(suffix="TL;DR:")


def prompts(count: int) -> list[dict]:
    return [{"id": f"{i}", "prompt": f"Prompt ö {i}", "reference": None if i % 2 else "r"} for i in range(count)]


def test_what_is_written_is_read_again_in_order(tmp_path):
    manifest = write_dataset(tmp_path / "d", "prompts", prompts(5), TEMPLATE, rows_per_shard=2)
    assert read_dataset(tmp_path / "d", "prompts") == (prompts(5), manifest, TEMPLATE)
    assert manifest.shards == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]


@pytest.mark.parametrize("kind", SCHEMAS)
def test_a_dataset_without_rows_keeps_its_columns(tmp_path, kind):
    write_dataset(tmp_path / "d", kind, [], TEMPLATE)
    rows, manifest, _ = read_dataset(tmp_path / "d", kind)
    assert (rows, manifest.rows) == ([], 0)
    assert pq.read_schema(tmp_path / "d" / manifest.shards[0]).names == manifest.columns


def test_the_digest_is_of_the_rows_and_not_of_the_shards(tmp_path):
    whole = write_dataset(tmp_path / "a", "prompts", prompts(5), TEMPLATE)
    cut = write_dataset(tmp_path / "b", "prompts", iter(prompts(5)), TEMPLATE, rows_per_shard=2)
    assert whole.digest == cut.digest == "f2f51660822aa204"


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[3].update(prompt="Prompt ö 3 "),
        lambda rows: rows[3].update(reference=""),
        lambda rows: rows.reverse(),
        lambda rows: rows.pop(),
        lambda rows: rows.append(rows[0]),
        lambda rows: (rows[0].update(id="01"), rows[0].update(prompt="rompt")),
    ],
)
def test_the_digest_changes_with_any_row(tmp_path, change):
    rows = prompts(5)
    change(rows)
    assert (
        write_dataset(tmp_path / "a", "prompts", rows, TEMPLATE).digest
        != write_dataset(tmp_path / "b", "prompts", prompts(5), TEMPLATE).digest
    )


def pairs(position: int | None = None, margin: float | None = None) -> list[dict]:
    row = {"prompt": "P", "chosen": "a", "rejected": "b", "split": "train"}
    known = {name: value for name, value in (("position", position), ("margin", margin)) if value is not None}
    return [{"id": "1", **row}, {"id": "2", **row, **known}, {"id": "3", **row}]


def test_a_pair_needs_neither_position_nor_margin(tmp_path):
    write_dataset(tmp_path / "d", "preferences", pairs(1, 0.5), TEMPLATE)
    rows = read_dataset(tmp_path / "d", "preferences")[0]
    assert [(row["position"], row["margin"]) for row in rows] == [(None, None), (1, 0.5), (None, None)]


def test_the_digest_tells_every_position_and_margin_and_their_absence_apart(tmp_path):
    values = [None, 0, 1, -1]
    digests = [
        write_dataset(tmp_path / "d", "preferences", pairs(position, margin), TEMPLATE, rows_per_shard=shard).digest
        for shard in (1, 2, 9)
        for position in values
        for margin in (*values, 0.5, float("nan"))
    ]
    assert len(set(digests)) == 4 * 6
    assert digests[:24] == digests[24:48] == digests[48:]
    assert write_dataset(tmp_path / "d", "preferences", pairs(1, 0.5), TEMPLATE).digest == "a185eed56787b268"


def test_the_digest_tells_in_which_row_a_number_stands(tmp_path):
    rows = pairs(1, 0.5)
    one = write_dataset(tmp_path / "d", "preferences", rows, TEMPLATE)
    rows[0] |= {name: rows[1].pop(name) for name in ("position", "margin")}
    assert write_dataset(tmp_path / "d", "preferences", rows, TEMPLATE).digest != one.digest


def test_a_dataset_of_other_columns_is_refused_with_what_to_do(tmp_path):
    write_dataset(tmp_path / "d", "preferences", pairs(), TEMPLATE)
    manifest = json.loads((tmp_path / "d" / "manifest.json").read_text())
    manifest["columns"] = manifest["columns"][:-2]
    (tmp_path / "d" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        DataError, match=r"found .*, split\), expected .*, margin\); it was written by another version, run"
    ):
        read_dataset(tmp_path / "d", "preferences")


def test_half_a_dataset_is_not_taken_for_a_whole_one(tmp_path):
    def interrupted():
        yield from prompts(4)
        raise KeyboardInterrupt

    write_dataset(tmp_path / "d", "prompts", prompts(9), TEMPLATE, rows_per_shard=2)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "d", "prompts", interrupted(), TEMPLATE, rows_per_shard=2)
    with pytest.raises(DataError, match="unfinished run"):
        read_dataset(tmp_path / "d", "prompts")


def test_a_change_that_fails_leaves_no_dataset_and_no_other_folder(tmp_path):
    manifest = write_dataset(tmp_path / "d", "prompts", prompts(4), TEMPLATE)
    (tmp_path / "d" / "manifest.json").unlink()
    with pytest.raises(ZeroDivisionError):
        rewrite_dataset(tmp_path / "d", "prompts", manifest, lambda *_: 1 / 0)
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
    changed = rewrite_dataset(tmp_path / "d", "prompts", manifest, lambda table, before: table[1:])
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
    with pytest.raises(DataError, match="unfinished run"):
        read_dataset(tmp_path / "d", "prompts")
    publish(tmp_path / "d", changed)
    assert read_dataset(tmp_path / "d", "prompts")[0] == prompts(4)[1:]


def test_writing_again_replaces_what_was_there(tmp_path):
    write_dataset(tmp_path / "d", "prompts", prompts(9), TEMPLATE, rows_per_shard=2)
    write_dataset(tmp_path / "d", "prompts", prompts(1), TEMPLATE)
    assert read_dataset(tmp_path / "d", "prompts")[0] == prompts(1)
    assert len(list((tmp_path / "d").glob("*.parquet"))) == 1


def test_a_dataset_of_another_kind_is_refused(tmp_path):
    write_dataset(tmp_path / "d", "prompts", prompts(1), TEMPLATE)
    with pytest.raises(DataError, match=r"found a dataset of prompts .*, expected preferences"):
        read_dataset(tmp_path / "d", "preferences")


def swap_shard(folder):
    other = write_dataset(folder.with_name("other"), "prompts", prompts(2)[::-1], TEMPLATE)
    (folder.with_name("other") / other.shards[0]).rename(folder / other.shards[0])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda d: (d / "part-00000.parquet").unlink(), "part-00000.parquet: cannot be read"),
        (lambda d: (d / "part-00000.parquet").write_bytes(b"PAR1"), "part-00000.parquet: cannot be read"),
        (swap_shard, "the files were changed"),
        (lambda d: (d / "manifest.json").write_text("{}"), "not a dataset manifest"),
        (lambda d: (d / "manifest.json").unlink(), "unfinished run"),
        (lambda d: (d / "template.json").unlink(), "template.json: no such file"),
        (lambda d: Template(suffix="other").save(d), "is not the one the data was written with"),
    ],
)
def test_a_damaged_dataset_is_refused_with_what_is_wrong(tmp_path, damage, says):
    write_dataset(tmp_path / "d", "prompts", prompts(2), TEMPLATE)
    damage(tmp_path / "d")
    with pytest.raises(DataError, match=says):
        read_dataset(tmp_path / "d", "prompts")


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere/manifest.json: no such folder"):
        read_dataset(tmp_path / "nowhere", "prompts")


@pytest.mark.parametrize("value", [None, 5, "\ud800"])
def test_what_is_not_text_is_not_written(tmp_path, value):
    with pytest.raises(DataError, match="column 'prompt'"):
        write_dataset(tmp_path / "d", "prompts", [{"id": "a", "prompt": value, "reference": None}], TEMPLATE)


def test_the_manifest_names_the_template(tmp_path):
    write_dataset(tmp_path / "d", "prompts", prompts(1), TEMPLATE)
    assert json.loads((tmp_path / "d" / "manifest.json").read_text())["template_digest"] == TEMPLATE.digest
