"""A benchmark's samples as one run uses them: loaded, counted, limited, identified; and answer files joined to them."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmamba_eval.data import Folder, Hub, Row, read_jsonl
from vlmamba_eval.plan import limited
from vlmamba_eval.types import Answer, DataError, Generation, Graded, Sample, UsageError, Verdict

if TYPE_CHECKING:
    from tasks.base import Task

SAMPLES, PARTIAL, INCOMPLETE, UNTRAINED, UNSCORED = "SAMPLES", "PARTIAL", "INCOMPLETE", "UNTRAINED", "UNSCORED"


@dataclass(frozen=True)
class Dataset:
    """The samples of one task in one run.

    `marks` are the words that every table of the run must carry (SAMPLES, PARTIAL). `provenance` goes into the
    manifest; `source` (`hub`, `samples`, or the absolute folder) does not, since data may be moved.
    """

    task: Task
    samples: list[Sample]
    marks: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    @property
    def labelled(self) -> bool:
        """Whether every sample has a gold label, so that answers can be scored here."""
        return all(sample.target is not None for sample in self.samples)


def load_dataset(
    task: Task,
    where: str,
    *,
    limit: int | None = None,
    seed: int = 0,
    allow_partial: bool = False,
) -> Dataset:
    """Load a task from `"hub"`, `"samples"` (the bundled scenes) or a folder.

    Other counts than the declared ones are refused or, with `allow_partial`, marked PARTIAL; so is a limited run.
    Raises `DataError`, or `UsageError` for a folder that is not there.
    """
    info = task.info
    provenance: dict[str, Any] = {}
    marks: list[str] = []
    if where == "hub":
        hub = Hub()
        samples = task.load_hub(hub)
        provenance["hub"] = dict(hub.revisions)
    else:
        root = samples_folder() if where == "samples" else Path(where)
        bundled = root.resolve() == samples_folder().resolve()  # whatever they are called, they are no benchmark
        if not where or not root.is_dir():
            raise UsageError(f"--data {where or repr(where)}: no such folder. Give a folder, `hub`, or `samples`.")
        if bundled and not has_samples(task):
            raise UsageError(
                f"No samples of {info.name} are bundled; `vlmamba-eval list tasks` says of which there are."
            )
        samples = task.load(Folder(root, info.folders))
        if bundled:
            marks.append(SAMPLES)
    if not samples:
        raise DataError(f"{info.name}: no questions found in {where}.")
    _refuse_duplicates(task, samples)
    if SAMPLES not in marks:
        problem = _count_problem(task, samples)
        if problem and not allow_partial:
            raise DataError(
                f"{info.name}: {problem}. Numbers on another list are not comparable with published ones. "
                "Fetch the official files again, choose the task that stands for your list "
                "(vlmamba-eval list tasks), or give --allow-partial to mark the result PARTIAL."
            )
        if problem:
            marks.append(PARTIAL)
    if limit is not None and limit < len(samples):
        samples = limited(samples, limit, seed)
        provenance["limit"] = {"questions": limit, "seed": seed}
        if PARTIAL not in marks:
            marks.append(PARTIAL)
    provenance["questions"] = len(samples)
    provenance["sha256"] = fingerprint(task, samples)
    source = where if where in ("hub", "samples") else str(Path(where).resolve())
    return Dataset(task, samples, tuple(marks), provenance, source)


def samples_folder() -> Path:
    """The data folder of the bundled samples."""
    import tasks

    return Path(tasks.__path__[0]) / "samples" / "data"


def has_samples(task: Task) -> bool:
    """Whether samples of this task are bundled."""
    try:
        return bool(task.load(Folder(samples_folder(), task.info.folders)))
    except DataError:
        return False


def fingerprint(task: Task, samples: Iterable[Sample]) -> str:
    """The sha256 of what is asked: each sample's id and prompt, in order of ids; neither paths nor labels."""
    digest = hashlib.sha256()
    for sample in sorted(samples, key=lambda sample: sample.id):
        digest.update(
            f"{sample.id}\0{task.prompt(sample)}\0{sample.image is not None}\1".encode("utf-8", "surrogatepass")
        )
    return digest.hexdigest()


def _count_problem(task: Task, samples: Sequence[Sample]) -> str:
    info = task.info
    if len(samples) != info.questions:
        return f"expected {info.questions:,} questions ({info.split}), found {len(samples):,}"
    images = len({sample.image.key for sample in samples if sample.image is not None})
    if info.images is not None and images != info.images:
        return f"expected {info.images:,} images ({info.split}), found {images:,}"
    if info.sha256 and fingerprint(task, samples) != info.sha256:
        return (
            f"the {len(samples):,} questions are not those of {info.split}: their sha256 differs from the declared one"
        )
    return ""


def _refuse_duplicates(task: Task, samples: Iterable[Sample]) -> None:
    """Ids that only differ in white space at their ends, or in how Unicode spells a letter, are the same id."""
    seen: dict[str, Sample] = {}
    for sample in samples:
        other = seen.setdefault(unicodedata.normalize("NFC", sample.id).strip(), sample)
        if other is not sample:
            raise DataError(
                f"{sample.where or task.info.name}: question id {sample.id!r} occurs twice; the first, "
                f"{other.id!r}, is at {other.where or 'an earlier row'}. Ids must be unique: remove one of the rows."
            )


# =============================================================================
# Grading
# =============================================================================


def grade(
    dataset: Dataset, answers: Mapping[str, Answer], verdicts: Mapping[str, Verdict] | None = None
) -> list[Graded]:
    """Every sample with its verdict; missing and failed answers have none, and count as wrong.

    `verdicts`, by sample id, are a judge's; without them the task's rules grade.
    """
    task = dataset.task
    if verdicts is None:
        answered = [
            (sample, answer_text(task, sample, generation))
            for sample in dataset.samples
            if (answer := answers.get(sample.id)) is not None and (generation := answer.generation) is not None
        ]
        graded_by_rules = zip(answered, task.grade_all(answered), strict=True)
        verdicts = {sample.id: verdict for (sample, _), verdict in graded_by_rules}
    graded: list[Graded] = []
    for sample in dataset.samples:
        answer = answers.get(sample.id)
        if answer is None:
            graded.append(Graded(sample, None, "missing"))
        elif answer.generation is None:
            graded.append(Graded(sample, None, "error"))
        else:
            graded.append(Graded(sample, verdicts[sample.id], "ok", answer.generation.stop == "length"))
    return graded


def answer_text(task: Task, sample: Sample, generation: Generation) -> str:
    """The text to grade: what was generated, or what a ranking of continuations stands for."""
    return task.choose(sample, generation) if generation.likelihoods else generation.text


# =============================================================================
# Answer files
# =============================================================================


def read_answer_file(dataset: Dataset, path: Path) -> dict[str, Answer]:
    """Anybody's answers, JSON lines with `question_id` (or `id`) and `text`, joined to the samples.

    Joined by id and, where ids repeat (MME, TextVQA), by the saved `prompt`; never by order. Raises `DataError` for an
    id that the benchmark does not have, for two answers to one question, and for a file that answers other questions.
    """
    task = dataset.task
    by_key: dict[str, list[Sample]] = defaultdict(list)
    for sample in dataset.samples:
        by_key[sample.answer_key].append(sample)
        if sample.id != sample.answer_key:
            by_key[sample.id].append(sample)

    answers: dict[str, Answer] = {}
    where: dict[str, str] = {}
    unknown: list[str] = []
    foreign: list[str] = []
    n = 0
    for row in read_jsonl(path):
        n += 1
        key = row.identifier("id" if "id" in row and "question_id" not in row else "question_id")
        text = row.text("text")
        prompt = row.text("prompt", "")
        candidates = by_key.get(key)
        if candidates is None:
            unknown.append(f"{row.where}: question {key!r}")
            continue
        matching = _matching(task, candidates, prompt, row)
        # A benchmark may ask one question twice in the same words: then each of its answers takes one of the places.
        sample = next((sample for sample in matching if sample.id not in answers), None)
        if sample is None:
            row.fail(
                f"question {key!r} is answered twice; the first answer is at {where[matching[0].id]}. "
                "Remove one of them."
            )
        if prompt and not _mentions(task.prompt(sample), prompt):
            foreign.append(f"{row.where}: {prompt.strip()[:60]!r}")
        answers[sample.id] = Answer(sample.id, Generation(text, prompt, 0, "unknown"))
        where[sample.id] = row.where
    if n == 0:
        raise DataError(f"{path}: holds no answers. Expected one JSON object a line with `question_id` and `text`.")
    if unknown:
        raise DataError(
            f"{unknown[0]} is not in {task.info.title} ({task.info.split}); "
            f"{len(unknown):,} of {n:,} answers are unknown. "
            f"Is this file for another task, or for another list than `{task.info.name}`?"
        )
    if len(foreign) > len(answers) // 2:
        raise DataError(
            f"{foreign[0]} does not ask what {task.info.title} asks under that id; nor do {len(foreign):,} of "
            f"{n:,} prompts. Is this file for another task?"
        )
    return answers


def _matching(task: Task, candidates: Sequence[Sample], prompt: str, row: Row) -> Sequence[Sample]:
    if len(candidates) == 1:
        return candidates
    if not prompt:
        row.fail(
            f"question id {candidates[0].answer_key!r} stands for {len(candidates)} questions of {task.info.title}, "
            "so the field 'prompt' is needed to tell them apart."
        )
    key = task.join_key(prompt)
    found = [sample for sample in candidates if task.join_key(task.prompt(sample)) == key]
    if not found:
        asked = " | ".join(task.join_key(task.prompt(sample)) for sample in candidates)
        row.fail(f"the prompt {key!r} is none of the questions under id {candidates[0].answer_key!r}: {asked}.")
    return found


def _mentions(expected: str, prompt: str) -> bool:
    """Whether a saved prompt holds the beginning of the expected one's first line, white space and case apart."""
    beginning = " ".join(expected.split("\n", 1)[0].split())[:40].casefold()
    return beginning in " ".join(prompt.split()).casefold()
