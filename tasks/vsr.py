"""VSR: is a statement about where things are true of the picture?

Paper   Liu et al. 2023, Visual Spatial Reasoning, arXiv 2205.00363
Data    https://huggingface.co/datasets/cambridgeltl/vsr_zeroshot, test: 1,222 statements on 715 COCO pictures. Models
        that were trained on VSR (Mamba-VL) publish numbers of the other split, `vsr_random`.
Prompt  https://github.com/h-zhao1997/vlm-evaluation/blob/b0a691f/vlm_eval/models/cobra.py
Scorer  https://github.com/h-zhao1997/vlm-evaluation/blob/b0a691f/vlm_eval/tasks/harnesses/vsr.py: the likelier of True
        and False as the first token is the answer (`--scoring likelihood`)

One row of test.jsonl (shortened):
    {"image": "000000085637.jpg", "caption": "The bed is next to the cat.", "label": 1, "relation": "next to",
     "subj": "bed", "obj": "cat"}
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vlmamba_eval.sources import ByHand, File, Terms
from vlmamba_eval.task import Task, TaskInfo, accuracy_metrics
from vlmamba_eval.types import Loaded, Metric, Sample, Verdict

if TYPE_CHECKING:
    from vlmamba_eval.folder import Folder
    from vlmamba_eval.sums import Sums

ZERO_SHOT = TaskInfo(
    name="vsr",
    title="VSR (zero-shot)",
    measures="is a statement about places true? (True or False; published with --scoring likelihood)",
    split="zeroshot test",
    questions=1_222,
    images=715,
    headline="accuracy",
    max_new_tokens=128,
    protocol="cobra",
    paper="https://arxiv.org/abs/2205.00363",
    scorer="https://github.com/h-zhao1997/vlm-evaluation/blob/b0a691f/vlm_eval/tasks/harnesses/vsr.py",
    folders=("vsr",),
    files=("test.jsonl",),
    sha256=("8bfae73c23753ac7c1320195837d082a3b1f478745f87acc47019f7aeef74211",),
    labels_sha256=("da2dbda30c3c0cd0f2776ad2a181de5a59a554c8904cdb0cbaf8da67711aa322",),
    sources=(
        File(
            "vsr/test.jsonl",
            "https://huggingface.co/datasets/cambridgeltl/vsr_zeroshot/resolve/main/test.jsonl",
            Terms("as the data's page says", "https://huggingface.co/datasets/cambridgeltl/vsr_zeroshot"),
            size=300_000,
        ),
        ByHand(
            "the pictures",
            "fetch vsr_images.zip, which the authors' page links, and unpack it there",
            "vsr/images",
            "https://github.com/cambridgeltl/visual-spatial-reasoning",
        ),
    ),
)


class Vsr(Task):
    info = ZERO_SHOT

    def load(self, data: Folder) -> Loaded:
        images = data.find_optional("images", "trainval2017", "coco/train2017") or data.root / "vsr" / "images"
        samples = []
        for number, row in enumerate(data.jsonl(data.find("test.jsonl", what="VSR's statements (zero-shot test)"))):
            if (label := row.integer("label")) not in (0, 1):
                row.fail(f"field 'label' should be 0 or 1, found {label}.")
            samples.append(
                Sample(
                    id=str(number),
                    image=data.image(images, row.text("image"), row.where),
                    question=row.text("caption"),
                    target=("False", "True")[label],
                    groups=(f"relation/{row.text('relation')}",),
                    where=row.where,
                )
            )
        return Loaded(samples)

    def prompt(self, sample: Sample) -> str:
        return (
            f'Based on the image, is this statement "True" or "False"? {sample.question}\n'
            'Respond with "True" or "False" directly.'
        )

    def identity(self, sample: Sample) -> str:
        """The statement: its number is its place in the file."""
        return sample.question

    def continuations(self, sample: Sample) -> tuple[str, ...]:
        return ("True", "False")

    def grade(self, sample: Sample, text: str) -> Verdict:
        """The first word True or False, in any case; the published protocol ranks the two instead."""
        found = re.search(r"\b(true|false)\b", text, re.IGNORECASE)
        parsed = found[1].capitalize() if found else None
        return Verdict(parsed, float(parsed == sample.target), parsed is not None)

    def metrics(self, sums: Sums) -> Iterator[Metric]:
        yield from accuracy_metrics(sums)


TASKS = (Vsr(),)
