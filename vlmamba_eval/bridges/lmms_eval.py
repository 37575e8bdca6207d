"""The model class that lmms-eval makes; see its `lmms_eval/api/model.py` (release 0.7.3) for the contract."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from filelock import Timeout
from lmms_eval.api.instance import GenerationResult  # type: ignore[import-not-found] - an extra
from lmms_eval.api.model import lmms  # type: ignore[import-not-found] - an extra
from PIL import Image
from tqdm import tqdm

from vlmamba_eval import journal
from vlmamba_eval.adapter import RanksContinuations
from vlmamba_eval.files import cannot_write, take_lock
from vlmamba_eval.generate import Ask, batch_tokens_for, halving
from vlmamba_eval.journal import Journal
from vlmamba_eval.manifest import canonical_json
from vlmamba_eval.plan import ImageJobs, Job, batches
from vlmamba_eval.registry import find_family, load, options_of
from vlmamba_eval.types import (
    EvalError,
    Failure,
    Generation,
    ImageQuestions,
    ImageRef,
    Question,
    StoreError,
    UsageError,
)

MAX_NEW_TOKENS = 128  # if a task of lmms-eval sets none
MOST_ROUNDS = 100  # of one conversation; a task that never says that it is over is stopped

Picture = Callable[[], Image.Image]


@dataclass(frozen=True, slots=True)
class Kept:
    """One line of the journal: what was asked, as a digest, and what came of it."""

    key: str
    text: str = ""
    losses: tuple[float, ...] = ()  # of ranked continuations: mean negative log-probability per token
    n_tokens: tuple[int, ...] = ()


@dataclass
class _Asked:
    """Questions of one kind by image: digests of images, then of questions. A picture is opened when it is needed."""

    pictures: dict[str, Picture | None] = field(default_factory=dict)
    groups: dict[str, dict[str, Question]] = field(default_factory=lambda: defaultdict(dict))


class VLMambaForLmms(lmms):
    """Answers lmms-eval's requests with any model of this project. All requests come in one call: grouped by image.

    `--model_args model=MODEL,journal=FILE,OPTION=VALUE,...`: a model and its family's options, as in
    `vlmamba-eval list models`. With a journal each answer is on the disk before the next batch begins, and a second run
    asks only what is new: lmms-eval itself keeps nothing of a run that crashes. Raises `UsageError` for a wrong option,
    a request with several images, or a family that can't rank.
    """

    is_simple = True

    def __init__(
        self,
        model: str = "vlmamba-tiny",
        journal: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        # Batches follow a token budget; lmms-eval's sizes are accepted because it always passes them. Its device is for
        # models that have one.
        family, _ = find_family(model)
        if device is not None and any(option.name == "device" for option in options_of(family)):
            options["device"] = device
        self.adapter = load(model, options)
        self._identity = canonical_json(self.adapter.info)
        self._journal = Path(journal) if journal else None

    # ------------------------------------------------------------------ lmms-eval's three verbs

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """One answer for each request, in order. Arguments of the requests are never changed."""
        asked = _Asked()
        keys = []
        for request in requests:
            context, options, visual, doc_id, task, split = request.args
            keys.append(self._add(asked, visual, doc_id, task, split, _question(context, options)))
        with self._kept() as (known, keep):
            self._answer(asked, self.adapter.generate, known, keep, "Answering")
        return [_until(known[key].text, request.args[1]) for key, request in zip(keys, requests, strict=True)]

    def loglikelihood(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """(mean negative log-probability of the continuation's tokens, whether greedy decoding gives it) as `text`.

        The first is a loss, as lmms-eval's own models return: its `multiple_choice` takes the smallest. The pair is
        wrapped because the evaluator of release 0.7.3 makes a text of a bare one. The space in front of a continuation
        is left out, for the conversation template has its own.
        """
        if not isinstance(self.adapter, RanksContinuations):
            raise UsageError(f"{self.adapter.info.name} cannot score given answers; choose tasks that generate.")
        places: list[tuple[str, str]] = []  # (image digest, continuation) of each request
        contexts: list[tuple[str, str]] = []
        asked = _Asked()
        wanted: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)  # (image, context) -> continuations
        for request in requests:
            if len(request.args) != 6:
                raise UsageError("A continuation without its document (acc_mutual_info) can't be scored.")
            context, continuation, visual, doc_id, task, split = request.args
            if not isinstance(continuation, str):
                continuation = continuation(self.task_dict[task][split][doc_id])
            text = str(continuation).strip()
            image = self._picture(asked, visual, doc_id, task, split)
            contexts.append((image, str(context)))
            places.append((image, text))
            wanted[image, str(context)][text] = None
        keys: dict[tuple[str, str], str] = {}
        for (image, context), texts in wanted.items():
            keys[image, context] = self._place(asked, image, Question(context, 1, tuple(texts)))
        with self._kept() as (known, keep):
            self._answer(asked, self.adapter.rank, known, keep, "Ranking")
            greedy = self._greedy(asked, wanted, keys, known, keep)
        found = []
        for place, (_, text) in zip(contexts, places, strict=True):
            kept = known[keys[place]]
            at = list(wanted[place]).index(text)
            pair = kept.losses[at], known[greedy[place, kept.n_tokens[at]]].text == text
            found.append(GenerationResult(pair))  # type: ignore[arg-type] - it passes on whatever it holds
        return found

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """The answers of each request's rounds. A round is a question of its own, which the task makes from the last.

        Rounds of all requests go together: the first of all, then the second.
        """
        open_rounds: list[tuple[int, str, Any]] = []  # (request, context, what gives the picture)
        for i, request in enumerate(requests):
            context, _, visual, *_ = request.args
            open_rounds.append((i, str(context), visual))
        answers: list[list[str]] = [[] for _ in requests]
        notes: list[Any] = [None] * len(requests)
        for number in range(1, MOST_ROUNDS + 1):
            asked = _Asked()
            keys = []
            for i, context, visual in open_rounds:
                _, options, _, _, doc_id, task, split = requests[i].args
                keys.append(self._add(asked, visual, doc_id, task, split, _question(context, options)))
            with self._kept() as (known, keep):
                self._answer(asked, self.adapter.generate, known, keep, f"Answering round {number}")
            following = []
            for (i, _, _), key in zip(open_rounds, keys, strict=True):
                _, options, _, next_text, doc_id, task, split = requests[i].args
                so_far = [*answers[i], _until(known[key].text, options)]
                visuals, context, over, answers[i], notes[i] = next_text(
                    self.task_dict[task][split][doc_id],
                    previous_output=so_far,
                    round_idx=number,
                    previous_round_info=notes[i],
                )
                answers[i] = list(answers[i])
                if not over:
                    following.append((i, str(context), lambda document, found=visuals: found))
            if not following:
                return answers
            open_rounds = following
        raise EvalError(f"{len(open_rounds)} conversations are not over after {MOST_ROUNDS} rounds.")

    # ------------------------------------------------------------------ questions by image

    def _add(self, asked: _Asked, visual: Any, doc_id: Any, task: str, split: str, question: Question) -> str:
        return self._place(asked, self._picture(asked, visual, doc_id, task, split), question)

    def _picture(self, asked: _Asked, visual: Any, doc_id: Any, task: str, split: str) -> str:
        """The digest of a request's picture; "" for text alone. Pixels are not held: it is opened again when needed."""
        document = self.task_dict[task][split]
        pictures = visual(document[doc_id]) or []
        if len(pictures) > 1:
            raise UsageError(
                f"{task}, document {doc_id}: {len(pictures)} images; {self.adapter.info.name} is shown at most one."
            )
        if not pictures:
            asked.pictures[""] = None
            return ""
        if not isinstance(pictures[0], Image.Image):
            raise UsageError(f"{task}, document {doc_id}: expected an image, found {type(pictures[0]).__name__}.")
        image = _digest(pictures[0].mode, str(pictures[0].size), pictures[0].tobytes())
        asked.pictures.setdefault(image, lambda: visual(document[doc_id])[0])
        return image

    def _place(self, asked: _Asked, image: str, question: Question) -> str:
        """Note a question under its image; its key."""
        parts = (question.text, str(question.max_new_tokens), *question.continuations)
        key = _digest(self._identity, image, *parts)
        asked.groups[image][key] = question
        return key

    def _greedy(
        self,
        asked: _Asked,
        wanted: Mapping[tuple[str, str], Mapping[str, None]],
        keys: Mapping[tuple[str, str], str],
        known: dict[str, Kept],
        keep: Callable[[Sequence[Kept]], None],
    ) -> dict[tuple[tuple[str, str], int], str]:
        """What greedy decoding says in as many tokens as each continuation has: keys by (place, number of tokens)."""
        decoded = _Asked(asked.pictures)
        found = {
            ((image, context), n): self._place(decoded, image, Question(context, n))
            for image, context in wanted
            for n in sorted(set(known[keys[image, context]].n_tokens))
        }
        self._answer(decoded, self.adapter.generate, known, keep, "Decoding")
        return found

    # ------------------------------------------------------------------ answers

    def _answer(
        self, asked: _Asked, ask: Ask, known: dict[str, Kept], keep: Callable[[Sequence[Kept]], None], title: str
    ) -> None:
        """Answer what is not known, batch by batch under a token budget, and keep it.

        A batch that does not fit the memory, or that the model can't stand, is halved by the harness's rule. Raises
        `EvalError` after the last batch if questions failed: lmms-eval has no way to say so, and an empty text would
        count as a wrong answer.
        """
        info = self.adapter.info
        groups = []
        for image, questions in asked.groups.items():
            jobs = [Job(question, [(key, "")]) for key, question in questions.items() if key not in known]
            if jobs:
                groups.append(ImageJobs(ImageRef(image, image) if image else None, jobs))
        failures: list[Failure] = []
        total = sum(len(group.jobs) for group in groups)
        with tqdm(total=total, desc=title, unit="question", disable=self.rank != 0 or not total) as progress:
            for batch in batches(groups, info.image_tokens, batch_tokens_for(info.device)):
                ready, prepared = [], []
                for group in batch:
                    try:
                        prepared.append(self._prepared(asked, group))
                        ready.append(group)
                    except Exception as error:  # noqa: BLE001 - a picture that the model can't stand fails alone
                        failures += [Failure("model_error", f"{type(error).__name__}: {error}")] * len(group.jobs)
                outcomes = halving(ask, prepared, progress.write) if prepared else []
                new = []
                for group, found in zip(ready, outcomes, strict=True):
                    for job, outcome in zip(group.jobs, found, strict=True):
                        if isinstance(outcome, Failure):
                            failures.append(outcome)
                        else:
                            new.append(_keep(job.recipients[0][0], outcome))
                keep(new)
                known.update((kept.key, kept) for kept in new)
                progress.update(sum(len(group.jobs) for group in batch))
        if failures:
            kept = f"the other answers are in {self._journal}" if self._journal else "give a journal to keep the others"
            raise EvalError(
                f"{info.name} could not answer {len(failures)} of {total} questions: {failures[0].message}. "
                f"Run the same command again; {kept}."
            )

    def _prepared(self, asked: _Asked, group: ImageJobs) -> ImageQuestions:
        opened = asked.pictures[group.image.key] if group.image else None
        image = None if opened is None else self.adapter.prepare(opened().convert("RGB"))
        return ImageQuestions(image, tuple(job.question for job in group.jobs))

    @contextmanager
    def _kept(self) -> Iterator[tuple[dict[str, Kept], Callable[[Sequence[Kept]], None]]]:
        """What earlier runs answered, and how to keep more. One process at a time, and one file per rank."""
        if self._journal is None:
            yield {}, lambda new: None
            return
        path = self._journal
        if self.world_size > 1:
            path = path.with_name(f"{path.stem}-{self.rank}{path.suffix}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = take_lock(path.with_name(f"{path.name}.lock"))
        except Timeout:
            raise StoreError(f"{path} is being written by another process. Give another journal.") from None
        except OSError as error:
            raise StoreError(cannot_write(path, error)) from error
        try:
            with Journal(path) as opened:
                yield dict(_read(path)), lambda new: opened.append([asdict(kept) for kept in new])
        finally:
            lock.release()


def _question(context: Any, options: Mapping[str, Any]) -> Question:
    return Question(str(context), int(options.get("max_new_tokens") or MAX_NEW_TOKENS))


def _keep(key: str, outcome: Generation) -> Kept:
    losses = tuple(-one.logprob / max(one.n_tokens, 1) for one in outcome.likelihoods)
    return Kept(key, outcome.text, losses, tuple(one.n_tokens for one in outcome.likelihoods))


def _read(path: Path) -> Iterator[tuple[str, Kept]]:
    """The lines of a journal by key. Raises `StoreError`."""
    for number, record in journal.read(path, "answer"):
        try:
            kept = msgspec.convert(record, Kept)
        except msgspec.ValidationError as error:
            raise StoreError(journal.damaged(path, number, "answer", str(error))) from None
        yield kept.key, kept


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        raw = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()


def _until(text: str, options: Mapping[str, Any]) -> str:
    """The answer up to the first of the task's stop strings."""
    stops = options.get("until") or []
    for stop in [stops] if isinstance(stops, str) else stops:
        if stop:
            text = text.split(stop, 1)[0]
    return text
