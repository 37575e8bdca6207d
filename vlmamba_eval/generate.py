"""Groups of questions -> answers: an iterator that knows neither disk nor benchmark nor score.

It is what a run goes through, and what a worker on another machine runs on its share of the plan.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from vlmamba_eval.adapter import Adapter, RanksContinuations
from vlmamba_eval.deadline import within
from vlmamba_eval.images import open_image
from vlmamba_eval.plan import ImageJobs
from vlmamba_eval.text import short_message
from vlmamba_eval.types import (
    DataError,
    Failure,
    Generation,
    ImageQuestions,
    Likelihood,
    OutOfMemory,
    Question,
    Scoring,
    StopReason,
    UsageError,
)

AUTO_BATCH_TOKENS = {"cpu": 16_384, "cuda": 65_536, "server": 4_096}
"""Token budget of one batch, by type of device. A server's answers cost money, and are on the disk after each batch."""

PREPARE_THREADS = min(16, max(4, os.cpu_count() or 1))
"""Threads that read, decode and resize pictures; all three release the interpreter's lock."""
AHEAD_IMAGES, AHEAD_BYTES = 1024, 2**29
"""How many prepared pictures wait for the model at most, and their memory."""
IMAGE_SECONDS = 30.0  # for reading, decoding and preparing one picture; a usual one takes a hundredth of a second

ANY_TIME = nullcontext()

Ask = Callable[[Sequence[ImageQuestions]], Sequence[Sequence[Generation | Failure]]]
Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Answered:
    """A group with what became of each of its jobs, in their order."""

    group: ImageJobs
    outcomes: list[Generation | Failure]


def batch_tokens_for(device: str) -> int:
    """The token budget of a batch on a device such as `cuda:1`."""
    return AUTO_BATCH_TOKENS.get(device.split(":")[0], AUTO_BATCH_TOKENS["cpu"])


def generate(
    adapter: Adapter,
    batches: Iterable[list[ImageJobs]],
    *,
    scoring: Scoring = "generate",
    seconds: float | None = None,
    note: Note = lambda message: None,
    turn: AbstractContextManager[Any] = ANY_TIME,
) -> Iterator[list[Answered]]:
    """Answer all batches, in their order. Images are decoded ahead on threads, and the model is asked inside `turn`.

    A question whose image can't be read, or that the adapter can't answer, gets a `Failure` of its own. So does one
    that the adapter takes longer than `seconds` for: a batch that takes longer is halved until it stands alone. Raises
    `UsageError` if the adapter can't do this kind of scoring.
    """
    verb = _verb(adapter, scoring)

    def ask(batch: Sequence[ImageQuestions]) -> Sequence[Sequence[Generation | Failure]]:
        with turn:
            return within(seconds, verb, batch)

    with ThreadPoolExecutor(PREPARE_THREADS, thread_name_prefix="prepare") as pool:
        try:
            for batch, prepared in _prepared(adapter, batches, pool):
                yield _answer_batch(ask, batch, prepared, note)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _verb(adapter: Adapter, scoring: Scoring) -> Ask:
    if scoring == "generate":
        return adapter.generate
    if not isinstance(adapter, RanksContinuations):
        raise UsageError(f"{adapter.info.name} cannot score given answers; leave out --scoring likelihood.")
    return cast(RanksContinuations, adapter).rank


def _prepared(
    adapter: Adapter, all_batches: Iterable[list[ImageJobs]], pool: ThreadPoolExecutor
) -> Iterator[tuple[list[ImageJobs], list[Future[Any] | None]]]:
    """Each batch with its images under way.

    One batch is prepared while another is answered, and further ones as far as memory allows: so large pictures at the
    end of a list are decoded while the model is busy with small ones.
    """

    def opened(group: ImageJobs) -> Any:
        assert group.image is not None  # noqa: S101 - only groups with an image are submitted
        return adapter.prepare(open_image(group.image))

    def prepare(group: ImageJobs) -> Any:
        return within(IMAGE_SECONDS, opened, group)

    ahead: deque[tuple[list[ImageJobs], list[Future[Any] | None]]] = deque()
    waiting = 0  # images
    largest = AHEAD_BYTES  # of the images of the latest batch
    for batch in all_batches:
        ahead.append((batch, [pool.submit(prepare, group) if group.image is not None else None for group in batch]))
        waiting += len(batch)
        while len(ahead) > 1 and waiting > min(AHEAD_IMAGES, AHEAD_BYTES // largest):
            answered, futures = ahead.popleft()
            yield answered, futures
            waiting -= len(answered)
            largest = _largest(futures) or largest
            del futures  # and the pictures with them
    while ahead:
        yield ahead.popleft()


def _largest(futures: Iterable[Future[Any] | None]) -> int:
    """The bytes of the largest picture among those that could be prepared."""
    return max((_bytes(one.result()) for one in futures if one is not None and one.exception() is None), default=0)


def _bytes(prepared: Any) -> int:
    """The memory of a prepared picture: arrays, texts, lists and dictionaries of them; of anything else, too much."""
    if isinstance(prepared, str | bytes):
        return len(prepared)
    if isinstance(prepared, Mapping):
        return sum(map(_bytes, prepared.values()))
    if isinstance(prepared, list | tuple):
        return sum(map(_bytes, prepared))
    return int(getattr(prepared, "nbytes", AHEAD_BYTES))


def _answer_batch(ask: Ask, batch: list[ImageJobs], prepared: list[Future[Any] | None], note: Note) -> list[Answered]:
    """One outcome for each job of each group."""
    answered = [Answered(group, []) for group in batch]
    ready: list[tuple[Answered, ImageQuestions]] = []
    for result, future in zip(answered, prepared, strict=True):
        group = result.group
        try:
            image = future.result() if future is not None else None
        except DataError as error:
            result.outcomes.extend([Failure("data_error", str(error))] * len(group.jobs))
            note(str(error))
        except TimeoutError as error:
            failure = Failure("timeout", f"{group.image.where if group.image else 'a text'}: preparing it {error}")
            result.outcomes.extend([failure] * len(group.jobs))
            note(failure.message)
        except Exception as error:  # noqa: BLE001 - an adapter that can't stand a picture fails its questions alone
            failure = Failure("model_error", _shown(error))
            result.outcomes.extend([failure] * len(group.jobs))
            note(f"{group.image.where if group.image else 'a text'} can't be prepared: {failure.message}")
        else:
            ready.append((result, ImageQuestions(image, tuple(job.question for job in group.jobs))))
    if ready:
        outcomes = halving(ask, [questions for _, questions in ready], note)
        for (result, _), found in zip(ready, outcomes, strict=True):
            result.outcomes.extend(found)
    return answered


# =============================================================================
# One question never takes another with it
# =============================================================================


def halving(ask: Ask, batch: list[ImageQuestions], note: Note) -> list[list[Generation | Failure]]:
    """Answer a batch; if it does not fit the memory or the adapter raises, answer its halves, down to one question.

    So the question at fault fails alone. Nothing is asked again that has an answer.
    """
    kind: Literal["model_error", "timeout"] = "model_error"
    try:
        return checked(ask(batch), batch, note)
    except OutOfMemory as error:
        reason = "out of memory" + (f": {error}" if str(error) else "")
    except TimeoutError as error:
        kind, reason = "timeout", str(error)
    except Exception as error:  # noqa: BLE001 - whatever an adapter raises becomes the typed failure of its question
        reason = _shown(error)
    if len(batch) > 1:
        middle = len(batch) // 2
        note(f"{len(batch)} images together: {reason}; trying {middle} at a time.")
        return halving(ask, batch[:middle], note) + halving(ask, batch[middle:], note)
    questions = batch[0].questions
    if len(questions) > 1:
        middle = len(questions) // 2
        note(f"{len(questions)} questions about one image together: {reason}; trying {middle} at a time.")
        halves = [ImageQuestions(batch[0].image, part) for part in (questions[:middle], questions[middle:])]
        return [[outcome for half in halves for outcome in halving(ask, [half], note)[0]]]
    note(f"A question failed: {reason}")
    return [[Failure(kind, reason)]]


def _shown(error: Exception) -> str:
    """What an error says, without the rest of a tensor that it may quote."""
    return short_message(f"{type(error).__name__}: {error}")


def checked(
    found: Sequence[Sequence[Any]], batch: Sequence[ImageQuestions], note: Note
) -> list[list[Generation | Failure]]:
    """What an adapter returned, each answer looked at: a value of another type becomes its question's failure.

    Raises `ValueError` for another number of answers than questions, since then no answer has a place.
    """
    counts = [len(outcomes) for outcomes in found]
    wanted = [len(item.questions) for item in batch]
    if counts != wanted:
        raise ValueError(f"the model returned {counts} answers for {wanted} questions")
    result: list[list[Generation | Failure]] = []
    for outcomes, item in zip(found, batch, strict=True):
        result.append([_checked(one, question) for one, question in zip(outcomes, item.questions, strict=True)])
        for outcome in result[-1]:
            if isinstance(outcome, Failure):
                note(f"A question failed: {outcome.message}")
    return result


def _checked(found: Any, question: Question) -> Generation | Failure:
    if isinstance(found, Failure) and type(found.message) is str:
        return found
    if not isinstance(found, Generation):
        return Failure("model_error", f"the model returned {found!r:.200} in place of a Generation")
    problem = (
        _other(found.text, "text", str)
        or _other(found.prompt, "prompt", str)
        or _other(found.n_tokens, "n_tokens", int)
        or ("" if found.stop in get_args(StopReason) else f"stop {found.stop!r:.80}; expected {get_args(StopReason)}")
    )
    ranked, n = found.likelihoods, len(question.continuations)
    if not problem and not (isinstance(ranked, tuple) and all(map(_likelihood, ranked))):
        problem = f"likelihoods {ranked!r:.200}; expected a tuple of Likelihood"
    if not problem and n and len(ranked) != n:
        problem = f"{len(ranked)} likelihoods for {n} continuations"
    return Failure("model_error", f"the model returned {problem}") if problem else found


def _likelihood(value: Any) -> bool:
    return isinstance(value, Likelihood) and type(value.logprob) is float and type(value.n_tokens) is int


def _other(value: Any, name: str, kind: type) -> str:
    """What is wrong with a field that must be exactly of a type (a bool or a numpy number is not an int)."""
    return "" if type(value) is kind else f"{name} {value!r:.200}, a {type(value).__name__}; expected {kind.__name__}"
