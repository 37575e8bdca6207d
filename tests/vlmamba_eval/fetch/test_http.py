"""Good and bad servers: what is read from them, and what is said of them."""

from __future__ import annotations

import random
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.odd import odd_reply, readable, the_same_each_time
from tests.servers import RawServer
from tests.vlmamba_eval.fetch.server import Server
from vlmamba_eval.fetch.http import AGENT, DamagedError, FetchError, Found, Http, NoRangesError, Patience, Stopped

BYTES = bytes(range(256)) * 1000


def read(http: Http, url: str, start: int = 100, length: int = 200_000) -> bytes:
    return b"".join(http.read(http.find(url), start, length))


def test_a_range_is_read_and_nothing_else_travels(server: Server, http: Http) -> None:
    url = server.put("/a.bin", BYTES)
    found = http.find(url)
    assert (found.size, found.ranges) == (len(BYTES), True)
    assert b"".join(http.read(found, 1000, 5000)) == BYTES[1000:6000]
    assert server.sent["/a.bin"] == 5001  # and one byte to see whether there are ranges
    assert server.agents == {AGENT}
    assert AGENT.startswith("vlmamba-eval/")


def test_a_broken_connection_is_taken_up_where_it_broke(server: Server, http: Http) -> None:
    url = server.put("/a.bin", BYTES, cut_after=50_000, cuts=3)
    assert read(http, url) == BYTES[100:200_100]
    assert server.sent["/a.bin"] == 1 + 200_000
    assert [asked[0] for asked in server.asked["/a.bin"] if asked] == [0, 100, 50_100, 100_100, 150_100]


def test_a_silent_server_is_asked_again(server: Server, http: Http) -> None:
    url = server.put("/a.bin", BYTES)
    found = http.find(url)
    server.files["/a.bin"].silent = 1.0
    assert b"".join(http.read(found, 0, 100)) == BYTES[:100]


def test_a_server_that_stays_silent_is_given_up(server: Server) -> None:
    url = server.put("/a.bin", BYTES, silent=1.0)
    http = Http(Patience(silence=0.1, attempts=1))
    with pytest.raises(FetchError, match=r"fell silent.*run the same command again"):
        http.find(url)


@pytest.mark.parametrize("status", [429, 503, 500])
def test_a_busy_server_is_waited_for(server: Server, http: Http, status: int) -> None:
    url = server.put("/a.bin", BYTES, answers=[status, status])
    assert read(http, url) == BYTES[100:200_100]


def test_the_pause_is_the_one_that_the_server_asks_for(server: Server, http: Http) -> None:
    url = server.put("/a.bin", BYTES, answers=[429], headers={"Retry-After": "1"})
    began = time.monotonic()
    http.find(url)
    assert time.monotonic() - began >= 1.0


def test_a_server_that_asks_for_too_long_a_pause_is_given_up(server: Server, http: Http) -> None:
    url = server.put("/a.bin", BYTES, answers=[429], headers={"Retry-After": "3600"})
    with pytest.raises(FetchError, match=r"429: too many requests; it asks to wait 3,600 seconds"):
        http.find(url)
    assert len(server.asked["/a.bin"]) == 1


def test_a_server_that_stays_busy_is_given_up(server: Server, http: Http) -> None:
    url = server.put("/a.bin", BYTES, answers=[503] * 9)
    with pytest.raises(FetchError, match=r"503: it is overloaded. Tried 3 times"):
        http.find(url)
    assert len(server.asked["/a.bin"]) == 3


@pytest.mark.parametrize(
    ("status", "said"), [(403, "it refuses"), (404, "no such file"), (401, "login"), (410, "taken away")]
)
def test_a_refusal_is_final(server: Server, http: Http, status: int, said: str) -> None:
    url = server.put("/a.bin", BYTES, answers=[status])
    with pytest.raises(FetchError, match=f"{url}: the server answers {status}: .*{said}") as caught:
        http.find(url)
    assert caught.value.status == status
    assert len(server.asked["/a.bin"]) == 1


def test_redirects_are_followed_but_not_for_ever(server: Server, http: Http) -> None:
    url = server.put("/a.bin", BYTES)
    moved = server.put("/moved", b"", redirect=url)
    assert read(http, moved) == BYTES[100:200_100]
    endless = server.put("/endless", b"", redirect="/endless")
    with pytest.raises(FetchError, match="from one address to the next without end"):
        http.find(endless)


def test_a_web_page_is_not_taken_for_the_file(server: Server, http: Http) -> None:
    url = server.put("/a.bin", b"<html>log in</html>", headers={"Content-Type": "text/html; charset=utf-8"})
    with pytest.raises(FetchError, match="a web page instead of the file"):
        http.find(url)


def test_a_server_without_ranges_is_known_before_its_file_travels(server: Server, http: Http) -> None:
    url = server.put("/a.bin", BYTES * 40, ranges=False)
    found = http.find(url)
    assert (found.size, found.ranges) == (len(BYTES) * 40, False)
    with pytest.raises(NoRangesError):
        read(http, url)
    assert b"".join(http.read_whole(found)) == BYTES * 40


def test_a_whole_file_that_breaks_off_is_an_error(server: Server, http: Http) -> None:
    url = server.put("/a.bin", BYTES, ranges=False)
    found = http.find(url)
    server.files["/a.bin"].cut_after, server.files["/a.bin"].cuts = 1000, 1
    with pytest.raises(DamagedError, match="after 1,000 bytes, and the server can't resume"):
        list(http.read_whole(found))


def test_a_file_that_changes_while_it_is_read_is_an_error(server: Server, http: Http) -> None:
    url = server.put("/a.bin", BYTES)
    found = http.find(url)
    server.files["/a.bin"].tag = '"2"'
    with pytest.raises(FetchError, match="changed while it was read"):
        list(http.read(found, 0, 10))


def test_no_server_is_a_sentence(http: Http) -> None:
    with pytest.raises(FetchError, match=r"http://127.0.0.1:9/a: no connection .*Tried 3 times"):
        http.find("http://127.0.0.1:9/a")


@pytest.mark.parametrize("host", ["127.0.0.1:9", "unknown.invalid"])
def test_a_host_that_never_answered_is_given_up_soon_and_for_all_its_files(host: str) -> None:
    http = Http(Patience(pause=0.01, attempts=1000))
    for file, said in (("a", "Tried 3 times"), ("b", r"\)\.$")):
        with pytest.raises(FetchError, match=f"http://{host}/{file}: no connection .*{said}"):
            http.find(f"http://{host}/{file}")


def test_a_host_that_answered_before_is_waited_for_longer(server: Server) -> None:
    http = Http(Patience(pause=0.01, attempts=5))
    url = server.put("/a.bin", BYTES, headers={"Connection": "close"})
    http.find(url)
    server.close()
    with pytest.raises(FetchError, match="Tried 5 times"):
        http.find(url)


def test_few_connections_are_open_at_a_time(server: Server) -> None:
    http = Http(Patience(connections=2))
    url = server.put("/a.bin", BYTES)
    found = http.find(url)
    server.pace = 0.01
    threads = [threading.Thread(target=lambda: list(http.read(found, 0, 100_000))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.most_at_once == 2


def test_proxies_come_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    server.put("/far.bin", BYTES)
    http = Http(Patience(silence=1.0, attempts=1))
    assert http.find("http://data.invalid/far.bin").size == len(BYTES)


def test_a_stop_ends_every_wait(server: Server, http: Http) -> None:
    url = server.put("/a.bin", BYTES, answers=[503], headers={"Retry-After": "2"})
    threading.Timer(0.1, http.stop.set).start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        http.find(url)
    assert time.monotonic() - began < 1.0


@pytest.mark.parametrize("cookie", ["a=b", f"a={'b' * 70_000}", "a=\u0661"], ids=["plain", "large", "odd"])
def test_a_cookie_goes_with_no_further_request(server: Server, http: Http, cookie: str) -> None:
    url = server.put("/a.bin", b"0123456789", headers={"Set-Cookie": cookie.encode().decode("latin-1")})
    found = http.find(url)
    assert b"".join(http.read(found, 2, 5)) == b"23456"
    assert server.cookies == {""}


@pytest.mark.parametrize(
    "examples", [pytest.param(10, id="a few"), pytest.param(300, id="many", marks=pytest.mark.slow)]
)
def test_no_reply_brings_a_download_down(examples: int) -> None:
    """Looked for, read in part, as a whole, or as a small file: bytes, or a sentence."""
    bodies = (b"0123456789" * 20, b'{"a": [1, 2, 3]}')
    with RawServer() as server:
        url = f"{server.url}/a.bin"

        @the_same_each_time(examples)
        @given(st.randoms(use_true_random=False))
        def fetched(rng: random.Random) -> None:
            http = Http(Patience(silence=2.0, attempts=2, pause=0.0, longest=0.0))
            server.replies = iter([odd_reply(rng, bodies, ranges=rng.random() < 0.7) for _ in range(20)])
            version = Found(url, 200, True, "")
            for read in (
                lambda: http.find(url),
                lambda: b"".join(http.read(http.find(url), 0, 10)),
                lambda: b"".join(http.read(version, 0, 10)),
                lambda: b"".join(http.read_whole(version)),
                lambda: http.read_small(url, 100),
            ):
                try:
                    read()
                except FetchError as error:
                    readable(error)
            http.close()

        fetched()
