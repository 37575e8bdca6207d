"""Questions of your own, without code: `--tasks file:QUESTIONS.jsonl` (JSON lines, or a table with tabs and a header).

Each row is one question. Columns:

    question   the text that is put to the model                                           needed
    answer     the right answer, or a list of up to ten references (in a table: JSON)       needed
    type       yes_no, choice or short; without it: choice if there are options,
               yes_no if the answer is yes or no, else short
    image      a picture, relative to the file's folder                                    text alone without it
    options    the choices, a list of 2 to 8 texts (in a table: JSON, or columns A to H)    for choice
    id         unique                                                                      the row's number without it
    group      a name under which the question is also reported

Prompts and readings are those of the benchmarks: yes_no as POPE, choice as MMBench, short as GQA with one reference
and as VQAv2 (min(n/3, 1) of ten annotators) with ten; with two to nine references any of them is right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmamba_eval.folder import Folder
from vlmamba_eval.strict_json import parse_json
from vlmamba_eval.task import LETTER_ANSWER, LETTERS, SHORT_ANSWER, Task, TaskInfo, accuracy_metrics, lettered
from vlmamba_eval.tasks.options import read_choice
from vlmamba_eval.tasks.pope import read_yes_no
from vlmamba_eval.tasks.vqa_accuracy import ANNOTATORS, LEAVE_ONE_OUT, evalai
from vlmamba_eval.types import DataError, Loaded, Metric, Sample, UsageError, Verdict

if TYPE_CHECKING:
    from vlmamba_eval.rows import Row
    from vlmamba_eval.sums import Sums

TYPES = ("yes_no", "choice", "short")
COLUMNS = ("question", "answer", "type", "image", "options", "id", "group", *LETTERS)


class OwnQuestions(Task):
    """The questions of one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = str(path.parent.resolve())
        self.samples = list(_read(path))
        images = {sample.image.key for sample in self.samples if sample.image}
        self.info = TaskInfo(
            name=f"file-{path.stem}",
            title=path.stem,
            measures="questions of your own",
            split=path.name,
            questions=len(self.samples),
            images=len(images),
            headline="accuracy",
            max_new_tokens=128,
            paper="",
            scorer="",
            protocol="own",
        )

    def load(self, data: Folder) -> Loaded:
        return Loaded(self.samples)

    def prompt(self, sample: Sample) -> str:
        if sample.choices:
            return f"{sample.question}\n{lettered(sample.choices)}\n{LETTER_ANSWER}"
        return f"{sample.question}\n{SHORT_ANSWER}"

    def grade(self, sample: Sample, text: str) -> Verdict:
        if sample.choices:
            letter = read_choice(text, sample.choices)
            return Verdict(letter, float(letter == sample.target), letter is not None)
        if sample.fields["type"] == "yes_no":
            return read_yes_no(text, str(sample.target))
        prediction, references = evalai(text), [evalai(answer) for answer in sample.target or ()]
        agreeing = references.count(prediction)
        credit = LEAVE_ONE_OUT[agreeing] if len(references) == ANNOTATORS else float(agreeing > 0)
        return Verdict(prediction, credit, bool(prediction))

    def metrics(self, sums: Sums) -> Iterator[Metric]:
        yield from accuracy_metrics(sums)


def from_file(path: Path) -> OwnQuestions:
    """The task of a file. Raises `UsageError` if it is not there, `DataError` if a row is not as it should be."""
    if not path.is_file():
        raise UsageError(f"--tasks file:{path}: no such file.")
    return OwnQuestions(path)


def _read(path: Path) -> Iterator[Sample]:
    folder = Folder(path.parent)
    table = path.suffix.lower() in (".tsv", ".tab")
    rows = folder.tsv(path, ("question", "answer")) if table else folder.jsonl(path)
    seen: Counter[str] = Counter()
    for number, row in enumerate(rows, 1):
        unknown = [name for name in row.values if name not in COLUMNS]
        if unknown:
            row.fail(f"column {unknown[0]!r} is not known here; expected some of {', '.join(COLUMNS)}.")
        sample = _sample(folder, row, number, table)
        if seen[sample.id]:
            row.fail(f"id {sample.id!r} stands twice. Ids must be unique.")
        seen[sample.id] += 1
        yield sample
    if not seen:
        raise DataError(f"{path}: holds no questions. Expected one row per question, with `question` and `answer`.")


def _sample(folder: Folder, row: Row, number: int, table: bool) -> Sample:
    options = tuple(_list(row, "options", table))
    if not options and table:
        cells = [row.text(letter, "") for letter in LETTERS]
        options = tuple(cells[: cells.index("")] if "" in cells else cells)
    answers = tuple(str(answer).strip() for answer in _list(row, "answer", table))
    if not answers or not all(answers):
        row.fail("field 'answer' should hold the right answer, or a list of them.")
    guess = "choice" if options else "yes_no" if answers[0].lower() in ("yes", "no") and len(answers) == 1 else "short"
    kind = row.one_of("type", TYPES) if row.text("type", "") else guess
    target: str | tuple[str, ...] = answers
    if kind == "choice":
        if not 2 <= len(options) <= len(LETTERS):
            row.fail(f"a choice needs 2 to {len(LETTERS)} options, found {len(options)}.")
        target = answers[0]
        if target not in LETTERS[: len(options)]:
            if options.count(target) != 1:
                row.fail(f"field 'answer' should be the letter or the text of one of the {len(options)} options.")
            target = LETTERS[options.index(target)]
    elif kind == "yes_no":
        target = answers[0].lower()
        if target not in ("yes", "no") or len(answers) != 1:
            row.fail(f"field 'answer' of a yes_no question should be yes or no, found {answers}.")
    elif len(answers) > ANNOTATORS:
        row.fail(f"field 'answer' should hold at most {ANNOTATORS} references, found {len(answers)}.")
    image = folder.image(folder.root, row.text("image"), row.where) if row.text("image", "") else None
    group = row.text("group", "")
    return Sample(
        id=row.identifier("id") if "id" in row else str(number),
        image=image,
        question=row.text("question"),
        target=target,
        choices=options if kind == "choice" else (),
        groups=(group,) if group else (),
        fields={"type": kind},
        where=row.where,
    )


def _list(row: Row, name: str, table: bool) -> list[Any]:
    """A list of texts or numbers; one value alone is a list of one. In a table, a cell that begins with `[` is JSON."""
    value = row.values.get(name)
    if table and isinstance(value, str) and value.startswith("["):
        try:
            value = parse_json(value)
        except ValueError:
            row.fail(f"field {name!r} begins with '[' and is not a JSON list: {value!r:.80}")
    if value is None or value == "":
        return []
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(one, str | int | float) and not isinstance(one, bool) for one in values):
        row.fail(f"field {name!r} should hold texts, found {value!r:.80}.")
    return values
