"""Saved answers joined to the questions of a benchmark: by id and by what was asked, never by order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from vlmamba_eval.answers.asking import Asking, plain
from vlmamba_eval.answers.layouts import Saved
from vlmamba_eval.dataset import Dataset, load_dataset
from vlmamba_eval.registry import all_tasks
from vlmamba_eval.task import KnownElsewhere, MadeOfLists, Task
from vlmamba_eval.types import Answer, DataError, EvalError, Failure, Generation, Sample

FOREIGN_SHARE = 0.01
"""Above this share of rows that ask something else, the file belongs to another list."""
SUSPICIOUS = 1_000
"""From so many answers on, a file that holds nothing but gold answers is told."""


@dataclass
class Joined:
    """The answers by sample id, and in `notes` what the user should know about how they were joined."""

    answers: dict[str, Answer]
    notes: list[str] = field(default_factory=list)
    foreign: int = 0
    padded: int = 0
    unchecked: int = 0
    reworded: list[str] = field(default_factory=list)


def join(dataset: Dataset, rows: Sequence[Saved], name: str) -> Joined:
    """Join the rows of the file `name`. Raises `DataError`.

    For a row with an id that the benchmark does not have, for different answers to one question, for an id of several
    questions without a prompt, for as many rows without prompts as another list has questions, and if more than one in
    a hundred rows asks something else than the question under its id. Fewer such foreign rows never score, and are
    counted and named.
    """
    if not rows:
        raise DataError(f"{name}: holds no answers. Expected one JSON object per line with `question_id` and `text`.")
    index = _Index(dataset)
    rows = index.numbered(rows)
    pass_ = _Pass(dataset, index)
    for row in rows:
        pass_.add(row)
    return pass_.result(rows, name)


class _Index:
    """The samples under every id by which somebody knows them."""

    def __init__(self, dataset: Dataset) -> None:
        task = dataset.task
        self.dataset = dataset
        self.asking = Asking(task, dataset.samples)
        self.by_key: dict[str, list[Sample]] = defaultdict(list)
        self.by_alias: dict[str, list[Sample]] = defaultdict(list)
        self.by_question: dict[str, list[Sample]] = defaultdict(list)
        for sample in dataset.samples:
            self.by_key[sample.answer_key].append(sample)
            if sample.id != sample.answer_key:
                self.by_key[sample.id].append(sample)
            self.by_question[plain(sample.question)].append(sample)
            for alias in task.aliases(sample) if isinstance(task, KnownElsewhere) else ():
                self.by_alias[alias].append(sample)
            if sample.id.isdecimal() and sample.id != (short := sample.id.lstrip("0")):  # a program that reads numbers
                self.by_alias[short].append(sample)

    def candidates(self, row: Saved) -> list[Sample]:
        """The samples that a row may mean, those under its likeliest id first."""
        named = [self.by_key.get(f"{row.part}/{key}", []) for key in row.keys if row.part]
        for found in named:
            if found and (not row.prompt or any(self.asks(sample, row) for sample in found)):
                return found
        found = [s for samples in named for s in samples]
        found += [s for keys in (self.by_key, self.by_alias) for key in row.keys for s in keys.get(key, ())]
        found = list({sample.id: sample for sample in found}.values())
        if len(row.keys) == 1 and not row.loose:
            return found
        if row.prompt and any(self.asks(sample, row) for sample in found):
            return found
        first = next((keys[key] for key in row.keys for keys in (self.by_key, self.by_alias) if key in keys), [])
        if row.loose and row.prompt and (once := self._by_question(row)):
            return once
        return first

    def _by_question(self, row: Saved) -> list[Sample]:
        """The one sample that asks what a row without an id of the benchmark's asks."""
        question = plain(row.prompt).split("\n")[0]
        found = [s for s in self.by_question.get(question, ()) if not row.part or row.part in (*s.groups, s.id)]
        found = [sample for sample in found or self.by_question.get(question, ()) if self.asks(sample, row)]
        return found if len(found) == 1 else []

    def fits(self, rows: Sequence[Saved]) -> int:
        """How many rows answer some question here, as far as their ids and prompts tell."""
        return sum(any(not row.prompt or self.asks(s, row) for s in self.candidates(row)) for row in rows)

    def asks(self, sample: Sample, row: Saved) -> bool:
        return self.asking.asks(sample, row.prompt)

    def asked(self, sample: Sample) -> tuple[str, str, str]:
        """What makes rows of a list the same question: its words, its picture, its `question_id`."""
        return sample.answer_key, self.dataset.task.prompt(sample), sample.image.key if sample.image else ""

    def repeats(self, sample: Sample, text: str) -> bool:
        """Whether an answer is the question itself, with what asks for a short answer behind it."""
        return len(text) >= len(sample.question) and plain(text) == self.asking.prompt(sample)

    def numbered(self, rows: Sequence[Saved]) -> Sequence[Saved]:
        """Rows of lists that were answered one by one, each numbered from 1, under the ids of the whole benchmark.

        A list begins where an id stands for the second time, or with another file. Which one it is, its prompts say:
        they must be asked there under the same numbers, but for as many as a whole file may have of foreign ones.
        """
        task = self.dataset.task
        if not isinstance(task, MadeOfLists) or not all(row.prompt and row.keys and not row.part for row in rows):
            return rows
        lists: dict[str, dict[str, Sample]] = defaultdict(dict)
        for sample in self.dataset.samples:
            list_name, number = task.place_in_list(sample)
            lists[list_name][number] = sample
        parts = _parts(rows)
        result: list[Saved] = []
        taken: set[str] = set()
        for part in parts:
            fits = [
                list_name
                for list_name, numbers in lists.items()
                if list_name not in taken
                and sum(row.keys[0] not in numbers or not self.asks(numbers[row.keys[0]], row) for row in part)
                <= FOREIGN_SHARE * len(part)
            ]
            if len(fits) != 1:
                return rows  # an ambiguous part, or a file with the ids of the whole benchmark
            taken.update(fits)
            result += [replace(row, part=fits[0]) for row in part]
        return result


def _parts(rows: Iterable[Saved]) -> list[list[Saved]]:
    parts: list[list[Saved]] = []
    seen: set[str] = set()
    source = None
    for row in rows:
        if not parts or row.keys[0] in seen or row.source != source:
            parts.append([])
            seen = set()
        parts[-1].append(row)
        seen.add(row.keys[0])
        source = row.source
    return parts


class _Pass:
    """One way through the rows."""

    def __init__(self, dataset: Dataset, index: _Index) -> None:
        self.dataset = dataset
        self.index = index
        self.joined = Joined({})
        self.row_of: dict[str, Saved] = {}
        self.unknown: list[str] = []
        self.foreign: list[tuple[str, list[Sample]]] = []
        self.conflicts: list[tuple[Saved, Saved]] = []
        self.questions = 0

    def add(self, row: Saved) -> None:
        task = self.dataset.task
        candidates = self.index.candidates(row)
        if not candidates:
            self.unknown.append(f"{row.where}: question {' or '.join(map(repr, row.keys[:3])) or '(no id)'}")
            return
        if row.prompt:
            matching = [sample for sample in candidates if self.index.asks(sample, row)]
            if not matching:
                said = " ".join(row.prompt.split())[:60]
                key = row.keys[0] if row.keys else ""
                what = f"{row.where}: {said!r} does not ask what {task.info.title} asks under id {key!r}"
                self.foreign.append((what, candidates))
                return
        elif len({self.index.asked(sample) for sample in candidates}) > 1:
            raise DataError(
                f"{row.where}: question id {row.keys[0]!r} stands for {len(candidates)} questions of "
                f"{task.info.title}, so the field 'prompt' is needed to tell them apart."
            )
        else:
            matching = candidates
            self.joined.unchecked += self.index.asking.checkable
        self.questions += self.index.repeats(matching[0], row.text)
        if row.worded and not any(self.index.asking.as_asked(sample, row.prompt) for sample in matching):
            self.joined.reworded.append(f"{row.where}: {' '.join(row.prompt.split())[:120]!r}")
        # A benchmark may ask one question twice in the same words: then each of its answers takes one of the places.
        sample = next((sample for sample in matching if sample.id not in self.joined.answers), None)
        if sample is None:
            first = next((old for s in matching if (old := self.row_of[s.id]).text == row.text), None)
            if first is None:
                self.conflicts.append((row, self.row_of[matching[0].id]))
            else:
                self.joined.padded += 1
            return
        self.joined.answers[sample.id] = Answer(sample.id, Generation(row.text, row.prompt, 0, "unknown"))
        self.row_of[sample.id] = row

    def result(self, rows: Sequence[Saved], name: str) -> Joined:
        info, joined, n = self.dataset.task.info, self.joined, len(rows)
        if self.unknown:
            raise DataError(
                f"{self.unknown[0]} is not in {info.title} ({info.split}); "
                f"{len(self.unknown):,} of {n:,} answers are unknown. {self._likeliest(rows)}"
            )
        if len(self.foreign) > FOREIGN_SHARE * n:
            raise DataError(
                f"{self.foreign[0][0]}; nor do {len(self.foreign):,} of {n:,} prompts. {self._likeliest(rows)}"
            )
        # As many rows as another of the benchmark's lists has: under equal ids they would be joined to other questions.
        if joined.unchecked == n != info.questions and (named := _of_size(_kin(self.dataset), n)):
            raise DataError(
                f"{name} holds {n:,} answers without prompts, as many as `{named}` has questions; {info.title} has "
                f"{info.questions:,}. Score it with --task {named}, or give the file with its prompts."
            )
        if self.conflicts:
            row, first = self.conflicts[0]
            key = row.keys[0] if row.keys else ""
            raise DataError(
                f"{row.where}: question {key!r} is answered twice, differently; the first answer is at {first.where}. "
                f"{len(self.conflicts):,} rows are such. Keep one answer to each question."
            )
        if n > 1 and self.questions > n // 2:
            raise DataError(f"{name} holds the questions of {info.title} where answers should be; no model wrote it.")
        for what, candidates in self.foreign:
            sample = next((s for s in candidates if s.id not in joined.answers), None)
            if sample is None:
                raise DataError(
                    f"{what}, and the questions under that id have their answers. "
                    "Remove the row that does not belong here."
                )
            joined.answers[sample.id] = Answer(sample.id, None, Failure("foreign", what))
        joined.foreign = len(self.foreign)
        self._share_answers()
        joined.notes += self._notes(n)
        return joined

    def _share_answers(self) -> None:
        """One answer serves all rows of a list that ask the same about one picture under one `question_id`."""
        places: dict[tuple[str, str, str], list[Sample]] = defaultdict(list)
        for sample in self.dataset.samples:
            places[self.index.asked(sample)].append(sample)
        for same in places.values():
            given = next((a.generation for s in same if (a := self.joined.answers.get(s.id)) and a.generation), None)
            if given is not None:
                for sample in same:
                    self.joined.answers.setdefault(sample.id, Answer(sample.id, given))

    def _notes(self, n: int) -> list[str]:
        joined, info = self.joined, self.dataset.task.info
        notes: list[str] = []
        if joined.foreign:
            notes.append(
                f"{joined.foreign:,} of {n:,} rows are foreign: their saved prompt asks something else than the "
                f"question under their id. They are not scored, and count as wrong. The first: {self.foreign[0][0]}."
            )
        if joined.padded:
            notes.append(f"{joined.padded:,} rows repeat an answer (a last batch filled up?); one each is kept.")
        if joined.unchecked:
            which = "All" if joined.unchecked == n else f"{joined.unchecked:,} of {n:,}"
            notes.append(f"{which} answers lack a saved prompt: whether they answer these questions is not checked.")
        if joined.reworded:
            notes.append(
                f"{len(joined.reworded):,} of {n:,} prompts put the question in other words than the protocol "
                f"({info.protocol}), so the number compares with others of these prompts. First: {joined.reworded[0]}."
            )
        if len(joined.answers) >= SUSPICIOUS and all(
            _is_gold(sample, joined.answers[sample.id])
            for sample in self.dataset.samples
            if sample.id in joined.answers
        ):
            notes.append(f"All {n:,} answers are gold answers, letter for letter: did a model write this file?")
        return notes

    def _likeliest(self, rows: Sequence[Saved]) -> str:
        named = likeliest(self.dataset, rows)
        if named:
            return f"It is most likely for `{named}`: score it with --task {named}."
        name = self.dataset.task.info.name
        asked = {plain(row.prompt).split("\n")[0] for row in rows if row.prompt}
        known = sum(question in self.index.by_question for question in asked)
        if asked and known == len(asked):
            return (
                f"All its prompts are asked in `{name}`, some of them under other ids: it was most likely made on "
                f"another version of `{name}`, in which the ids have moved. Score it with that version in --data."
            )
        return f"Is this file for another task, or for another list than `{name}`?"


def _is_gold(sample: Sample, answer: Answer) -> bool:
    golds = (sample.target,) if isinstance(sample.target, str) else sample.target or ()
    return answer.generation is not None and answer.generation.text in golds


def likeliest(dataset: Dataset, rows: Sequence[Saved]) -> str:
    """The task that rows of answers belong to, if nine in ten join there and fewer do here: first its own benchmark's.

    Lists that are not at hand are told by their number of questions, within the same benchmark. Empty if none fits.
    """
    kin = _kin(dataset)
    others = [task for task in all_tasks().values() if task not in kin and task.info.name != dataset.task.info.name]
    some = rows[:: max(1, len(rows) // 300)]
    here = _Index(dataset).fits(some)
    for task in [*kin, *others]:
        if dataset.source in ("", "hub"):
            break
        try:
            other = load_dataset(task, dataset.source, allow_partial=True)
        except EvalError:
            continue
        fits = _Index(other).fits(some)
        if fits >= 0.9 * len(some) and fits > here and len(other.samples) >= len(rows):
            return task.info.name
    return _of_size(kin, len(rows))


def _kin(dataset: Dataset) -> list[Task]:
    """The other lists of a benchmark."""
    this = dataset.task.info
    others = (task for name, task in all_tasks().items() if name != this.name)
    return [task for task in others if task.info.paper == this.paper or set(task.info.folders) & set(this.folders)]


def _of_size(tasks: Sequence[Task], questions: int) -> str:
    return next((task.info.name for task in tasks if task.info.questions == questions), "")
