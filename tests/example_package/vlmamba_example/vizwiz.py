"""VizWiz: questions that blind people asked about pictures they took.

Paper   Gurari et al. 2018, VizWiz Grand Challenge, arXiv 1802.08218
Data    https://vizwiz.org/tasks-and-datasets/vqa, val: 4,319 questions, each about a picture of its own
Scorer  soft accuracy over ten answers, as for VQAv2

One row of val.json:
    {"image": "VizWiz_val_00000000.jpg", "question": "Ok. There is another picture I hope it is a better one.",
     "answers": [{"answer": "unanswerable", "answer_confidence": "yes"}, ...], "answerable": 0}
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmamba_eval.task import SHORT_ANSWER, TaskInfo
from vlmamba_eval.tasks.vqa_accuracy import LEAVE_ONE_OUT, SoftAccuracyTask, evalai, ten_answers
from vlmamba_eval.types import Loaded, Sample, Verdict

if TYPE_CHECKING:
    from vlmamba_eval.folder import Folder

UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."


class VizWiz(SoftAccuracyTask):
    info = TaskInfo(
        name="example_vizwiz",
        title="VizWiz (val)",
        measures="questions of blind people about pictures they took",
        split="val",
        questions=4_319,
        images=4_319,
        headline="accuracy",
        max_new_tokens=128,
        paper="https://arxiv.org/abs/1802.08218",
        scorer="https://github.com/GT-Vision-Lab/VQA/blob/a013f0043c1e/PythonEvaluationTools/vqaEvaluation/vqaEval.py",
        folders=("vizwiz",),
        sources=("val.json and val.zip: https://vizwiz.org/tasks-and-datasets/vqa, into vizwiz",),
    )

    def load(self, data: Folder) -> Loaded:
        path = data.find("val.json", "Annotations/val.json", what="VizWiz' annotations (val)")
        images = data.find_optional("val") or data.root / "vizwiz" / "val"
        samples = []
        for row in data.rows(path):
            image = data.image(images, row.text("image"), row.where)
            answers = ten_answers(row, [answer.text("answer") for answer in row.rows("answers")])
            samples.append(Sample(row.text("image"), image, row.text("question"), answers, where=row.where))
        return Loaded(samples)

    def prompt(self, sample: Sample) -> str:
        return f"{sample.question}\n{UNANSWERABLE}\n{SHORT_ANSWER}"

    def grade(self, sample: Sample, text: str) -> Verdict:
        prediction = evalai(text)
        agreeing = sum(evalai(answer) == prediction for answer in sample.target or ())
        return Verdict(prediction, LEAVE_ONE_OUT[agreeing], valid=bool(prediction))


TASKS = (VizWiz(),)
