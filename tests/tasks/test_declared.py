"""What each benchmark declares of itself, and where it looks for its files: whoever changes one changes it here too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from vlmamba_eval.dataset import has_samples, load_dataset, read_folder, samples_folder
from vlmamba_eval.hub import Hub
from vlmamba_eval.registry import all_tasks, get_task
from vlmamba_eval.rows import Row
from vlmamba_eval.table import tabulate
from vlmamba_eval.types import Graded

WORDS = ("measures", "paper", "scorer")  # for people alone


def declared(name: str) -> dict[str, Any]:
    info = {key: value for key, value in asdict(get_task(name).info).items() if key not in WORDS}
    return json.loads(json.dumps(info))


@pytest.mark.parametrize("name", all_tasks())
def test_a_benchmark_declares_what_is_written_down(name: str, golden: Callable[[str], list[dict[str, Any]]]) -> None:
    """Sizes, limits, versions, hashes, and where the files come from; a line per benchmark in `golden/declared.jsonl`.

    A changed prompt, reading or score raises `version`.
    """
    written = {row["name"]: row for row in golden("declared")}
    assert declared(name) == written[name]
    assert len(written) == len(all_tasks())


def metrics(name: str) -> list[dict[str, Any]]:
    """A benchmark's metrics over its bundled samples, without values: equal ones together, with their categories.

    To each category the number of questions that stands beside the metric.
    """
    task, dataset = get_task(name), load_dataset(get_task(name), "samples")
    table = tabulate(task, [Graded(sample, None, "missing") for sample in dataset.samples], dataset.extra)
    found: dict[tuple[Any, ...], dict[str, int]] = {}
    for one in task.metrics(table.total()):
        kind = one.name, one.split, one.headline, one.upper, one.plain
        found.setdefault(kind, {})[one.category] = table.totals[one.group].n
    fields = ("name", "split", "headline", "upper", "plain")
    return [{**dict(zip(fields, kind, strict=True)), "questions": n} for kind, n in found.items()]


@pytest.mark.parametrize("name", all_tasks())
def test_a_benchmarks_metrics_are_what_is_written_down(
    name: str, golden: Callable[[str], list[dict[str, Any]]]
) -> None:
    """Which there are, in which order, over which questions; which is the headline, which have a bound, or no interval.

    A line in `golden/metrics.jsonl` per benchmark with bundled samples.
    """
    written = next((row["metrics"] for row in golden("metrics") if row["task"] == name), [])
    if not has_samples(get_task(name)):
        assert not written
        return
    assert metrics(name) == written
    assert [one["name"] for one in written if one["headline"]] == [get_task(name).info.headline]


@pytest.mark.parametrize("name", all_tasks())
def test_the_key_of_a_saved_prompt_holds_the_question_whatever_stands_before_it(name: str) -> None:
    task = get_task(name)
    if not has_samples(task):
        return
    for sample in load_dataset(task, "samples").samples:
        key = task.join_key(task.prompt(sample))
        assert key == task.join_key(f"<image>\n{task.prompt(sample)}")
        assert " ".join(sample.question.split()).rstrip(".?!").lower() in " ".join(key.split()).lower()


class Asked(Hub):
    """A hub without rows, which remembers what it is asked for: (data set, configuration, split)."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, str | None, str]] = []

    def rows(self, dataset: str, split: str, *, config: str | None = None, image: str | None = None) -> Iterator[Row]:
        assert image in (None, "image")
        self.asked.append((dataset, config, split))
        return iter(())


HUB = {
    "vqav2": [("VQAv2", None, "validation")],
    "vqav2_testdev": [("VQAv2", None, "testdev"), ("VQAv2", None, "test")],
    "gqa": [
        ("GQA", "testdev_balanced_images", "testdev"),
        ("GQA", "testdev_balanced_instructions", "testdev"),
    ],
    "scienceqa": [("ScienceQA", "ScienceQA-FULL", "test")],
    "scienceqa_img": [("ScienceQA", "ScienceQA-IMG", "test")],
    "textvqa": [("textvqa", None, "validation")],
    "pope_9000": [("POPE", None, "test")],
    "mme": [("MME", None, "test")],
    "mmbench_20231003": [("MMBench", "en", "dev")],
    "mmbench_cn": [("MMBench", "cn", "dev")],
    "seed_image": [("SEED-Bench", None, "test")],
    "seed_updated": [("SEED-Bench", None, "test")],
    "nocaps": [("NoCaps", None, "validation")],
    "textcaps": [("TextCaps", None, "val")],
}


@pytest.mark.parametrize("name", [name for name, task in all_tasks().items() if task.info.hub])
def test_the_hub_is_asked_for_this_part_of_its_copy(name: str) -> None:
    """A variant of a list, in another protocol, reads the same part."""
    hub = Asked()
    extra = get_task(name).load_hub(hub).extra
    if callable(extra):
        extra()
    kin = next(known for known in sorted(HUB, key=len, reverse=True) if f"{name}_".startswith(f"{known}_"))
    assert hub.asked == [(f"lmms-lab-encoder/{dataset}", config, split) for dataset, config, split in HUB[kin]]


PICTURES = {
    "vqav2": ("vqav2/val2014", "val2014", "coco/val2014"),
    "gqa": ("gqa/images", "gqa/data/images"),
    "scienceqa": ("scienceqa/images/test", "images/test"),
    "textvqa": ("textvqa/train_images", "train_images"),
    "pope": ("pope/val2014", "val2014", "coco/val2014", "vqav2/val2014"),
    "coco_caption": ("coco_caption/val2014", "val2014", "coco/val2014", "pope/val2014", "vqav2/val2014"),
    "flickr30k": ("flickr30k/flickr30k-images", "flickr30k/images"),
    "nocaps": ("nocaps/val", "nocaps/images", "nocaps/validation"),
    "textcaps": ("textcaps/train_images", "textvqa/train_images", "train_images"),
}
"""Where pictures may lie below the data folder; the first is where they are expected if they lie nowhere."""
ANNOTATIONS = {
    "vqav2": {"vqav2/v2_OpenEnded_mscoco_val2014_questions.json": ("vqav2/questions", "questions", ""),
              "vqav2/v2_mscoco_val2014_annotations.json": ("vqav2/annotations", "annotations", "")},
    "gqa": {"gqa/testdev_balanced_questions.json": ("gqa/questions1.2", "gqa/questions", "gqa/data", "")},
    "pope": {f"pope/coco/coco_pope_{split}.json": ("pope/output/coco", "coco", "output/coco")
             for split in ("adversarial", "popular", "random")},
    "coco_caption": {"coco_caption/captions_karpathy_test.json": ("", "coco")},
    "textcaps": {"textcaps/TextCaps_0.1_val.json": ("textvqa/textcaps", "textvqa", "")},
    "mmvet": {"mm-vet/mm-vet.json": ("",)},
}  # fmt: skip
"""Further folders in which an annotation file may lie."""


def annotated(name: str, target: Path) -> Path:
    """A data folder with a benchmark's bundled annotations and no pictures."""
    for folder in get_task(name).info.folders:
        for path in (samples_folder() / folder).rglob("*.json"):
            copy = target / path.relative_to(samples_folder())
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    return target


def pictures(name: str, data: Path) -> list[Path]:
    return [Path(sample.image.path) for sample in read_folder(get_task(name), data).samples if sample.image]


@pytest.mark.parametrize(("name", "place"), [(name, place) for name, places in PICTURES.items() for place in places])
def test_pictures_may_lie_here(name: str, place: str, tmp_path: Path) -> None:
    annotated(name, tmp_path)
    assert {path.is_relative_to(tmp_path / PICTURES[name][0]) for path in pictures(name, tmp_path)} == {True}
    (tmp_path / place).mkdir(parents=True)
    assert {path.is_relative_to(tmp_path / place) for path in pictures(name, tmp_path)} == {True}


@pytest.mark.parametrize(
    ("name", "file", "folder"),
    [
        (name, file, folder)
        for name, files in ANNOTATIONS.items()
        for file, places in files.items()
        for folder in places
    ],
)
def test_annotations_may_lie_here(name: str, file: str, folder: str, tmp_path: Path) -> None:
    before = [sample.id for sample in read_folder(get_task(name), annotated(name, tmp_path)).samples]
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / file).rename(tmp_path / folder / Path(file).name)
    assert [sample.id for sample in read_folder(get_task(name), tmp_path).samples] == before
