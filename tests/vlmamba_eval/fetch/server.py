"""A web server on this machine that gives files, well or badly, and counts what it gives."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PIECE = 2**14  # bytes that are written at a time
SEND_BUFFER = 2**15


@dataclass
class Served:
    """A file and how it is given. `answers` are statuses for its first requests, before it is given at all."""

    content: bytes | Path
    ranges: bool = True
    answers: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)  # of every answer
    cut_after: int | None = None  # bytes of an answer after which the connection is closed, `cuts` times
    cuts: int = 0
    spoil: int = 0  # answers in which one byte is wrong
    silent: float = 0.0  # seconds before the answer, once
    redirect: str = ""
    tag: str = '"1"'

    @property
    def size(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    def part(self, start: int, length: int) -> bytes:
        if isinstance(self.content, bytes):
            return self.content[start : start + length]
        with self.content.open("rb") as file:
            file.seek(start)
            return file.read(length)


class Server:
    """Serves `files` by path on 127.0.0.1. `sent` are the bytes of bodies by path, `asked` the ranges asked for."""

    def __init__(self) -> None:
        self.files: dict[str, Served] = {}
        self.sent: Counter[str] = Counter()
        self.asked: dict[str, list[tuple[int, int] | None]] = defaultdict(list)
        self.agents: set[str] = set()
        self.cookies: set[str] = set()
        self.most_at_once = 0
        self.at_once = 0
        self.pace = 0.0  # seconds between pieces
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"owner": self})
        self.http = _Quiet(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def put(self, path: str, content: bytes | Path, **how) -> str:
        self.files[path] = Served(content, **how)
        return f"{self.url}{path}"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address) -> None:
        """A client that was killed is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: Server

    def log_message(self, format: str, *args) -> None:
        pass

    def do_GET(self) -> None:
        owner = self.owner
        with owner.lock:
            owner.at_once += 1
            owner.most_at_once = max(owner.most_at_once, owner.at_once)
            self.counted = True
            owner.agents.add(self.headers.get("User-Agent", ""))
            owner.cookies.add(self.headers.get("Cookie", ""))
        try:
            self._give()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            self._leave()

    def _leave(self) -> None:
        """Out of the count, before the last byte goes: with it, the client may open its next connection."""
        with self.owner.lock:
            self.owner.at_once -= self.counted
            self.counted = False

    def _give(self) -> None:
        # What a killed client never read is little: the kernel would otherwise hold megabytes for it.
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        path = self.path
        if path.startswith("http://"):  # asked as a proxy
            path = "/" + path.split("/", 3)[3]
        served = self.owner.files.get(path)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        with self.owner.lock:
            self.owner.asked[path].append((int(wanted[1]), int(wanted[2])) if wanted else None)
        if served is None:
            return self._plain(404)
        if served.redirect:
            return self._plain(302, {"Location": served.redirect})
        with self.owner.lock:
            status = served.answers.pop(0) if served.answers else 0
            silent, served.silent = served.silent, 0.0
        if status:
            return self._plain(status, served.headers)
        time.sleep(silent)
        start, end = 0, served.size - 1
        if wanted and served.ranges:
            start, end = int(wanted[1]), min(int(wanted[2]), end)
            if start > end:
                return self._plain(416)
        # Before the headers go: the test may change what is served as soon as it has them.
        with self.owner.lock:
            cut = served.cut_after if served.cuts > 0 and end - start + 1 > (served.cut_after or 0) else None
            served.cuts -= cut is not None
            spoil = served.spoil > 0 and end > start
            served.spoil -= spoil
        if wanted and served.ranges:
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end}/{served.size}")
        else:
            self.send_response(200)
        for name, value in {"ETag": served.tag, **served.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(end - start + 1))
        self.end_headers()
        at = start
        while at <= end:
            piece = served.part(at, min(PIECE, end + 1 - at))
            if cut is not None and at - start + len(piece) >= cut:
                piece = piece[: cut - (at - start)]
            if spoil and at == start:
                middle = len(piece) // 2
                piece = piece[:middle] + bytes([piece[middle] ^ 0x55]) + piece[middle + 1 :]
            time.sleep(self.owner.pace)
            with self.owner.lock:
                self.owner.sent[path] += len(piece)
            if at + len(piece) > end:
                self._leave()
            self.wfile.write(piece)
            at += len(piece)
            if cut is not None and at - start >= cut:
                self.close_connection = True
                return None
        return None

    def _plain(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()
