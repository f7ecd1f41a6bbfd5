"""Stores for tests: real servers on loopback behind every protocol that data_validation reads, which can be made to fail.

Each store holds three buckets (a bucket, a repository of the Hub, a folder of a web server): `bucket`, in which files are
put, `private`, to which access is denied, and `none`, which does not exist.
"""

import contextlib
import json
import re
import socket
import threading
import urllib.request
from collections.abc import Iterator
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote, urlsplit

import boto3
from gcp_storage_emulator.handlers.buckets import create_bucket
from gcp_storage_emulator.server import RequestHandler as EmulatorHandler
from gcp_storage_emulator.storage import Storage
from moto.server import ThreadedMotoServer

SECRET = "a-secret-of-the-environment"


class Door:
    """A port through which a server is reached until it is shut: as if the server had gone, whoever is still inside."""

    def __init__(self, server_port: int):
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
                for pair in ((guest, host), (host, guest)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    @staticmethod
    def _carry(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(1 << 16):
                target.sendall(content)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


class Store:
    """Files of one protocol.

    Attributes:
        prefix: What stands before `bucket/name` in a URI.
        environment: What a user sets to use such a store.
    """

    prefix: str
    environment: dict[str, str]

    def __init__(self, server_port: int):
        self.door = Door(server_port)
        self.endpoint = f"http://127.0.0.1:{self.door.port}"

    def uri(self, name: str, bucket: str = "bucket") -> str:
        return f"{self.prefix}{bucket}/{name}"

    def put(self, name: str, content: bytes, bucket: str = "bucket") -> None:
        raise NotImplementedError

    def delete(self, name: str) -> None:
        raise NotImplementedError


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
        # The store's owner goes round the door, so that it can be shut first.
        self._owner = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{server_port}",
            region_name="us-east-1",
            aws_access_key_id="owner",
            aws_secret_access_key="owner",
        )
        for bucket in ("bucket", "private"):
            self._owner.create_bucket(Bucket=bucket)
        denied = {
            "Effect": "Deny",
            "Principal": "*",
            "Action": "s3:GetObject",
            "Resource": "arn:aws:s3:::private/*",
        }
        policy = {"Version": "2012-10-17", "Statement": [denied]}
        self._owner.put_bucket_policy(Bucket="private", Policy=json.dumps(policy))

    def put(self, name: str, content: bytes, bucket: str = "bucket") -> None:
        self._owner.put_object(Bucket=bucket, Key=name, Body=content)

    def delete(self, name: str) -> None:
        self._owner.delete_object(Bucket="bucket", Key=name)


class GsStore(Store):
    """The handlers of gcp-storage-emulator."""

    prefix = "gs://"

    def __init__(self, server_port: int):
        super().__init__(server_port)
        self.environment = {"STORAGE_EMULATOR_HOST": self.endpoint, "NO_GCE_CHECK": "true"}
        self._owner = f"http://127.0.0.1:{server_port}"

    def put(self, name: str, content: bytes, bucket: str = "bucket") -> None:
        url = f"{self._owner}/upload/storage/v1/b/{bucket}/o?uploadType=media&name={quote(name, safe='')}"
        self._ask(urllib.request.Request(url, content, {"Content-Type": "application/octet-stream"}))

    def delete(self, name: str) -> None:
        self._ask(urllib.request.Request(f"{self._owner}/storage/v1/b/bucket/o/{quote(name, safe='')}", method="DELETE"))

    @staticmethod
    def _ask(request: urllib.request.Request) -> None:
        with urllib.request.urlopen(request, timeout=10):
            pass


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
    """Answers with content that it holds in memory."""

    protocol_version = "HTTP/1.1"

    def __init__(self, files: dict[str, bytes], *args):
        self.files = files
        super().__init__(*args)

    def do_HEAD(self):
        self.do_GET()

    def log_message(self, *args):
        pass

    def answer(self, status: HTTPStatus, content: bytes = b"", length: int | None = None, **headers: str) -> None:
        """Headers are named with underscores for dashes; `length`, if given, is told instead of the true one."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def answer_file(self, content: bytes) -> None:
        """Whole, or the part that is asked for."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            self.answer(HTTPStatus.OK, content, Accept_Ranges="bytes")
            return
        start, end = int(asked[1]), min(int(asked[2] or len(content)) + 1, len(content))
        if start >= len(content):
            self.answer(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, Content_Range=f"bytes */{len(content)}")
            return
        told = f"bytes {start}-{end - 1}/{len(content)}"
        self.answer(HTTPStatus.PARTIAL_CONTENT, content[start:end], Content_Range=told)


class WebHandler(Handler):
    """Folders `bucket` and `private`, and `bucket` again under names that say how it is answered."""

    def do_GET(self):
        folder, _, name = unquote(urlsplit(self.path).path).lstrip("/").partition("/")
        content = self.files.get(f"bucket/{name}")
        if folder == "private":
            self.answer(HTTPStatus.FORBIDDEN, b"denied")
        elif folder == "broken":
            self.answer(HTTPStatus.INTERNAL_SERVER_ERROR, b"broken")
        elif folder == "bucket" and not name:
            names = (file.removeprefix("bucket/") for file in self.files if file.startswith("bucket/"))
            page = "".join(f'<li><a href="{quote(name)}">{name}</a></li>\n' for name in names)
            self.answer(HTTPStatus.OK, page.encode(), Content_Type="text/html")
        elif content is None:
            self.answer(HTTPStatus.NOT_FOUND, b"<html>Not found</html>", Content_Type="text/html")
        elif folder == "moved":
            self.answer(HTTPStatus.FOUND, Location=f"/bucket/{quote(name)}")
        elif folder == "no_ranges":
            self.answer(HTTPStatus.OK, content)
        elif folder == "no_head" and self.command == "HEAD":
            self.answer(HTTPStatus.METHOD_NOT_ALLOWED)
        elif folder == "no_length":
            self._answer_in_chunks(content)
        elif folder == "cut":
            half = content[: len(content) // 2]
            self.answer(HTTPStatus.OK, half, len(content))
            self.close_connection = True
        elif folder == "cut_no_length":
            self._answer_in_chunks(content[: len(content) // 2], to_the_end=False)
            self.close_connection = True
        elif folder in ("bucket", "no_head"):
            self.answer_file(content)
        else:
            self.answer(HTTPStatus.NOT_FOUND)

    def _answer_in_chunks(self, content: bytes, to_the_end: bool = True) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(b"%x\r\n%s\r\n" % (len(content), content) + b"0\r\n\r\n" * to_the_end)


class HubHandler(Handler):
    """Datasets `org/bucket` and `org/private` as the Hub's API and its file storage answer."""

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        match = re.fullmatch(r"(?:/api)?/datasets/org/(\w+)(?:/(revision|tree|resolve)/main(?:/(.*))?)?", path)
        if path.startswith("/storage/"):
            self.answer_file(self.files[path.removeprefix("/storage/")])
        elif not match or match[1] == "none":
            self.answer(HTTPStatus.NOT_FOUND, X_Error_Code="RepoNotFound")
        elif match[2] == "tree":
            self._answer_tree(f"{match[1]}/{match[3] or ''}".rstrip("/") + "/")
        elif match[2] == "resolve" and match[1] == "private":  # gated: what it holds can be seen, not read
            self.answer(HTTPStatus.FORBIDDEN, X_Error_Code="GatedRepo", X_Error_Message="Access is restricted.")
        elif match[2] == "resolve" and f"{match[1]}/{match[3]}" not in self.files:
            self.answer(HTTPStatus.NOT_FOUND, X_Error_Code="EntryNotFound")
        elif match[2] == "resolve":
            self.answer(HTTPStatus.FOUND, Location=f"/storage/{quote(match[1])}/{quote(match[3])}")
        else:
            self._answer_json({"id": f"org/{match[1]}", "siblings": []})

    def _answer_tree(self, folder: str) -> None:
        sizes = {file: len(content) for file, content in self.files.items() if file.startswith(folder)}
        if not sizes and folder.count("/") > 1:
            self.answer(HTTPStatus.NOT_FOUND, X_Error_Code="EntryNotFound")
            return
        self._answer_json(
            [
                {"type": "file", "path": file.partition("/")[2], "size": size, "oid": "0" * 40}
                for file, size in sizes.items()
            ]
        )

    def _answer_json(self, value) -> None:
        self.answer(HTTPStatus.OK, json.dumps(value).encode(), Content_Type="application/json")


class GsHandler(EmulatorHandler):
    """The emulator knows no access rights; this denies what is asked of `private`, in the words of the JSON API."""

    def do_GET(self):
        if "/b/private" not in self.path:
            super().do_GET()
            return
        message = "the caller does not have storage.objects.get access to the Google Cloud Storage object."
        content = json.dumps({"error": {"code": 403, "message": message}}).encode()
        self.send_response(HTTPStatus.FORBIDDEN)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextlib.contextmanager
def moto() -> Iterator[int]:
    """Moto's server; its port."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@contextlib.contextmanager
def s3(moto_port: int) -> Iterator[S3Store]:
    """Empty buckets of a running moto."""
    reset = urllib.request.Request(f"http://127.0.0.1:{moto_port}/moto-api/reset", method="POST")
    with urllib.request.urlopen(reset, timeout=10):
        pass
    store = S3Store(moto_port)
    yield store
    store.door.shut()


@contextlib.contextmanager
def gs() -> Iterator[GsStore]:
    storage = Storage(use_memory_fs=True)
    for bucket in ("bucket", "private"):
        create_bucket(bucket, storage)
    with _served(partial(GsHandler, storage)) as port:
        store = GsStore(port)
        yield store
        store.door.shut()


@contextlib.contextmanager
def hub() -> Iterator[HubStore]:
    files: dict[str, bytes] = {}
    with _served(partial(HubHandler, files)) as port:
        store = HubStore(port, files)
        yield store
        store.door.shut()


@contextlib.contextmanager
def web() -> Iterator[WebStore]:
    files: dict[str, bytes] = {}
    with _served(partial(WebHandler, files)) as port:
        store = WebStore(port, files)
        yield store
        store.door.shut()


@contextlib.contextmanager
def _served(handler) -> Iterator[int]:
    server = Server(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()
