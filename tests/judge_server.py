"""A judge on this machine: an HTTP server that speaks as much of OpenAI's chat completions as a test needs."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_TEXT = r"<{0} (\w+)>\n(.*?)\n</{0} \1>"


@dataclass(frozen=True)
class Reply:
    """A response as it is sent."""

    status: int
    body: str
    kind: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


def said(content: str | None, finish_reason: str = "stop", **message: Any) -> Reply:
    """A chat completion."""
    choice = {
        "index": 0,
        "finish_reason": finish_reason,
        "message": {"role": "assistant", "content": content, **message},
    }
    return Reply(200, json.dumps({"id": "1", "object": "chat.completion", "choices": [choice]}))


def better(answer: str) -> Reply:
    """The answer as it is asked for."""
    return said(json.dumps({"better": answer}))


def error(status: int, message: str, **headers: str) -> Reply:
    return Reply(status, json.dumps({"error": {"message": message}}), headers=headers)


@dataclass(frozen=True)
class Question:
    """A request, and what it asks."""

    number: int
    body: dict[str, Any]
    headers: dict[str, str]
    """By their names in lower case."""
    path: str

    @property
    def content(self) -> str:
        (message,) = self.body["messages"]
        return message["content"]

    @property
    def texts(self) -> tuple[str, str, str]:
        """The prompt, and the completions A and B, as who trusts the marks alone reads them."""
        found = [
            re.findall(_TEXT.format(tag), self.content, re.DOTALL) for tag in ("prompt", "completion-A", "completion-B")
        ]
        ((_, prompt),), ((_, first),), ((_, second),) = found
        return prompt, first, second


@dataclass
class Server:
    url: str
    questions: list[Question]


@contextmanager
def judge_server(reply: Callable[[Question], Reply]) -> Iterator[Server]:
    """Serves on loopback; `reply` runs in a thread of its own for each request."""
    lock, questions = threading.Lock(), []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                headers = {name.lower(): value for name, value in self.headers.items()}
                question = Question(len(questions), body, headers, self.path)
                questions.append(question)
            answer = reply(question)
            content = answer.body.encode()
            try:
                self.send_response(answer.status)
                for name, value in {
                    "Content-Type": answer.kind,
                    "Content-Length": len(content),
                    **answer.headers,
                }.items():
                    self.send_header(name.replace("_", "-"), str(value))
                self.end_headers()
                self.wfile.write(content)
            except OSError:  # who asked has left
                self.close_connection = True

        def log_message(self, *_):
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_):
            pass

    server = Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield Server(f"http://127.0.0.1:{server.server_port}/v1", questions)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
