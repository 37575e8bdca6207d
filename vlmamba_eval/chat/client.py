"""Many requests at once to one server: answers in order, new tries, pauses, no key in any text."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from vlmamba_eval.chat.server import OPENAI_KEY, Reply, Request, Server
from vlmamba_eval.chat.usage import Usage
from vlmamba_eval.chat.wire import (
    MAX_BODY,
    MAX_ERROR_BODY,
    Busy,
    Passing,
    Refused,
    body_of,
    completion_of,
    pause_of,
    reply_of,
    trouble_of,
)
from vlmamba_eval.text import short_message
from vlmamba_eval.types import Failure, ModelError, UsageError

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")

MAX_WAIT = 600.0
"""Seconds that one request waits, altogether, because the server says that it is busy."""

LONGEST_BACKOFF = 30.0
LONGEST_PAUSE = 60.0  # on account of a rate limit that is used up but not yet exceeded
GONE_AFTER = 3  # requests in a row that ran out of tries, with no answer between them
AHEAD = 4  # requests under way or answered, for each that the server works on, before the first one's answer is taken
HIDDEN = "[key]"
SHORTEST_SECRET = 8  # a shorter key ("EMPTY", "none") is a dummy, and may be a word of an answer


class Chat:
    """A connection to one server. Use as a context manager, or leave it to the end of the process.

    Raises `UsageError` if the HTTP library is not installed, or for a key that is missing or no key.
    """

    def __init__(self, server: Server) -> None:
        try:
            import httpx2  # noqa: F401 - an extra: said now, and not question by question
        except ImportError:
            raise UsageError("A served model or judge needs httpx2: pip install 'vlmamba-eval[openai]'.") from None
        self.server = server
        self._key = server.key()
        self._secret = self._key if len(self._key) >= SHORTEST_SECRET else ""
        if self._secret:
            _Discreet.keep(self._secret)
        self._usage = Usage()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._client: httpx2.AsyncClient | None = None
        self._slots = asyncio.Semaphore(server.concurrency)
        self._open_at = 0.0  # on the monotonic clock: no request starts before
        self._ran_out = 0  # requests in a row that ran out of tries
        self._nobody = False  # the last of them because nothing listens there

    def __enter__(self) -> Chat:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Chat({self.server!r})"

    def close(self) -> None:
        """Give up what is under way and close all connections."""
        loop, thread, client = self._loop, self._thread, self._client
        self._loop = self._thread = self._client = None
        if loop is None or thread is None or client is None:
            return

        async def finish() -> None:
            others = asyncio.all_tasks(loop) - {asyncio.current_task(loop)}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await client.aclose()

        with contextlib.suppress(concurrent.futures.TimeoutError):
            asyncio.run_coroutine_threadsafe(finish(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()

    def ask_all(self, requests: Iterable[Request]) -> Iterator[Reply | Failure]:
        """Put all requests, `concurrency` at a time, and yield one outcome for each, in their order.

        The iterable is read as answers are taken, a little ahead. Requests start in its order, so that those which
        share a beginning (questions about one image) meet the server's prefix cache. Leaving the iterator early gives
        up what is under way.
        """
        loop = self._started()
        window = AHEAD * self.server.concurrency
        under_way: deque[concurrent.futures.Future[Reply | Failure]] = deque()
        try:
            for request in requests:
                under_way.append(asyncio.run_coroutine_threadsafe(self._answer(request), loop))
                if len(under_way) >= window:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()

    def check(self) -> None:
        """Ask for the list of models, to learn before the first question that the server is there and takes the key.

        Raises `ModelError` if nothing listens there or the key is refused; any other reply is fine.
        """
        import httpx2

        async def models() -> int:
            async with self._connection().stream("GET", f"{self.server.url}/models") as response:
                self._usage.name("server", response.headers.get("server"))
                return response.status_code

        work = _within(models(), self.server.timeout)
        try:
            status = asyncio.run_coroutine_threadsafe(work, self._started()).result()
        except httpx2.ConnectError as error:
            why = self._clean(str(error))
            raise ModelError(
                f"No server answers at {self.server.url} ({why}). Start it, or correct base_url."
            ) from None
        except (httpx2.HTTPError, OSError):  # a TimeoutError is an OSError
            return  # it is there; what is wrong will show question by question
        if status in (401, 403):
            raise ModelError(f"{self.server.host}: {self._about_the_key()} (HTTP {status})")

    def telemetry(self) -> dict[str, Any]:
        """What was used since the client was made: requests, tokens, waits, and what the server calls itself."""
        report = self._usage.report()
        return report | {"served_by": [self._clean(name) for name in report["served_by"]]}

    # ------------------------------------------------------------------ one request

    async def _answer(self, request: Request) -> Reply | Failure:
        """The outcome of one request, when it is its turn and after as many tries as it takes."""
        async with self._slots:  # held while waiting for a new try too: a server in trouble is asked less
            outcome = await self._outcome(request)
        self._usage.outcome(outcome)
        if isinstance(outcome, Failure):
            return Failure(outcome.kind, self._clean(outcome.message))
        return Reply(self._without_key(outcome.text), outcome.stop, outcome.n_tokens)

    async def _outcome(self, request: Request) -> Reply | Failure:
        try:
            payload = json.dumps(
                {"model": self.server.model, "messages": list(request.messages), **request.fields, "stream": False},
                ensure_ascii=False,
                allow_nan=False,
            ).encode("utf-8", "replace")  # no lone surrogate can be sent
        except (TypeError, ValueError) as error:
            return Failure("model_error", f"the request can't be written as JSON: {error}")
        tries, busy, waited = 0, 0, 0.0
        while True:
            waited += await self._until_open()
            try:
                reply = await self._try(payload, request.limit)
            except Refused as error:
                self._alive()
                why = f"{self._about_the_key()} ({error})" if error.key else str(error)
                return Failure("model_error", f"{self.server.host}: {why}")
            except Busy as error:
                self._usage.rate_limited += 1
                busy += 1
                pause = max(error.wait or 0.0, self._backoff(busy))
                if waited + pause > MAX_WAIT:
                    more = f"waiting {pause:.0f} s more would be over {MAX_WAIT:.0f} s. Run it again later."
                    return Failure("model_error", f"{self.server.host} is busy: {error}; {more}")
                self._hold(pause)
                continue
            except Passing as error:
                trouble = error
            else:
                self._alive()
                return reply
            tries += 1
            if tries > self.server.max_retries or self._is_gone():
                self._ran_out += 1
                self._nobody = trouble.nobody
                times = "1 try" if tries == 1 else f"{tries} tries"
                return Failure(trouble.kind, f"{self.server.url} gave no answer in {times}: {trouble}")
            self._usage.retries += 1
            await asyncio.sleep(self._backoff(tries))

    async def _try(self, payload: bytes, limit: int | None) -> Reply:
        """One request on the wire. Raises `Passing`, `Busy` or `Refused`."""
        import httpx2

        self._usage.requests += 1
        self._usage.bytes_sent += len(payload)
        try:
            status, headers, body = await _within(self._post(payload), self.server.timeout)
        except httpx2.ConnectError as error:
            raise Passing(f"nothing answers there ({error})", nobody=True) from None
        except (TimeoutError, httpx2.TimeoutException):
            raise Passing(f"no whole answer in {self.server.timeout:g} s", kind="timeout") from None
        except (httpx2.HTTPError, OSError) as error:
            raise Passing(f"the connection broke ({type(error).__name__}: {error})") from None
        self._hold(min(pause_of(headers), LONGEST_PAUSE))
        self._usage.name("server", headers.get("server"))
        if status != 200:
            raise trouble_of(status, headers, body, self.server.model)
        completion = completion_of(body)
        reply = reply_of(completion, limit)
        self._usage.completion(completion)
        return reply

    async def _post(self, payload: bytes) -> tuple[int, Mapping[str, str], bytes]:
        url = f"{self.server.url}/chat/completions"
        async with self._connection().stream("POST", url, content=payload) as response:
            body = await body_of(response, MAX_BODY if response.status_code == 200 else MAX_ERROR_BODY)
        return response.status_code, response.headers, body

    # ------------------------------------------------------------------ when to ask

    def _backoff(self, tries: int) -> float:
        """Seconds before the next try: doubled each time, and spread, so that not all come back at once."""
        longest = min(LONGEST_BACKOFF, self.server.first_wait * 2 ** min(tries - 1, 20))
        return longest * random.uniform(0.75, 1.25)

    async def _until_open(self) -> float:
        """Wait until the server may be asked; the seconds it took."""
        began = time.monotonic()
        while (pause := self._open_at - time.monotonic()) > 0:
            await asyncio.sleep(pause)
        waited = time.monotonic() - began
        self._usage.longest_wait_s = max(self._usage.longest_wait_s, waited)
        return waited

    def _hold(self, seconds: float) -> None:
        self._open_at = max(self._open_at, time.monotonic() + seconds)

    def _alive(self) -> None:
        self._ran_out, self._nobody = 0, False

    def _is_gone(self) -> bool:
        return self._ran_out >= GONE_AFTER or (self._ran_out > 0 and self._nobody)

    # ------------------------------------------------------------------ what is shown

    def _clean(self, text: str) -> str:
        """A text that may hold a server's words, for a message: on one line, not too long, without the key."""
        return short_message("".join(s if s.isprintable() else " " for s in self._without_key(text)).strip())

    def _without_key(self, text: str) -> str:
        return text.replace(self._secret, HIDDEN) if self._secret else text

    def _about_the_key(self) -> str:
        name = self.server.api_key_env or OPENAI_KEY
        if self._key:
            return f"it refused the key in {name}"
        if os.environ.get(name):
            return f"it wants a key; {name} is sent over plain http to another machine only if api_key_env names it"
        return f"it wants a key, and {name} is not set"

    # ------------------------------------------------------------------ the connection

    def _connection(self) -> httpx2.AsyncClient:
        assert self._client is not None  # noqa: S101 - _started made it
        return self._client

    def _started(self) -> asyncio.AbstractEventLoop:
        """The loop on a thread of its own, made when it is first needed."""
        if self._loop is None:
            import httpx2

            headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
            if self._key:
                headers["Authorization"] = f"Bearer {self._key}"
            limits = httpx2.Limits(max_connections=self.server.concurrency + 1)
            timeout = httpx2.Timeout(self.server.timeout)
            # A cookie that one reply sets would go with all further questions, and an odd one would fail them.
            no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
            self._client = httpx2.AsyncClient(
                headers=headers, limits=limits, timeout=timeout, follow_redirects=False, cookies=no_cookies
            )
            self._slots = asyncio.Semaphore(self.server.concurrency)
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="chat", daemon=True)
            self._thread.start()
        return self._loop


async def _within(work: Coroutine[Any, Any, T], seconds: float) -> T:
    """The result of a coroutine; the built-in `TimeoutError` after that many seconds, on every Python."""
    try:
        return await asyncio.wait_for(work, seconds)
    except asyncio.TimeoutError:
        raise TimeoutError from None


class _Discreet(logging.Filter):
    """Takes keys out of what the HTTP library logs: at level DEBUG it shows a server's headers, which may hold one."""

    loggers = ("httpx2", "httpcore2.http11", "httpcore2.connection", "httpcore2.proxy")

    def __init__(self) -> None:
        super().__init__()
        self._keys: set[str] = set()

    @classmethod
    def keep(cls, key: str) -> None:
        """Keep this key out of the log from now on."""
        _discreet._keys.add(key)
        for name in cls.loggers:
            logging.getLogger(name).addFilter(_discreet)  # a second time changes nothing

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        for key in self._keys:
            message = message.replace(key, HIDDEN)
        record.msg, record.args = message, ()
        return True


_discreet = _Discreet()
