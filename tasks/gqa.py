"""GQA: compositional questions about real pictures, made from scene graphs.

Paper   Hudson and Manning 2019, GQA: A New Dataset for Real-World Visual Reasoning, arXiv 1902.09506
Data    https://cs.stanford.edu/people/dorarad/gqa/download.html, version 1.2, testdev_balanced: 12,578 questions on 398
        pictures, 3 to 92 each, not grouped by picture
Scorer  https://github.com/haotian-liu/LLaVA/blob/c121f0432da2/scripts/convert_gqa_for_eval.py, then the
        release's own script, kept at
        https://github.com/TRI-ML/vlm-evaluation/blob/d9f58967de7f/vlm_eval/util/evaluation/gqa/eval.py

One entry of testdev_balanced_questions.json (shortened; the key is the question's id):
    "201307251": {"imageId": "n161313", "question": "Is it overcast?", "answer": "no", "isBalanced": true,
                  "types": {"structural": "verify", "semantic": "global", ...}, "groups": {"global": null, ...},
                  "semantic": [{"operation": "select", "argument": "scene", "dependencies": []}, ...]}

Accuracy is the published number. The release also defines consistency (needs the entailed questions of val_all),
validity and plausibility (need a choices file that version 1.2 lacks) and grounding (needs attention maps): not here.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmamba_eval.sources import File, Pictures, Terms
from vlmamba_eval.task import SHORT_ANSWER, Task, TaskInfo, accuracy_metrics, llava_question, write_submission
from vlmamba_eval.types import Graded, ImageRef, Loaded, Metric, Sample, Verdict

if TYPE_CHECKING:
    from vlmamba_eval.folder import Folder
    from vlmamba_eval.hub import Hub
    from vlmamba_eval.rows import Row
    from vlmamba_eval.sums import Sums

TERMS = Terms("as the data's page says", "https://cs.stanford.edu/people/dorarad/gqa/download.html")
HOST = "https://downloads.cs.stanford.edu/nlp/data/gqa"
QUESTIONS = "testdev_balanced_questions.json"
Gold = dict[str, set[str]]  # from a global group to the gold answers of its questions
NO_STEP = ("exist", "query: name", "choose name")  # operations that the official script does not count as reasoning


GQA = TaskInfo(
    name="gqa",
    title="GQA",
    measures="compositional reasoning over scenes (short open and yes/no answers)",
    split="testdev_balanced",
    questions=12_578,
    images=398,
    headline="accuracy",
    max_new_tokens=128,
    paper="https://arxiv.org/abs/1902.09506",
    scorer="https://github.com/haotian-liu/LLaVA/blob/c121f0432da2/scripts/convert_gqa_for_eval.py",
    folders=("gqa/data", "gqa"),
    files=(f"*{QUESTIONS}", f"questions*/{QUESTIONS}"),
    llava_file="llava_gqa_testdev_balanced.jsonl",
    hub="lmms-lab-encoder/GQA",
    counts={
        **{"structural/query": 6_805, "structural/verify": 2_252, "structural/logical": 1_803},
        **{"structural/choose": 1_129, "structural/compare": 589},
        **{"semantic/rel": 5_308, "semantic/attr": 5_186, "semantic/cat": 1_149, "semantic/obj": 778},
        **{"semantic/global": 157},
    },
    sha256=("2d0a248f04bef58f7a37b1f214cacc7b56e554f67d2f9ab48a112f7f7947a704",),
    sources=(
        File(f"gqa/{QUESTIONS}", f"{HOST}/questions1.2.zip", TERMS, member=QUESTIONS, size=1_500_000),
        Pictures(TERMS, url=f"{HOST}/images.zip", member="images/{name}", size=137_000, zip_size=20_300_000_000),
    ),
)


class Gqa(Task):
    info = GQA
    columns = ("gold", "said")

    def load(self, data: Folder) -> Loaded:
        images = _pictures(data)
        names = (QUESTIONS, f"questions1.2/{QUESTIONS}", f"questions/{QUESTIONS}")
        table = data.table(data.find(*names, what="GQA's question file"))
        return _with_gold(
            _sample(key, data.image(images, f"{row.identifier('imageId')}.jpg", row.where), row)
            for key, row in table.items()
            if row.get("isBalanced")  # only balanced questions count in the official script
        )

    def load_llava(self, data: Folder, path: Path) -> Loaded:
        images = _pictures(data)
        return Loaded(
            [
                Sample(
                    id=row.identifier("question_id"),
                    image=data.image(images, row.text("image"), row.where),
                    question=llava_question(row),
                    target=None,
                    where=row.where,
                )
                for row in data.jsonl(path)
            ]
        )

    def load_hub(self, hub: Hub) -> Loaded:
        pictures = hub.rows(self.info.hub, "testdev", config="testdev_balanced_images", image="image")
        images = {row.identifier("id"): row.image("image") for row in pictures}
        samples: list[Sample] = []
        for row in hub.rows(self.info.hub, "testdev", config="testdev_balanced_instructions"):
            image = images.get(row.identifier("imageId"))
            if image is None:
                row.fail(f"picture {row.get('imageId')!r} is not among the {len(images)} of testdev_balanced_images.")
            samples.append(_sample(row.identifier("id"), image, row))
        return _with_gold(samples)

    def prompt(self, sample: Sample) -> str:
        return f"{sample.question}\n{SHORT_ANSWER}"

    def grade(self, sample: Sample, text: str) -> Verdict:
        """LLaVA strips periods at the end and lower-cases; the official script then wants equality, nothing less."""
        prediction = text.rstrip(".").lower()
        return Verdict(prediction, float(prediction == sample.target), valid=bool(prediction.strip()))

    def count_image(self, items: Sequence[Graded], extra: Gold) -> Iterator[tuple[str, str, float]]:
        """What `distribution` compares, by global group and answer: how often it is gold, and how often it was said."""
        for item in items:
            group = item.sample.fields["global group"]
            if group is not None:
                yield "gold", f"{group}|{item.sample.target}", 1
                # The official sum runs over gold answers; other predictions play no part.
                if item.verdict and item.verdict.parsed in extra[group]:
                    yield "said", f"{group}|{item.verdict.parsed}", 1

    def metrics(self, sums: Sums) -> Iterator[Metric]:
        yield from accuracy_metrics(sums)
        yield Metric("distribution", _distribution(sums), upper=None)

    def submit(self, samples: Sequence[Sample], answers: Mapping[str, str], folder: Path, extra: Gold) -> list[Path]:
        """`testdev_balanced_predictions.json`, the input of the official eval.py, which wants every question."""
        rows = [{"questionId": s.id, "prediction": self.grade(s, answers[s.id]).parsed} for s in samples]
        return [write_submission(folder / "testdev_balanced_predictions.json", json.dumps(rows))]


def _pictures(data: Folder) -> Path:
    return data.find_optional("images") or data.root / "gqa" / "images"


def _with_gold(samples: Iterable[Sample]) -> Loaded:
    """The samples, and as what belongs to the list the gold answers of each global group."""
    gold: Gold = defaultdict(set)
    found = list(samples)
    for sample in found:
        gold[sample.fields["global group"]].add(str(sample.target))
    return Loaded(found, gold)


def _sample(key: str, image: ImageRef, row: Row) -> Sample:
    types, question, answer = row.row("types"), row.text("question"), row.text("answer")
    structural = types.text("structural")
    steps = sum(
        not any(name in f"{step.text('operation')}: {step.text('argument')}" for name in NO_STEP)
        for step in row.rows("semantic")
    )
    groups = (
        "open" if structural == "query" else "binary",
        f"structural/{structural}",
        f"semantic/{types.text('semantic')}",
        f"steps/{steps}",
        f"words/{len(question.split())}",
    )
    groups_row = row.row("groups")
    group = groups_row.text("global") if "global" in groups_row else None
    fields = {"global group": group}
    return Sample(key, image, question, answer, groups=groups, fields=fields, where=row.where)


def _distribution(sums: Sums) -> Any:
    """Chi-square between the gold and the predicted answers of each global group; lower is better.

    sum_g n_g X2_g / sum_g n_g / 100, with X2_g = sum over gold answers of (observed - expected)^2 / expected (lines
    380-398 of the official script).
    """
    size: dict[str, Any] = defaultdict(float)
    chi_square: dict[str, Any] = defaultdict(float)
    for place in sums.groups_of("gold"):
        expected, observed, group = sums("gold", place), sums("said", place), place.split("|")[0]
        size[group] += expected
        # An answer that is not gold in a bootstrap replicate has no term there.
        chi_square[group] += (expected > 0) * (observed - expected) ** 2 / (expected + (expected == 0))
    weighted = sum((size[group] * chi_square[group] for group in size), 0 * sums.n())
    return sums.ratio(weighted, sum(size.values(), 0 * sums.n())) / 100


TASKS = (Gqa(),)
