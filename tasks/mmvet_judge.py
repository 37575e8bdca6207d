"""MM-Vet's judge: any model behind an OpenAI-compatible endpoint.

The idea is that of https://github.com/yuweihao/MM-Vet/blob/c7ff270d86fb/mm-vet_evaluator.py#L14-L27 (few-shot, one
number from 0 to 1 in steps of 0.1, temperature 0, five tries), in other words and with other examples: scores come near
the authors' only with their judge (gpt-4-0613), and are never the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmamba_eval.types import DataError, EvalError, Sample, UsageError, Verdict

TRIES = 5
RULES = (
    "You grade answers to questions about pictures. You see the question, the reference and a model's answer, not the "
    "picture. Say how much of the reference the answer gets right, from 0.0 (nothing) to 1.0 (all of it), in steps of "
    "0.1. Parts of a reference that are joined by <AND> are all needed for 1.0, and each is worth its share; of parts "
    "joined by <OR>, one is enough. Wording, length and order don't matter; what contradicts the reference counts as "
    "wrong. Reply with the number alone."
)
# question, reference, answer, grade
EXAMPLES = (
    ("Which numbers solve the equation?", "2 <AND> -7", "x is 2 or -7", "1.0"),
    ("Which numbers solve the equation?", "2 <AND> -7", "x = -7", "0.5"),
    ("Which numbers solve the equation?", "2 <AND> -7", "x = 7", "0.0"),
    ("What colour is the car?", "gray <OR> silver", "The car is silver.", "1.0"),
    (
        "Why is this sign funny?",
        "The sign forbids signs, so it breaks its own rule; whoever put it up did what it forbids.",
        "It is funny because it says that no signs are allowed.",
        "0.4",
    ),
    (
        "Why is this sign funny?",
        "The sign forbids signs, so it breaks its own rule; whoever put it up did what it forbids.",
        "A sign that bans all signs can't stand there itself: its owner breaks the rule by announcing it.",
        "1.0",
    ),
)


def judge(
    samples: Sequence[Sample],
    answers: Mapping[str, str],
    cache: Path,
    url: str,
    model: str,
    *,
    judged: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Verdict]:
    """The verdict on each answered sample, by its id; credit is the judge's number.

    `url` is the endpoint's base (`https://api.openai.com/v1`, `http://localhost:8000/v1`); the key comes from
    OPENAI_API_KEY, and a server that needs none gets none. Judgements are appended to `cache`, a JSON-lines file, as
    they come: a second call asks only what is new, whether the first ended or was stopped. Another judge, prompt or
    answer is another judgement. `judged(done, total)` is called after each. A reply without a number in five tries is
    worth 0, as in the authors' script, and invalid. Raises `UsageError` without the client, `DataError` for a damaged
    cache and `EvalError` where the judge can't be reached.
    """
    lacking = [sample for sample in samples if "gold" not in sample.fields]
    if lacking:
        raise DataError(
            f"{lacking[0].where}: no official answers here, so a judge has nothing to compare with. "
            "Put mm-vet.json into the data folder."
        )
    known = _read(cache)
    ask = _asker(url, model)
    todo = [sample for sample in samples if sample.id in answers]
    verdicts: dict[str, Verdict] = {}
    cache.parent.mkdir(parents=True, exist_ok=True)
    with cache.open("a", encoding="utf-8") as file:
        for done, sample in enumerate(todo, 1):
            messages = _messages(sample, answers[sample.id])
            key = hashlib.sha256(json.dumps([model, messages]).encode()).hexdigest()
            if key not in known:
                reply, score = ask(messages)
                known[key] = {"key": key, "id": sample.id, "judge": model, "reply": reply, "score": score}
                file.write(json.dumps(known[key]) + "\n")
                file.flush()
                os.fsync(file.fileno())
            score = known[key]["score"]
            verdicts[sample.id] = Verdict(known[key]["reply"], score or 0.0, score is not None)
            judged(done, len(todo))
    return verdicts


def _messages(sample: Sample, answer: str) -> list[dict[str, str]]:
    """The conversation that asks for one grade; the examples are earlier turns of it."""
    messages = [{"role": "system", "content": RULES}]
    gold = re.sub(r"\s*<(AND|OR)>\s*", r" <\1> ", sample.fields["gold"])
    answer = answer.encode(errors="replace").decode()  # a lone surrogate can't be sent
    for question, reference, text, grade in (*EXAMPLES, (sample.question, gold, answer, "")):
        messages.append({"role": "user", "content": f"Question: {question}\nReference: {reference}\nAnswer: {text}"})
        messages.append({"role": "assistant", "content": grade})
    return messages[:-1]


def _asker(url: str, model: str) -> Callable[[list[dict[str, str]]], tuple[str, float | None]]:
    try:
        import openai
    except ImportError:
        raise UsageError("A judge needs the OpenAI client: pip install 'vlmamba-eval[judge]'.") from None
    client = openai.OpenAI(base_url=url, api_key=os.environ.get("OPENAI_API_KEY") or "none", max_retries=5)

    def failed(why: object) -> EvalError:
        return EvalError(
            f"The judge {model} at {url} gave no answer: {why}\nJudgements so far are kept. Check "
            "--judge-url, --judge-model and OPENAI_API_KEY, then run the same command again."
        )

    def ask(messages: list[dict[str, str]]) -> tuple[str, float | None]:
        reply = ""
        for attempt in range(TRIES):
            try:
                request: Any = {"model": model, "messages": messages, "max_tokens": 16, "temperature": 0.5 * attempt}
                response = client.chat.completions.create(**request)
            except (openai.OpenAIError, ValueError) as error:  # ValueError: a reply that is no JSON
                raise failed(error) from None
            choices = getattr(response, "choices", None)  # the client passes on whatever JSON or text a server sends
            message = choices[0].message if choices else None
            if message is None:
                raise failed(f"expected a chat completion, found {response!r:.200}")
            reply = (message.content or "").strip()
            number = re.match(r"\d*\.?\d+", reply)
            if number and 0 <= float(number[0]) <= 1:
                return reply, float(number[0])
        return reply, None

    return ask


def _read(cache: Path) -> dict[str, dict[str, Any]]:
    """The judgements of earlier calls by key. A last line that a stopped call left unfinished is cut off."""
    if not cache.exists():
        return {}
    raw = cache.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if whole != raw:
        os.truncate(cache, len(whole))
    known: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = json.loads(line)
            known[row["key"]] = {
                "reply": str(row["reply"]),
                "score": None if row["score"] is None else float(row["score"]),
            }
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{cache}:{number}: not a judgement. Remove this line; it will be asked again.") from None
    return known
