"""What data_validation reads over a network, from real servers on loopback."""

import contextlib
import gzip
import json
import os
import socket
import threading
import time

import fsspec
import google.auth.compute_engine._metadata
import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf.data.sources import Source
from rlhf.errors import DataError
from tests import stores

PARAMETER = "prompt_dataset"
SECONDS = 60  # within which an error has to come
ROWS = [{"prompt": "Größe", "n": 1}, {"prompt": "b", "n": 2}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
MANY_ROWS = [{"prompt": "x" * 1000, "n": n} for n in range(12_000)]  # more than one request for any client's file
MANY_LINES = "".join(json.dumps(row) + "\n" for row in MANY_ROWS).encode()


def parquet(rows: list[dict]) -> bytes:
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue().to_pybytes()


def rows_of(source: Source) -> list[dict]:
    return [json.loads(block.row_text(row)) for block in source.blocks() for row in range(len(block))]


def read(*uris: str) -> list[dict]:
    return rows_of(Source(",".join(uris), PARAMETER))


def error_of(function, uri: str) -> str:
    """The one line in which it ends, in time and without secrets."""
    caught: list[BaseException | None] = []

    def call():
        try:
            function()
            caught.append(None)
        except BaseException as error:
            caught.append(error)

    started = time.monotonic()
    thread = threading.Thread(target=call, daemon=True)  # one that hangs is left behind
    thread.start()
    thread.join(SECONDS)
    assert caught, f"no end after {SECONDS} s"
    assert isinstance(caught[0], DataError), repr(caught[0])
    message = str(caught[0])
    print(f"{time.monotonic() - started:.1f} s: {message}")
    assert message.startswith(f"{PARAMETER}: {uri}: ")
    assert "\n" not in message
    assert stores.SECRET not in message
    return message


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """No credentials, settings or proxies of whoever runs the tests, and no client that remembers another test."""
    for name in os.environ:
        if name.startswith(("AWS_", "GOOGLE_", "GCSFS_", "FSSPEC_", "HF_", "HUGGING_FACE_")) or "proxy" in name.lower():
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "none"))
    yield
    for protocol in ("s3", "gs", "hf", "http"):
        fsspec.get_filesystem_class(protocol).clear_instance_cache()


@pytest.fixture(autouse=True)
def _loopback_only(monkeypatch):
    """Nothing outside is asked: not for names, not for the credentials of a cloud's machine."""
    asked = []
    connect, resolve = socket.socket.connect, socket.getaddrinfo

    def guarded_connect(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1"):
            asked.append(address)
            raise ConnectionRefusedError(f"{address} is not loopback")
        return connect(self, address)

    def guarded_resolve(host, *args, **kwargs):
        if host not in ("127.0.0.1", "localhost", "::1", None):
            asked.append(host)
            raise socket.gaierror(f"{host} is not loopback")
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_resolve)
    yield
    assert asked == []


@pytest.fixture(scope="module")
def moto_port():
    with stores.moto() as port:
        yield port


@pytest.fixture
def opened(monkeypatch, moto_port):
    """Opens a store by its protocol, as a user's environment names it."""
    with contextlib.ExitStack() as stack:

        def opened(protocol: str) -> stores.Store:
            kinds = {"s3": lambda: stores.s3(moto_port), "gs": stores.gs, "hf": stores.hub, "http": stores.web}
            store = stack.enter_context(kinds[protocol]())
            for name, value in store.environment.items():
                monkeypatch.setenv(name, value)
            # These two are read when their packages are imported.
            if protocol == "gs":
                monkeypatch.setattr(google.auth.compute_engine._metadata, "_NO_GCE_CHECK", True)
            if protocol == "hf":
                monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", store.endpoint)
                monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
            return store

        yield opened


@pytest.fixture(params=["s3", "gs", "hf", "http"])
def store(request, opened):
    return opened(request.param)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", LINES), ("a.jsonl.gz", gzip.compress(LINES)), ("a.parquet", parquet(ROWS)), ("größe 1.jsonl", LINES)],
)
def test_every_kind_of_file_is_read(store, name, content):
    store.put(name, content)
    assert read(store.uri(name)) == ROWS


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", MANY_LINES),
        ("a.jsonl.gz", gzip.compress(MANY_LINES, 0)),
        ("a.parquet", parquet(MANY_ROWS)),
    ],
)
def test_a_file_of_several_requests_is_read(store, name, content):
    store.put(name, content)
    assert read(store.uri(name)) == MANY_ROWS


def test_a_pattern_is_read_in_order_of_names(store):
    for name in ("b2", "c", "b1"):
        store.put(f"{name}.jsonl", json.dumps({"name": name}).encode())
    assert Source(store.uri("b*.jsonl"), PARAMETER).files == [store.uri("b1.jsonl"), store.uri("b2.jsonl")]
    assert [row["name"] for row in read(store.uri("b*.jsonl"))] == ["b1", "b2"]


def test_protocols_mix_in_a_list(opened):
    uris = []
    for protocol in ("http", "hf", "s3", "gs"):
        store = opened(protocol)
        store.put("a.jsonl", json.dumps({"protocol": protocol}).encode())
        uris.append(store.uri("a.jsonl"))
    assert [row["protocol"] for row in read(*uris)] == ["http", "hf", "s3", "gs"]


@pytest.mark.parametrize("name", ["a.jsonl", "*.jsonl"])
def test_a_bucket_that_does_not_exist_is_said(store, name):
    uri = store.uri(name, "none")
    error_of(lambda: read(uri), uri)


def test_a_file_that_does_not_exist_is_said(store):
    store.put("a.jsonl", LINES)
    uri = store.uri("b.jsonl")
    assert "no such file" in error_of(lambda: read(uri), uri)


def test_a_pattern_that_matches_nothing_is_said(store):
    store.put("a.jsonl", LINES)
    uri = store.uri("b*.jsonl")
    assert "matches no file" in error_of(lambda: read(uri), uri)


def test_a_file_to_which_access_is_denied_is_said(store):
    store.put("a.jsonl", LINES, "private")
    uri = store.uri("a.jsonl", "private")
    message = error_of(lambda: read(uri), uri)
    assert "403" in message or "Forbidden" in message


def test_a_pattern_in_a_bucket_to_which_access_is_denied_is_said(store):
    store.put("a.jsonl", LINES, "private")
    uri = store.uri("*.jsonl", "private")
    listed = store.prefix.startswith(("s3:", "hf:"))  # there, only reading is denied
    message = error_of(lambda: read(uri), store.uri("a.jsonl", "private") if listed else uri)
    assert "403" in message or "Forbidden" in message


@pytest.mark.parametrize("content", [LINES, MANY_LINES], ids=["small", "large"])
@pytest.mark.parametrize("name", ["a.jsonl", "*.jsonl"])
def test_a_file_that_vanishes_after_it_was_listed_is_said(store, name, content):
    store.put("a.jsonl", content)
    source = Source(store.uri(name), PARAMETER)
    store.delete("a.jsonl")
    error_of(lambda: rows_of(source), store.uri("a.jsonl"))


@pytest.mark.parametrize(
    ("first", "then"),
    [(LINES, LINES[: len(LINES) // 2]), (MANY_LINES, MANY_LINES[: len(MANY_LINES) // 2]), (MANY_LINES, LINES)],
    ids=["small", "large", "large_to_small"],
)
@pytest.mark.parametrize("name", ["a.jsonl", "*.jsonl"])
def test_a_file_that_shrinks_after_it_was_listed_is_said(store, name, first, then):
    then = then[: then.rfind(b"\n") + 1]
    store.put("a.jsonl", first)
    source = Source(store.uri(name), PARAMETER)
    store.put("a.jsonl", then)
    error_of(lambda: rows_of(source), store.uri("a.jsonl"))


def test_a_store_that_cannot_be_reached_is_said(store):
    store.put("a.jsonl", LINES)
    store.door.shut()
    uri = store.uri("a.jsonl")
    error_of(lambda: read(uri), uri)


@pytest.mark.parametrize("content", [LINES, MANY_LINES], ids=["small", "large"])
def test_a_store_that_goes_down_after_files_were_listed_is_said(store, content):
    store.put("a.jsonl", content)
    uri = store.uri("a.jsonl")
    source = Source(uri, PARAMETER)
    store.door.shut()
    error_of(lambda: rows_of(source), uri)


@pytest.mark.parametrize("content", [LINES, MANY_LINES], ids=["small", "large"])
@pytest.mark.parametrize("folder", ["no_ranges", "no_length", "no_head", "moved"])
def test_a_web_server_of_few_abilities_is_read(opened, folder, content):
    web = opened("http")
    web.put("a.jsonl", content)
    assert read(web.uri("a.jsonl", folder)) == [json.loads(line) for line in content.splitlines()]


@pytest.mark.parametrize("content", [LINES, MANY_LINES], ids=["small", "large"])
@pytest.mark.parametrize("folder", ["cut", "cut_no_length"])
def test_an_answer_that_breaks_off_is_said(opened, folder, content):
    web = opened("http")
    web.put("a.jsonl", content)
    uri = web.uri("a.jsonl", folder)
    error_of(lambda: read(uri), uri)


def test_a_web_server_that_fails_is_said(opened):
    web = opened("http")
    web.put("a.jsonl", LINES)
    uri = web.uri("a.jsonl", "broken")
    assert "500" in error_of(lambda: read(uri), uri)
