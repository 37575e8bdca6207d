"""A model grades a run's answers, for benchmarks that want that (MM-Vet). Every judgement is kept as it comes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from vlmamba_eval import journal
from vlmamba_eval.chat import Chat, Decoding, Request, Server
from vlmamba_eval.chat.server import Dialect, Thinking
from vlmamba_eval.journal import Journal
from vlmamba_eval.nearest import did_you_mean
from vlmamba_eval.score import score, verdict_rows
from vlmamba_eval.store import DONE, Run, read_manifest
from vlmamba_eval.submit import reopen
from vlmamba_eval.task import Judged, Message
from vlmamba_eval.types import EvalError, Failure, Sample, Scores, StoreError, UsageError, Verdict

JUDGEMENTS = "judgements.jsonl"
TRIES = 5  # as in the authors' script of MM-Vet
HOTTER = 0.5  # degrees more for each try after the first, as there


@dataclass(frozen=True, slots=True)
class Judging:
    """How a judge is asked. Nothing limits its tokens, so that it may reason first; None leaves a field out."""

    api_key_env: str | None = None
    concurrency: int = 8
    timeout: float = 300.0
    max_retries: int = 5
    temperature: float | None = 0.0
    top_p: float | None = 1.0
    seed: int | None = 0
    thinking: Thinking = "unset"
    dialect: Dialect = "auto"

    def server(self, url: str, model: str) -> Server:
        """The endpoint, asked that patiently. Raises `UsageError`."""
        return Server(url, model, self.api_key_env, self.concurrency, self.timeout, self.max_retries)

    def decoding(self, attempt: int) -> Decoding:
        """The sampling of one attempt, from 0: each is hotter than the one before."""
        heat = None if self.temperature is None else self.temperature + HOTTER * attempt
        return Decoding(heat, self.top_p, self.seed, self.thinking, self.dialect)


def parse_judging(given: Mapping[str, str]) -> Judging:
    """`--judge-option KEY=VALUE` texts. Raises `UsageError`."""
    known = list(Judging.__dataclass_fields__)
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known, f"There are: {', '.join(known)}.")
            raise UsageError(f"A judge has no option {name!r}. {hint}")
    try:
        return msgspec.convert(dict(given), Judging, strict=False)
    except msgspec.ValidationError as error:
        raise UsageError(f"--judge-option: {error}.") from None


def judge(
    folder: Path,
    url: str,
    model: str,
    data: str | None = None,
    judged: Callable[[int, int], None] = lambda done, total: None,
    *,
    judging: Judging | None = None,
    announce: Callable[[str], None] = lambda message: None,
) -> Scores:
    """Have a model grade a run's answers, and write its scores again. It can be interrupted and resumed.

    `url` is an OpenAI-compatible endpoint (`https://api.openai.com/v1`, `http://localhost:8000/v1`); the key comes from
    the environment. Another judge, prompt, answer or sampling is another judgement. `announce` is told how many calls
    there will be, before the first; `judged(done, total)` is called after each judgement. A reply without a grade in
    five tries is worth 0, and invalid. Raises `UsageError` for a benchmark that is scored by rules, `EvalError` if the
    judge could not be reached for all answers.
    """
    run = reopen(folder, data)
    task = run.dataset.task
    if not isinstance(task, Judged):
        raise UsageError(f"{task.info.name} needs no judge: it is scored by rules.")
    with Run(folder, read_manifest(folder)) as opened:
        verdicts = judgements(
            task,
            run.dataset.samples,
            run.texts,
            folder / JUDGEMENTS,
            url,
            model,
            judged,
            judging=judging,
            announce=announce,
            used=lambda telemetry: opened.log(event="judged", judge=model, **telemetry),
        )
        scores, graded = score(run.dataset, opened.manifest, opened.answers, judge=model, verdicts=verdicts)
        complete = (folder / DONE).exists() and not scores.n_missing
        opened.finish(scores, partial(verdict_rows, run.dataset, opened.answers, graded), complete=complete)
    return scores


@dataclass(frozen=True, slots=True)
class _Record:
    """One reply of a judge, as it is kept."""

    key: str
    id: str
    judge: str
    attempt: int
    reply: str
    score: float | None


@dataclass
class _Case:
    """One conversation with the judge: its replies so far, and what the last one is worth."""

    key: str
    id: str
    messages: Sequence[Message]
    attempts: int = 0
    reply: str = ""
    credit: float | None = None

    @property
    def settled(self) -> bool:
        return self.credit is not None or self.attempts >= TRIES


def judgements(
    task: Judged,
    samples: Sequence[Sample],
    answers: Mapping[str, str],
    kept: Path,
    url: str,
    model: str,
    judged: Callable[[int, int], None] = lambda done, total: None,
    *,
    judging: Judging | None = None,
    announce: Callable[[str], None] = lambda message: None,
    used: Callable[[Mapping[str, Any]], None] = lambda telemetry: None,
) -> dict[str, Verdict]:
    """The verdict on each answered sample, by its id; `kept` is the journal of what was judged before.

    All answers are asked about together, then again those whose reply held no grade. Each reply is on the disk when the
    next is looked at. `used` gets the client's telemetry, also if judgements are missing in the end.
    """
    judging = judging or Judging()
    server = judging.server(url, model)
    sampling = judging.decoding(0).fields(server, None)
    todo = [sample for sample in samples if sample.id in answers]
    cases: dict[str, _Case] = {}
    for sample in todo:
        messages = task.judge_messages(sample, answers[sample.id])
        key = hashlib.sha256(json.dumps([model, sampling, sample.id, messages]).encode()).hexdigest()
        cases[key] = _Case(key, sample.id, messages)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with Journal(kept) as opened, Chat(server) as chat:
        for record in _kept(kept):
            if case := cases.get(record.key):
                case.attempts, case.reply, case.credit = record.attempt, record.reply, record.score
        open_cases = [case for case in cases.values() if not case.settled]
        done = len(cases) - len(open_cases)
        for i in range(done):
            judged(i + 1, len(cases))
        if open_cases:
            announce(
                f"{len(open_cases):,} calls to the judge {model} at {server.host}, {judging.concurrency} at a time"
                + (f"; {done:,} answers were judged before" if done else "")
                + f". A reply without a grade is asked for again, up to {TRIES} times."
            )
        failures: list[Failure] = []
        while open_cases and not failures:
            outcomes = chat.ask_all(_requests(open_cases, judging, server))
            for case, outcome in zip(open_cases, outcomes, strict=True):
                if isinstance(outcome, Failure):
                    failures.append(outcome)
                    continue
                case.attempts += 1
                case.reply, case.credit = outcome.text, task.read_judgement(outcome.text)
                record = _Record(case.key, case.id, model, case.attempts, case.reply, case.credit)
                opened.append([asdict(record)])
                if case.settled:
                    done += 1
                    judged(done, len(cases))
            open_cases = [case for case in open_cases if not case.settled]
        if chat.telemetry()["requests"]:
            used(chat.telemetry())
    if failures:
        name = judging.api_key_env or "OPENAI_API_KEY"
        others = f" ({len(failures) - 1:,} more failed)" if len(failures) > 1 else ""
        raise EvalError(
            f"The judge {model} at {url} gave no answer: {failures[0].message}{others}\nJudgements so far are kept. "
            f"Check --judge-url, --judge-model and {name}, then run the same command again."
        )
    return {case.id: Verdict(case.reply, case.credit or 0.0, case.credit is not None) for case in cases.values()}


def _kept(path: Path) -> Iterator[_Record]:
    """The replies of earlier calls. Raises `StoreError`."""
    for number, record in journal.read(path, "judgement"):
        try:
            yield msgspec.convert(record, _Record)
        except msgspec.ValidationError as error:
            raise StoreError(journal.damaged(path, number, "judgement", str(error))) from None


def _requests(cases: Sequence[_Case], judging: Judging, server: Server) -> Iterator[Request]:
    for case in cases:
        yield Request(case.messages, judging.decoding(case.attempts).fields(server, None))
