"""MMBench, dev: multiple choice on twenty abilities, each question asked again with its options rotated.

Paper   Liu et al. 2023, MMBench: Is Your Multi-modal Model an All-around Player?, arXiv 2307.06281
Data    https://github.com/open-compass/MMBench: tab-separated files, pictures in base64. LLaVA-1.5 reports the list of
        2023-07-12, 4,377 rows = 1,176 questions. VLMEvalKit and the hub have a later one, `mmbench_20231003`.
Scorer  CircularEval (paper, section 4.1): a question is right if all its passes are. The passes are rows of the file:
        pass k of question b has index k * 1,000,000 + b; its options are pass k - 1's, rotated. The authors' server is
        closed; it asked ChatGPT what an answer without a clear letter means. Here nobody is asked:
        circular_accuracy             letters and option texts as in `options.read_choice`, else unparsed and wrong
        circular_accuracy_exact       the text is exactly a letter: gives LLaVA-1.5-13B its published 67.7
        circular_accuracy_vlmevalkit  as VLMEvalKit reads it before it asks a judge, else wrong
        vanilla_accuracy              pass 0 alone; row_accuracy: every row for itself

One row (index, question, hint, A, B, C, D, answer, category, image, source, l2-category, comment, split; shortened):
    1000241 | Which of the following was a dependent variable ...? | The passage below ... | the number of ... |
    the type of ... | | | B | identity_reasoning | /9j/4AAQ... | scienceqa | attribute_reasoning | | dev
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vlmamba_eval.sources import File, Terms
from vlmamba_eval.task import LETTER_ANSWER, LETTERS, Task, TaskInfo, lettered
from vlmamba_eval.tasks.options import read_choice, read_choice_vlmevalkit
from vlmamba_eval.types import DataError, Graded, ImageRef, Loaded, Metric, Sample, Verdict

if TYPE_CHECKING:
    from vlmamba_eval.folder import Folder
    from vlmamba_eval.hub import Hub
    from vlmamba_eval.rows import Row
    from vlmamba_eval.sums import Sums

OPTIONS = tuple(LETTERS[:4])
PASS = 1_000_000
READINGS = ("", "_exact", "_vlmevalkit")
HAN = re.compile("[\u4e00-\u9fff]")
SUBMISSION = ("index", "question", *OPTIONS, "prediction", "answer", "split")


TERMS = Terms("as the data's page says", "https://github.com/open-compass/MMBench")
HOST = "https://download.openmmlab.com/mmclassification/datasets/mmbench"


def _tsv(name: str) -> File:
    """An official list with its pictures inside."""
    return File(f"mmbench/{name}", f"{HOST}/{name}", TERMS, size=32_000_000)


JULY = TaskInfo(
    name="mmbench",
    title="MMBench",
    measures="twenty abilities by multiple choice, right only if right in every rotation of the options",
    split="dev 20230712",
    questions=4_377,
    images=None,
    headline="circular_accuracy",
    max_new_tokens=1024,
    paper="https://arxiv.org/abs/2307.06281",
    scorer="https://github.com/haotian-liu/LLaVA/blob/c121f0432da2/scripts/convert_mmbench_for_submission.py",
    folders=("mmbench", "MMBench"),
    submission_extra="xlsx",
    counts={"pass 0": 1_176},
    sha256=("bb8db81af5cf5adfafcd45f900ee0a443391273547c5d935740499a8464589c0",),
    sources=(_tsv("mmbench_dev_20230712.tsv"),),
)
OCTOBER = replace(
    JULY,
    name="mmbench_20231003",
    title="MMBench (20231003)",
    split="dev 20231003",
    questions=4_329,
    scorer="https://github.com/open-compass/VLMEvalKit/blob/e8e78f0/vlmeval/dataset/utils/multiple_choice.py",
    hub="lmms-lab-encoder/MMBench",
    counts={"pass 0": 1_164},
    sha256=(),
    sources=(_tsv("mmbench_dev_en_20231003.tsv"),),
)
CHINESE = replace(
    OCTOBER,
    name="mmbench_cn",
    title="MMBench-CN",
    measures="MMBench in Chinese",
    split="dev cn 20231003",
    sources=(_tsv("mmbench_dev_cn_20231003.tsv"),),
)


class MMBench(Task):
    columns = ("questions", *(f"circular{name}" for name in READINGS))

    def __init__(self, info: TaskInfo, files: tuple[str, ...], suffix: str = LETTER_ANSWER, config: str = "") -> None:
        self.info = info
        self.files = files
        self.suffix = suffix
        self.config = config  # of the hub's data set

    def load(self, data: Folder) -> Loaded:
        path = data.find(*self.files, what="MMBench's tab-separated file")
        samples = _samples(data.tsv(path, ("index", "question", "A", "B", "image")))
        self._refuse_other_language(samples)
        return Loaded(samples)

    def load_hub(self, hub: Hub) -> Loaded:
        samples = _samples(hub.rows(self.info.hub, "dev", config=self.config, image="image"))
        self._refuse_other_language(samples)
        return Loaded(samples)

    def _refuse_other_language(self, samples: Sequence[Sample]) -> None:
        """The English and the Chinese list have the same size and the same indices: only their words differ."""
        chinese = sum(HAN.search(sample.question) is not None for sample in samples)
        if samples and (2 * chinese > len(samples)) != (self.info.name == CHINESE.name):
            found, other = ("Chinese", CHINESE.name) if self.info.name != CHINESE.name else ("English", OCTOBER.name)
            raise DataError(
                f"{samples[0].where}: {self.info.name}'s list was expected, but this is {found}: {chinese:,} of "
                f"{len(samples):,} questions hold Chinese characters. Use --tasks {other}, or fetch the right file."
            )

    def prompt(self, sample: Sample) -> str:
        hint = f"{sample.fields['hint']}\n" if sample.fields["hint"] else ""
        return f"{hint}{sample.question}\n{lettered(sample.choices)}\n{self.suffix}"

    def identity(self, sample: Sample) -> str:
        return f"{sample.id} {self.prompt(sample)}"

    def grade(self, sample: Sample, text: str) -> Verdict:
        parsed = read_choice(text, sample.choices)
        also = {"_exact": text, "_vlmevalkit": read_choice_vlmevalkit(text, sample.choices)}
        others = {name: 1.0 for name, letter in also.items() if letter == sample.target}
        return Verdict(parsed, float(parsed == sample.target), parsed is not None, others)

    def count_image(self, items: Sequence[Graded], extra: None) -> Iterator[tuple[str, str, float]]:
        """Questions (bases) with all passes right: all passes of a question show the same picture."""
        questions: dict[int, list[Graded]] = defaultdict(list)
        for item in items:
            questions[item.sample.fields["base"]].append(item)
        for passes in questions.values():
            right = {name: all(_right(item.verdict, name) for item in passes) for name in READINGS}
            for group in ("all", *(g for g in passes[0].sample.groups if g != "pass 0")):
                yield "questions", group, 1
                for name in READINGS:
                    yield f"circular{name}", group, right[name]

    def metrics(self, sums: Sums) -> Iterator[Metric]:
        def circular(name: str, group: str = "all"):
            return 100 * sums.ratio(sums(f"circular{name}", group), sums("questions", group))

        yield Metric("circular_accuracy", circular(""), headline=True)
        yield Metric("circular_accuracy_exact", circular("_exact"))
        yield Metric("circular_accuracy_vlmevalkit", circular("_vlmevalkit"))
        yield Metric("vanilla_accuracy", 100 * sums.ratio(sums.credit("pass 0"), sums.n("pass 0")), over="pass 0")
        yield Metric("row_accuracy", 100 * sums.ratio(sums.credit(), sums.n()))
        for group in sums.groups:
            if group != "pass 0":
                yield Metric("circular_accuracy", circular("", group), category=group)

    def continuations(self, sample: Sample) -> tuple[str, ...]:
        """The letters: the prompt shows the options and asks for one."""
        return OPTIONS[: len(sample.choices)]

    def submit(self, samples: Sequence[Sample], answers: Mapping[str, str], folder: Path, extra: None) -> list[Path]:
        """The sheet that the server read: one row per pass, the model's text as it is in column `prediction`."""
        from vlmamba_eval.tasks.sheet import write_sheet

        rows = []
        for sample in samples:
            options = [*sample.choices, None, None][: len(OPTIONS)]
            said = answers[sample.id]
            rows.append((int(sample.id), sample.question, *options, said, sample.target, sample.fields["split"]))
        return [write_sheet(folder / f"{self.info.name}.xlsx", SUBMISSION, rows)]


def _right(verdict: Verdict | None, name: str) -> bool:
    return verdict is not None and bool(verdict.also.get(name) if name else verdict.credit)


def _cell(row: Row, name: str) -> str:
    """A cell's text; empty if it is absent, which exports write as nan or none, and LLaVA's script takes so."""
    text = row.text(name, "")
    return "" if text.strip().lower() in ("", "nan", "none") else text


def _samples(rows: Iterable[Row]) -> list[Sample]:
    samples: dict[int, Sample] = {}
    images: dict[str, ImageRef] = {}  # the passes repeat their picture: one copy of it stays in memory
    references: dict[int, str] = {}
    for row in rows:
        number = row.number("index")
        if number in samples:
            row.fail(f"index {number} occurs twice; the first is at {samples[number].where}.")
        cells = [_cell(row, name) for name in OPTIONS]
        choices = tuple(cells[: cells.index("")] if "" in cells else cells)
        rest = zip(OPTIONS[len(choices) :], cells[len(choices) :], strict=True)
        if hole := next((name for name, cell in rest if cell), ""):
            row.fail(
                f"option {hole} is there and option {OPTIONS[len(choices)]} before it is not: no letter would fit."
            )
        if len(choices) < 2:
            row.fail(f"expected 2 to 4 options in columns A to D, found {len(choices)}.")
        answer = _cell(row, "answer")
        if answer not in ("", *OPTIONS[: len(choices)]):
            row.fail(f"field 'answer' should be one of {', '.join(OPTIONS[: len(choices)])}, found {answer!r}.")
        groups = ["pass 0"] if number < PASS else []
        for level, names in {"l2": ("l2-category", "L2-category"), "category": ("category",)}.items():
            groups += [f"{level}/{row.text(name)}" for name in names if _cell(row, name)]
        image = None
        if isinstance(cell := row.get("image"), str) and len(cell) <= 64:
            references[number] = cell
        else:
            image = row.image("image")
            if isinstance(cell, ImageRef):  # the hub has it once for each pass
                image = replace(image, key=f"{image.key.rpartition('/')[0]}/question {number % PASS}")
            image = images.setdefault(image.key, image)
        fields = {"base": number % PASS, "hint": _cell(row, "hint"), "split": row.text("split", "")}
        target = answer or None
        samples[number] = Sample(
            str(number), image, row.text("question"), target, choices, tuple(groups), fields, where=row.where
        )
    for number, cell in references.items():  # VLMEvalKit's files name the row that holds the picture
        named = samples.get(int(cell)) if cell.isdecimal() else None
        if named is None or named.image is None:
            raise DataError(
                f"{samples[number].where}: field 'image' should hold a picture in base64, or the index of the row that "
                f"does; found {cell!r}."
            )
        samples[number] = replace(samples[number], image=named.image)
    for number, sample in samples.items():
        before = samples.get(number - PASS)
        if number >= PASS and (before is None or before.image != sample.image):
            problem = "is missing" if before is None else "shows another picture"
            raise DataError(
                f"{sample.where}: index {number} repeats question {number % PASS}, whose last pass {problem}."
            )
    return list(samples.values())


TASKS = (
    MMBench(JULY, ("mmbench_dev_20230712.tsv",)),
    MMBench(OCTOBER, ("mmbench_dev_en_20231003.tsv", "MMBench_DEV_EN.tsv"), config="en"),
    MMBench(CHINESE, ("mmbench_dev_cn_20231003.tsv", "MMBench_DEV_CN.tsv"), "请直接回答选项字母。", config="cn"),
)
