"""A benchmark and a model small enough to see through: what the harness is tested with."""

from __future__ import annotations

import base64
import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vlmamba_eval.adapter import AdapterInfo
from vlmamba_eval.folder import Folder
from vlmamba_eval.sums import Sums
from vlmamba_eval.task import Task, TaskInfo, accuracy_metrics
from vlmamba_eval.types import (
    Generation,
    ImageQuestions,
    ImageRef,
    Likelihood,
    Loaded,
    Metric,
    OutOfMemory,
    Question,
    Sample,
    Verdict,
)


class ToyTask(Task):
    """Colour questions from `toy.jsonl`: {"id", "image", "question", "answer", "group"}."""

    def __init__(self, name: str = "toy", questions: int = 24, images: int = 6) -> None:
        self.info = TaskInfo(
            name=name,
            title=name.capitalize(),
            measures="colours",
            split="test",
            questions=questions,
            images=images,
            headline="accuracy",
            max_new_tokens=4,
            paper="",
            scorer="",
            folders=(name,),
        )

    def load(self, data: Folder) -> Loaded:
        path = data.find("toy.jsonl", what="toy questions")
        samples = [
            Sample(
                id=row.identifier("id"),
                image=data.image(path.parent / "images", row.text("image"), row.where),
                question=row.text("question"),
                target=row.text("answer") if "answer" in row else None,
                groups=(row.text("group", "plain"),),
                where=row.where,
            )
            for row in data.jsonl(path)
        ]
        return Loaded(samples)

    def prompt(self, sample: Sample) -> str:
        return f"{sample.question}\nAnswer briefly."

    def grade(self, sample: Sample, text: str) -> Verdict:
        return Verdict(text or None, float(text == sample.target), bool(text))

    def metrics(self, sums: Sums) -> Iterator[Metric]:
        yield from accuracy_metrics(sums)

    def continuations(self, sample: Sample) -> tuple[str, ...]:
        return ("red", "blue")


class ToyAdapter:
    """Answers with the colour of the picture's first pixel, whatever is asked. Counts what it is asked to do."""

    def __init__(self, memory: int | None = None, poison: str = "") -> None:
        self.info = AdapterInfo("toy-model", "sha256:0", "cpu", "float32", image_tokens=10)
        self.memory = memory  # questions that fit at once
        self.poison = poison  # a question that makes it raise
        self.asked: list[str] = []
        self.images_prepared = 0

    def prepare(self, image: Image.Image) -> Any:
        self.images_prepared += 1
        return image.getpixel((0, 0))

    def generate(self, batch: Sequence[ImageQuestions]) -> list[list[Generation]]:
        if self.memory is not None and sum(len(item.questions) for item in batch) > self.memory:
            raise OutOfMemory("toy memory is full")
        return [[self._answer(item.image, question) for question in item.questions] for item in batch]

    def rank(self, batch: Sequence[ImageQuestions]) -> list[list[Generation]]:
        return [
            [
                Generation("red", question.text, 1, "likelihood", (Likelihood(-0.1, 1), Likelihood(-3.0, 1)))
                for question in item.questions
            ]
            for item in batch
        ]

    def _answer(self, pixel: Any, question: Question) -> Generation:
        if self.poison and self.poison in question.text:
            raise ValueError("the toy can't stand this question")
        self.asked.append(question.text)
        colour = {(255, 0, 0): "red", (0, 0, 255): "blue", None: "nothing"}.get(pixel, "grey")
        return Generation(colour, f"USER: {question.text} ASSISTANT:", 1, "eos")


def write_toy_data(root: Path, name: str = "toy", images: int = 6, questions: int = 4) -> Path:
    """Write `root/<name>/toy.jsonl` with pictures, alternately red and blue; the first question repeats."""
    folder = root / name
    (folder / "images").mkdir(parents=True)
    lines = []
    for i in range(images):
        colour = "red" if i % 2 == 0 else "blue"
        Image.new("RGB", (8, 8), colour).save(folder / "images" / f"{i}.png")
        for q in range(questions):
            lines.append(
                f'{{"id": "{i}-{q}", "image": "{i}.png", "question": "What colour ({max(q, 1)})?", '
                f'"answer": "{colour if q else "red"}", "group": "{"odd" if q % 2 else "even"}"}}'
            )
    (folder / "toy.jsonl").write_text("\n".join(lines) + "\n")
    return root


def picture(colour: str = "red", size: tuple[int, int] = (8, 8), kind: str = "PNG") -> bytes:
    """An encoded picture of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


def png_with(name: bytes, body: bytes) -> bytes:
    """A PNG of one pixel with one chunk of its own making before the pixels; as header it replaces the true one."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    chunks = {b"IHDR": struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)} | {name: body}
    pixels = {b"IDAT": zlib.compress(bytes(4)), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*item) for item in (chunks | pixels).items())


def reference(key: str, content: bytes = b"") -> ImageRef:
    """A picture that lies in memory."""
    return ImageRef(key, key, base64=base64.b64encode(content or picture()).decode())


def in_a_child(work: Callable[[], None]) -> int:
    """Run in a forked process; its exit status."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001 - the parent looks at the status alone
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
