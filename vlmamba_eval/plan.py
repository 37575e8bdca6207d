"""Which questions go together: by image, across the tasks of a run; equal ones once; batches under a token budget."""

from __future__ import annotations

import hashlib
import heapq
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from vlmamba_eval.images import read_image
from vlmamba_eval.types import DataError, ImageRef, Question, Sample


@dataclass(frozen=True, slots=True)
class Job:
    """One question to ask, and who asked it: (task, sample id) pairs, more than one for exact duplicates."""

    question: Question
    recipients: list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class ImageJobs:
    """All questions about one image, None for text only."""

    image: ImageRef | None
    jobs: list[Job] = field(default_factory=list)


Ask = Callable[[str, Sample], Question]
"""What a task, by name, asks about a sample."""


@dataclass(frozen=True, slots=True)
class Group:
    """Who asks about one image (task, sample), in order of appearance; its questions are made when they are wanted.

    So a plan of half a million questions holds none of their texts. `done` are recipients that have their answer.
    `text_tokens` are those of its jobs, as estimated.
    """

    image: ImageRef | None
    asked: tuple[tuple[str, Sample], ...]
    ask: Ask
    done: frozenset[tuple[str, str]] = frozenset()
    text_tokens: int = 0

    @property
    def jobs(self) -> list[Job]:
        """What is left to ask, exact duplicates once, in order of appearance; made anew at each call.

        POPE asks 43 % of its questions more than once across its three splits, and the answer is a function of image
        and text.
        """
        jobs: dict[Question, Job] = {}
        for task, sample in self.asked:
            question = self.ask(task, sample)
            job = jobs.setdefault(question, Job(question, []))
            if (task, sample.id) not in self.done:
                job.recipients.append((task, sample.id))
        return [job for job in jobs.values() if job.recipients]


AnyGroup = TypeVar("AnyGroup", Group, ImageJobs)


def plan(wanted: Iterable[tuple[str, Sample]], ask: Ask) -> list[Group]:
    """Group samples of tasks by image, in order of first appearance."""
    wanted = list(wanted)
    same = _equal_pictures(sample.image for _, sample in wanted if sample.image is not None)
    groups: dict[str, list[tuple[str, Sample]]] = defaultdict(list)
    for task, sample in wanted:
        if sample.image is None:  # nothing is shared: equal texts still meet in one group
            groups[f"text only: {ask(task, sample).text}"].append((task, sample))
        else:
            groups[same.get(sample.image.key, sample.image.key)].append((task, sample))
    return [_counted(Group(asked[0][1].image, tuple(asked), ask)) for asked in groups.values()]


def unanswered(batch: Iterable[Group], answered: Callable[[str, str], bool]) -> list[Group]:
    """A batch without what is answered: `answered(task, sample id)`. Order and first recipients stay.

    Plan and batches are made from all questions first, so that a run that was interrupted anywhere continues in the
    order of an undisturbed one, and with its batches.
    """
    left: list[Group] = []
    for group in batch:
        done = frozenset((task, sample.id) for task, sample in group.asked if answered(task, sample.id))
        if not done:
            left.append(group)
        elif len(done) < len(group.asked):
            left.append(_counted(replace(group, done=done)))
    return left


def written(batch: Iterable[Group]) -> list[ImageJobs]:
    """A batch with its questions, as models and other machines need it."""
    return [ImageJobs(group.image, group.jobs) for group in batch]


def _counted(group: Group) -> Group:
    return replace(group, text_tokens=_text_tokens(group.jobs))


EACH = 8
"""Batches per worker or share, at least: one more or less is then an eighth of its work."""


def share(batches: Sequence[list[AnyGroup]], image_tokens: int, number: int, of: int) -> list[list[AnyGroup]]:
    """The batches that machine `number` (from 1) of `of` answers: of about equal size in all, in their order.

    Together the shares are the plan, whatever machine makes them.
    """
    if of == 1:
        return list(batches)
    batches = finer(batches, image_tokens, EACH * of)
    sizes = [size_of(batch, image_tokens) for batch in batches]
    loads = [(0, part) for part in range(of)]
    mine: list[int] = []
    for place in sorted(range(len(batches)), key=lambda i: (-sizes[i], i)):  # each to the one with the least
        load, part = loads[0]
        heapq.heapreplace(loads, (load + sizes[place], part))
        if part == number - 1:
            mine.append(place)
    return [batches[place] for place in sorted(mine)]


def finer(batches: Sequence[list[AnyGroup]], image_tokens: int, wanted: int) -> list[list[AnyGroup]]:
    """At least `wanted` batches, if there are as many images: the largest are halved until then, the others stay.

    With 16 bits the answers to close questions depend on what else is in a batch. Batches that stay whole give the same
    bytes on any number of machines.
    """
    done: list[tuple[tuple[int, ...], list[AnyGroup]]] = []
    parts: list[tuple[int, tuple[int, ...], list[AnyGroup]]] = []
    for number, batch in enumerate(batches):
        if len(batch) > 1:
            parts.append((-size_of(batch, image_tokens), (number,), batch))
        else:
            done.append(((number,), batch))
    heapq.heapify(parts)
    while parts and len(parts) + len(done) < wanted:
        _, place, batch = heapq.heappop(parts)
        middle = len(batch) // 2
        for half, some in enumerate((batch[:middle], batch[middle:])):
            if len(some) > 1:
                heapq.heappush(parts, (-size_of(some, image_tokens), (*place, half), some))
            else:
                done.append(((*place, half), some))
    done += [(place, batch) for _, place, batch in parts]
    return [batch for _, batch in sorted(done, key=lambda item: item[0])]


def batches(groups: Iterable[AnyGroup], image_tokens: int, budget: int) -> Iterator[list[AnyGroup]]:
    """Consecutive groups whose estimated tokens fit the budget together; a group is never split, however large."""
    batch: list[AnyGroup] = []
    used = 0
    for group in groups:
        tokens = estimated_tokens(group, image_tokens)
        if batch and used + tokens > budget:
            yield batch
            batch, used = [], 0
        batch.append(group)
        used += tokens
    if batch:
        yield batch


def estimated_tokens(group: Group | ImageJobs, image_tokens: int) -> int:
    """Tokens of one image and its questions: four characters per token, and 32 for template and answer."""
    text = group.text_tokens if isinstance(group, Group) else _text_tokens(group.jobs)
    return text + (image_tokens if group.image is not None else 0)


def _text_tokens(jobs: Iterable[Job]) -> int:
    return sum(len(job.question.text) // 4 + 32 for job in jobs)


def size_of(batch: Iterable[AnyGroup], image_tokens: int) -> int:
    """Tokens of a batch, as estimated."""
    return sum(estimated_tokens(group, image_tokens) for group in batch)


def _equal_pictures(images: Iterable[ImageRef]) -> dict[str, str]:
    """From each key to the first key with the same content, for pictures in files of one name.

    COCO val2014 serves VQAv2 and POPE, often from two folders: files of one name are compared by their sha256.
    """
    by_name: dict[str, dict[str, ImageRef]] = defaultdict(dict)
    for image in images:
        if image.path:
            by_name[os.path.basename(image.path)].setdefault(image.key, image)
    same: dict[str, str] = {}
    for candidates in by_name.values():
        if len(candidates) < 2:
            continue
        seen: dict[bytes, str] = {}
        for key, image in candidates.items():
            try:
                content = hashlib.sha256(read_image(image)).digest()
            except DataError:
                continue  # reported under its own name when its questions are asked
            same[key] = seen.setdefault(content, key)
    return same
