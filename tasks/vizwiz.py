"""VizWiz: questions that blind people asked about pictures they took, a quarter of them without an answer.

Paper   Gurari et al. 2018, VizWiz Grand Challenge: Answering Visual Questions from Blind People, arXiv 1802.08218
Data    https://vizwiz.org/tasks-and-datasets/vqa: val, 4,319 questions on as many pictures, ten answers each. The
        published LLaVA numbers are of test-dev, whose answers are not public; Cobra's are of val.
Prompt  LLaVA's question file for VizWiz, which Cobra's protocol repeats
        (https://github.com/h-zhao1997/vlm-evaluation/blob/b0a691f/vlm_eval/models/cobra.py)
Scorer  https://github.com/h-zhao1997/vlm-evaluation/blob/b0a691f/vlm_eval/util/evaluation/vizwiz/eval.py, the
        challenge's own script for Python 3: VQAv2's normalisation of the answer alone, gold answers as they are
        accuracy            of the answer as it is
        accuracy_submitted  of what TextVQA's processor makes of it first, as LLaVA submits its answers

One row of val.json (shortened):
    {"image": "VizWiz_val_00000000.jpg", "question": "Ok. There is another picture I hope it is a better one.",
     "answers": [{"answer_confidence": "yes", "answer": "unanswerable"}, ...], "answer_type": "unanswerable",
     "answerable": 0}
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from vlmamba_eval.sources import File, Pictures, Terms
from vlmamba_eval.task import SHORT_ANSWER, TaskInfo
from vlmamba_eval.tasks.vqa_accuracy import (
    CONTRACTIONS,
    LEAVE_ONE_OUT,
    SoftAccuracyTask,
    evalai,
    one_line,
    ten_answers,
    without_punctuation,
    words,
)
from vlmamba_eval.types import Graded, Loaded, Metric, Sample, Verdict

if TYPE_CHECKING:
    from vlmamba_eval.folder import Folder
    from vlmamba_eval.rows import Row
    from vlmamba_eval.sums import Sums

INSUFFICIENT = "When the provided information is insufficient, respond with 'Unanswerable'."

TERMS = Terms("as the data's page says", "https://vizwiz.org/tasks-and-datasets/vqa")
HOST = "https://vizwiz.cs.colorado.edu/VizWiz_final"
VAL = TaskInfo(
    name="vizwiz",
    title="VizWiz (val)",
    measures="questions of blind people about their own pictures; many have no answer",
    split="val",
    questions=4_319,
    images=4_319,
    headline="accuracy",
    max_new_tokens=128,
    paper="https://arxiv.org/abs/1802.08218",
    scorer="https://github.com/h-zhao1997/vlm-evaluation/blob/b0a691f/vlm_eval/util/evaluation/vizwiz/eval.py",
    folders=("vizwiz",),
    files=("val.json", "Annotations/val.json"),
    ids=r"VizWiz_val_0000[0-4]\d{3}\.jpg",
    sources=(
        File("vizwiz/val.json", f"{HOST}/vqa_data/Annotations.zip", TERMS, member="val.json", size=1_000_000),
        Pictures(TERMS, url=f"{HOST}/images/val.zip", member="val/{name}", size=450_000, zip_size=2_000_000_000),
    ),
)


class VizWiz(SoftAccuracyTask):
    info = VAL
    columns = (*SoftAccuracyTask.columns, "submitted")

    def load(self, data: Folder) -> Loaded:
        images = data.find_optional("val", "val_images") or data.root / "vizwiz" / "val"
        path = data.find("val.json", "Annotations/val.json", what="VizWiz's annotations (val)")
        samples = []
        for row in data.rows(path):
            name = row.text("image")
            kind = "answerable" if row.integer("answerable") else "unanswerable"
            samples.append(
                Sample(
                    id=name,
                    image=data.image(images, name, row.where),
                    question=row.text("question"),
                    target=ten_answers(row, _answers(row)),
                    groups=(kind, f"answer_type/{row.text('answer_type')}"),
                    where=row.where,
                )
            )
        return Loaded(samples)

    def prompt(self, sample: Sample) -> str:
        return f"{sample.question}\n{INSUFFICIENT}\n{SHORT_ANSWER}"

    def grade(self, sample: Sample, text: str) -> Verdict:
        """The official accuracy of the answer as it is, and of what LLaVA would submit (`submitted`)."""
        prediction, submitted = normalised(text), normalised(evalai(text))
        gold = sample.target or ()
        credit, also = (LEAVE_ONE_OUT[sum(answer == said for answer in gold)] for said in (prediction, submitted))
        return Verdict(prediction, credit, bool(prediction), {"submitted": also})

    def count(self, item: Graded) -> Iterator[tuple[str, float]]:
        yield from super().count(item)
        if item.verdict and item.verdict.also["submitted"]:
            yield "submitted", item.verdict.also["submitted"]

    def metrics(self, sums: Sums) -> Iterator[Metric]:
        yield from super().metrics(sums)
        for group in ("all", *sums.groups):
            value: Any = 100 * sums.ratio(sums("submitted", group), sums.n(group))
            yield Metric("accuracy_submitted", value, category=group)


def normalised(text: str) -> str:
    """VQAv2's normalisation with VizWiz's own table of contractions."""
    return words(without_punctuation(one_line(text)), _CONTRACTIONS)


# VizWiz's table is VQAv2's with grave accents in place of most apostrophes, on both sides. Accents never reach it, as
# they count as punctuation; so "dont" becomes "don`t", which no gold answer is. These are left as they were:
_KEPT = frozenset(["ain't", "aren't", "can't", "could've", "couldn't", "we've", "where's", "who've"])
_CONTRACTIONS = {"couldn'tve": "couldn`t`ve", "hadn'tve": "hadn`t`ve"} | {
    bare: word if word in _KEPT else word.replace("'", "`") for bare, word in CONTRACTIONS.items() if "'" not in bare
}


def _answers(row: Row) -> Sequence[str]:
    return [answer.text("answer") for answer in row.rows("answers")]


TASKS = (VizWiz(),)
