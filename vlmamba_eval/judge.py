"""A model grades a run's answers, for benchmarks that want that (MM-Vet). Every judgement is kept as it comes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmamba_eval import journal
from vlmamba_eval.journal import Journal
from vlmamba_eval.score import score, verdict_rows
from vlmamba_eval.store import DONE, Run, read_manifest
from vlmamba_eval.submit import reopen
from vlmamba_eval.task import Judged, Message
from vlmamba_eval.types import EvalError, Sample, Scores, UsageError, Verdict

JUDGEMENTS = "judgements.jsonl"
TRIES = 5  # as in the authors' script of MM-Vet; each at a higher temperature


def judge(
    folder: Path,
    url: str,
    model: str,
    data: str | None = None,
    judged: Callable[[int, int], None] = lambda done, total: None,
) -> Scores:
    """Have a model grade a run's answers, and write its scores anew. It can be interrupted and resumed.

    `url` is an OpenAI-compatible endpoint (`https://api.openai.com/v1`, `http://localhost:8000/v1`); the key comes from
    OPENAI_API_KEY, and a server that needs none gets none. Another judge, prompt or answer is another judgement.
    `judged(done, total)` is called after each. A reply without a grade in five tries is worth 0, and invalid. Raises
    `UsageError` for a benchmark that is scored by rules, `EvalError` if the judge can't be reached.
    """
    run = reopen(folder, data)
    task = run.dataset.task
    if not isinstance(task, Judged):
        raise UsageError(f"{task.info.name} needs no judge: it is scored by rules.")
    with Run(folder, read_manifest(folder)) as opened:
        verdicts = judgements(task, run.dataset.samples, run.texts, folder / JUDGEMENTS, url, model, judged)
        scores, graded = score(run.dataset, opened.manifest, opened.answers, judge=model, verdicts=verdicts)
        complete = (folder / DONE).exists() and not scores.n_missing
        opened.finish(scores, verdict_rows(run.dataset, opened.answers, graded), complete=complete)
    return scores


def judgements(
    task: Judged,
    samples: Sequence[Sample],
    answers: Mapping[str, str],
    kept: Path,
    url: str,
    model: str,
    judged: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Verdict]:
    """The verdict on each answered sample, by its id; `kept` is the journal of what was judged before."""
    todo = [sample for sample in samples if sample.id in answers]
    conversations = [task.judge_messages(sample, answers[sample.id]) for sample in todo]
    ask = _asker(url, model, task.read_judgement)
    kept.parent.mkdir(parents=True, exist_ok=True)
    verdicts: dict[str, Verdict] = {}
    with Journal(kept) as opened:
        known = {
            record["key"]: (str(record["reply"]), record["score"]) for _, record in journal.read(kept, "judgement")
        }
        for done, (sample, messages) in enumerate(zip(todo, conversations, strict=True), 1):
            key = hashlib.sha256(json.dumps([model, messages]).encode()).hexdigest()
            if key not in known:
                known[key] = ask(messages)
                reply, credit = known[key]
                opened.append([{"key": key, "id": sample.id, "judge": model, "reply": reply, "score": credit}])
            reply, credit = known[key]
            verdicts[sample.id] = Verdict(reply, credit or 0.0, credit is not None)
            judged(done, len(todo))
    return verdicts


def _asker(
    url: str, model: str, read: Callable[[str], float | None]
) -> Callable[[Sequence[Message]], tuple[str, float | None]]:
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

    def ask(messages: Sequence[Message]) -> tuple[str, float | None]:
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
            credit = read(reply)
            if credit is not None:
                return reply, credit
        return reply, None

    return ask
