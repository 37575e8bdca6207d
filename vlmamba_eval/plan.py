"""Which questions go together: by image, across the tasks of a run; equal ones once; batches under a token budget."""

from __future__ import annotations

import hashlib
import heapq
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

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


def plan(wanted: Iterable[tuple[str, Sample, Question]]) -> list[ImageJobs]:
    """Group questions (task, sample, question) by image, in order of first appearance.

    POPE asks 43 % of its questions more than once across its three splits, and the answer is a function of image
    and text: exact duplicates become one job with several recipients.
    """
    wanted = list(wanted)
    same = _equal_pictures(sample.image for _, sample, _ in wanted if sample.image is not None)
    groups: dict[str, ImageJobs] = {}
    known: dict[tuple[str, Question], Job] = {}
    for task, sample, question in wanted:
        if sample.image is None:  # nothing is shared: equal texts still meet in one group
            group_key, image = f"text only: {question.text}", None
        else:
            image = sample.image
            group_key = same.get(image.key, image.key)
        group = groups.setdefault(group_key, ImageJobs(image))
        job = known.get((group_key, question))
        if job is None:
            job = known[group_key, question] = Job(question, [])
            group.jobs.append(job)
        job.recipients.append((task, sample.id))
    return list(groups.values())


def unanswered(batch: Iterable[ImageJobs], answered: Callable[[str, str], bool]) -> list[ImageJobs]:
    """A batch without what is answered: `answered(task, sample id)`. Order and first recipients stay.

    Plan and batches are made from all questions first, so that a run that was interrupted anywhere continues in the
    order of an undisturbed one, and with its batches.
    """
    left: list[ImageJobs] = []
    for group in batch:
        jobs = []
        for job in group.jobs:
            recipients = [recipient for recipient in job.recipients if not answered(*recipient)]
            if recipients:
                jobs.append(Job(job.question, recipients))
        if jobs:
            left.append(ImageJobs(group.image, jobs))
    return left


EACH = 8
"""Batches per worker or share, at least: one more or less is then an eighth of its work."""


def share(batches: Sequence[list[ImageJobs]], image_tokens: int, number: int, of: int) -> list[list[ImageJobs]]:
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


def finer(batches: Sequence[list[ImageJobs]], image_tokens: int, wanted: int) -> list[list[ImageJobs]]:
    """At least `wanted` batches, if there are as many images: the largest are halved until then, the others stay.

    With 16 bits the answers to close questions depend on what else is in a batch. Batches that stay whole give the same
    bytes on any number of machines.
    """
    done: list[tuple[tuple[int, ...], list[ImageJobs]]] = []
    parts: list[tuple[int, tuple[int, ...], list[ImageJobs]]] = []
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


def batches(groups: Iterable[ImageJobs], image_tokens: int, budget: int) -> Iterator[list[ImageJobs]]:
    """Consecutive groups whose estimated tokens fit the budget together; a group is never split, however large."""
    batch: list[ImageJobs] = []
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


def estimated_tokens(group: ImageJobs, image_tokens: int) -> int:
    """Tokens of one image and its questions: four characters a token, and 32 for template and answer."""
    text = sum(len(job.question.text) // 4 + 32 for job in group.jobs)
    return text + (image_tokens if group.image is not None else 0)


def size_of(batch: Iterable[ImageJobs], image_tokens: int) -> int:
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
