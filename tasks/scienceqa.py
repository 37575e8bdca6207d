"""ScienceQA, test split: school science, two to five choices, with and without a picture.

Paper   Lu et al. 2022, Learn to Explain: Multimodal Reasoning via Thought Chains, arXiv 2209.09513
Data    https://github.com/lupantech/ScienceQA/tree/2cbf8318e07b/data/scienceqa (`problems.json`, `pid_splits.json`),
        pictures in images/test/{pid}/image.png. 4,241 questions, 2,017 of them with a picture ("IMG").
Scorer  https://github.com/haotian-liu/LLaVA/blob/c121f0432da2/llava/eval/eval_science_qa.py#L65-L103
        Subject, context and grade as in https://github.com/lupantech/ScienceQA/blob/360b71cb6a36/tools/evaluate_acc.py
        The published "SQA" is the accuracy on IMG. A question is IMG by its annotation, not by the saved prompt as in
        LLaVA's script, in which a missing answer leaves the denominator.

One entry of problems.json (shortened):
    "5": {"question": "Which of the following could Gordon's test show?", "choices": ["if the ...", "how steady ...",
     "whether a ..."], "answer": 1, "hint": "People can use ...", "image": "image.png", "task": "closed choice",
     "grade": "grade8", "subject": "natural science", ..., "split": "test"}
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vlmamba_eval.sources import File, Pictures, Terms
from vlmamba_eval.task import LETTER_ANSWER, LETTERS, Task, TaskInfo, lettered
from vlmamba_eval.types import DataError, Graded, ImageRef, Loaded, Metric, Sample, Verdict

if TYPE_CHECKING:
    from vlmamba_eval.folder import Folder
    from vlmamba_eval.hub import Hub
    from vlmamba_eval.rows import Row
    from vlmamba_eval.sums import Sums

OPTIONS = tuple(LETTERS[:5])
SUBJECTS = ("natural science", "social science", "language science")
# LLaVA's file holds question and choices as one text; a choice may span several lines.
LETTERED = re.compile(r"(.*)\nA\. (.*?)\nB\. (.*?)(?:\nC\. (.*?)(?:\nD\. (.*?)(?:\nE\. (.*))?)?)?", re.DOTALL)


TERMS = Terms("CC BY-NC-SA 4.0", "https://github.com/lupantech/ScienceQA")
HOST = "https://raw.githubusercontent.com/lupantech/ScienceQA/2cbf8318e07b9ece895bb2ae605e71e38d623264/data/scienceqa"
ALL = TaskInfo(
    name="scienceqa",
    title="ScienceQA",
    measures="school science by multiple choice, with and without a picture; the published number is that with one",
    split="test",
    questions=4_241,
    images=2_017,
    headline="img_accuracy",
    max_new_tokens=1024,
    paper="https://arxiv.org/abs/2209.09513",
    scorer="https://github.com/haotian-liu/LLaVA/blob/c121f0432da2/llava/eval/eval_science_qa.py",
    folders=("scienceqa", "ScienceQA"),
    files=("problems.json",),
    llava_file="llava_test_CQM-A.json",
    hub="lmms-lab-encoder/ScienceQA",
    counts={
        **{"context/text": 2_046, "context/image": 2_017, "context/none": 1_435},
        **{"subject/natural science": 2_252, "subject/social science": 889, "subject/language science": 1_100},
        **{"grade/1-6": 2_724, "grade/7-12": 1_517},
    },
    sha256=("ef80b4589fd900681a73091b85a8e755a34e3c83f701810597dbed63d7990c43",),
    labels_sha256=("d7e4730b13e99c74b005c44cd856586eaf880ae4484710945e6cc491bf5f8c36",),
    sources=(
        File("scienceqa/problems.json", f"{HOST}/problems.json", TERMS, size=33_000_000),
        File(
            "scienceqa/pid_splits.json",
            f"{HOST}/pid_splits.json",
            TERMS,
            size=502_927,
            digest="sha256:85c7820b9f136e572579a01dab2c77a7f8140b59211e421fa5182491d45ee3a7",
        ),
        Pictures(
            TERMS,
            url="https://scienceqa.s3.us-west-1.amazonaws.com/images/test.zip",
            member="test/{name}",
            size=60_000,
            zip_size=120_000_000,
        ),
    ),
)
IMG = replace(
    ALL,
    name="scienceqa_img",
    title="ScienceQA-IMG",
    measures="school science by multiple choice: the questions with a picture alone",
    split="test, with picture",
    questions=2_017,
    counts={"context/text": 1_257, "context/image": 2_017},
    sha256=("f6e2dd620a81b1dcf440858100aeb0b3864b22c20dea793f62ede0e05f997ea4",),
    labels_sha256=("7e8a0a396e5bc8cd5f03e39532858edccba8384a36f2c30efd6079909a259032",),
)


class ScienceQA(Task):
    columns = ("guessing",)

    def __init__(self, info: TaskInfo, *, config: str, images_only: bool) -> None:
        self.info = info
        self.config = config  # of the hub's data set
        self.images_only = images_only

    def load(self, data: Folder) -> Loaded:
        images = _pictures(data)
        path = data.find("problems.json", what="ScienceQA's problems")
        problems = data.table(path)
        splits = data.find("pid_splits.json", what="ScienceQA's list of splits")
        samples: list[Sample] = []
        for pid in data.row(splits).texts("test"):
            if pid not in problems:
                raise DataError(f"{splits}: problem {pid!r} is not in {path}. Fetch both files from one release.")
            row = problems[pid]
            image = data.image(images, f"{pid}/{row.text('image')}", row.where) if "image" in row else None
            samples.append(_sample(pid, row, image))
        return self._wanted(samples)

    def load_llava(self, data: Folder, path: Path) -> Loaded:
        images = _pictures(data)
        samples: list[Sample] = []
        for row in data.rows(path):
            image = data.image(images, row.text("image"), row.where) if "image" in row else None
            samples.append(_llava_sample(row, image))
        return self._wanted(samples)

    def load_hub(self, hub: Hub) -> Loaded:
        # The hub's rows carry no problem id: their place in the pinned revision stands for it.
        rows = hub.rows(self.info.hub, "test", config=self.config, image="image")
        return Loaded(
            [_sample(str(i), row, row.image("image") if "image" in row else None) for i, row in enumerate(rows)]
        )

    def _wanted(self, samples: list[Sample]) -> Loaded:
        return Loaded([sample for sample in samples if sample.image or not self.images_only])

    def prompt(self, sample: Sample) -> str:
        """Runs of spaces become one, as in LLaVA's file; line breaks stay."""
        hint = sample.fields["hint"]
        context = f"Context: {hint}\n" if hint else ""
        text = re.sub(" +", " ", f"{context}{sample.question}\n{lettered(sample.choices)}").strip()
        return f"{text}\n{LETTER_ANSWER}"

    def identity(self, sample: Sample) -> str:
        """What is asked: the hub's copy has no ids, and LLaVA's file joins hint and question."""
        return self.prompt(sample)

    def grade(self, sample: Sample, text: str) -> Verdict:
        """A bare letter; or a letter, a period, a space; or exactly one "The answer is X" with a character after it."""
        if text in OPTIONS:
            parsed = text
        elif len(text) >= 3 and text[0] in OPTIONS and text[1:3] == ". ":
            parsed = text[0]
        else:
            found = re.findall(r"The answer is ([A-Z]).", text)
            parsed = found[0] if len(found) == 1 else None
        valid = parsed is not None and parsed in OPTIONS[: len(sample.choices)]
        return Verdict(parsed, float(parsed == sample.target), valid)

    def count(self, item: Graded) -> Iterator[tuple[str, float]]:
        """What an answer is worth if one that can't be read is guessed (lupantech/ScienceQA, models/run_gpt3.py)."""
        if item.verdict is not None:
            yield "guessing", item.verdict.credit if item.verdict.valid else 1 / len(item.sample.choices)

    def metrics(self, sums: Sums) -> Iterator[Metric]:
        def accuracy(group: str):
            return 100 * sums.ratio(sums.credit(group), sums.n(group))

        yield Metric("img_accuracy", accuracy("context/image"), over="context/image", headline=True)
        yield Metric("accuracy", accuracy("all"))
        # The authors' own parser guesses at random what it can't read: this is the expectation of that average.
        yield Metric("accuracy_guessing", 100 * sums.ratio(sums("guessing"), sums.n()))
        for group in sums.groups:
            yield Metric("accuracy", accuracy(group), category=group)

    def continuations(self, sample: Sample) -> tuple[str, ...]:
        """The letters: the prompt shows the choices and asks for one."""
        return OPTIONS[: len(sample.choices)]


def _pictures(data: Folder) -> Path:
    return data.find_optional("images/test") or data.root / "scienceqa" / "images" / "test"


def _sample(pid: str, row: Row, image: ImageRef | None) -> Sample:
    choices = row.texts("choices")
    if not 2 <= len(choices) <= len(OPTIONS):
        row.fail(f"field 'choices' should hold 2 to {len(OPTIONS)} choices, found {len(choices)}.")
    answer = row.integer("answer")
    if not 0 <= answer < len(choices):
        row.fail(f"field 'answer' should be a place among the {len(choices)} choices, from 0; found {answer}.")
    hint = row.text("hint", "")
    groups = [f"context/{name}" for name, there in _contexts(hint, image).items() if there]
    if "subject" in row:
        groups.append(f"subject/{row.one_of('subject', SUBJECTS)}")
    if "grade" in row:
        grade = row.one_of("grade", [f"grade{number}" for number in range(1, 13)])
        groups.append("grade/1-6" if int(grade.removeprefix("grade")) <= 6 else "grade/7-12")
    return Sample(
        pid, image, row.text("question"), OPTIONS[answer], choices, tuple(groups), {"hint": hint}, where=row.where
    )


def _llava_sample(row: Row, image: ImageRef | None) -> Sample:
    turns = row.rows("conversations")
    if len(turns) != 2:
        row.fail(f"field 'conversations' should hold a question and its answer, found {len(turns)} turns.")
    found = LETTERED.fullmatch(turns[0].text("value").replace("<image>", "").strip())
    if found is None:
        turns[0].fail("field 'value' should end with lettered choices: lines that begin with 'A. ', 'B. ', ...")
    question, *choices = (part for part in found.groups() if part is not None)
    target = turns[1].one_of("value", OPTIONS[: len(choices)])
    context = question if question.startswith("Context: ") else ""
    groups = tuple(f"context/{name}" for name, there in _contexts(context, image).items() if there)
    return Sample(row.identifier("id"), image, question, target, tuple(choices), groups, {"hint": ""}, where=row.where)


def _contexts(text: str, image: ImageRef | None) -> dict[str, bool]:
    return {"text": bool(text), "image": image is not None, "none": not text and image is None}


TASKS = (
    ScienceQA(ALL, config="ScienceQA-FULL", images_only=False),
    ScienceQA(IMG, config="ScienceQA-IMG", images_only=True),
)
