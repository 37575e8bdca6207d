"""A chat client and a real server that misbehaves: every request is answered or fails by type, once, in its place."""

from __future__ import annotations

import gzip
import json
import logging
import resource
import time
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest

from tests.servers import (
    Asked,
    ChatServer,
    answer,
    completion,
    cut,
    drip,
    drop,
    flood,
    free_port,
    hang,
    reset,
    status,
)
from vlmamba_eval.chat import Chat, Decoding, Reply, Request, Server
from vlmamba_eval.chat.client import GONE_AFTER
from vlmamba_eval.chat.wire import MAX_BODY, without_reasoning
from vlmamba_eval.types import Failure, ModelError, UsageError

SECRET = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def ask(server: ChatServer, texts: list[str], max_tokens: int = 64, **patience: Any) -> list[Reply | Failure]:
    """Each text as a request of its own."""
    patience = {"first_wait": 0.01, "timeout": 5.0} | patience
    with Chat(Server(server.url, "toy", **patience)) as chat:
        return list(chat.ask_all(requests(texts, max_tokens)))


def requests(texts: list[str], max_tokens: int = 64) -> list[Request]:
    return [Request([{"role": "user", "content": text}], {"max_tokens": max_tokens}) for text in texts]


def numbered(n: int) -> list[str]:
    return [f"question {i}" for i in range(n)]


def failing(outcome: Reply | Failure) -> Failure:
    assert isinstance(outcome, Failure), outcome
    return outcome


# ---------------------------------------------------------------------- order and number


def test_answers_come_in_the_order_of_the_requests_although_the_server_answers_in_another() -> None:
    def behave(asked: Asked) -> Any:
        time.sleep(0.002 * (hash(asked.text) % 7))
        return answer(asked.text)

    with ChatServer(behave) as server:
        outcomes = ask(server, numbered(60), concurrency=8)
    assert outcomes == [Reply(text, "eos", 3) for text in numbered(60)]
    assert len(server.asked) == 60
    assert server.most_at_once <= 8


def test_requests_are_sent_together_and_start_in_their_order() -> None:
    with ChatServer(lambda asked: [time.sleep(0.1), answer(asked.text)][1]) as server:
        ask(server, numbered(32), concurrency=8)
    assert server.most_at_once == 8
    places = [int(asked.text.split()[1]) for asked in server.asked]
    assert all(abs(place - at) < 16 for at, place in enumerate(places))


def test_requests_are_read_little_by_little() -> None:
    read = 0

    def endless() -> Any:
        nonlocal read
        while True:
            read += 1
            yield requests(["again"])[0]

    with ChatServer() as server, Chat(Server(server.url, "toy", concurrency=2)) as chat:
        outcomes: Any = chat.ask_all(endless())
        for _ in range(5):
            assert next(outcomes) == Reply("again", "eos", 3)
        outcomes.close()
        assert read <= 5 + 4 * 2
        assert next(iter(chat.ask_all(requests(["still there"])))) == Reply("still there", "eos", 3)


# ---------------------------------------------------------------------- trouble that passes

PASSING: dict[str, Callable[..., Any]] = {
    "drops": drop,
    "resets": reset,
    "cuts": cut,
    "500": status(500, b"oops"),
    "502": status(502, b"<html>bad gateway</html>"),
    "no JSON": status(200, b'{"choices": [{'),
    "no completion": status(200, b'{"error": {"message": "overloaded"}}'),
    "no choices": status(200, b'{"choices": []}'),
    "another type": status(200, b'{"choices": "none", "usage": []}'),
    "too deep": status(200, b"[" * 100_000),
    "too long a number": status(200, b'{"choices": ' + b"9" * 10_000 + b"}"),
    "aborted": answer("", "abort"),
    "packed": status(200, gzip.compress(completion("packed")), content_encoding="gzip"),
}


@pytest.mark.parametrize("trouble", PASSING)
def test_trouble_that_passes_costs_no_answer(trouble: str) -> None:
    with ChatServer(lambda asked: PASSING[trouble] if asked.nth == 0 else answer(asked.text)) as server:
        outcomes = ask(server, numbered(6), concurrency=3)
    assert outcomes == [Reply(text, "eos", 3) for text in numbered(6)]
    assert Counter(asked.text for asked in server.asked) == dict.fromkeys(numbered(6), 2)


@pytest.mark.parametrize("trouble", PASSING)
def test_trouble_that_stays_fails_its_question_alone_after_a_limited_number_of_tries(trouble: str) -> None:
    with ChatServer(lambda asked: PASSING[trouble] if "poison" in asked.text else answer(asked.text)) as server:
        outcomes = ask(server, ["a", "poison", "b"], concurrency=1, max_retries=2)
    assert [outcomes[0], outcomes[2]] == [Reply("a", "eos", 3), Reply("b", "eos", 3)]
    assert failing(outcomes[1]).kind == "model_error"
    assert f"{server.url} gave no answer in 3 tries" in failing(outcomes[1]).message
    assert sum(asked.text == "poison" for asked in server.asked) == 3


@pytest.mark.parametrize("silence", [hang(0.6), drip(0.6)], ids=["hangs", "drips"])
def test_a_server_that_goes_silent_gives_a_timeout_and_the_others_go_on(silence: Any) -> None:
    with ChatServer(lambda asked: silence if asked.text == "slow" else answer(asked.text)) as server:
        began = time.monotonic()
        outcomes = ask(server, ["a", "slow", "b"], concurrency=3, timeout=0.2, max_retries=1)
    assert time.monotonic() - began < 5
    assert [outcomes[0], outcomes[2]] == [Reply("a", "eos", 3), Reply("b", "eos", 3)]
    assert failing(outcomes[1]) == Failure(
        "timeout", f"{server.url} gave no answer in 2 tries: no whole answer in 0.2 s"
    )


def test_every_kind_of_trouble_at_once_loses_nothing_and_answers_nothing_twice() -> None:
    acts = [*PASSING.values(), status(429, retry_after="0"), status(400, b"no"), hang(0.3), None, None, None, None]

    def behave(asked: Asked) -> Any:
        act = acts[(int(asked.text.split()[1]) * 7 + asked.nth * 5) % len(acts)]
        return act or answer(asked.text)

    with ChatServer(behave) as server:
        outcomes = ask(server, numbered(200), concurrency=8, timeout=0.15, max_retries=3, first_wait=0.002)
    assert len(outcomes) == 200
    replies = [(at, one) for at, one in enumerate(outcomes) if isinstance(one, Reply)]
    assert all(one.text == f"question {at}" for at, one in replies)
    assert 100 < len(replies) < 200
    assert {one.kind for one in outcomes if isinstance(one, Failure)} <= {"model_error", "timeout"}


# ---------------------------------------------------------------------- a busy server


def test_retry_after_is_waited_for_and_costs_no_try() -> None:
    busy = status(429, b'{"error": {"message": "slow down"}}', retry_after="0.2")
    with ChatServer(lambda asked: busy if asked.nth < 2 else answer("at last")) as server:
        outcomes = ask(server, ["a"], max_retries=0)
    assert outcomes == [Reply("at last", "eos", 3)]
    times = [asked.at for asked in server.asked]
    assert times[1] - times[0] >= 0.19
    assert times[2] - times[1] >= 0.19


def test_while_a_server_is_busy_no_other_request_is_sent_either() -> None:
    def behave(asked: Asked) -> Any:
        return status(429, retry_after="0.3") if asked.text == "question 0" and not asked.nth else answer("yes")

    with ChatServer(behave) as server:
        ask(server, numbered(4), concurrency=1)
    assert server.asked[1].at - server.asked[0].at >= 0.29


def test_a_date_and_milliseconds_are_read_as_well() -> None:
    soon = formatdate(time.time() + 2, usegmt=True)  # whole seconds: at least one of the two is left
    for header in ({"retry_after": soon}, {"retry_after_ms": "400", "retry_after": "0"}):
        with ChatServer(lambda asked, h=header: answer("yes") if asked.nth else status(503, b"", **h)) as server:
            assert ask(server, ["a"]) == [Reply("yes", "eos", 3)]
        assert server.asked[1].at - server.asked[0].at >= 0.39


def test_a_used_up_rate_limit_holds_requests_back_before_the_server_has_to() -> None:
    last = status(200, completion(), x_ratelimit_remaining_requests="0", x_ratelimit_reset_requests="300ms")
    with ChatServer(lambda asked: last if asked.text == "question 0" else answer("yes")) as server:
        ask(server, numbered(2), concurrency=1)
    assert server.asked[1].at - server.asked[0].at >= 0.29


def test_a_server_that_wants_an_hour_is_not_waited_for() -> None:
    with ChatServer(lambda asked: status(429, retry_after="3600")) as server:
        began = time.monotonic()
        [outcome] = ask(server, ["a"])
    assert time.monotonic() - began < 60
    assert "is busy: HTTP 429; waiting 3600 s more" in failing(outcome).message


def test_an_empty_account_is_no_rate_limit() -> None:
    body = b'{"error": {"message": "You exceeded your quota.", "code": "insufficient_quota"}}'
    with ChatServer(lambda asked: status(429, body)) as server:
        [outcome] = ask(server, ["a"])
    assert len(server.asked) == 1
    assert "You exceeded your quota. (insufficient_quota)" in failing(outcome).message


# ---------------------------------------------------------------------- trouble that does not pass


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            status(400, b'{"error": {"message": "max_tokens is too large"}}'),
            "HTTP 400: max_tokens is too large. If it is a field",
        ),
        (status(422, b'{"detail": "Unexpected fields: top_k"}'), "HTTP 422: Unexpected fields: top_k"),
        (status(404, b'{"error": "no such model"}'), "HTTP 404: no such model. Does it serve 'toy'"),
        (status(401, b"go away"), "it wants a key, and OPENAI_API_KEY is not set (HTTP 401: go away)"),
        (status(307, b"", location="http://elsewhere.invalid/v1"), "HTTP 307. Give the address that it redirects to"),
        (answer("", "content_filter"), "withheld the answer"),
        (answer(None, "tool_calls"), "called a tool"),
        (answer("x" * 100_000), "sent 100000 characters, although at most 64 tokens"),
        (flood(), f"more than {MAX_BODY} bytes"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_what_asking_again_would_not_help_is_asked_once(act: Any, message: str) -> None:
    with ChatServer(lambda asked: act) as server:
        [outcome] = ask(server, ["a"])
    assert failing(outcome).kind == "model_error"
    assert message in failing(outcome).message
    assert len(server.asked) == 1


def test_an_endless_error_is_not_read_to_its_end() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with ChatServer(lambda asked: flood(500)) as server:
        [outcome] = ask(server, ["a"], max_retries=0)
    assert failing(outcome).message.startswith(f"{server.url} gave no answer in 1 try: HTTP 500: xxx")
    assert len(failing(outcome).message) < 500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


def test_an_errors_text_stays_on_one_line_without_control_signs() -> None:
    with ChatServer(lambda asked: status(400, b"first\n\x1b[2Jsecond\x00\xff")) as server:
        [outcome] = ask(server, ["a"])
    assert failing(outcome).message.isprintable()


# ---------------------------------------------------------------------- a server that is gone


@pytest.mark.parametrize("cookie", ["a=b", f"a={'b' * 70_000}", "a=\u0661"], ids=["plain", "large", "odd"])
def test_a_cookie_goes_with_no_further_question(cookie: str) -> None:
    """A large one would have the server refuse them all."""
    act = status(200, completion("yes"), set_cookie=cookie.encode().decode("latin-1"))
    with ChatServer(lambda asked: act) as server:
        outcomes = ask(server, numbered(3), concurrency=1, max_retries=0)
        sent = [name.lower() for asked in server.asked for name in asked.headers]
    assert [outcome.text for outcome in outcomes if isinstance(outcome, Reply)] == ["yes"] * 3
    assert "cookie" not in sent


def test_a_message_about_a_server_is_not_as_long_as_its_headers() -> None:
    act = status(200, completion("yes"), x_long="a" * 200_000)
    with ChatServer(lambda asked: act) as server:
        [outcome] = ask(server, numbered(1), max_retries=0)
    assert 20 < len(failing(outcome).message) < 1100


def test_a_server_that_is_gone_fails_all_questions_soon() -> None:
    patience = Server(f"http://127.0.0.1:{free_port()}/v1", "toy", max_retries=3, first_wait=0.05)
    with Chat(patience) as chat:
        began = time.monotonic()
        outcomes = list(chat.ask_all(requests(numbered(300))))
    assert time.monotonic() - began < 10  # one row of waits, not three hundred
    assert len(outcomes) == 300
    assert all("nothing answers there" in failing(outcome).message for outcome in outcomes)


def test_a_server_that_dies_midway_keeps_its_answers_and_one_that_comes_back_is_asked_again() -> None:
    dead = False
    patience = {"concurrency": 1, "max_retries": 1, "first_wait": 0.005}
    with (
        ChatServer(lambda asked: drop if dead else answer(asked.text)) as server,
        Chat(Server(server.url, "toy", **patience)) as chat,
    ):
        outcomes = list(chat.ask_all(requests(numbered(4))))
        dead = True
        outcomes += list(chat.ask_all(requests(numbered(GONE_AFTER + 2))))
        asked_when_dead = len(server.asked) - 4
        dead = False
        outcomes += list(chat.ask_all(requests(numbered(4))))
    assert [isinstance(one, Reply) for one in outcomes] == [True] * 4 + [False] * (GONE_AFTER + 2) + [True] * 4
    assert asked_when_dead == GONE_AFTER * 2 + 2  # two tries each, then one


def test_the_check_before_the_first_question_names_what_is_wrong() -> None:
    gone = f"http://127.0.0.1:{free_port()}/v1"
    with Chat(Server(gone, "toy")) as chat, pytest.raises(ModelError, match=f"No server answers at {gone}"):
        chat.check()
    with ChatServer() as server:
        server.models_status = 401
        with Chat(Server(server.url, "toy")) as chat, pytest.raises(ModelError, match="it wants a key"):
            chat.check()
        server.models_status = 404  # not every server has the list
        with Chat(Server(server.url, "toy")) as chat:
            chat.check()


# ---------------------------------------------------------------------- reading answers


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("  a cat ", ("a cat", False)),
        ("<think>is it?</think>\n\na cat", ("a cat", False)),
        ("is it? it is</think>a cat", ("a cat", False)),
        ("<think>is it", ("", True)),
        ("a <think> b", ("a <think> b", False)),
    ],
)
def test_reasoning_is_no_part_of_the_answer(content: str, expected: tuple[str, bool]) -> None:
    assert without_reasoning(content) == expected


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (answer("", "length", reasoning_content="hm, is it"), Reply("", "length", 3)),
        (answer(None, "length", reasoning="hm, is it"), Reply("", "length", 3)),
        (answer("<think>hm, is it", "length"), Reply("", "length", 3)),
        (answer("a cat", reasoning_content="hm"), Reply("a cat", "eos", 3)),
        (answer([{"type": "text", "text": "a "}, {"type": "text", "text": "cat"}]), Reply("a cat", "eos", 3)),
        (answer(None, refusal="I can't say."), Reply("I can't say.", "eos", 3)),
        (answer("a cat", None), Reply("a cat", "unknown", 3)),
        (answer("a\ud800cat", usage={"completion_tokens": "many"}), Reply("a?cat", "eos", 0)),
        (answer("a cat", usage={"completion_tokens": 10**30}), Reply("a cat", "eos", 0)),
        (answer("", "stop"), Reply("", "eos", 3)),
    ],
)
def test_a_reply_is_read_whatever_the_server_leaves_out(act: Any, expected: Reply) -> None:
    with ChatServer(lambda asked: act) as server:
        assert ask(server, ["a"]) == [expected]


def test_telemetry_counts_what_was_used() -> None:
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 64},
        "completion_tokens_details": {"reasoning_tokens": 5},
        "cost": 0.25,
    }

    def behave(asked: Asked) -> Any:
        acts = [status(429, retry_after="0.05"), drop]
        if asked.text == "question 0" and asked.nth < 2:
            return acts[asked.nth]
        return status(400) if asked.text == "question 3" else answer("cut", "length", usage=usage)

    with ChatServer(behave) as server, Chat(Server(server.url, "toy", first_wait=0.001, concurrency=1)) as chat:
        list(chat.ask_all(requests(numbered(4))))
        used = chat.telemetry()
    expected = {
        "requests": 6, "retries": 1, "rate_limited": 1, "answered": 3, "failed": 1, "cut_at_the_limit": 3,
        "reasoned": 0, "prompt_tokens": 300, "cached_prompt_tokens": 192, "completion_tokens": 21,
        "reasoning_tokens": 15, "cost_reported": 0.75,
    }  # fmt: skip
    assert {name: used[name] for name in expected} == expected
    assert used["longest_wait_s"] >= 0.04
    assert "model toy" in used["served_by"]


def test_a_server_that_renames_itself_each_time_does_not_fill_the_telemetry() -> None:
    def behave(asked: Asked) -> Any:
        return status(200, json.dumps(json.loads(completion()) | {"model": asked.text * 100}).encode())

    with ChatServer(behave) as server, Chat(Server(server.url, "toy")) as chat:
        list(chat.ask_all(requests(numbered(40))))
        assert len(json.dumps(chat.telemetry())) < 2000


# ---------------------------------------------------------------------- what is sent


def test_each_dialect_has_the_fields_that_its_servers_know() -> None:
    here, openai = Server("http://127.0.0.1:1/v1", "m"), Server("https://api.openai.com/v1", "m")
    shared = {"temperature": 0.0, "top_p": 1.0, "seed": 0}
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    assert Decoding().fields(here, 9) == {
        "max_tokens": 9, **shared, "top_k": -1, "repetition_penalty": 1.0, **off,
    }  # fmt: skip
    assert Decoding().fields(openai, 9) == {"max_completion_tokens": 9, **shared}
    assert Decoding(dialect="transformers").fields(here, 9) == {"max_tokens": 9, **shared, **off}
    assert Decoding(None, None, None, "unset", "transformers").fields(here, None) == {}


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000", "ftp://host/v1", "http://", "http://host:port/v1", "http://ho st/v1", "http://host\n/v1"],
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="should be an address"):
        Server(url, "toy")


# ---------------------------------------------------------------------- the key


@pytest.mark.parametrize(
    "url", [f"http://me:{SECRET}@127.0.0.1/v1", f"http://127.0.0.1/v1?key={SECRET}", f"http://127.0.0.1/v1#{SECRET}"]
)
def test_an_address_with_a_secret_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        Server(url, "toy")
    assert SECRET not in str(caught.value)
    assert "127.0.0.1/v1" in str(caught.value)


def test_the_key_goes_to_the_server_and_comes_back_nowhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    caplog.set_level(logging.DEBUG)
    acts = [
        status(400, f"you sent {SECRET}".encode()),
        status(500, f"you sent {SECRET}".encode()),
        status(200, f"you sent {SECRET}".encode()),
        status(200, json.dumps({"you sent": SECRET}).encode()),
        status(429, json.dumps({"error": {"message": SECRET, "code": "insufficient_quota"}}).encode()),
        answer(f"your key is {SECRET}"),
        status(401, f"bad key {SECRET}".encode()),
        status(200, completion(), server=SECRET),
        drop,
    ]
    texts = numbered(len(acts))
    with ChatServer(lambda asked: acts[int(asked.text.split()[1])]) as server:
        chat = Chat(Server(server.url, "toy", max_retries=0, first_wait=0.001))
        outcomes = list(chat.ask_all(requests(texts)))
        shown = repr((outcomes, chat, chat.server, chat.telemetry()))
        chat.close()
    assert {asked.headers["Authorization"] for asked in server.asked} == {f"Bearer {SECRET}"}
    assert len(outcomes) == len(acts)
    assert isinstance(outcomes[5], Reply)
    assert outcomes[5].text == "your key is [key]"
    for text in (shown, caplog.text, *capfd.readouterr()):
        assert SECRET not in text


def test_a_dummy_key_does_not_change_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")
    with ChatServer(lambda asked: answer("EMPTY")) as server:
        assert ask(server, ["a"]) == [Reply("EMPTY", "eos", 3)]


@pytest.mark.parametrize(
    ("url", "named", "sent"),
    [
        ("https://gpu7.example/v1", None, True),
        ("http://127.0.0.1:8000/v1", None, True),
        ("http://localhost:8000/v1", None, True),
        ("http://gpu7.example:8000/v1", None, False),
        ("http://127.0.0.1.example/v1", None, False),
        ("http://gpu7.example:8000/v1", "OPENAI_API_KEY", True),
    ],
)
def test_a_key_that_is_not_named_goes_over_no_open_line(
    url: str, named: str | None, sent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    assert Server(url, "toy", named).key() == (SECRET if sent else "")


def test_a_key_that_is_missing_or_none_is_said_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="set the environment variable OPENAI_API_KEY"):
        Chat(Server("https://api.openai.com/v1", "toy"))
    with pytest.raises(UsageError, match="set the environment variable MY_KEY"):
        Chat(Server("http://127.0.0.1:1/v1", "toy", "MY_KEY"))
    monkeypatch.setenv("MY_KEY", f"{SECRET}\nX-Injected: yes")
    with pytest.raises(UsageError) as caught:
        Chat(Server("http://127.0.0.1:1/v1", "toy", "MY_KEY"))
    assert SECRET not in str(caught.value)


def test_a_redirect_does_not_carry_the_key_to_another_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with (
        ChatServer() as thief,
        ChatServer(lambda asked: status(307, location=f"{thief.url}/chat/completions")) as server,
    ):
        [outcome] = ask(server, ["a"])
    assert isinstance(outcome, Failure)
    assert thief.asked == []
