import contextlib
import gzip
import io
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf.data.sources import Block, Source
from rlhf.errors import DataError

ROWS = [{"prompt": "Größe", "n": 1}, {"prompt": "b", "n": 2}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


class Row(NamedTuple):
    file: str
    line: int
    text: str
    value: Any


def read(*uris: str | Path) -> list[Row]:
    return rows_of(Source(",".join(map(str, uris)), "prompt_dataset"))


def rows_of(source: Source) -> list[Row]:
    return [
        Row(source.files[block.file[i].as_py()], block.line[i].as_py(), block.row_text(i), value_of(block, i))
        for block in (piece.block() for piece in source.pieces())
        for i in range(len(block))
    ]


def value_of(block: Block, index: int) -> Any:
    if block.text is None:
        return block.row_value(index)
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(block.row_text(index))


def parquet() -> bytes:
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(ROWS), buffer)
    return buffer.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES),
        ("no_final_newline.jsonl", LINES.rstrip()),
        ("lines_named.json", LINES),
        ("bom.jsonl", b"\xef\xbb\xbf" + LINES),
        ("crlf.jsonl", LINES.replace(b"\n", b"\r\n")),
        ("blank_lines.jsonl", LINES.replace(b"\n", b"\n \n\n")),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)),
        ("unpacked_on_the_way.jsonl.gz", LINES),
        ("packed_but_not_named_so.json", gzip.compress(LINES, mtime=0)),
        ("array.json", json.dumps(ROWS, indent=2).encode()),
        ("array.json.gz", gzip.compress(b"\xef\xbb\xbf" + json.dumps(ROWS).encode(), mtime=0)),
        ("a.parquet", parquet()),
        ("a.parquet.gz", gzip.compress(parquet(), mtime=0)),
        ("A.JSONL", LINES),
    ],
)
def test_a_file_whose_meaning_is_plain_is_read(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert [row.value for row in read(tmp_path / name)] == ROWS


def test_rows_come_with_file_line_and_text(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\r\n\r\nno json\r\n{"a":  2}')
    assert [tuple(row) for row in read(tmp_path / "a.jsonl")] == [
        (str(tmp_path / "a.jsonl"), 1, '{"a": 1}', {"a": 1}),
        (str(tmp_path / "a.jsonl"), 3, "no json", None),
        (str(tmp_path / "a.jsonl"), 4, '{"a":  2}', {"a": 2}),
    ]


def test_line_separators_inside_texts_do_not_end_a_row(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": "x\u2028y\x85z"}\n', encoding="utf-8")
    assert [row.value for row in read(tmp_path / "a.jsonl")] == [{"a": "x\u2028y\x85z"}]


@pytest.mark.parametrize("line", ["NUL \0", "{" * 3, '{"a":' * 100_000, "{'a': 1}", '{"a": 1} {"a": 2}'])
def test_a_line_that_is_no_json_is_a_row_without_value(tmp_path, line):
    (tmp_path / "a.jsonl").write_text(f'{line}\n{{"a": 1}}\n')
    assert [(row.text, row.value) for row in read(tmp_path / "a.jsonl")] == [(line, None), ('{"a": 1}', {"a": 1})]


@pytest.mark.parametrize(
    ("name", "content", "place", "says"),
    [
        ("a.jsonl", b"", "a.jsonl", "is empty"),
        ("a.jsonl", b"\n \r\n", "a.jsonl", "is empty"),
        ("a.json", b"[]", "a.json", "is empty"),
        ("a.jsonl", b"\n<!DOCTYPE html>\n<html>", "a.jsonl:1", "web page"),
        ("a.parquet", b"<html>", "a.parquet:1", "web page"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a.jsonl", "git-LFS pointer"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a.parquet", "git-LFS pointer"),
        ("a.json", b'[{"a": 1},\n{"a": ', "a.json:2", "cut off"),
        ("a.json", b'[{"a": 1, "b": 2, "a": 3}]', "a.json", "field 'a' twice"),
        ("a.jsonl.gz", gzip.compress(LINES * 99, mtime=0)[:-30], "a.jsonl.gz", "gzip data is cut off or damaged"),
        ("a.parquet", parquet()[:-9], "a.parquet", "cannot be read as Parquet"),
        ("a.parquet", LINES, "a.parquet", "is not Parquet"),
        ("a.jsonl", LINES + b'{"a": "\xe9"}\n', "a.jsonl:3", r"not UTF-8 text \(byte 8\)"),
        ("a.jsonl", LINES + b'{"a": "\xe9\x80', "a.jsonl:3", "cut off within this row; copy it again"),
        ("a.jsonl", LINES + b'{"a": "\xe9\x80\n', "a.jsonl:3", r"not UTF-8 text \(byte 8\)"),
        ("a.jsonl", LINES + b'{"a": "\xe9"}', "a.jsonl:3", r"not UTF-8 text \(byte 8\)"),
        ("a.jsonl.gz", gzip.compress(LINES + b'{"a": "\xf0\x9f', mtime=0), "a.jsonl.gz:3", "cut off within this row"),
        ("a.json", b'[{"a": "\xe9"}]', "a.json", "not UTF-8 text"),
        ("a.json", b'[{"a": "\xe9', "a.json", "a JSON array that is cut off; copy the file again"),
        ("a.jsonl", LINES.decode().encode("utf-16"), "a.jsonl:1", "UTF-16"),
        ("a.csv", b"prompt\nx\n", "a.csv", "unknown kind of file"),
    ],
)
def test_a_file_that_is_not_the_data_it_is_named_as_is_an_error_with_parameter_and_place(
    tmp_path, name, content, place, says
):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says) as error:
        read(tmp_path / name)
    assert str(error.value).startswith(f"prompt_dataset: {tmp_path / place}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("missing.jsonl", "missing.jsonl: no such file"),
        ("*.jsonl.gz", r"\*.jsonl.gz: this pattern matches no file"),
        (".", "is a folder, expected files"),
        ("a.jsonl,a.jsonl", "a.jsonl: is named twice"),
        ("a.jsonl,*.jsonl", "a.jsonl: is named twice"),
        ("a.jsonl,,b.jsonl", "found an empty name"),
        ("nosuch://a.jsonl", "Protocol not known: nosuch"),
        ("memory://nothing.jsonl", "memory://nothing.jsonl: no such file"),
    ],
)
def test_a_name_that_leads_nowhere_is_an_error_before_anything_is_read(tmp_path, monkeypatch, uri, says):
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_bytes(LINES)
    Path("b.jsonl").write_bytes(LINES)
    with pytest.raises(DataError, match=says) as error:
        Source(uri, "prompt_dataset")
    assert str(error.value).startswith("prompt_dataset: ")


def test_lists_and_globs_are_read_in_order(tmp_path):
    for name in ("c", "b1", "b0"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"name": name}))
    rows = read(tmp_path / "c.jsonl", f" {tmp_path}/b*.jsonl")
    assert [row.value["name"] for row in rows] == ["c", "b0", "b1"]


def test_a_name_with_glob_characters_means_the_file_of_that_name(tmp_path):
    (tmp_path / "a[1].jsonl").write_bytes(LINES)
    assert len(read(tmp_path / "a[1].jsonl")) == 2


def test_links_to_files_and_folders_are_followed_by_patterns(tmp_path):
    store, data = tmp_path / "store", tmp_path / "data"
    for folder in (store / "late", data / "early"):
        folder.mkdir(parents=True)
        (folder / "t.jsonl").write_text(json.dumps({"name": folder.name}))
    (store / "blob").write_text(json.dumps({"name": "linked"}))
    (data / "a.jsonl").symlink_to("../store/blob")
    (data / "folder.jsonl").symlink_to(store / "late")
    assert [row.value["name"] for row in read(data / "*.jsonl")] == ["linked"]
    (data / "b.jsonl").write_text(json.dumps({"name": "plain"}))
    assert [(row.file, row.value["name"]) for row in read(data / "*.jsonl")] == [
        (f"{data}/a.jsonl", "linked"),
        (f"{data}/b.jsonl", "plain"),
    ]
    (data / "late").symlink_to(store / "late")
    assert [row.value["name"] for row in read(data / "*" / "t.jsonl")] == ["early", "late", "late"]
    assert [row.value["name"] for row in read(data / "**" / "[at].jsonl")] == ["linked", "early"]


@pytest.mark.parametrize("pattern", ["*.jsonl", "**/*.jsonl"])
def test_a_link_to_nothing_is_an_error_that_names_it(tmp_path, pattern):
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match=r"^prompt_dataset: .*/b\.jsonl: is a link to what is not there; put the file"):
        read(tmp_path / pattern)


def test_another_file_system_is_read_and_its_rows_say_so():
    fsspec.filesystem("memory").pipe("/bucket/a.jsonl", LINES)
    assert [row.file for row in read("memory://bucket/*.jsonl")] == ["memory:///bucket/a.jsonl"] * 2


class ClientError(Exception):
    """As botocore's and aiohttp's: no OSError."""


class FlakyFile(io.BytesIO):
    """It can be opened; reading it fails."""

    def read(self, size=-1):
        raise ClientError("connection\nreset")


class Flaky(fsspec.AbstractFileSystem):
    """A remote store whose client fails when it is asked for sizes, or while a file is read."""

    protocol = "flaky"
    fails_at = None

    def info(self, path, **kwargs):
        if self.fails_at == "info":
            raise ClientError("403\nForbidden")
        return {"name": path, "size": len(LINES), "type": "file"}

    def exists(self, path, **kwargs):
        return True

    def _open(self, path, mode="rb", **kwargs):
        return FlakyFile(LINES) if self.fails_at == "read" else io.BytesIO(LINES)


@pytest.mark.parametrize(("fails_at", "says"), [("info", "cannot be listed .*403"), ("read", "cannot be read .*reset")])
def test_a_remote_clients_own_exception_is_one_line_with_parameter_and_uri(monkeypatch, fails_at, says):
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    assert len(read("flaky://bucket/a.jsonl")) == 2
    monkeypatch.setattr(Flaky, "fails_at", fails_at)
    with pytest.raises(DataError, match=says) as error:
        read("flaky://bucket/a.jsonl")
    assert str(error.value).startswith("prompt_dataset: flaky://bucket/a.jsonl: ")
    assert "ClientError" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("protocol", "package"), [("gs", "gcsfs"), ("s3", "s3fs")])
def test_a_protocol_whose_package_is_missing_names_what_to_install(monkeypatch, protocol, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=rf"needs a package that is not installed .*{package}") as error:
        read(f"{protocol}://bucket/a.jsonl")
    assert str(error.value).startswith(f"prompt_dataset: {protocol}://bucket/a.jsonl: ")


def test_bytes_read_reach_the_size(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / "b.parquet").write_bytes(parquet())
    source = Source(f"{tmp_path}/b.parquet,{tmp_path}/a.jsonl", "prompt_dataset")
    assert source.bytes_read == 0
    read_so_far = [source.bytes_read for _ in source.pieces()]
    assert read_so_far == sorted(read_so_far)
    assert read_so_far[-1] > len(parquet())
    assert source.bytes_read == source.size == len(LINES) + len(parquet())


def test_a_web_page_saved_under_a_data_name_is_recognised(real_data):
    with pytest.raises(DataError, match="web page"):
        read(real_data / "hostile/html_named.jsonl")


def test_no_password_and_no_signature_of_a_uri_is_shown(monkeypatch):
    class Private(Flaky):
        protocol = "private"

        def info(self, path, **kwargs):
            raise ClientError(f"403 for private://{path}")

    fsspec.register_implementation("private", Private, clobber=True)
    uri = "private://jane:passw0rd@bucket/a.jsonl?X-Amz-Signature=s3cr3t&part=1&access_token=t0ken"
    with pytest.raises(DataError) as error:
        Source(uri, "prompt_dataset")
    said = str(error.value)
    assert "private://…@bucket/a.jsonl?X-Amz-Signature=…&part=1&access_token=…" in said
    assert not any(secret in said for secret in ("jane", "passw0rd", "s3cr3t", "t0ken"))
