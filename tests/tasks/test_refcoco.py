"""RefCOCO: the release's pickle and boxes, the official reading of a box, and the rate of boxes that overlap enough."""

from __future__ import annotations

import itertools
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlmamba_eval.folder import Folder
from vlmamba_eval.registry import get_task
from vlmamba_eval.tasks.refcoco import overlap, read_box
from vlmamba_eval.types import DataError, Loaded, Sample

Put = Callable[..., Path]
REF = {
    "ref_id": 45, "ann_id": 7, "image_id": 581857, "split": "val",
    "sentences": [{"sent_id": 10, "sent": "navy blue shirt"}, {"sent_id": 11, "sent": "left"}],
}  # fmt: skip
INSTANCES = {
    "annotations": [{"id": 7, "image_id": 581857, "bbox": [64.0, 50.5, 128.0, 200]}],
    "images": [{"id": 581857, "width": 640, "height": 400}],
}


def release(put: Put, refs: Any, instances: Any = INSTANCES, name: str = "refcoco", kind: str = "unc") -> Folder:
    path = put(f"{name}/instances.json", instances)
    (path.parent / f"refs({kind}).p").write_bytes(refs if isinstance(refs, bytes) else pickle.dumps(refs, 2))
    return Folder(path.parents[1], (name,))


@pytest.mark.parametrize(("name", "kind"), [("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd")])
def test_each_list_is_read_from_its_release(put: Put, name: str, kind: str) -> None:
    loaded: Loaded = get_task(name).load(release(put, [REF, {**REF, "split": "train"}], name=name, kind=kind))
    assert [(s.id, s.question) for s in loaded.samples] == [("10", "navy blue shirt"), ("11", "left")]
    first = loaded.samples[0]
    assert first.target == "[0.1, 0.13, 0.3, 0.63]"  # 64/640, 50.5/400, 192/640, 250.5/400
    assert first.image is not None
    assert first.image.path.endswith("coco/train2014/COCO_train2014_000000581857.jpg")


@pytest.mark.parametrize("place", ["train2014", "coco/train2014", "refcoco/train2014", "refcoco/coco/train2014"])
def test_pictures_may_lie_here(put: Put, place: str) -> None:
    folder = release(put, [REF])
    put(f"{place}/x.jpg", b"")
    [image, *_] = [sample.image for sample in get_task("refcoco").load(folder).samples]
    assert image is not None
    assert Path(image.path).parent == folder.root / place


def test_the_score_is_the_rate_of_boxes_that_overlap_by_half(put: Put, score: Callable[..., Any]) -> None:
    task = get_task("refcoco")
    loaded = task.load(release(put, [REF]))
    values = score(task, loaded, {"10": "[0.1, 0.13, 0.3, 0.63]", "11": "[0.3, 0.13, 0.5, 0.63]"})
    assert values["accuracy", "all"] == 50


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("[0.1, 0.2, 0.5, 1]", [0.1, 0.2, 0.5, 1]),
        ("[0.1,0.2,0.5,0.9]", [0.1, 0.2, 0.5, 0.9]),
        ("(0.1, 0.2, 0.5, 0.9)", None),
        ("The box is [0.1, 0.2, 0.5, 0.9]", None),
        ("[0.1, 0.2, 0.5, 0.9].", None),
        ("[0.5, 0.2, 0.1, 0.9]", None),
        ("[0.1, 0.9, 0.5, 0.2]", None),
        ("[0.1, 0.2, 0.1, 0.9]", None),
        ("[0.1, 0.2, 0.5, 0.2]", None),
        ("[-0.1, 0.2, 0.5, 0.9]", None),
        ("[0.1, 0.2, 0.5, 1.01]", None),
        ("[0.1, 0.2, 0.5, 0.9, 1]", None),
        ('"0.10"', None),
        ("[0.1, 0.2, 0.5]", None),
        ("[10, 20, 50, 90]", None),
        ("['0.1', 0.2, 0.5, 0.9]", None),
        ("[0.1, 0.2, 0.5, 0.9", None),
        ("", None),
        ("[" * 5000, None),
        ("__import__('os').getcwd()", None),
    ],
)
def test_a_box_is_a_list_of_four_parts_and_nothing_else(text: str, box: list[float] | None) -> None:
    assert read_box(text) == box
    verdict = get_task("refcoco").grade(Sample("1", None, "?", "[0.1, 0.2, 0.5, 0.95]"), text)
    assert (verdict.credit, verdict.valid) == (float(box is not None), box is not None)


def test_left_is_before_right_and_top_before_bottom() -> None:
    for box in itertools.product((0, 0.25, 0.5, 1), repeat=4):
        left, top, right, bottom = box
        assert read_box(str(list(box))) == (list(box) if left < right and top < bottom else None)


@pytest.mark.parametrize(
    ("bbox", "box"),
    [
        ([0, 0, 640, 400], "[0.0, 0.0, 1.0, 1.0]"),
        ([0.4, 0.4, 0.5, 0.5], "[0.0, 0.0, 0.0, 0.0]"),  # smaller than a hundredth of the picture
        ([100, 300, 320.4, 100], "[0.16, 0.75, 0.66, 1.0]"),
        ([639, 0, 2, 10], None),
        ([0, 399, 10, 2], None),
        ([5, 5, 0, 10], None),
        ([5, 5, 10, 0], None),
        ([-10, 5, 10, 10], None),
        ([5, -10, 10, 10], None),
        ([5, 5, 10], None),
        ([5, 5, 10, 10, 1], None),
        ([5, 5, "10", 10], None),
        ([5, 5, True, 10], None),
        ({"x": 5}, None),
    ],
)
def test_a_box_lies_in_its_picture(put: Put, bbox: Any, box: str | None) -> None:
    instances = {**INSTANCES, "annotations": [{"id": 7, "image_id": 581857, "bbox": bbox}]}
    folder = release(put, [REF], instances)
    if box is None:
        with pytest.raises(DataError, match="field 'bbox' should"):
            get_task("refcoco").load(folder)
    else:
        assert {sample.target for sample in get_task("refcoco").load(folder).samples} == {box}


def test_an_overlap_of_exactly_half_is_enough() -> None:
    grade = get_task("refcoco").grade
    assert grade(Sample("1", None, "?", "[0.0, 0.0, 1.0, 1.0]"), "[0, 0, 0.5, 1]").credit == 1
    assert grade(Sample("1", None, "?", "[0.0, 0.0, 1.0, 1.0]"), "[0, 0, 0.49, 1]").credit == 0
    assert read_box("[0, 0.0, 1, 1.0]") == [0, 0, 1, 1]


def test_the_overlap_is_that_of_counted_cells() -> None:
    """Boxes with corners on a grid of tenths, against the cells that each of them covers."""

    def cells(box: tuple[int, ...]) -> set[tuple[int, int]]:
        return set(itertools.product(range(box[0], box[2]), range(box[1], box[3])))

    boxes = [(0, 0, 4, 4), (2, 2, 6, 6), (4, 0, 8, 4), (1, 1, 3, 3), (0, 0, 10, 10), (5, 5, 6, 9)]
    for first, second in itertools.product(boxes, boxes):
        a, b = cells(first), cells(second)
        tenths = ([side / 10 for side in box] for box in (first, second))
        assert overlap(*tenths) == pytest.approx(len(a & b) / len(a | b))


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("evil",)


@pytest.mark.parametrize(
    ("refs", "instances", "message"),
    [
        (b"nonsense", INSTANCES, "not a pickle of plain data"),
        ({"a": 1}, INSTANCES, "expected a list of expressions, found dict"),
        ([{**REF, "ann_id": 8}], INSTANCES, "instances.json should have its annotation 8"),
        ([{**REF, "sentences": [{"sent": "x"}]}], INSTANCES, "field 'sent_id' is missing"),
        ([REF], {**INSTANCES, "images": [{"id": 581857, "width": 100, "height": 400}]}, "lie in the picture of 100 x"),
        ([REF], {**INSTANCES, "annotations": [{"id": 7, "bbox": [1, 2]}]}, "field 'bbox' should be"),
        ([REF], {"images": []}, "field 'annotations' is missing"),
    ],
)
def test_bad_files_are_named(put: Put, refs: Any, instances: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        get_task("refcoco").load(release(put, refs, instances))


def test_a_pickle_that_would_run_code_is_refused(put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"it names (posix|nt|os).mkdir"):
        get_task("refcoco").load(release(put, [Evil()]))
    assert not Path("evil").exists()
