"""A real HTTP server on loopback that keeps every request."""

import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def form(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(self.body.decode()).items()}


@dataclass
class Answer:
    status: int = 200
    body: Any = None
    """JSON, text as HTML, or an iterator of lines that are sent as they come."""
    headers: list[tuple[str, str]] = field(default_factory=list)


class Service(ABC):
    """What answers; a subclass has `answer`. `said` overrides it: an Answer always, of a list each once."""

    url: str

    def __init__(self):
        self.requests: list[Request] = []
        self.said: dict[tuple[str, str], list[Answer] | Answer] = {}

    @abstractmethod
    def answer(self, request: Request) -> Answer:
        """What a client is told."""

    def handle(self, request: Request) -> Answer:
        self.requests.append(request)
        said = self.said.get((request.method, request.path))
        if isinstance(said, list):
            return said.pop(0) if said else self.answer(request)
        return said or self.answer(request)

    def seen(self, method: str, path: str) -> list[Request]:
        return [request for request in self.requests if (request.method, request.path) == (method, path)]


@contextmanager
def served(service: Service, tls=None) -> Iterator[Service]:
    """Serve on loopback, with TLS where an SSLContext is given."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def _do(self):
            parts = urlsplit(self.path)
            answer = service.handle(
                Request(
                    self.command,
                    parts.path,
                    {name: values[0] for name, values in parse_qs(parts.query).items()},
                    {name.title(): value for name, value in self.headers.items()},
                    self.rfile.read(int(self.headers.get("Content-Length", 0))),
                )
            )
            if isinstance(answer.body, Iterator):
                return self._stream(answer)
            text = answer.body if isinstance(answer.body, str) else json.dumps(answer.body or {})
            payload = text.encode()
            self.send_response(answer.status)
            kind = "text/html" if isinstance(answer.body, str) else "application/json"
            for name, value in [("Content-Type", kind), ("Content-Length", str(len(payload))), *answer.headers]:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(payload)

        def _stream(self, answer: Answer):
            self.send_response(answer.status)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for line in answer.body:
                payload = line.encode()
                self.wfile.write(b"%x\r\n%s\r\n" % (len(payload), payload))
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _do

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    service.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
