"""Stores for tests: real servers on loopback behind every protocol that data_validation reads.

Each holds two buckets (on the Hub, repositories; on a web server, folders): `bucket`, and `private`, to which access is
denied.
"""

import contextlib
import json
import math
import re
import socket
import threading
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import quote, unquote, urlsplit

import boto3
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers.buckets import create_bucket
from gcp_storage_emulator.server import RequestHandler as EmulatorHandler
from gcp_storage_emulator.storage import Storage
from moto.server import ThreadedMotoServer

SECRET = "a-secret-of-the-environment"


class Door:
    """A port through which a server is reached until it is shut: then it is gone, for whoever was inside too.

    A `silent` one lets in whoever comes, and hears and answers nobody.
    """

    def __init__(self, server_port: int):
        self.requests = 0
        self.silent = False
        self._server = ("127.0.0.1", server_port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._let_in, daemon=True).start()

    def shut(self) -> None:
        for each in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):  # already closed by the other side
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _let_in(self) -> None:
        with contextlib.suppress(OSError):  # shut
            while True:
                guest = self._listener.accept()[0]
                host = socket.create_connection(self._server)
                self._sockets += [guest, host]
                for each in (guest, host):
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for pair in ((guest, host), (host, guest)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(1 << 16):
                self.requests += target.getpeername() == self._server  # one without a body comes in one piece
                if not self.silent:
                    target.sendall(content)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


class Store(ABC):
    """Files under the URIs of one protocol."""

    prefix: str
    """What stands before bucket and name in a URI."""
    environment: dict[str, str]
    """What a user sets to have URIs of this protocol lead here."""

    def __init__(self, server_port: int):
        self.door = Door(server_port)
        self.endpoint = f"http://127.0.0.1:{self.door.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error) -> None:
        self.door.shut()

    def uri(self, name: str, bucket: str = "bucket") -> str:
        return f"{self.prefix}{bucket}/{name}"

    @abstractmethod
    def put(self, name: str, content: bytes, bucket: str = "bucket") -> None: ...

    @abstractmethod
    def delete(self, name: str) -> None: ...


class S3Store(Store):
    """Moto's server."""

    prefix = "s3://"

    def __init__(self, server_port: int):
        super().__init__(server_port)
        self.environment = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "an-id",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self._owner = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{server_port}",
            region_name="us-east-1",
            aws_access_key_id="owner",
            aws_secret_access_key="owner",
        )
        for bucket in ("bucket", "private"):
            self._owner.create_bucket(Bucket=bucket)
        deny = {"Effect": "Deny", "Principal": "*", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::private/*"}
        policy = {"Version": "2012-10-17", "Statement": [deny]}
        self._owner.put_bucket_policy(Bucket="private", Policy=json.dumps(policy))

    def put(self, name: str, content: bytes, bucket: str = "bucket") -> None:
        self._owner.put_object(Bucket=bucket, Key=name, Body=content)

    def delete(self, name: str) -> None:
        self._owner.delete_object(Bucket="bucket", Key=name)

    def deny_writing(self) -> None:
        deny = {"Effect": "Deny", "Principal": "*", "Action": "s3:PutObject", "Resource": "arn:aws:s3:::bucket/*"}
        policy = {"Version": "2012-10-17", "Statement": [deny]}
        self._owner.put_bucket_policy(Bucket="bucket", Policy=json.dumps(policy))


class GsStore(Store):
    """The handlers of gcp-storage-emulator."""

    prefix = "gs://"

    def __init__(self, server_port: int):
        super().__init__(server_port)
        self.environment = {"STORAGE_EMULATOR_HOST": self.endpoint, "NO_GCE_CHECK": "true"}
        self._server = f"http://127.0.0.1:{server_port}"

    def put(self, name: str, content: bytes, bucket: str = "bucket") -> None:
        _ask("POST", f"{self._server}/upload/storage/v1/b/{bucket}/o?uploadType=media&name={quote(name)}", content)

    def delete(self, name: str) -> None:
        _ask("DELETE", f"{self._server}/storage/v1/b/bucket/o/{quote(name)}")


class FilesStore(Store):
    """Files that a handler of ours serves from memory: {bucket/name: content}."""

    def __init__(self, server_port: int, files: dict[str, bytes]):
        super().__init__(server_port)
        self._files = files

    def put(self, name: str, content: bytes, bucket: str = "bucket") -> None:
        self._files[f"{bucket}/{name}"] = content

    def delete(self, name: str) -> None:
        del self._files[f"bucket/{name}"]


class HubStore(FilesStore):
    """The Hugging Face Hub's API."""

    prefix = "hf://datasets/org/"

    def __init__(self, server_port: int, files: dict[str, bytes]):
        super().__init__(server_port, files)
        self.environment = {"HF_ENDPOINT": self.endpoint, "HF_TOKEN": SECRET}


class WebStore(FilesStore):
    """A web server; see `WebHandler` for folders that misbehave."""

    def __init__(self, server_port: int, files: dict[str, bytes]):
        super().__init__(server_port, files)
        self.environment = {}
        self.prefix = f"{self.endpoint}/"


class Server(ThreadingHTTPServer):
    """A client that goes away in the middle of an answer is not worth a traceback."""

    def handle_error(self, request, client_address):
        pass


class Handler(BaseHTTPRequestHandler):
    """Answers from files that are held in memory."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, files: dict[str, bytes], *args):
        self.files = files
        super().__init__(*args)

    def do_HEAD(self):
        self.do_GET()

    def log_message(self, *args):
        pass

    def answer(self, status: HTTPStatus, content: bytes = b"", cut: bool = False, **headers: str) -> None:
        """Headers are named with underscores for dashes. An answer that is `cut` breaks off in the middle."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection = self.close_connection or cut

    def answer_file(self, content: bytes, cut: bool = False) -> None:
        """Whole, or the part that is asked for."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, end = (int(asked[1]), min(int(asked[2] or len(content)) + 1, len(content))) if asked else (0, 0)
        if not asked:
            self.answer(HTTPStatus.OK, content, cut, Accept_Ranges="bytes")
        elif start >= len(content):
            self.answer(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, Content_Range=f"bytes */{len(content)}")
        else:
            told = f"bytes {start}-{end - 1}/{len(content)}"
            self.answer(HTTPStatus.PARTIAL_CONTENT, content[start:end], cut, Content_Range=told)

    def answer_in_chunks(self, content: bytes, cut: bool = False) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(b"%x\r\n" % len(content))
            self.wfile.write(content[: len(content) // 2] if cut else content + b"\r\n0\r\n\r\n")
        self.close_connection = self.close_connection or cut


class WebHandler(Handler):
    """Folders `bucket` and `private`; and `bucket` under other names, which say how its files are answered."""

    def do_GET(self):
        folder, _, name = unquote(urlsplit(self.path).path).lstrip("/").partition("/")
        content = self.files.get(f"bucket/{name}")
        if folder == "private":
            self.answer(HTTPStatus.FORBIDDEN)
        elif folder == "broken":
            self.answer(HTTPStatus.INTERNAL_SERVER_ERROR)
        elif folder == "bucket" and not name:
            names = [quote(file.removeprefix("bucket/")) for file in self.files]
            page = "".join(f'<li><a href="{name}">{name}</a></li>\n' for name in names)
            self.answer(HTTPStatus.OK, page.encode(), Content_Type="text/html")
        elif content is None:
            self.answer(HTTPStatus.NOT_FOUND, b"<html>Not found</html>", Content_Type="text/html")
        elif folder == "moved":
            self.answer(HTTPStatus.FOUND, Location=f"/bucket/{quote(name)}")
        elif folder == "no_ranges":
            self.answer(HTTPStatus.OK, content)
        elif folder == "no_head" and self.command == "HEAD":
            self.answer(HTTPStatus.METHOD_NOT_ALLOWED)
        elif folder in ("no_length", "no_length_cut"):
            self.answer_in_chunks(content, cut=folder == "no_length_cut")
        elif folder in ("bucket", "no_head", "cut"):
            self.answer_file(content, cut=folder == "cut")
        else:
            self.answer(HTTPStatus.NOT_FOUND)


class HubHandler(Handler):
    """Datasets `org/bucket` and `org/private` as the Hub's API and its storage of files answer."""

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        match = re.fullmatch(r"(?:/api)?/datasets/org/(bucket|private)(?:/(tree|resolve)/main(?:/(.*))?)?", path)
        if path.startswith("/storage/"):
            self.answer_file(self.files[path.removeprefix("/storage/")])
        elif not match:
            self.answer(HTTPStatus.NOT_FOUND, X_Error_Code="RepoNotFound")
        elif match[2] is None:
            self.answer(HTTPStatus.OK, json.dumps({"id": f"org/{match[1]}", "siblings": []}).encode())
        elif match[2] == "tree":
            tree = [
                {"type": "file", "path": file.partition("/")[2], "size": len(content), "oid": "0" * 40}
                for file, content in self.files.items()
                if file.startswith(f"{match[1]}/") and not match[3]
            ]
            missing = {"X_Error_Code": "EntryNotFound"} if match[3] else {}
            self.answer(HTTPStatus.NOT_FOUND if missing else HTTPStatus.OK, json.dumps(tree).encode(), **missing)
        elif match[1] == "private":  # gated: what it holds can be seen, not read
            self.answer(HTTPStatus.FORBIDDEN, X_Error_Code="GatedRepo", X_Error_Message="Access is restricted.")
        elif f"bucket/{match[3]}" not in self.files:
            self.answer(HTTPStatus.NOT_FOUND, X_Error_Code="EntryNotFound")
        else:
            self.answer(HTTPStatus.FOUND, Location=f"/storage/bucket/{quote(match[3])}")


class GsHandler(EmulatorHandler):
    """The emulator, which knows neither access rights nor ranges beyond an object's end."""

    disable_nagle_algorithm = True

    def do_GET(self):
        path = unquote(urlsplit(self.path).path).removeprefix("/download")
        name = path.removeprefix("/storage/v1/b/bucket/o/")
        start = re.match(r"bytes=(\d+)", self.headers.get("Range", ""))
        if path.startswith("/storage/v1/b/private/"):
            message = "the caller does not have storage.objects.get access to the Google Cloud Storage object."
            self._refuse(HTTPStatus.FORBIDDEN, json.dumps({"error": {"code": 403, "message": message}}))
        elif start and int(start[1]) >= self._size(name):
            self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "Request range not satisfiable")
        else:
            super().do_GET()

    def _size(self, name: str) -> float:
        try:
            return len(self.storage.get_file("bucket", name))
        except NotFound:
            return math.inf  # the emulator says so

    def _refuse(self, status: HTTPStatus, content: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content.encode())


@contextlib.contextmanager
def moto() -> Iterator[int]:
    """Moto's server; its port."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        yield server.get_host_and_port()[1]
    finally:
        server.stop()


@contextlib.contextmanager
def s3(moto_port: int) -> Iterator[S3Store]:
    """Empty buckets of a running moto."""
    _ask("POST", f"http://127.0.0.1:{moto_port}/moto-api/reset")
    with S3Store(moto_port) as store:
        yield store


@contextlib.contextmanager
def gs() -> Iterator[GsStore]:
    storage = Storage(use_memory_fs=True)
    for bucket in ("bucket", "private"):
        create_bucket(bucket, storage)
    with _served(partial(GsHandler, storage)) as port, GsStore(port) as store:
        yield store


@contextlib.contextmanager
def hub() -> Iterator[HubStore]:
    files: dict[str, bytes] = {}
    with _served(partial(HubHandler, files)) as port, HubStore(port, files) as store:
        yield store


@contextlib.contextmanager
def web() -> Iterator[WebStore]:
    files: dict[str, bytes] = {}
    with _served(partial(WebHandler, files)) as port, WebStore(port, files) as store:
        yield store


@contextlib.contextmanager
def _served(handler) -> Iterator[int]:
    server = Server(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def _ask(method: str, url: str, content: bytes | None = None) -> None:
    request = urllib.request.Request(url, content, {"Content-Type": "application/octet-stream"}, method=method)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10):
        pass
