"""A benchmark with sources: colours, a question file in one zip and pictures in another."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from tests.vlmamba_eval.fetch.server import Server
from vlmamba_eval.folder import Folder
from vlmamba_eval.sources import ByHand, File, Pictures, Source, Terms
from vlmamba_eval.sums import Sums
from vlmamba_eval.task import Task, TaskInfo, accuracy_metrics
from vlmamba_eval.types import Loaded, Metric, Sample, Verdict

TERMS = Terms("CC BY 4.0", "http://terms.invalid")
NAMES = ("red", "green", "blue", "black")


class Colours(Task):
    def __init__(self, *sources: Source, name: str = "colours", questions: int = 8, images: int = 4) -> None:
        self.info = TaskInfo(
            name=name, title="Colours", measures="colours", split="test", questions=questions, images=images,
            headline="accuracy", max_new_tokens=4, paper="", scorer="", folders=(name,), sources=sources,
        )  # fmt: skip

    def load(self, data: Folder) -> Loaded:
        path = data.find("questions.jsonl", "v1/questions.jsonl", what="the questions")
        hints = {p.stem: data.lines(p)[0] for p in sorted(path.parent.glob("hints/*.txt"))}
        return Loaded(
            [
                Sample(
                    row.identifier("id"),
                    data.image(path.parent / "pictures", row.text("image"), row.where),
                    row.text("question") + hints.get(row.identifier("id"), ""),
                    row.text("answer") if "answer" in row else None,
                    where=row.where,
                )
                for row in data.jsonl(path)
            ]
        )

    def prompt(self, sample: Sample) -> str:
        return sample.question

    def grade(self, sample: Sample, text: str) -> Verdict:
        return Verdict(text, float(text == sample.target))

    def metrics(self, sums: Sums) -> Iterator[Metric]:
        yield from accuracy_metrics(sums)


def picture(colour: str) -> bytes:
    raw = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(raw, "PNG")
    return raw.getvalue()


def questions(labels: bool = True) -> bytes:
    rows = [
        {"id": f"{kind}-{name}", "image": f"{kind[0]}/{name}.png", "question": f"{kind}?", "answer": name}
        for kind in ("what", "which")
        for name in NAMES
    ]
    for row in rows:
        row["image"] = f"{row['image'].partition('/')[2]}"
        if not labels:
            del row["answer"]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def fill(root: Path, folder: str = "colours") -> Path:
    """A data folder that has all."""
    base = root / folder
    (base / "pictures").mkdir(parents=True)
    (base / "hints").mkdir()
    (base / "questions.jsonl").write_bytes(questions())
    (base / "hints" / "what-red.txt").write_text(" Or none?\n")
    for name in NAMES:
        (base / "pictures" / f"{name}.png").write_bytes(picture(name))
    (base / "pictures" / "unused.png").write_bytes(picture("white"))
    return root


def serve(server: Server, **how) -> tuple[File, Pictures]:
    """Its sources, served: 4 pictures among 2,000."""
    zips: list[bytes] = []
    for files in (
        {"v1/questions.jsonl": questions()},
        {f"all/{name}.png": picture(name) for name in NAMES} | {f"all/{i}.png": bytes(500) for i in range(2000)},
    ):
        raw = io.BytesIO()
        with zipfile.ZipFile(raw, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        zips.append(raw.getvalue())
    return (
        File("colours/questions.jsonl", server.put("/q.zip", zips[0]), TERMS, member="questions.jsonl", size=300),
        Pictures(TERMS, server.put("/p.zip", zips[1], **how), "all/{name}", size=80),
    )


BY_HAND = ByHand("the pictures", "fill in the form", "colours/pictures", "http://form.invalid")
