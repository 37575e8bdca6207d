"""MME: fourteen abilities, each picture asked once for a yes and once for a no.

Paper   Fu et al. 2023, MME: A Comprehensive Evaluation Benchmark for Multimodal Large Language Models, arXiv 2306.13394
Data    MME_Benchmark_release_version, from the authors on request: 14 categories, 1,187 pictures, 2,374 questions
Scorer  eval_tool/calculation.py in tools/eval_tool.zip of
        https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/1c1d69e138b57cf8b0400427927bfb8ed4285458

The two lines of code_reasoning/0020.txt, beside the picture 0020.png (question, tab, answer):
    Is a python code shown in the picture? Please answer yes or no.	Yes
    Is a c++ code shown in the picture? Please answer yes or no.	No

A category's score is 100 * (accuracy over questions + accuracy over pictures with both answers right), at most 200.
The published number is perception, the sum of ten categories; cognition is the sum of the other four.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmamba_eval.sources import ByHand
from vlmamba_eval.task import SHORT_ANSWER, Task, TaskInfo, llava_question, write_submission
from vlmamba_eval.types import DataError, Graded, ImageRef, Loaded, Metric, Sample, Verdict

if TYPE_CHECKING:
    from vlmamba_eval.folder import Folder
    from vlmamba_eval.hub import Hub
    from vlmamba_eval.sums import Sums

RELEASE = "MME_Benchmark_release_version"
ASK = "Please answer yes or no."  # ends every question of the release; LLaVA asks for a short answer instead
PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
CATEGORIES = PERCEPTION + COGNITION
OWN_FOLDER = ("posters", "celebrity", "scene", "landmark", "artwork")  # pictures in images/, questions elsewhere


MME = TaskInfo(
    name="mme",
    title="MME",
    measures="perception and cognition in 14 categories of paired yes/no questions",
    split="release",
    questions=2_374,
    images=1_187,
    headline="perception",
    max_new_tokens=128,
    paper="https://arxiv.org/abs/2306.13394",
    scorer="https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/blob/1c1d69e138b5/tools/eval_tool.zip",
    folders=("MME", "mme"),
    files=(f"{RELEASE}/*/*.txt", f"{RELEASE}/*/questions_answers_YN/*.txt"),
    llava_file="llava_mme.jsonl",
    hub="lmms-lab-encoder/MME",
    sha256=("d8903920c8c289eda8f806e4c41854790a8efb4ac13ba54f5e1aa7c087f03c97",),
    sources=(
        ByHand(
            f"{RELEASE}, pictures and questions",
            "ask the authors for it as their page says, and unpack it there; or take the hub's open copy of the same "
            "questions: --data hub",
            f"MME/{RELEASE}",
            "https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation",
        ),
    ),
)


class Mme(Task):
    info = MME
    columns = (
        "pictures",
        "both right",
        *(f"{target} read as {parsed}" for target in ("Yes", "No") for parsed in ("yes", "no", "other")),
    )

    def load(self, data: Folder) -> Loaded:
        release = data.find(RELEASE, what="MME's release folder")
        return Loaded([sample for category in CATEGORIES for sample in _category(data, release, category)])

    def load_llava(self, data: Folder, path: Path) -> Loaded:
        folder = data.find_optional(RELEASE) or path.parent / RELEASE
        samples: list[Sample] = []
        for row in data.jsonl(path):
            place = row.text("image")
            if not place.startswith(f"{row.one_of('category', CATEGORIES)}/"):
                row.fail(f"field 'image' should begin with its category's folder, found {place!r}.")
            image = data.image(folder, place, row.where)
            samples.append(_sample(place, image, llava_question(row), None, row.where))
        return Loaded(samples)

    def load_hub(self, hub: Hub) -> Loaded:
        samples: list[Sample] = []
        for row in hub.rows(self.info.hub, "test", image="image"):
            category, _, name = row.text("question_id").partition("/")
            if category not in CATEGORIES or not name:
                row.fail(f"field 'question_id' should be category/picture, found {row.get('question_id')!r}.")
            place = f"{category}/images/{name}" if category in OWN_FOLDER else f"{category}/{name}"  # as LLaVA names it
            image = row.image("image", key=f"{self.info.hub}/{place}")  # stored once for each of its two questions
            samples.append(_sample(place, image, row.text("question"), row.one_of("answer", ("Yes", "No")), row.where))
        return Loaded(samples)

    def prompt(self, sample: Sample) -> str:
        return f"{sample.question}\n{SHORT_ANSWER}"

    def identity(self, sample: Sample) -> str:
        """Category, picture without file extension, which nothing tells if the picture is absent, and question."""
        return f"{sample.groups[0]}/{Path(sample.external_id).stem}/{sample.question}"

    def grade(self, sample: Sample, text: str) -> Verdict:
        """The official reading: yes, or else no, among the first four characters; otherwise "other", which is wrong.

        So "Not sure" and "know" are a no and "Eyes" is a yes; nothing is stripped.
        """
        start = text.lower()[:4]
        parsed = next((word for word in ("yes", "no") if word in start), "other")
        return Verdict(parsed, float(parsed == str(sample.target).lower()), valid=parsed != "other")

    def count(self, item: Graded) -> Iterator[tuple[str, float]]:
        if item.verdict:
            yield f"{item.sample.target} read as {item.verdict.parsed}", 1

    def count_image(self, items: Sequence[Graded], extra: None) -> Iterator[tuple[str, str, float]]:
        """Pictures, and those of which both questions are answered right."""
        pairs: dict[str, list[bool]] = defaultdict(list)
        for item in items:
            pairs[item.sample.external_id].append(item.verdict is not None and item.verdict.credit == 1)
        for name, right in pairs.items():
            category = name.split("/")[0]
            yield "pictures", category, 1
            yield "both right", category, len(right) == 2 and all(right)

    def metrics(self, sums: Sums) -> Iterator[Metric]:
        found = {c: _numbers(sums, c) for c in CATEGORIES if c in sums.groups}
        for name, categories in (
            ("perception", PERCEPTION),
            ("cognition", COGNITION),
            ("total", CATEGORIES),
        ):
            scores = [found[category]["score"] for category in categories if category in found]
            value = sum(scores) if scores else math.nan
            over = "all" if name == "total" else name
            yield Metric(name, value, over=over, headline=name == "perception", upper=200.0 * len(scores))
        for category, numbers in found.items():
            for name, value in numbers.items():
                upper = {"score": 200.0, "other": None}.get(name, 100.0)
                yield Metric(name, value, category=category, upper=upper)

    def stratum(self, sample: Sample) -> str:
        return sample.groups[0]

    def join_key(self, prompt: str) -> str:
        """The question, whichever of the two requests follows it and however many spaces stand before."""
        question = prompt.removeprefix("<image>\n").strip().removesuffix(SHORT_ANSWER).strip().removesuffix(ASK)
        return " ".join(question.split())

    def aliases(self, sample: Sample) -> tuple[str, ...]:
        """Category and picture, as in the hub's ids and in the files that calculation.py reads."""
        category, *_, name = sample.external_id.split("/")
        return (f"{category}/{name}",)

    def submit(self, samples: Sequence[Sample], answers: Mapping[str, str], folder: Path, extra: None) -> list[Path]:
        """One text file per category, the input of calculation.py: picture, question, gold, answer, between tabs.

        A tab or line end within an answer would break the format and becomes a space, which reads the same.
        """
        lines: dict[str, list[str]] = defaultdict(list)
        for sample in sorted(samples, key=lambda sample: sample.external_id):  # a picture's two lines are neighbours
            if sample.target is None:
                raise DataError(f"{sample.where}: no gold answer here; the official files need MME's release.")
            answer = answers[sample.id].translate(str.maketrans("\t\n\r", "   "))
            cells = (sample.external_id.split("/")[-1], sample.fields["asked"], str(sample.target), answer)
            lines[sample.groups[0]].append("\t".join(cells))
        return [write_submission(folder / f"{name}.txt", "\n".join([*content, ""])) for name, content in lines.items()]


def _category(data: Folder, release: Path, category: str) -> Iterator[Sample]:
    """The samples of one category's folder, from a text file of two lines for each picture."""
    base = release / category
    texts = sorted(base.glob("*.txt")) or sorted(base.glob("questions_answers_YN/*.txt"))
    if not texts:
        raise DataError(f"{base}: no question files (*.txt) there; MME's release has 14 such folders.")
    pictures = {path.stem: path for path in base.rglob("*") if path.suffix in (".jpg", ".png")}
    for path in texts:
        lines = [line.split("\t") for line in data.lines(path)]
        if any(len(line) != 2 for line in lines) or sorted(line[1] for line in lines) != ["No", "Yes"]:
            raise DataError(f"{path}: expected two lines, question<TAB>Yes and question<TAB>No, found {lines}.")
        # Scoring needs no picture: if it is absent, it has the name that it has in the release.
        usual = base / ("images" if category in OWN_FOLDER else "")
        usual /= path.with_suffix(".png" if category in COGNITION else ".jpg").name
        place = pictures.get(path.stem, usual).relative_to(release).as_posix()
        for number, (asked, target) in enumerate(lines, 1):
            where = f"{path}:{number}"
            yield _sample(place, data.image(release, place, where), asked, target, where)


def _sample(place: str, image: ImageRef, asked: str, target: str | None, where: str) -> Sample:
    """A sample; `place` is the picture's path in the release, which is LLaVA's question_id."""
    category, question = place.split("/")[0], asked.strip().removesuffix(ASK).strip()
    return Sample(
        id=f"{category}/{place.split('/')[-1]}/{question}",
        image=image,
        question=question,
        target=target,
        groups=(category, "perception" if category in PERCEPTION else "cognition"),
        fields={"asked": asked},
        external_id=place,
        where=where,
    )


def _numbers(sums: Sums, category: str) -> dict[str, Any]:
    """What calculation.py computes for one category; "other" answers are left out of precision and recall."""

    def read(target: str, parsed: str) -> Any:
        return sums(f"{target} read as {parsed}", category)

    tp, fn, fp, tn = read("Yes", "yes"), read("Yes", "no"), read("No", "yes"), read("No", "no")
    acc = 100 * sums.ratio(tp + tn, sums.n(category))
    acc_plus = 100 * sums.ratio(sums("both right", category), sums("pictures", category))
    return {
        "score": acc + acc_plus,
        "acc": acc,
        "acc_plus": acc_plus,
        "precision": 100 * sums.ratio(tp, tp + fp),
        "recall": 100 * sums.ratio(tp, tp + fn),
        "other": read("Yes", "other") + read("No", "other"),
    }


TASKS = (Mme(),)
