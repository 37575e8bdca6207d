"""MM-Vet: open questions that need several abilities at once, graded from 0 to 1 by a judge.

Paper   Yu et al. 2023, MM-Vet: Evaluating Large Multimodal Models for Integrated Capabilities, arXiv 2308.02490
Data    https://github.com/yuweihao/MM-Vet (release v1, mm-vet.zip): `mm-vet.json` and images/. 218 questions.
Scorer  https://github.com/yuweihao/MM-Vet/blob/c7ff270d86fb/mm-vet_evaluator.py, which asks GPT-4 (gpt-4-0613) with a
        few-shot prompt; the score is the mean times 100, overall and for each of six abilities. Judges differ: numbers
        by another judge or prompt than the authors' are not comparable with published ones.

Nothing is scored without a judge: send the official file (`submit`) to the authors' server or notebook, or name a judge
(`mmvet_judge.py`).

One entry of mm-vet.json:
    "v1_0": {"imagename": "v1_0.png", "question": "What is x in the equation?", "answer": "-1<AND>-5",
     "imagesource": "...", "capability": ["ocr", "math"]}
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlmamba_eval.sources import File, Pictures, Terms
from vlmamba_eval.task import Message, Task, TaskInfo, write_submission
from vlmamba_eval.tasks.mmvet_judge import judge_messages, read_judgement
from vlmamba_eval.types import Loaded, Metric, Sample, UsageError, Verdict

if TYPE_CHECKING:
    from vlmamba_eval.folder import Folder
    from vlmamba_eval.sums import Sums

ABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")


TERMS = Terms("as the data's page says", "https://github.com/yuweihao/MM-Vet")
RELEASE = "https://github.com/yuweihao/MM-Vet/releases/download/v1/mm-vet.zip"
V1 = TaskInfo(
    name="mmvet",
    title="MM-Vet",
    measures="open questions that need recognition, text, knowledge, language, space and arithmetic together",
    split="v1",
    questions=218,
    images=200,
    headline="score",
    max_new_tokens=1024,
    paper="https://arxiv.org/abs/2308.02490",
    scorer="https://github.com/yuweihao/MM-Vet/blob/c7ff270d86fb/mm-vet_evaluator.py",
    folders=("mm-vet", "mmvet"),
    files=("mm-vet.json",),
    llava_file="llava-mm-vet.jsonl",
    scored="judge",
    counts={
        **{"ability/rec": 150, "ability/ocr": 96, "ability/know": 84, "ability/gen": 80, "ability/spat": 75},
        **{"ability/math": 26},
    },
    sha256=("6d39a1b267b5fb7d1749e4fb45803750f49f88204fb1d5eeded0417df3e68e2a",),
    sources=(
        File("mm-vet/mm-vet.json", RELEASE, TERMS, member="mm-vet/mm-vet.json", size=30_000),
        Pictures(TERMS, url=RELEASE, member="mm-vet/images/{name}", size=330_000, zip_size=66_000_000),
    ),
)


class MMVet(Task):
    info = V1

    def load(self, data: Folder) -> Loaded:
        """`target` stays None, for only a judge can compare with it; the official answer is `fields["gold"]`."""
        path = data.find("mm-vet.json", what="MM-Vet's questions")
        samples: list[Sample] = []
        for key, row in data.table(path).items():
            image = data.image(path.parent / "images", row.text("imagename"), row.where)
            abilities = row.texts("capability")
            if not abilities or set(abilities) - set(ABILITIES):
                row.fail(f"field 'capability' should list some of {', '.join(ABILITIES)}; found {abilities}.")
            groups = tuple(f"ability/{name}" for name in ABILITIES if name in abilities)
            fields = {"gold": row.text("answer")}
            number = key.removeprefix("v1_")  # LLaVA's question_id
            samples.append(
                Sample(key, image, row.text("question"), None, (), groups, fields, external_id=number, where=row.where)
            )
        return Loaded(samples)

    def load_llava(self, data: Folder, path: Path) -> Loaded:
        samples: list[Sample] = []
        for row in data.jsonl(path):
            number = row.identifier("question_id").removeprefix("v1_")
            image = data.image(path.parent / "images", row.text("image"), row.where)
            samples.append(Sample(f"v1_{number}", image, row.text("text"), None, external_id=number, where=row.where))
        return Loaded(samples)

    def prompt(self, sample: Sample) -> str:
        return sample.question

    def grade(self, sample: Sample, text: str) -> Verdict:
        raise UsageError("MM-Vet's answers are graded by a judge: see `vlmamba-eval judge --help`.")

    def metrics(self, sums: Sums) -> Iterator[Metric]:
        for group in ("all", *sums.groups):
            value = 100 * sums.ratio(sums.credit(group), sums.n(group))
            yield Metric("score", value, category=group, headline=group == "all")

    def judge_messages(self, sample: Sample, answer: str) -> list[Message]:
        return judge_messages(sample, answer)

    def read_judgement(self, reply: str) -> float | None:
        return read_judgement(reply)

    def submit(self, samples: Sequence[Sample], answers: Mapping[str, str], folder: Path, extra: None) -> list[Path]:
        """The JSON object that the authors' evaluator reads: {"v1_0": "..."}."""
        content = {sample.id: answers[sample.id] for sample in samples}
        return [write_submission(folder / "mmvet.json", json.dumps(content, indent=2) + "\n")]


TASKS = (MMVet(),)
