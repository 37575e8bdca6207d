"""A chat server on 127.0.0.1 that does what a test says: answers, drops, hangs, cuts, floods."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import StreamRequestHandler
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Asked:
    """One request as it arrived. `text` is the text of its last turn; `nth` counts how often it came before."""

    text: str
    body: dict[str, Any]
    headers: dict[str, str]
    at: float
    nth: int


Act = Callable[[BaseHTTPRequestHandler], None]
Behave = Callable[[Asked], Act]


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that hang up are part of the tests


class _Listening:
    """Listens inside `with`."""

    _server: _Quiet

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()


class ChatServer(_Listening):
    """`with ChatServer(behave) as server: ... server.url`. `asked` holds all requests in their order of arrival."""

    def __init__(self, behave: Behave | None = None) -> None:
        self.behave = behave or (lambda asked: answer(asked.text))
        self.asked: list[Asked] = []
        self.most_at_once = 0
        self.models_status = 200
        self._now = 0
        self._times: Counter[str] = Counter()
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                status(outer.models_status, b'{"object": "list", "data": []}')(self)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    outer._now += 1
                    outer.most_at_once = max(outer.most_at_once, outer._now)
                    text = _last_text(body)
                    seen = Asked(text, body, dict(self.headers), time.monotonic(), outer._times[text])
                    outer._times[text] += 1
                    outer.asked.append(seen)
                try:
                    outer.behave(seen)(self)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True  # the client gave up
                finally:
                    with outer._lock:
                        outer._now -= 1

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = _Quiet(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}/v1"


class RawServer(_Listening):
    """Answers each request with the next of `replies`, whatever it is, and closes. `with RawServer() as server`."""

    def __init__(self) -> None:
        self.replies: Iterator[bytes] = iter(())
        outer = self

        class Handler(StreamRequestHandler):
            def handle(self) -> None:
                while self.rfile.readline().strip():
                    pass
                self.wfile.write(next(outer.replies, b""))

        self._server = _Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"


def free_port() -> int:
    """A port of this machine on which nothing listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


# =============================================================================
# What a server can do with a request
# =============================================================================


def completion(text: Any = "yes", reason: str | None = "stop", usage: Any = None, **message: Any) -> bytes:
    """The body of a chat completion."""
    return json.dumps(
        {
            "id": "1",
            "object": "chat.completion",
            "model": "toy",
            "choices": [
                {"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": text, **message}}
            ],
            "usage": {"prompt_tokens": 10, "completion_tokens": 3} if usage is None else usage,
        }
    ).encode()


def answer(text: Any = "yes", reason: str | None = "stop", **rest: Any) -> Act:
    return status(200, completion(text, reason, **rest))


def status(code: int, body: bytes = b"", **headers: str) -> Act:
    """A whole response; `retry_after="1"` gives the header `retry-after`."""

    def act(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return act


def raw(reply: bytes) -> Act:
    """These bytes, whatever they are, and no more."""

    def act(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(reply)
        handler.wfile.flush()
        drop(handler)

    return act


def drop(handler: BaseHTTPRequestHandler) -> None:
    """Close the connection without a word."""
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def reset(handler: BaseHTTPRequestHandler) -> None:
    """Tear the connection down, as a process that is killed does."""
    handler.close_connection = True
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def cut(handler: BaseHTTPRequestHandler) -> None:
    """Promise a whole body, send a part of it, and close."""
    body = completion("a long answer that is cut")
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2])
    handler.wfile.flush()
    drop(handler)


def hang(seconds: float) -> Act:
    """Say nothing for a while, then close."""

    def act(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(seconds)
        drop(handler)

    return act


def drip(seconds: float) -> Act:
    """Send a byte now and then, so that no single read ever waits long."""

    def act(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.02)
        drop(handler)

    return act


def flood(code: int = 200) -> Act:
    """An endless body; ends when the client has hung up."""

    def act(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        while True:
            handler.wfile.write(chunk)

    return act


def _last_text(body: dict[str, Any]) -> str:
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
