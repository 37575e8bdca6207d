"""RefCOCO, RefCOCO+ and RefCOCOg: where is the thing that these words mean? One box as the answer.

Paper   Yu et al. 2016, Modeling Context in Referring Expressions, arXiv 1608.00272; RefCOCOg: Mao et al. 2016, arXiv
        1511.02283, in the split of Nagaraja et al. 2016 (umd)
Data    https://github.com/lichengunc/refer: val. Expressions in `refs(unc).p` or `refs(umd).p`, a pickle, and boxes in
        `instances.json`; the pictures are COCO's train2014
Prompt  https://github.com/h-zhao1997/vlm-evaluation/blob/b0a691f/vlm_eval/models/cobra.py
Scorer  https://github.com/h-zhao1997/vlm-evaluation/blob/b0a691f/vlm_eval/tasks/harnesses/refcoco.py: the answer has to
        be a list `[x1, y1, x2, y2]` in parts of width and height; it is right from an IoU of 0.5 on

One entry of the pickle, and its rows of instances.json (all shortened):
    {"ref_id": 45, "ann_id": 1719310, "image_id": 581857, "split": "val",
     "sentences": [{"sent_id": 10, "sent": "navy blue shirt"}, ...]}
    "annotations": [{"id": 1719310, "image_id": 581857, "bbox": [103.93, 299.99, 134.22, 177.42]}, ...]
    "images": [{"id": 581857, "width": 640, "height": 427}, ...]
"""

from __future__ import annotations

import ast
import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from vlmamba_eval.rows import Row
from vlmamba_eval.sources import File, Terms
from vlmamba_eval.task import Task, TaskInfo, accuracy_metrics
from vlmamba_eval.tasks.coco import TRAIN2014
from vlmamba_eval.types import DataError, Loaded, Metric, Sample, Verdict

if TYPE_CHECKING:
    from vlmamba_eval.folder import Folder
    from vlmamba_eval.sums import Sums

TERMS = Terms("as the data's page says; pictures under Flickr's terms", "https://github.com/lichengunc/refer")
HOST = "https://bvisionweb1.cs.unc.edu/licheng/referit/data"


class RefCoco(Task):
    """One of the three lists; `kind` is who split it: the name of its pickle."""

    def __init__(self, name: str, title: str, kind: str, questions: int, images: int) -> None:
        self._refs = f"refs({kind}).p"
        self.info = TaskInfo(
            name=name,
            title=title,
            measures="a box around what an expression means (correct from an IoU of 0.5 on)",
            split="val",
            questions=questions,
            images=images,
            headline="accuracy",
            max_new_tokens=128,
            protocol="cobra",
            paper="https://arxiv.org/abs/1608.00272",
            scorer="https://github.com/h-zhao1997/vlm-evaluation/blob/b0a691f/vlm_eval/tasks/harnesses/refcoco.py",
            folders=(name,),
            files=(self._refs,),
            ids=r"\d{1,6}",
            sources=(
                File(f"{name}/{self._refs}", f"{HOST}/{name}.zip", TERMS, member=self._refs, size=5_000_000),
                File(f"{name}/instances.json", f"{HOST}/{name}.zip", TERMS, member="instances.json", size=40_000_000),
                TRAIN2014,
            ),
        )

    def load(self, data: Folder) -> Loaded:
        pictures = data.find_optional("train2014", "coco/train2014") or data.root / "coco" / "train2014"
        refs = data.find(self._refs, what=f"{self.info.title}'s expressions (a pickle)")
        boxes = data.find("instances.json", what=f"{self.info.title}'s boxes")
        instances = data.row(boxes)
        annotations = {row.integer("id"): row for row in instances.rows("annotations")}
        sizes = {row.integer("id"): row for row in instances.rows("images")}
        samples = []
        for ref in _refs_of(refs):
            if ref.text("split") != "val":
                continue
            number = ref.integer("image_id")
            annotation, size = annotations.get(ref.integer("ann_id")), sizes.get(number)
            if annotation is None or size is None:
                ref.fail(f"{boxes} should have its annotation {ref.get('ann_id')} and its image {number}.")
            box = _gold(annotation, size)
            image = data.image(pictures, f"COCO_train2014_{number:012d}.jpg", ref.where)
            samples += [
                Sample(str(sentence.integer("sent_id")), image, sentence.text("sent"), str(box), where=sentence.where)
                for sentence in ref.rows("sentences")
            ]
        return Loaded(samples)

    def prompt(self, sample: Sample) -> str:
        return f'Please provide the bounding box coordinate of the region this sentence describes: "{sample.question}"'

    def grade(self, sample: Sample, text: str) -> Verdict:
        """Anything but one list of four numbers from 0 to 1, left before right and top before bottom, is no box."""
        box = read_box(text)
        right = box is not None and overlap(box, ast.literal_eval(str(sample.target))) >= 0.5
        return Verdict(None if box is None else str(box), float(right), box is not None)

    def metrics(self, sums: Sums) -> Iterator[Metric]:
        yield from accuracy_metrics(sums)


def read_box(text: str) -> list[float] | None:
    """`[x1, y1, x2, y2]` as the official script reads it: a Python list and nothing around it."""
    try:
        box = ast.literal_eval(text)
        if isinstance(box, list) and len(box) == 4 and all(0 <= number <= 1 for number in box):
            return box if box[0] < box[2] and box[1] < box[3] else None
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        pass
    return None


def overlap(first: list[float], second: list[float]) -> float:
    """Intersection over union of two boxes `[x1, y1, x2, y2]`."""
    across = min(first[2], second[2]) - max(first[0], second[0])
    down = min(first[3], second[3]) - max(first[1], second[1])
    both = max(0, across) * max(0, down)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return both / (sum(areas) - both)


def _gold(annotation: Row, size: Row) -> list[float]:
    """The official box: parts of width and height, two decimals."""
    found, sides = annotation.get("bbox"), (size.integer("width"), size.integer("height"))
    numbers = isinstance(found, list) and len(found) == 4 and all(type(number) in (int, float) for number in found)
    if not numbers:
        annotation.fail(f"field 'bbox' should be [x, y, width, height] in pixels, found {found!r}.")
    x, y, width, height = found
    if not (0 < x + width <= sides[0] and 0 < y + height <= sides[1] and width > 0 and height > 0):
        annotation.fail(f"field 'bbox' should lie in the picture of {sides[0]} x {sides[1]} pixels, found {found!r}.")
    return [round(value, 2) for value in (x / sides[0], y / sides[1], (x + width) / sides[0], (y + height) / sides[1])]


class _Plain(pickle.Unpickler):
    """Reads lists, dictionaries, texts and numbers. A pickle could name code to run: that is refused."""

    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        raise pickle.UnpicklingError(f"it names {module_name}.{global_name}, which is no plain data")


def _refs_of(path: Path) -> Iterator[Row]:
    try:
        refs: Any = _Plain(io.BytesIO(path.read_bytes())).load()
    except Exception as error:  # noqa: BLE001 - a damaged pickle can fail in any way
        raise DataError(f"{path}: not a pickle of plain data ({error}). Fetch the official file again.") from None
    if not isinstance(refs, list):
        raise DataError(f"{path}: expected a list of expressions, found {type(refs).__name__}.")
    return (Row(ref, f"{path}: item[{number}]") for number, ref in enumerate(refs))


TASKS = (
    RefCoco("refcoco", "RefCOCO", "unc", 10_834, 1_500),
    RefCoco("refcoco+", "RefCOCO+", "unc", 10_758, 1_500),
    RefCoco("refcocog", "RefCOCOg", "umd", 4_896, 1_300),
)
