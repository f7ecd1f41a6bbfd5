"""What data_validation reads over a network, from real servers on loopback."""
# ruff: noqa: F811 - tests take fixtures that are imported

import gzip
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf.data import file_systems
from rlhf.data.sources import Source
from rlhf.errors import DataError
from tests import stores
from tests.loopback import environment, forget_clients, loopback_only, moto_port, opened  # noqa: F401

PROTOCOLS = ("s3", "gs", "hf", "http")
SECONDS = 60  # within which an error has to come
ROWS = [{"prompt": "Größe", "n": 1}, {"prompt": "b", "n": 2}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
FIRST_LINE = LINES.splitlines(keepends=True)[0]
MANY_ROWS = [{"prompt": "x" * 1000, "n": n} for n in range(12_000)]  # no client fetches so much with one request
MANY_LINES = "".join(json.dumps(row) + "\n" for row in MANY_ROWS).encode()
HALF_OF_MANY_LINES = b"".join(MANY_LINES.splitlines(keepends=True)[: len(MANY_ROWS) // 2])

small_and_large = pytest.mark.parametrize("content", [LINES, MANY_LINES], ids=["small", "large"])
by_name_and_by_pattern = pytest.mark.parametrize("name", ["a.jsonl", "*.jsonl"])


def parquet(rows: list[dict]) -> bytes:
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue().to_pybytes()


def rows_of(source: Source) -> list[dict]:
    blocks = (piece.block() for piece in source.pieces())
    return [json.loads(block.row_text(row)) for block in blocks for row in range(len(block))]


def read(*uris: str) -> list[dict]:
    return rows_of(Source(",".join(uris), "prompt_dataset"))


def error_of(function, uri: str) -> str:
    """The one line in which it ends, in time and without secrets."""
    ends: list[BaseException | list] = []

    def call():
        try:
            ends.append(function())
        except BaseException as error:
            ends.append(error)

    thread = threading.Thread(target=call, daemon=True)  # one that hangs is left behind
    thread.start()
    thread.join(SECONDS)
    assert ends, f"{uri}: no end in {SECONDS} s"
    assert isinstance(ends[0], DataError), f"{uri}: {ends[0]!r:.200}"
    message = str(ends[0])
    assert message.startswith(f"prompt_dataset: {uri}: ")
    assert "\n" not in message
    assert stores.SECRET not in message
    return message


@pytest.fixture(params=PROTOCOLS)
def store(request, opened):
    return opened(request.param)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", LINES), ("a.jsonl.gz", gzip.compress(LINES)), ("a.parquet", parquet(ROWS)), ("größe 1.jsonl", LINES)],
    ids=["lines", "gzip", "parquet", "odd_name"],
)
def test_every_kind_of_file_is_read(store, name, content):
    store.put(name, content)
    assert read(store.uri(name)) == ROWS


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", MANY_LINES), ("a.jsonl.gz", gzip.compress(MANY_LINES, 0)), ("a.parquet", parquet(MANY_ROWS))],
    ids=["lines", "gzip", "parquet"],
)
def test_a_large_file_is_read_with_few_requests(store, name, content):
    store.put(name, content)
    assert read(store.uri(name)) == MANY_ROWS
    assert store.door.requests < 30


def test_a_pattern_is_read_in_order_of_names(store):
    for name in ("b2", "c", "b1"):
        store.put(f"{name}.jsonl", json.dumps({"name": name}).encode())
    assert Source(store.uri("b*.jsonl"), "prompt_dataset").files == [store.uri("b1.jsonl"), store.uri("b2.jsonl")]
    assert [row["name"] for row in read(store.uri("b*.jsonl"))] == ["b1", "b2"]


def test_protocols_mix_in_a_list(opened):
    uris = []
    for protocol in PROTOCOLS:
        store = opened(protocol)
        store.put("a.jsonl", json.dumps({"protocol": protocol}).encode())
        uris.append(store.uri("a.jsonl"))
    assert [row["protocol"] for row in read(*reversed(uris))] == list(reversed(PROTOCOLS))


@by_name_and_by_pattern
def test_a_bucket_that_does_not_exist_is_said(store, name):
    uri = store.uri(name, "none")
    message = error_of(lambda: read(uri), uri)
    assert "no such file" in message or "matches no file" in message or "FileNotFoundError" in message


def test_a_file_that_does_not_exist_is_said(store):
    store.put("a.jsonl", LINES)
    uri = store.uri("b.jsonl")
    assert "no such file" in error_of(lambda: read(uri), uri)


def test_a_pattern_that_matches_nothing_is_said(store):
    store.put("a.jsonl", LINES)
    uri = store.uri("b*.jsonl")
    assert "matches no file" in error_of(lambda: read(uri), uri)


@by_name_and_by_pattern
def test_a_file_to_which_access_is_denied_is_said(store, name):
    store.put("a.jsonl", LINES, "private")
    listed = store.prefix.startswith(("s3:", "hf:"))  # only reading is denied
    uri = store.uri(name, "private")
    message = error_of(lambda: read(uri), store.uri("a.jsonl", "private") if listed else uri)
    assert "403" in message or "Forbidden" in message


def test_a_bucket_that_asks_for_credentials_where_there_are_none_is_said(opened, monkeypatch):
    store = opened("s3")
    store.put("a.jsonl", LINES)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    uri = store.uri("a.jsonl")
    assert "Unable to locate credentials" in error_of(lambda: read(uri), uri)


@small_and_large
@by_name_and_by_pattern
def test_a_file_that_vanishes_after_it_was_listed_is_said(store, name, content):
    store.put("a.jsonl", content)
    source = Source(store.uri(name), "prompt_dataset")
    store.delete("a.jsonl")
    message = error_of(lambda: rows_of(source), store.uri("a.jsonl"))
    assert "is gone" in message or "404" in message


@pytest.mark.parametrize(
    ("first", "then"),
    [(LINES, FIRST_LINE), (MANY_LINES, HALF_OF_MANY_LINES), (MANY_LINES, FIRST_LINE)],
    ids=["small", "large", "large_to_small"],
)
@by_name_and_by_pattern
def test_a_file_that_shrinks_after_it_was_listed_is_said(store, name, first, then):
    store.put("a.jsonl", first)
    source = Source(store.uri(name), "prompt_dataset")
    store.put("a.jsonl", then)
    error_of(lambda: rows_of(source), store.uri("a.jsonl"))


def reads_of(store: stores.Store) -> dict:
    """By URI: what reads files that were listed by now, and what is to list another one."""
    store.put("small.jsonl", LINES)
    store.put("large.jsonl", MANY_LINES)
    listed = [store.uri("small.jsonl"), store.uri("large.jsonl")]
    reads = {uri: partial(rows_of, Source(uri, "prompt_dataset")) for uri in listed}
    return reads | {store.uri("other.jsonl"): partial(read, store.uri("other.jsonl"))}


@pytest.mark.slow
def test_stores_that_are_gone_are_said_before_and_after_files_were_listed(opened):
    gone = [opened(protocol) for protocol in PROTOCOLS]
    reads = {uri: read for store in gone for uri, read in reads_of(store).items()}
    for store in gone:
        store.door.shut()
    forget_clients()
    with ThreadPoolExecutor(len(reads)) as pool:  # most try again for a while
        assert len(list(pool.map(error_of, reads.values(), reads))) == len(reads)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["s3", "gs", "http"])
def test_a_store_that_falls_silent_is_said_in_time_before_and_after_files_were_listed(opened, monkeypatch, protocol):
    for seconds in ("SILENCE_SECONDS", "GCS_SILENCE_SECONDS", "S3_SILENCE_SECONDS"):
        monkeypatch.setattr(file_systems, seconds, 1)
    store = opened(protocol)
    reads = reads_of(store)
    store.door.silent = True
    forget_clients()
    with ThreadPoolExecutor(len(reads)) as pool:
        messages = list(pool.map(error_of, reads.values(), reads))
    assert [re.search("cannot be (listed|read)", message)[1] for message in messages] == ["read", "read", "listed"]


def test_a_web_server_that_is_gone_is_not_taken_for_a_file_that_is_gone(opened):
    web = opened("http")
    web.put("a.jsonl", MANY_LINES)
    uri = web.uri("a.jsonl")
    source = Source(uri, "prompt_dataset")
    web.door.shut()
    assert "is gone" not in error_of(lambda: rows_of(source), uri)
    assert "no such file" not in error_of(lambda: read(uri), uri)


def test_a_web_server_that_fails_is_said(opened):
    web = opened("http")
    web.put("a.jsonl", LINES)
    uri = web.uri("a.jsonl", "broken")
    assert "500" in error_of(lambda: read(uri), uri)


@small_and_large
@pytest.mark.parametrize("folder", ["moved", "no_head", "no_ranges", "no_length"])
def test_a_web_server_of_few_abilities_is_read(opened, folder, content):
    web = opened("http")
    web.put("a.jsonl", content)
    assert read(web.uri("a.jsonl", folder)) == [json.loads(line) for line in content.splitlines()]


@small_and_large
@pytest.mark.parametrize("folder", ["cut", "no_length_cut"])
def test_an_answer_that_breaks_off_is_said(opened, folder, content):
    web = opened("http")
    web.put("a.jsonl", content)
    uri = web.uri("a.jsonl", folder)
    error_of(lambda: read(uri), uri)
