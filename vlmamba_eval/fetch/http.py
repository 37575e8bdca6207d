"""Reading files over HTTP: by ranges, a few connections per host, patient with busy servers, plain about bad ones."""

from __future__ import annotations

import email.utils
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TypeVar
from urllib.parse import urlsplit

import httpx2

from vlmamba_eval import __version__
from vlmamba_eval.types import DataError

AGENT = f"vlmamba-eval/{__version__} (fetches evaluation data; python-httpx2)"
BUSY = (408, 425, 429, 500, 502, 503, 504)
MEANING = {
    401: "it wants a login",
    403: "it refuses: the file may need a login or a form, or your network is not served",
    404: "there is no such file",
    410: "the file was taken away",
    416: "the file is shorter than expected: it changed",
    429: "too many requests",
    503: "it is overloaded",
}
CHUNK = 2**16
T = TypeVar("T")


class FetchError(DataError):
    """A file that can't be had, in one sentence. `status` is the server's answer, 0 if there was none."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class DamagedError(FetchError):
    """What came is not what was announced: worth another try, and a failure of that file alone."""


class NoRangesError(FetchError):
    """The server only gives whole files."""


class Stopped(Exception):
    """The user wants to stop: raised in the threads that wait or read."""


@dataclass(frozen=True)
class Found:
    """What a server says of a file: its size in bytes (None: it does not say), and whether it gives ranges of it.

    `version` tells one version of the file from another: its entity tag, else its date.
    """

    url: str
    size: int | None
    ranges: bool
    version: str


@dataclass(frozen=True)
class Patience:
    """How long to wait for whom: seconds without a byte, attempts without progress, seconds between them.

    A host that never answered (refused connections, an unknown name) gets `strange` attempts only.
    """

    silence: float = 30.0
    attempts: int = 6
    strange: int = 3
    pause: float = 1.0
    longest: float = 120.0  # a server that asks for more is not waited for
    connections: int = 4  # per host


class Http:
    """A client for downloads. Proxies come from the environment. `stop` makes every thread that waits or reads end."""

    def __init__(self, patience: Patience | None = None) -> None:
        self.patience = patience or Patience()
        self.stop = threading.Event()
        self._hosts: dict[str, threading.BoundedSemaphore] = defaultdict(
            lambda: threading.BoundedSemaphore(self.patience.connections)
        )
        self._rest_until: dict[str, float] = {}  # host -> when it may be asked again; shared, so that all threads wait
        self._answered: set[str] = set()
        self._unreachable: dict[str, str] = {}  # host -> why it was given up; nobody waits for it a second time
        self._lock = threading.Lock()
        self._client = httpx2.Client(
            headers={"User-Agent": AGENT, "Accept-Encoding": "identity"},
            timeout=httpx2.Timeout(self.patience.silence, connect=min(15.0, self.patience.silence), pool=None),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=16),
            follow_redirects=True,
            max_redirects=8,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # an odd one would fail all further requests
        )

    def close(self) -> None:
        self._client.close()

    def find(self, url: str) -> Found:
        """What the server says of a file, from its answer to a request for one byte. Raises `FetchError`."""
        return self._patiently(url, lambda: self._find(url))

    def read(self, found: Found, start: int, length: int) -> Iterator[bytes]:
        """The bytes of a range, taken up again when a connection breaks.

        Raises `NoRangesError` if the server sends the whole file instead, `FetchError` if it can't be had.
        """
        done, failed = 0, 0
        while done < length:
            before = done
            try:
                for chunk in self._range(found, start + done, length - done):
                    done += len(chunk)
                    yield chunk
                if done < length:
                    raise _Again(f"the connection ended after {done:,} of {length:,} bytes")
            except _Again as problem:
                failed = 1 if done > before else failed + 1
                self._wait(found.url, failed, problem)

    def read_whole(self, found: Found) -> Iterator[bytes]:
        """All bytes of a file whose server gives no ranges. Raises `DamagedError` if it breaks off: start again."""
        done, failed = 0, 0
        while True:
            try:
                with self._open(found.url, {}) as response:
                    for chunk in response.iter_raw():
                        self._check_stop()
                        done += len(chunk)
                        yield chunk
                break
            except (_Again, httpx2.RequestError) as error:
                problem = error if isinstance(error, _Again) else _passing(error)
                if done:
                    broke = f"{found.url}: {problem} after {done:,} bytes, and the server can't resume."
                    raise DamagedError(broke) from None
                failed += 1
                self._wait(found.url, failed, problem)
        if found.size is not None and done != found.size:
            raise DamagedError(f"{found.url}: {done:,} bytes came, {found.size:,} were announced.")

    def read_small(self, url: str, limit: int) -> bytes:
        """A small file of its own in one request, asked for again if it breaks off. Raises `FetchError`."""
        return self._patiently(url, lambda: self._read_small(url, limit))

    # -- one request ---------------------------------------------------------------------------------------------------

    def _find(self, url: str) -> Found:
        with self._open(url, {"Range": "bytes=0-0"}) as response:
            version = response.headers.get("etag") or response.headers.get("last-modified") or ""
            if response.status_code == 206:
                total = response.headers.get("content-range", "").rpartition("/")[2]
                return Found(url, int(total) if total.isdecimal() else None, total.isdecimal(), version)
            size = response.headers.get("content-length", "")
            return Found(url, int(size) if size.isdecimal() else None, False, version)

    def _read_small(self, url: str, limit: int) -> bytes:
        with self._open(url, {}) as response:
            parts, size = [], 0
            for chunk in response.iter_raw():
                self._check_stop()
                parts.append(chunk)
                size += len(chunk)
                if size > limit:
                    raise FetchError(f"{url}: larger than {limit >> 20} MiB; that is not what was asked for.")
            announced = response.headers.get("content-length", "")
            if announced.isdecimal() and size != int(announced):
                raise _Again(f"{size:,} of {int(announced):,} bytes came")
            return b"".join(parts)

    def _range(self, found: Found, start: int, length: int) -> Iterator[bytes]:
        try:
            with self._open(found.url, {"Range": f"bytes={start}-{start + length - 1}"}) as response:
                version = response.headers.get("etag") or response.headers.get("last-modified") or ""
                if version != found.version:
                    raise FetchError(f"{found.url} changed while it was read. Run the same command again.")
                if response.status_code != 206:
                    raise NoRangesError(f"{found.url}: the server gives no parts of files, only the whole.")
                given = response.headers.get("content-range", "")
                if not given.startswith(f"bytes {start}-"):
                    raise FetchError(f"{found.url}: asked for the bytes from {start:,} on, the server sent {given!r}.")
                done = 0
                for chunk in response.iter_raw():
                    self._check_stop()
                    yield chunk[: length - done]
                    done += len(chunk)
                    if done >= length:
                        return
        except httpx2.RequestError as error:
            raise _passing(error) from None

    def _open(self, url: str, headers: dict[str, str]) -> _Answer:
        return _Answer(self, url, headers)

    # -- patience ------------------------------------------------------------------------------------------------------

    def _patiently(self, url: str, attempt: Callable[[], T]) -> T:
        failed = 0
        while True:
            try:
                return attempt()
            except (_Again, httpx2.RequestError) as problem:
                failed += 1
                self._wait(url, failed, problem if isinstance(problem, _Again) else _passing(problem))

    def _wait(self, url: str, failed: int, problem: _Again) -> None:
        host = urlsplit(url).netloc
        strange = problem.unreachable and host not in self._answered
        attempts = min(self.patience.strange, self.patience.attempts) if strange else self.patience.attempts
        if failed >= attempts or problem.wanted > self.patience.longest:
            if strange:
                self._unreachable[host] = str(problem)
            asked = f"; it asks to wait {problem.wanted:,.0f} seconds" if problem.wanted else ""
            tried = f" Tried {failed} times." if failed > 1 else ""
            raise FetchError(
                f"{url}: {problem}{asked}.{tried} What has come is kept: run the same command again later.",
                problem.status,
            )
        pause = max(problem.wanted, self.patience.pause * 2 ** (failed - 1) * random.uniform(0.75, 1.25))
        with self._lock:
            self._rest_until[host] = max(self._rest_until.get(host, 0.0), time.monotonic() + pause)

    def _rest(self, host: str) -> None:
        while (left := self._rest_until.get(host, 0.0) - time.monotonic()) > 0:
            if self.stop.wait(left):
                raise Stopped
        self._check_stop()

    def _check_stop(self) -> None:
        if self.stop.is_set():
            raise Stopped


class _Answer:
    """One response under way, holding one of its host's connections; bad ones are raised."""

    def __init__(self, http: Http, url: str, headers: dict[str, str]) -> None:
        self.http, self.url, self.headers = http, url, headers
        self.host = urlsplit(url).netloc

    def __enter__(self) -> httpx2.Response:
        http = self.http
        with http._lock:
            slot = http._hosts[self.host]
        slot.acquire()
        self.slot = slot
        try:
            http._rest(self.host)
            if self.host in http._unreachable:
                raise FetchError(f"{self.url}: {http._unreachable[self.host]}.")
            self.stream = http._client.stream("GET", self.url, headers=self.headers)
            response = self.stream.__enter__()
            http._answered.add(self.host)
            try:
                _refuse(self.url, response)
            except BaseException:
                self.stream.__exit__(None, None, None)
                raise
            return response
        except httpx2.TooManyRedirects:
            slot.release()
            raise FetchError(f"{self.url}: the server sends from one address to the next without end.") from None
        except (httpx2.UnsupportedProtocol, httpx2.InvalidURL):
            slot.release()
            raise FetchError(f"{self.url}: not an http or https address.") from None
        except BaseException:
            slot.release()
            raise

    def __exit__(self, *problem: object) -> None:
        try:
            self.stream.__exit__(None, None, None)
        finally:
            self.slot.release()


class _Again(Exception):
    """A passing problem; `wanted` seconds are what the server asked to wait, `unreachable` that there was none."""

    def __init__(self, message: str, status: int = 0, wanted: float = 0.0, unreachable: bool = False) -> None:
        super().__init__(message)
        self.status, self.wanted, self.unreachable = status, wanted, unreachable


def _refuse(url: str, response: httpx2.Response) -> None:
    """Raise for every answer that is not the file."""
    if url.startswith("https:") and any(step.url.scheme == "http" for step in (*response.history, response)):
        raise FetchError(f"{url}: the server sends to an address without encryption; it is not followed.")
    status = response.status_code
    meaning = MEANING.get(status, response.reason_phrase or "no further word")
    if status in BUSY:
        raise _Again(f"the server answers {status}: {meaning}", status, _retry_after(response))
    if status not in (200, 206):
        raise FetchError(f"{url}: the server answers {status}: {meaning}.", status)
    if response.headers.get("content-type", "").startswith("text/html"):
        raise FetchError(f"{url}: the server sends a web page instead of the file, perhaps to log in or to consent.")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise FetchError(f"{url}: the server sends {response.headers['content-encoding']}, which was not asked for.")


def _retry_after(response: httpx2.Response) -> float:
    """The seconds that the header Retry-After asks for, as a number or a date; 0 without one."""
    text = response.headers.get("retry-after", "")
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return 0.0


def _passing(error: Exception) -> _Again:
    if isinstance(error, httpx2.ConnectTimeout | httpx2.ConnectError):
        return _Again(f"no connection ({error or 'no answer in time'})", unreachable=True)
    if isinstance(error, httpx2.TimeoutException):
        return _Again("the server fell silent")
    return _Again(f"the connection broke ({error or type(error).__name__})")
