"""TextVQA: questions about text in pictures.

Paper   Singh et al. 2019, Towards VQA Models That Can Read, arXiv 1904.08920
Data    https://textvqa.org/dataset, version 0.5.1, val: 5,000 questions on 3,166 pictures, ten answers each. LLaVA puts
        recognised words into the prompt; its question file holds them, and so does, according to LLaVA's author
        (https://github.com/haotian-liu/LLaVA/issues/976), the release's Rosetta OCR v0.2
Scorer  https://github.com/haotian-liu/LLaVA/blob/c121f0432da2/llava/eval/eval_textvqa.py and m4c_evaluator.py

One row of TextVQA_0.5.1_val.json (shortened), and the row of TextVQA_Rosetta_OCR_v0.2_val.json that belongs to it:
    {"question": "what is the brand of this camera?", "question_id": 34602, "image_id": "003a8ae2ef43b901",
     "answers": ["nous les gosses", "dakota", "clos culombu", "dakota digital", ...]}
    {"image_id": "003a8ae2ef43b901", "ocr_tokens": ["DAKOTA", "DIGITAL", "Single-Use", "Camera", "Pire", "digitat"]}

Three tasks, by the place of the recognised words: after the question (LLaVA), before it (Cobra), or nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vlmamba_eval.sources import File, Pictures, Terms
from vlmamba_eval.task import SHORT_ANSWER, TaskInfo
from vlmamba_eval.tasks.vqa_accuracy import LEAVE_ONE_OUT, SoftAccuracyTask, evalai, ten_answers
from vlmamba_eval.types import ImageRef, Loaded, Sample, Verdict

if TYPE_CHECKING:
    from vlmamba_eval.folder import Folder
    from vlmamba_eval.hub import Hub
    from vlmamba_eval.rows import Row

OCR = "Reference OCR token: "
VAL = "TextVQA_0.5.1_val.json"
LLAVA = "llava_textvqa_val_v051_ocr.jsonl"
ROSETTA = "TextVQA_Rosetta_OCR_v0.2_val.json"
Words = tuple[str, ...]  # recognised in a picture


TERMS = Terms("as the data's page says", "https://textvqa.org/dataset")
HOST = "https://dl.fbaipublicfiles.com/textvqa"
ANNOTATIONS = File(f"textvqa/{VAL}", f"{HOST}/data/{VAL}", TERMS, size=3_100_000)
# Or, for prompts that are LLaVA's to the byte, its question file, which is in its eval.zip (docs/Evaluation.md).
WORDS = File(f"textvqa/{ROSETTA}", f"{HOST}/data/{ROSETTA}", TERMS, size=9_800_000)
PICTURES = Pictures(
    TERMS,
    url=f"{HOST}/images/train_val_images.zip",
    member="train_images/{name}",
    size=281_000,
    zip_size=7_070_000_000,
)
AFTER = TaskInfo(
    name="textvqa",
    title="TextVQA",
    measures="reading text in pictures; recognised words stand after the question",
    split="val 0.5.1",
    questions=5_000,
    images=3_166,
    headline="accuracy",
    max_new_tokens=128,
    paper="https://arxiv.org/abs/1904.08920",
    scorer="https://github.com/haotian-liu/LLaVA/blob/c121f0432da2/llava/eval/m4c_evaluator.py",
    folders=("textvqa",),
    files=(VAL,),
    llava_file=LLAVA,
    hub="lmms-lab-encoder/textvqa",
    sha256=("8e50c0e89a09eabd71a7b36f51ea1d52af5e53febc59da4a2e03e9411d5a7c1e",),
    sources=(ANNOTATIONS, WORDS, PICTURES),
)
BEFORE = replace(
    AFTER,
    name="textvqa_ocr_before",
    title="TextVQA (OCR before)",
    measures="reading text in pictures; recognised words stand before the question",
)
NONE = replace(
    AFTER,
    name="textvqa_no_ocr",
    title="TextVQA (no OCR)",
    measures="reading text in pictures; no recognised words in the prompt",
    sources=(ANNOTATIONS, PICTURES),
)


class TextVqa(SoftAccuracyTask):
    def __init__(self, info: TaskInfo, ocr: Literal["after", "before", "none"]) -> None:
        self.info = info
        self.ocr = ocr

    def load(self, data: Folder) -> Loaded:
        """The recognised words come from LLaVA's question file if it is there, else from the release."""
        llava, images = data.find_optional(LLAVA), _pictures(data)
        asked = {(image, text): words for _, image, text, words in _read_llava(data, llava)} if llava else {}
        rosetta = None if asked else data.find_optional(ROSETTA)
        by_image = {r.text("image_id"): r.texts("ocr_tokens") for r in data.rows(rosetta, "data")} if rosetta else {}
        if self.ocr != "none" and not asked and not rosetta:
            data.find(LLAVA, ROSETTA, what="The recognised words of TextVQA's prompts (either file)")
        samples: list[Sample] = []
        for row in data.rows(data.find(VAL, what="TextVQA's annotation file"), "data"):
            image, question = row.text("image_id"), row.text("question")
            picture = data.image(images, f"{image}.jpg", row.where)
            words = asked.get((image, question.capitalize())) if asked else by_image.get(image)
            if words is None and self.ocr != "none":
                row.fail(f"{llava or rosetta} has no recognised words for picture {image!r} and this question.")
            samples.append(_sample(row, image, picture, question, words, row.texts("answers")))
        return Loaded(samples)

    def load_llava(self, data: Folder, path: Path) -> Loaded:
        images = _pictures(data)
        return Loaded(
            [
                _sample(row, image, data.image(images, f"{image}.jpg", row.where), text, words, None)
                for row, image, text, words in _read_llava(data, path)
            ]
        )

    def load_hub(self, hub: Hub) -> Loaded:
        return Loaded(
            [
                _sample(
                    row,
                    row.text("image_id"),
                    row.image("image", key=f"{self.info.hub}/{row.text('image_id')}"),  # stored once for each question
                    row.text("question"),
                    row.texts("ocr_tokens"),
                    row.texts("answers"),
                )
                for row in hub.rows(self.info.hub, "validation", image="image")
            ]
        )

    def prompt(self, sample: Sample) -> str:
        question = sample.question.capitalize()
        words = OCR + ", ".join(sample.fields["words"] or ())
        lines = {"after": (question, words), "before": (words, question), "none": (question,)}[self.ocr]
        return "\n".join((*lines, SHORT_ANSWER))

    def identity(self, sample: Sample) -> str:
        """Picture and question; the recognised words are LLaVA's or Rosetta's."""
        return sample.id

    def grade(self, sample: Sample, text: str) -> Verdict:
        """Leave-one-out accuracy of the normalised answer against the ten normalised answers."""
        prediction = evalai(text)
        agreeing = sum(evalai(answer) == prediction for answer in sample.target or ())
        return Verdict(prediction, LEAVE_ONE_OUT[agreeing], valid=bool(prediction))

    def aliases(self, sample: Sample) -> tuple[str, ...]:
        """The official question_id, by which EvalAI and others know the questions."""
        number = sample.fields.get("question_id")
        return () if number is None else (number,)

    def join_key(self, prompt: str) -> str:
        """The question, wherever the recognised words stand: LLaVA's question_id is the picture's."""
        lines = prompt.removeprefix("<image>\n").split("\n")
        return " ".join(line for line in lines if not line.startswith(OCR.strip()) and line != SHORT_ANSWER).lower()


def _pictures(data: Folder) -> Path:
    return data.find_optional("train_images") or data.root / "textvqa" / "train_images"


def _read_llava(data: Folder, path: Path) -> Iterator[tuple[Row, str, str, Words]]:
    """Row, picture, question and recognised words of each row of LLaVA's question file."""
    for row in data.jsonl(path):
        lines = row.text("text").split("\n")
        if len(lines) != 3 or not lines[1].startswith(OCR) or lines[2] != SHORT_ANSWER:
            row.fail(f"field 'text' should be a question, a line {OCR + '...'!r} and {SHORT_ANSWER!r}; found {lines}.")
        words = lines[1].removeprefix(OCR)
        yield row, row.text("question_id"), lines[0], tuple(words.split(", ")) if words else ()


def _sample(
    row: Row, image: str, picture: ImageRef, question: str, words: Words | None, answers: Words | None
) -> Sample:
    # The official question_id is not in LLaVA's file, so the id is the picture and the question as it is asked.
    key = f"{image}/{question.capitalize()}"
    bounds = ((0, "00"), (5, "01-05"), (10, "06-10"), (20, "11-20"), (50, "21-50"))
    groups = () if words is None else (f"ocr_tokens/{next((n for top, n in bounds if len(words) <= top), '51+')}",)
    target = None if answers is None else ten_answers(row, answers)
    fields: dict[str, Any] = {"words": words}
    if answers is not None and "question_id" in row:
        fields["question_id"] = row.identifier("question_id")
    return Sample(key, picture, question, target, (), groups, fields, external_id=image, where=row.where)


TASKS = (TextVqa(AFTER, "after"), TextVqa(BEFORE, "before"), TextVqa(NONE, "none"))
