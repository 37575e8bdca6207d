"""Whatever a server sends, its question has an answer or fails by type, and the next question is asked all the same."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.odd import odd_reply, readable, the_same_each_time
from tests.servers import ChatServer, answer, completion, raw
from vlmamba_eval.chat import client
from vlmamba_eval.dataset import load_dataset
from vlmamba_eval.judge import JUDGEMENTS, TRIES, Judging, judge, judgements
from vlmamba_eval.model_adapters.constant import Constant
from vlmamba_eval.model_adapters.served import FAMILY
from vlmamba_eval.model_adapters.served.adapter import load
from vlmamba_eval.registry import get_task, parse_options
from vlmamba_eval.run import evaluate
from vlmamba_eval.task import Judged
from vlmamba_eval.types import EvalError, Failure, Generation, ImageQuestions, Question

BODIES = (
    completion("0.5"),
    completion("<think>well</think>yes", reason="length"),
    completion(
        [{"type": "text", "text": "yes"}], usage={"completion_tokens": 3, "completion_tokens_details": {"a": 1}}
    ),
    completion(None, refusal="no", reasoning_content="well", tool_calls=[{"id": "1"}]),
    b'{"error": {"message": "broken", "code": "insufficient_quota", "type": "x"}}',
    b'{"detail": [{"loc": ["body"], "msg": "no"}]}',
)
GOOD = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(BODIES[0]), BODIES[0])
QUESTIONS = 8  # per example


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server may ask for pauses: they are tried elsewhere."""
    for name in ("OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(client, "MAX_WAIT", 0.0)
    monkeypatch.setattr(client, "LONGEST_PAUSE", 0.0)


class Odd(ChatServer):
    """Answers the question GOOD well, and every other one as `replies` say in turn."""

    def __init__(self) -> None:
        self.replies: Iterator[bytes] = iter(())
        super().__init__(lambda asked: answer("1.0") if "GOOD" in asked.text else raw(next(self.replies)))


many = pytest.mark.parametrize(
    "examples", [pytest.param(10, id="a few"), pytest.param(1_000, id="many", marks=pytest.mark.slow)]
)


@many
def test_no_reply_brings_a_served_model_down(examples: int) -> None:
    with (server := Odd()):
        options = parse_options(FAMILY, {"base_url": server.url, "max_retries": "0", "timeout": "5"})
        adapter = load("toy", options).load()

        def ask(*texts: str) -> list[Generation | Failure]:
            return list(adapter.generate([ImageQuestions(None, tuple(Question(text, 4) for text in texts))])[0])

        @the_same_each_time(examples)
        @given(st.randoms(use_true_random=False))
        def asked(rng: random.Random) -> None:
            server.replies = iter([odd_reply(rng, BODIES) for _ in range(QUESTIONS)])
            for outcome in ask(*(f"question {i}" for i in range(QUESTIONS))):
                if isinstance(outcome, Failure):
                    assert outcome.message.isprintable()
                    assert 10 < len(outcome.message) < 1_500
                else:
                    outcome.text.encode()
                    assert type(outcome.n_tokens) is int
                    assert outcome.stop in ("eos", "length", "unknown")
            # The first of these may meet a connection that the server has just closed.
            assert any(isinstance(good := ask("GOOD")[0], Generation) and good.text == "1.0" for _ in range(9))

        asked()
        adapter.close()  # type: ignore[attr-defined] - the served adapter has it


@many
def test_no_reply_brings_a_judge_down_and_what_was_judged_is_kept(tmp_path: Path, examples: int) -> None:
    task = get_task("mmvet")
    assert isinstance(task, Judged)
    dataset = load_dataset(task, "samples")
    [run] = evaluate(Constant("yes"), [dataset], tmp_path)
    judging = Judging(max_retries=0, timeout=5.0)
    path = run.folder / JUDGEMENTS
    with (server := Odd()):

        @the_same_each_time(max(5, examples // 5))
        @given(st.randoms(use_true_random=False))
        def asked(rng: random.Random) -> None:
            path.unlink(missing_ok=True)
            server.replies = iter([odd_reply(rng, BODIES) for _ in range(TRIES * len(dataset.samples))])
            try:
                scores = judge(run.folder, server.url, "toy", "samples", judging=judging)
                assert 0 <= (scores.scores[0].value or 0) <= 100
            except EvalError as error:
                readable(error)
            server.replies = itertools.repeat(GOOD)
            verdicts = judgements(
                task, dataset.samples, dict.fromkeys((s.id for s in dataset.samples), "yes"), path, server.url, "toy",
                judging=judging,
            )  # fmt: skip
            assert {verdict.credit for verdict in verdicts.values()} <= {0.0, 0.5, 1.0}

        asked()
