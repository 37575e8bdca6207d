"""What could stand in a file in place of its content, and a test that feeds it to a reader."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from vlmamba_eval.types import EvalError

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 10**30, 1.5, "", " ", "\x00", "\ud800", "\u202e", "../../x", "/etc/passwd", "a" * 5000,
    [], [[]], {}, {"a": []}, ["x"] * 20, "nan", "None", "=1+1", "9" * 5000, "\n", "yes", "A", [None], [1, "a"],
)  # fmt: skip
RAW = (
    b"", b"\xff\xfe", b"\x00" * 64, b"[" * 50_000, b'{"a": ' * 20_000, b"NaN", b'{"a": Infinity}', b"1" * 6000,
    b"1e999", b'{"a": 1e999}',
    b'{"a": 1, "a": 2}', b"\xef\xbb\xbf[]", b'"\\ud800"', b"PK\x03\x04", b"\x1f\x8b", b"<html>", b"{}\n{}\n", b"null",
)  # fmt: skip


def mutated(value: Any, rng: random.Random, depth: int = 0) -> Any:
    """The value with something in it replaced, dropped, doubled, or put in another place."""
    if depth > 6 or rng.random() < 0.12:
        return rng.choice(ODD)
    if isinstance(value, dict) and value:
        key = rng.choice(list(value))
        changed = dict(value)
        what = rng.random()
        if what < 0.2:
            del changed[key]
        elif what < 0.3:
            changed[rng.choice(["", "\ud800", "x" * 300])] = changed.pop(key)
        else:
            changed[key] = mutated(value[key], rng, depth + 1)
        return changed
    if isinstance(value, list) and value:
        place = rng.randrange(len(value))
        changed = list(value)
        what = rng.random()
        if what < 0.15:
            changed.insert(place, value[rng.randrange(len(value))])
        elif what < 0.25:
            del changed[place]
        else:
            changed[place] = mutated(value[place], rng, depth + 1)
        return changed
    return rng.choice(ODD)


def variants(content: bytes, name: str, rng: random.Random) -> Iterator[bytes]:
    """Endlessly, what could stand in a file in place of its content."""
    lines = content.split(b"\n")
    while True:
        kind = rng.random()
        if kind < 0.1:
            yield rng.choice(RAW)
        elif kind < 0.25:
            raw = bytearray(content)
            for _ in range(rng.randint(1, 4)):
                raw[rng.randrange(len(raw))] = rng.randrange(256)
            yield bytes(raw)
        elif kind < 0.35:
            yield content[: rng.randrange(len(content))]
        elif name.endswith((".tsv", ".txt")) or kind < 0.4:
            place = rng.randrange(len(lines))
            cells = lines[place].split(b"\t")
            cells[rng.randrange(len(cells))] = json.dumps(rng.choice(ODD)).encode()
            yield b"\n".join([*lines[:place], b"\t".join(cells), *lines[place + 1 :]])
        else:
            try:
                yield json.dumps(mutated(json.loads(content), rng)).encode()
            except ValueError:  # JSON lines
                place = rng.randrange(len(lines))
                try:
                    row = json.dumps(mutated(json.loads(lines[place] or b"{}"), rng)).encode()
                except ValueError:
                    row = rng.choice(RAW)
                yield b"\n".join([*lines[:place], row, *lines[place + 1 :]])


def readable(error: EvalError) -> None:
    """A message that a person can read: there, and not a page of what stood in the file."""
    if not 10 < len(str(error)) < 1_500:
        raise AssertionError(f"a message of {len(str(error))} characters: {error!s:.300}") from error


def the_same_each_time(examples: int) -> settings:
    """So many examples that hypothesis chooses, the same in every run. FUZZ=N: N times as many, each run others."""
    times = int(os.environ.get("FUZZ", "0"))
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=examples * max(1, times),
        deadline=None,
        derandomize=not times,
        database=None,
        suppress_health_check=slow,
    )


def feed(files: Sequence[Path], read: Callable[[], object], examples: int) -> None:
    """Put odd content into one of the files at a time, and read: a value or a readable `EvalError`, nothing else.

    Each of `RAW` comes into each file, then so many mutations.
    """
    originals = {path: path.read_bytes() for path in files}

    def tried(path: Path, content: bytes) -> None:
        path.write_bytes(content)
        try:
            read()
        except EvalError as error:
            readable(error)
        finally:
            path.write_bytes(originals[path])

    for path in files:
        for content in RAW:
            tried(path, content)

    @the_same_each_time(examples)
    @given(st.sampled_from(files), st.randoms(use_true_random=False))
    def mutations(path: Path, rng: random.Random) -> None:
        content = next(variants(originals[path], path.name, rng))
        note(f"{path.name}: {content[:300]!r}")
        tried(path, content)

    mutations()


# =============================================================================
# Servers
# =============================================================================

STATUSES = (
    -1, 0, 99, 100, 101, 199, 201, 204, 206, 299, 301, 302, 304, 307, 400, 401, 403, 404, 408, 409, 413, 418, 422, 425,
    429, 451, 499, 500, 502, 503, 504, 529, 599, 999, 1000, 10**9,
)  # fmt: skip
HEADERS = (
    "Content-Type", "Content-Encoding", "Transfer-Encoding", "Location", "Set-Cookie", "Server", "Retry-After",
    "Retry-After-Ms", "X-RateLimit-Remaining-Requests", "X-RateLimit-Reset-Requests", "X-RateLimit-Remaining-Tokens",
    "X-RateLimit-Reset-Tokens", "Content-Length", "",
)  # fmt: skip
HEADER_VALUES = (
    b"", b"0", b"1", b"-1", b"nan", b"inf", b"-inf", b"1e999", b"9" * 5000, b"0x10", b"1ms", b"9" * 400 + b"h",
    b"Mon, 99 Jan 99999999999 00:00:00 GMT", b"Fri, 31 Dec 9999 23:59:59 GMT", b"gzip", b"br, zstd", b"chunked",
    b"text/html", b"http://127.0.0.1:9/", b"\xff\xfe", b"\x00", b"a" * 70_000, "\u0661".encode(),
)  # fmt: skip


def odd_reply(rng: random.Random, bodies: Sequence[bytes], ranges: bool = False) -> bytes:
    """A whole HTTP reply: one of the bodies with something changed, the status, headers or bytes of it as well.

    With `ranges` it says that it is a part of a file.
    """
    body = next(variants(rng.choice(bodies), "reply.json", rng)) if rng.random() < 0.8 else rng.choice(bodies)
    status = rng.choice(STATUSES) if rng.random() < 0.3 else 206 if ranges else 200
    headers = [("Content-Length", str(len(body)).encode())]
    if ranges:
        part = rng.choice((b"bytes 0-9/10", b"bytes 0-9/*", b"bytes 5-9/10", *HEADER_VALUES))
        headers.append(("Content-Range", part if rng.random() < 0.5 else b"bytes 0-%d/%d" % (len(body) - 1, len(body))))
    if rng.random() < 0.4:
        headers += [(rng.choice(HEADERS), rng.choice(HEADER_VALUES)) for _ in range(rng.randint(1, 3))]
    lines = b"".join(b"%s: %s\r\n" % (name.encode(), value) for name, value in headers)
    reply = bytearray(b"HTTP/1.1 %d Odd\r\n%s\r\n%s" % (status, lines, body))
    if rng.random() < 0.2:
        for _ in range(rng.randint(1, 3)):
            reply[rng.randrange(min(len(reply), 200))] = rng.randrange(256)
    return bytes(reply[: rng.randrange(len(reply))] if rng.random() < 0.1 else reply)
