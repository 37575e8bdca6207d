"""POPE: does the model see objects that are not there?

Paper   Li et al. 2023, Evaluating Object Hallucination in Large Vision-Language Models, arXiv 2305.10355
Data    https://github.com/AoiDragon/POPE/tree/e3e39262c85a6a83f26cf5094022a782cb0df58d/output/coco, on 500 pictures of
        COCO val2014. Three lists (random, popular, adversarial) share the pictures and the 1,500 "yes" questions; LLaVA
        pins this commit, whose random list has 2,910 rows. The repository's head and the hub have 3,000: `pope_9000`.
Scorer  https://github.com/haotian-liu/LLaVA/blob/c121f0432da2/llava/eval/eval_pope.py (counts per split; the published
        number is 100 times the mean of the three F1)

One row of coco_pope_popular.json, which is JSON lines in spite of its name:
    {"question_id": 1, "image": "COCO_val2014_000000310196.jpg", "text": "Is there a snowboard in the image?",
     "label": "yes"}
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmamba_eval.sources import File, Terms
from vlmamba_eval.task import SHORT_ANSWER, Task, TaskInfo, llava_question
from vlmamba_eval.tasks.coco import VAL2014
from vlmamba_eval.types import Graded, ImageRef, Loaded, Metric, Sample, Verdict

if TYPE_CHECKING:
    from vlmamba_eval.folder import Folder
    from vlmamba_eval.hub import Hub
    from vlmamba_eval.sums import Sums

SPLITS = ("adversarial", "random", "popular")  # in the order of LLaVA's question file
FIRST_ID = {"adversarial": 0, "random": 10_000_000, "popular": 20_000_000}  # LLaVA's question_id minus POPE's
OUTCOME = {("yes", "yes"): "TP", ("yes", "no"): "FP", ("no", "no"): "TN", ("no", "yes"): "FN"}  # (answer, label)


TERMS = Terms("MIT licence", "https://github.com/AoiDragon/POPE")
HOST = "https://raw.githubusercontent.com/AoiDragon/POPE"
LISTS = {  # bytes and sha256 at the pinned commit
    "adversarial": (370_459, "1d8f0906a9b50c05640f6f23abfac97523be2a1bed28f7eadc63b811699b2d26"),
    "random": (360_212, "c16b65d2df6d70bb0814c8a4375833d39cdb09928fd936d3fc546491efa37f35"),
    "popular": (370_234, "5b16653023bf4f64d57eb0d168259de6627f5cde7538b85ebed3cc33034aa6cc"),
}
PINNED = TaskInfo(
    name="pope",
    title="POPE",
    measures="object hallucination: is there a ... in the image? (yes or no)",
    split="COCO val2014",
    questions=8_910,
    images=500,
    headline="mean_f1",
    max_new_tokens=128,
    paper="https://arxiv.org/abs/2305.10355",
    scorer="https://github.com/haotian-liu/LLaVA/blob/c121f0432da2/llava/eval/eval_pope.py",
    folders=("pope",),
    files=("coco/coco_pope_*.json", "output/coco/coco_pope_*.json"),
    llava_file="llava_pope_test.jsonl",
    sha256=("900b2e62851da6c32efb98b1ed4572bad108f71172789a024eb6cd3f6af8b2a0",),
    labels_sha256=("39bd1c7d9319cd45fa53feafbc99e87bb3865f8f612fee1ab450a04ea723c8bb",),
    sources=(
        *(
            File(
                f"pope/coco/coco_pope_{split}.json",
                f"{HOST}/e3e39262c85a6a83f26cf5094022a782cb0df58d/output/coco/coco_pope_{split}.json",
                TERMS,
                size=size,
                digest=f"sha256:{sha256}",
            )
            for split, (size, sha256) in LISTS.items()
        ),
        VAL2014,
    ),
)
HEAD = replace(
    PINNED,
    name="pope_9000",
    title="POPE (9,000)",
    questions=9_000,
    folders=("pope_9000", "pope"),
    # The repository's head, and the list of October 2023, before the spelling of some questions was mended.
    sha256=(
        "5cf3eef69d60c500539bb7a56e8e21ab533858aef8d5cefdc011fa0b2bb44438",
        "4ef4e4311b88e5c0ce6a1dbc25b2b15e456d01be7cf3e5e25094d3c0e67ee303",
    ),
    labels_sha256=(
        "2e8f52a73bd8d966fe5f141cc571c899bac22ee423665aa589672f43558fe787",
        "a90211f417e07d2e56104c53c5809db46c741d54b1fbc71fc666aa58b7060f46",
    ),
    hub="lmms-lab-encoder/POPE",
    sources=(
        *(
            File(
                f"pope_9000/coco/coco_pope_{split}.json",
                f"{HOST}/main/output/coco/coco_pope_{split}.json",
                TERMS,
                size=371_000,
            )
            for split in SPLITS
        ),
        VAL2014,
    ),
)


class Pope(Task):
    columns = (*OUTCOME.values(), "answered", "answered yes")

    def __init__(self, info: TaskInfo) -> None:
        self.info = info

    def load(self, data: Folder) -> Loaded:
        images = _pictures(data)
        samples: list[Sample] = []
        for split in SPLITS:
            for row in data.jsonl(data.find(*_lists(split), what=f"POPE's {split} list (JSON lines)")):
                image = data.image(images, row.text("image"), row.where)
                label = row.one_of("label", ("yes", "no"))
                samples.append(_sample(split, row.integer("question_id"), image, row.text("text"), label, row.where))
        return Loaded(samples)

    def load_llava(self, data: Folder, path: Path) -> Loaded:
        images = _pictures(data)
        samples: list[Sample] = []
        for row in data.jsonl(path):
            split = row.one_of("category", SPLITS)
            image = data.image(images, row.text("image"), row.where)
            number = row.integer("question_id") - FIRST_ID[split]
            samples.append(_sample(split, number, image, llava_question(row), None, row.where))
        return Loaded(samples)

    def load_hub(self, hub: Hub) -> Loaded:
        samples: list[Sample] = []
        for row in hub.rows(self.info.hub, "test", image="image"):
            split, number = row.one_of("category", SPLITS), row.number("question_id")
            # Each picture is stored once for each of its questions; its COCO name is its identity.
            image = row.image("image", key=f"{self.info.hub}/{row.text('image_source')}")
            label = row.one_of("answer", ("yes", "no"))
            samples.append(_sample(split, number, image, row.text("question"), label, row.where))
        return Loaded(samples)

    def prompt(self, sample: Sample) -> str:
        return f"{sample.question}\n{SHORT_ANSWER}"

    def place_in_list(self, sample: Sample) -> tuple[str, str]:
        """The official lists are three files, each numbered from 1."""
        split, _, number = sample.id.partition("/")
        return split, number

    def grade(self, sample: Sample, text: str) -> Verdict:
        return read_yes_no(text, str(sample.target))

    def count(self, item: Graded) -> Iterator[tuple[str, float]]:
        """Outcomes, `yes` is positive. A missing answer is counted as the wrong one, but not as an answer."""
        label = str(item.sample.target)
        answer = item.verdict.parsed if item.verdict else {"yes": "no", "no": "yes"}[label]
        yield OUTCOME[str(answer), label], 1
        if item.verdict:
            yield "answered", 1
            yield "answered yes", item.verdict.parsed == "yes"

    def metrics(self, sums: Sums) -> Iterator[Metric]:
        values = {group: _ratios(sums, group) for group in ("all", *SPLITS)}
        mean = {name: sum(values[split][name] for split in SPLITS) / len(SPLITS) for name in ("f1", "accuracy")}
        yield Metric("mean_f1", mean["f1"], split="all", headline=True)
        yield Metric("mean_accuracy", mean["accuracy"], split="all")
        yield Metric("pooled_f1", values["all"]["f1"], split="all")
        yield Metric("pooled_accuracy", values["all"]["accuracy"], split="all")
        for split in SPLITS:
            for name, value in values[split].items():
                yield Metric(name, value, split=split)
            for outcome in ("TP", "FP", "TN", "FN"):
                yield Metric(outcome.lower(), sums(outcome, split), split=split, upper=None, plain=True)

    def continuations(self, sample: Sample) -> tuple[str, ...]:
        return ("Yes", "No")


def read_yes_no(text: str, target: str) -> Verdict:
    """The official reading: a word No, no or not, between single spaces, before the first period; otherwise yes.

    So "NO", "Nope", "No!" and the empty answer are a yes. `valid` tells if there is no yes or no at all, or if a no is
    there that the rule reads as a yes.
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    parsed = "no" if {"No", "no", "not"}.intersection(words) else "yes"
    said = set(re.findall(r"\b(yes|no|not)\b", text.lower()))
    valid = bool(said) and not (parsed == "yes" and said & {"no", "not"})
    return Verdict(parsed, float(parsed == target), valid)


def _lists(split: str) -> tuple[str, str]:
    return f"coco/coco_pope_{split}.json", f"output/coco/coco_pope_{split}.json"


def _pictures(data: Folder) -> Path:
    return data.find_optional("val2014", "coco/val2014", "vqav2/val2014") or data.root / "pope" / "val2014"


def _sample(split: str, number: int, image: ImageRef, question: str, label: str | None, where: str) -> Sample:
    external_id = str(FIRST_ID[split] + number)
    return Sample(f"{split}/{number}", image, question, label, groups=(split,), external_id=external_id, where=where)


def _ratios(sums: Sums, group: str) -> dict[str, Any]:
    """The five numbers of the official script in percent; NaN if undefined (there it divides by zero).

    Without a single yes there is no precision, though missing answers count as the wrong one of the two.
    """
    tp, fp, tn, fn = (sums(outcome, group) for outcome in ("TP", "FP", "TN", "FN"))
    said_yes = sums("answered yes", group)
    return {
        "accuracy": 100 * sums.ratio(tp + tn, tp + fp + tn + fn),
        "precision": 100 * sums.ratio(tp, (tp + fp) * (said_yes > 0)),
        "recall": 100 * sums.ratio(tp, tp + fn),
        "f1": 100 * sums.ratio(2 * tp, 2 * tp + fp + fn),
        "yes_ratio": 100 * sums.ratio(said_yes, sums("answered", group)),
    }


TASKS = (Pope(PINNED), Pope(HEAD))
