"""VQAv2: open questions about COCO pictures, each answered by ten people.

Paper   Goyal et al. 2017, Making the V in VQA Matter, arXiv 1612.00837
Data    https://visualqa.org/download.html. val (`vqav2`): 214,354 questions on 40,504 pictures, the only evaluation
        split with public answers. test-dev (`vqav2_testdev`): 107,394 questions of test2015, scored by a server and the
        split of nearly every published number. Numbers on the two are not comparable.
Scorer  https://github.com/GT-Vision-Lab/VQA/blob/a013f0043c1e/PythonEvaluationTools/vqaEvaluation/vqaEval.py
        LLaVA sends it no answer as it is, but what TextVQA's processor makes of it:
        https://github.com/haotian-liu/LLaVA/blob/c121f0432da2/scripts/convert_vqav2_for_submission.py
        accuracy      of the processed answer: what a published test-dev number is made of
        accuracy_raw  of the answer as it is: what the official script gives for a file of a model's own words

One question of v2_OpenEnded_mscoco_val2014_questions.json, and its row of v2_mscoco_val2014_annotations.json:
    {"image_id": 262148, "question": "Where is he looking?", "question_id": 262148000}
    {"question_id": 262148000, "image_id": 262148, "question_type": "none of the above", "answer_type": "other",
     "multiple_choice_answer": "down", "answers": [{"answer": "down", "answer_confidence": "yes", "answer_id": 1}, ...]}
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vlmamba_eval.sources import File, Terms
from vlmamba_eval.task import SHORT_ANSWER, TaskInfo, llava_question, write_submission
from vlmamba_eval.tasks.coco import TEST2015, VAL2014
from vlmamba_eval.tasks.vqa_accuracy import LEAVE_ONE_OUT, SoftAccuracyTask, evalai, one_line, ten_answers, vqa
from vlmamba_eval.types import DataError, Graded, ImageRef, Loaded, Metric, Sample, Verdict

if TYPE_CHECKING:
    from vlmamba_eval.folder import Folder
    from vlmamba_eval.hub import Hub
    from vlmamba_eval.rows import Row
    from vlmamba_eval.sums import Sums

Label = tuple[tuple[str, ...], tuple[str, ...] | None]  # groups and answers


TERMS = Terms("as the data's page says", "https://visualqa.org/terms.html")
HOST = "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa"
VAL = TaskInfo(
    name="vqav2",
    title="VQAv2 (val)",
    measures="open questions about everyday pictures (short answers)",
    split="val2014",
    questions=214_354,
    images=40_504,
    headline="accuracy",
    max_new_tokens=128,
    paper="https://arxiv.org/abs/1612.00837",
    scorer="https://github.com/GT-Vision-Lab/VQA/blob/a013f0043c1e/PythonEvaluationTools/vqaEvaluation/vqaEval.py",
    version=2,
    folders=("vqav2",),
    ids=r"[1-9]\d{4,8}",  # COCO's number of the picture and three digits
    hub="lmms-lab-encoder/VQAv2",
    sources=(
        File(
            "vqav2/v2_OpenEnded_mscoco_val2014_questions.json",
            f"{HOST}/v2_Questions_Val_mscoco.zip",
            TERMS,
            member="v2_OpenEnded_mscoco_val2014_questions.json",
            size=3_500_000,
        ),
        File(
            "vqav2/v2_mscoco_val2014_annotations.json",
            f"{HOST}/v2_Annotations_Val_mscoco.zip",
            TERMS,
            member="v2_mscoco_val2014_annotations.json",
            size=10_500_000,
        ),
        VAL2014,
    ),
)
TESTDEV = replace(
    VAL,
    name="vqav2_testdev",
    title="VQAv2 (test-dev)",
    split="test-dev2015",
    questions=107_394,
    images=None,
    version=1,
    scored="server",
    sources=(
        *(
            File(f"vqav2/{name}", f"{HOST}/v2_Questions_Test_mscoco.zip", TERMS, member=name, size=8_000_000)
            for name in (
                "v2_OpenEnded_mscoco_test2015_questions.json",
                "v2_OpenEnded_mscoco_test-dev2015_questions.json",
            )
        ),
        TEST2015,
    ),
)


class VqaV2(SoftAccuracyTask):
    """val, scored here."""

    info = VAL
    columns = (*SoftAccuracyTask.columns, "raw")

    def load(self, data: Folder) -> Loaded:
        annotations = data.find(*_places("v2_mscoco_val2014_annotations.json"), what="VQAv2's annotations (val)")
        # All rows of a file are held at once, so each file's are gone before the next one's come.
        labels = {row.integer("question_id"): _label(row) for row in data.rows(annotations, "annotations")}
        questions = data.find(*_places("v2_OpenEnded_mscoco_val2014_questions.json"), what="VQAv2's questions (val)")
        picture = _pictures(data, "val2014")
        samples: list[Sample] = []
        for row in data.rows(questions, "questions"):
            label = labels.get(row.integer("question_id"))
            if label is None:
                row.fail(f"{annotations} has no annotation of question {row.get('question_id')}.")
            samples.append(_sample(row, picture(row), label))
        return Loaded(samples)

    def load_hub(self, hub: Hub) -> Loaded:
        rows = hub.rows(self.info.hub, "validation", image="image")
        return Loaded([_sample(row, self._hub_picture(row), _label(row)) for row in rows])

    def _hub_picture(self, row: Row) -> ImageRef:
        # Each picture is stored once for each of its questions.
        return row.image("image", key=f"{self.info.hub}/{row.integer('image_id')}")

    def prompt(self, sample: Sample) -> str:
        return f"{sample.question}\n{SHORT_ANSWER}"

    def grade(self, sample: Sample, text: str) -> Verdict:
        """The official accuracy of the answer as LLaVA submits it, and of the answer as it is (`raw`)."""
        submitted, answers = evalai(text), sample.target or ()
        raw = _official_accuracy(text, answers)
        return Verdict(submitted, _official_accuracy(submitted, answers), bool(submitted), {"raw": raw})

    def count(self, item: Graded) -> Iterator[tuple[str, float]]:
        yield from super().count(item)
        if item.verdict and item.verdict.also["raw"]:
            yield "raw", item.verdict.also["raw"]

    def metrics(self, sums: Sums) -> Iterator[Metric]:
        yield from super().metrics(sums)
        for group in ("all", *sums.groups):
            yield Metric("accuracy_raw", 100 * sums.ratio(sums("raw", group), sums.n(group)), category=group)


class VqaV2TestDev(VqaV2):
    """test-dev, scored by the server. Its submission covers all of test2015, of which test-dev is a part."""

    info = TESTDEV

    def __init__(self, test_questions: int = 447_793) -> None:
        self.test_questions = test_questions

    def load(self, data: Folder) -> Loaded:
        picture = _pictures(data, "test2015")
        samples = [_sample(row, picture(row)) for row in _test_rows(data, "test-dev2015")]
        return Loaded(samples, lambda: [row.integer("question_id") for row in _test_rows(data, "test2015")])

    def load_hub(self, hub: Hub) -> Loaded:
        def test_ids() -> list[int]:
            return [row.integer("question_id") for row in hub.rows(self.info.hub, "test", image="image")]

        rows = hub.rows(self.info.hub, "testdev", image="image")
        return Loaded([_sample(row, self._hub_picture(row)) for row in rows], test_ids)

    def submit(
        self, samples: Sequence[Sample], answers: Mapping[str, str], folder: Path, extra: Callable[[], list[int]]
    ) -> list[Path]:
        """EvalAI's JSON: every question of test2015, answers normalised as LLaVA does, empty outside test-dev.

        `extra` reads the ids of all of test2015, from a file that only a submission needs.
        """
        numbers = extra()
        unknown = {sample.id for sample in samples} - {str(number) for number in numbers}
        if len(numbers) != self.test_questions or unknown:
            raise DataError(
                f"test2015 should hold {self.test_questions:,} questions, all of test-dev among them; found "
                f"{len(numbers):,}, and {len(unknown):,} of test-dev missing. Fetch the questions of test2015 again."
            )
        rows = [{"question_id": number, "answer": evalai(answers.get(str(number), ""))} for number in numbers]
        return [write_submission(folder / "vqav2_test2015_results.json", json.dumps(rows))]


def _official_accuracy(text: str, answers: Sequence[str]) -> float:
    """Leave-one-out accuracy. Nothing at all is normalised if the ten answers are the same: "Yes" is no "yes"."""
    prediction = one_line(text)
    if len(set(answers)) > 1:
        prediction, answers = vqa(text), [vqa(answer) for answer in answers]
    return LEAVE_ONE_OUT[sum(answer == prediction for answer in answers)]


def _places(name: str) -> tuple[str, ...]:
    return name, f"questions/{name}", f"annotations/{name}"


def _test_rows(data: Folder, split: str) -> Iterable[Row]:
    """The rows of the official question file of a test split, or else of LLaVA's."""
    names = *_places(f"v2_OpenEnded_mscoco_{split}_questions.json"), f"llava_vqav2_mscoco_{split}.jsonl"
    path = data.find(*names, what=f"VQAv2's questions ({split})")
    return data.jsonl(path) if path.suffix == ".jsonl" else data.rows(path, "questions")


def _pictures(data: Folder, split: str) -> Callable[[Row], ImageRef]:
    """From a row, of the official file or of LLaVA's, to its picture."""
    folder = data.find_optional(split, f"coco/{split}") or data.root / "vqav2" / split

    def picture(row: Row) -> ImageRef:
        name = row.text("image") if "image" in row else f"COCO_{split}_{row.integer('image_id'):012d}.jpg"
        return data.image(folder, name, row.where)

    return picture


def _label(row: Row) -> Label:
    """The groups and the answers of an annotation."""
    try:
        answers = [answer["answer"] for answer in row.get("answers")]
        groups = f"answer_type/{row.text('answer_type')}", f"question_type/{row.text('question_type')}"
        return tuple(map(sys.intern, groups)), ten_answers(row, answers)
    except (TypeError, KeyError, AttributeError):
        row.fail("field 'answers' should be a list of objects, each with a text 'answer'.")


def _sample(row: Row, picture: ImageRef, label: Label = ((), None)) -> Sample:
    question = llava_question(row) if "text" in row else row.text("question")
    key, (groups, answers) = str(row.integer("question_id")), label
    return Sample(key, picture, question, answers, groups=groups, where=row.where)


TASKS = (VqaV2(), VqaV2TestDev())
