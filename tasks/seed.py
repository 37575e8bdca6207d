"""SEED-Bench: four choices on nine abilities with pictures and three with clips, of which one frame is shown.

Paper   Li et al. 2023, SEED-Bench: Benchmarking Multimodal LLMs with Generative Comprehension, arXiv 2307.16125
Data    https://github.com/AILab-CVC/SEED-Bench/blob/09d782c591cc/DATASET.md (SEED-Bench-1): `SEED-Bench.json`, pictures
        without file extension in SEED-Bench-image/{data_id}; LLaVA shows a clip's middle frame, extracted by its script
        into SEED-Bench-video-image/{type}_{question}.png. The first list has 19,242 questions (`seed`; LLaVA-1.5); in
        November 2023 1,252 on clips were withdrawn (`seed_updated`, the hub). The 14,233 on pictures are the same.
Scorer  https://github.com/haotian-liu/LLaVA/blob/c121f0432da2/scripts/convert_seed_for_submission.py#L13-L50: the text
        is exactly the letter. The authors rank the choices instead, by the mean loss of each choice's text after the
        question without options: --scoring likelihood, as in
        https://github.com/AILab-CVC/SEED-Bench/blob/503df77f8691/SEED-Bench-2/model/llava_v2_interface.py#L82-L120
        Published all-questions numbers (LLaVA-1.5) and image numbers (LLaVA-1.6, VL-Mamba probably) are both reported.

One question:
    {"answer": "A", "choice_a": "One", "choice_b": "Two", "choice_c": "Three", "choice_d": "Four", "data_id":
     "1454426_2591111986", "data_type": "image", "question": "How many towels are in the image?", "question_id":
     "101669", "question_type_id": 5}
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vlmamba_eval.sources import ByHand, File, Pictures, Terms
from vlmamba_eval.task import LETTER_ANSWER, LETTERS, Task, TaskInfo, lettered, write_submission
from vlmamba_eval.types import Generation, ImageRef, Loaded, Metric, Sample, Verdict

if TYPE_CHECKING:
    from vlmamba_eval.folder import Folder
    from vlmamba_eval.hub import Hub
    from vlmamba_eval.rows import Row
    from vlmamba_eval.sums import Sums

OPTIONS = tuple(LETTERS[:4])
KINDS = ("image", "video")
TYPES = (
    "scene understanding", "instance identity", "instance attributes", "instance location", "instances counting",
    "spatial relation", "instance interaction", "visual reasoning", "text understanding",
    "action recognition", "action prediction", "procedure understanding",
)  # fmt: skip
PICTURES_ASKED = (3_158, 1_831, 4_649, 978, 2_447, 657, 97, 331, 85)  # per type, in their order
CLIPS_ASKED = (1_740, 2_077, 1_192)
CLIPS_LEFT = (1_509, 1_225, 1_023)  # in the list of November 2023
LETTERED = re.compile(rf"(.*)\nA\. (.*?)\nB\. (.*?)\nC\. (.*?)\nD\. (.*)\n{re.escape(LETTER_ANSWER)}", re.DOTALL)


TERMS = Terms("as the data's page says", "https://github.com/AILab-CVC/SEED-Bench/blob/main/DATASET.md")
HOST = "https://huggingface.co/datasets/AILab-CVC/SEED-Bench/resolve/main"
QUESTIONS = File("seed_bench/SEED-Bench.json", f"{HOST}/SEED-Bench.json", TERMS, size=8_000_000)
FIRST_LIST = ByHand(
    "SEED-Bench.json of 2023-07 with its 19,242 questions",
    "take it from the history of the data set AILab-CVC/SEED-Bench on the hub; the newest one is `seed_updated`'s",
    "seed_bench/SEED-Bench.json",
    "https://huggingface.co/datasets/AILab-CVC/SEED-Bench/commits/main",
)
PICTURES = Pictures(
    TERMS,
    url=f"{HOST}/SEED-Bench-image.zip",
    member="{name}",
    prefix="SEED-Bench-image/",
    size=100_000,
)
FRAMES = ByHand(
    "middle frames of the clips",
    "get Something-Something v2, EPIC-KITCHENS-100 and Breakfast (each asks for consent) and run LLaVA's "
    "extract_video_frames.py",
    "seed_bench/SEED-Bench-video-image",
    "https://github.com/haotian-liu/LLaVA/blob/c121f0432da2/docs/Evaluation.md",
)


def _counts(*asked: int, first: int = 0) -> dict[str, int]:
    return {f"type/{name}": number for name, number in zip(TYPES[first:], asked, strict=False)}


ORIGINAL = TaskInfo(
    name="seed",
    title="SEED-Bench",
    measures="twelve abilities by multiple choice, on pictures and on middle frames of clips",
    split="original list",
    questions=19_242,
    images=None,
    headline="accuracy",
    max_new_tokens=128,
    paper="https://arxiv.org/abs/2307.16125",
    scorer="https://github.com/haotian-liu/LLaVA/blob/c121f0432da2/scripts/convert_seed_for_submission.py",
    folders=("seed_bench", "SEED-Bench", "seed"),
    files=("SEED-Bench.json",),
    llava_file="llava-seed-bench.jsonl",
    counts=_counts(*PICTURES_ASKED, *CLIPS_ASKED),
    ids=r"\d+(?:#2)?|v\d+",
    sha256=("38501319ac8b84fd502e35b8744451b8e6dda1f510b45759289a2175b7721fe2",),
    sources=(FIRST_LIST, PICTURES, FRAMES),
)
IMAGE = replace(
    ORIGINAL,
    name="seed_image",
    title="SEED-Bench image",
    measures="nine abilities by multiple choice, on pictures",
    split="image questions",
    questions=14_233,
    counts=_counts(*PICTURES_ASKED),
    sha256=("9a71d3f71fc95805760fab92c16355f3613736db59bb28faab09b5384299826a",),
    hub="lmms-lab-encoder/SEED-Bench",
    sources=(QUESTIONS, PICTURES),
)
VIDEO = replace(
    ORIGINAL,
    name="seed_video",
    title="SEED-Bench video",
    measures="three abilities by multiple choice, on middle frames of clips",
    split="video questions, original list",
    questions=5_009,
    counts=_counts(*CLIPS_ASKED, first=9),
    sha256=("334785aef08d743bc3c5b30409ba77a5b59337776272e09a21b4aaa9498d9af4",),
)
UPDATED = replace(
    ORIGINAL,
    name="seed_updated",
    title="SEED-Bench (updated)",
    split="list of 2023-11-30",
    questions=17_990,
    counts=_counts(*PICTURES_ASKED, *CLIPS_LEFT),
    sha256=(),
    hub="lmms-lab-encoder/SEED-Bench",
    sources=(QUESTIONS, PICTURES, FRAMES),
)


class Seed(Task):
    def __init__(self, info: TaskInfo, kinds: tuple[str, ...] = KINDS) -> None:
        self.info = info
        self.kinds = kinds

    def load(self, data: Folder) -> Loaded:
        root = self._pictures(data)
        path = data.find("SEED-Bench.json", what="SEED-Bench's questions")
        _check_types(data.row(path))
        samples: list[Sample] = []
        for row in data.rows(path, "questions"):
            if row.one_of("data_type", KINDS) == "image":
                name = f"SEED-Bench-image/{row.text('data_id')}"
            else:
                frame = f"{row.identifier('question_type_id')}_{row.identifier('question_id')}.png"
                name = f"SEED-Bench-video-image/{frame}"
            samples.append(_sample(row, data.image(root, name, row.where)))
        return self._wanted(samples)

    def load_llava(self, data: Folder, path: Path) -> Loaded:
        root = self._pictures(data)
        rows = data.jsonl(path)
        return self._wanted([_llava_sample(row, data.image(root, row.text("image"), row.where)) for row in rows])

    def load_hub(self, hub: Hub) -> Loaded:
        samples = []
        for row in hub.rows(self.info.hub, "test", image="image"):
            frames = row.get("image")
            if not isinstance(frames, tuple) or not frames:
                row.fail("column 'image' should hold a list of pictures: one, or the frames of a clip.")
            image = frames[(len(frames) - 1) // 2]
            if row.one_of("data_type", KINDS) == "image" and isinstance(row.values.get("data_id"), str):
                image = replace(image, key=f"{self.info.hub}/{row.text('data_id')}")  # shared by several questions
            samples.append(_sample(row, image))
        return self._wanted(samples)

    def _pictures(self, data: Folder) -> Path:
        root = data.find_optional("SEED-Bench-image", "SEED-Bench-video-image")
        return root.parent if root else data.root / self.info.folders[0]

    def _wanted(self, samples: list[Sample]) -> Loaded:
        return Loaded(_numbered(sample for sample in samples if sample.groups[0] in self.kinds))

    def prompt(self, sample: Sample) -> str:
        return f"{sample.question}\n{lettered(sample.choices)}\n{LETTER_ANSWER}"

    def identity(self, sample: Sample) -> str:
        """The id alone: true copies of the lists were at hand without their questions."""
        return sample.id

    def grade(self, sample: Sample, text: str) -> Verdict:
        """Nothing is parsed: "A." and " A" are wrong, as in LLaVA's script."""
        parsed = text if text in OPTIONS else None
        return Verdict(parsed, float(parsed == sample.target), parsed is not None)

    def metrics(self, sums: Sums) -> Iterator[Metric]:
        for group in ("all", *KINDS):
            if group in ("all", *self.kinds):
                name = "accuracy" if group == "all" else f"{group}_accuracy"
                value = 100 * sums.ratio(sums.credit(group), sums.n(group))
                yield Metric(name, value, over=group, headline=group == "all")
        for group in sums.groups:
            if group not in KINDS:
                yield Metric("accuracy", 100 * sums.ratio(sums.credit(group), sums.n(group)), category=group)

    def likelihood_prompt(self, sample: Sample) -> str:
        return sample.question

    def continuations(self, sample: Sample) -> tuple[str, ...]:
        return sample.choices

    def choose(self, sample: Sample, generation: Generation) -> str:
        """The letter of the choice with the lowest mean loss of a token."""
        means = [ranked.logprob / max(ranked.n_tokens, 1) for ranked in generation.likelihoods]
        return OPTIONS[means.index(max(means))]

    def submit(self, samples: Sequence[Sample], answers: Mapping[str, str], folder: Path, extra: None) -> list[Path]:
        """The leaderboard's JSON lines, in the order of the questions, with the answers as they are."""
        rows = ({"question_id": sample.answer_key, "prediction": answers[sample.id]} for sample in samples)
        return [write_submission(folder / f"{self.info.name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))]


def _check_types(release: Row) -> None:
    """The release's own map from types to numbers, if it has one, must be the one that this file knows."""
    if "question_type" not in release:
        return
    named = release.row("question_type")
    for name in named.values:
        number = named.integer(name)
        known = TYPES[number - 1] if 1 <= number <= len(TYPES) else "none"
        if _spelled(name) != _spelled(known):
            named.fail(f"type {number} is {name!r}, here it is {known!r}. This is another SEED-Bench than the first.")


def _spelled(name: str) -> str:
    return " ".join(name.lower().split()).replace("instances ", "instance ")


def _numbered(samples: Iterable[Sample]) -> list[Sample]:
    """The samples; a row that repeats an earlier one gets an id of its own, `49914#2`, and keeps its `question_id`.

    Question 49914 stands twice in the official list. It is asked once, and both rows are counted, as in LLaVA's script.
    Rows of one id that ask different things keep it, and are refused.
    """
    seen: dict[str, list[Sample]] = defaultdict(list)
    found = []
    for sample in samples:
        earlier = seen[sample.id]
        if earlier and _asks(earlier[0]) == _asks(sample):
            earlier.append(sample)
            sample = replace(sample, id=f"{sample.id}#{len(earlier)}", external_id=sample.id)
        else:
            earlier.append(sample)
        found.append(sample)
    return found


def _asks(sample: Sample) -> tuple[object, ...]:
    return sample.image.key if sample.image else "", sample.question, sample.choices, sample.target


def _sample(row: Row, image: ImageRef) -> Sample:
    choices = tuple(row.text(f"choice_{letter.lower()}") for letter in OPTIONS)
    kind, target = row.one_of("data_type", KINDS), row.one_of("answer", OPTIONS)
    groups = _groups(row, row.identifier("question_type_id"), kind)
    return Sample(row.identifier("question_id"), image, row.text("question"), target, choices, groups, where=row.where)


def _llava_sample(row: Row, image: ImageRef) -> Sample:
    found = LETTERED.fullmatch(row.text("text"))
    if found is None:
        row.fail(f"field 'text' should be a question, choices A. to D. and the line {LETTER_ANSWER!r}.")
    question, *choices = found.groups()
    number = row.identifier("question_id")
    groups = _groups(row, _type_number(row, "category"), "video" if number.startswith("v") else "image")
    return Sample(number, image, question, None, tuple(choices), groups, where=row.where)


def _type_number(row: Row, field: str) -> str:
    """A question type's number, from a number or a name: `5`, or `Instances Counting` as in LLaVA's file."""
    given = row.identifier(field)
    names = {_spelled(name): str(number) for number, name in enumerate(TYPES, 1)}
    return names.get(_spelled(given), given)


def _groups(row: Row, number: str, kind: str) -> tuple[str, str]:
    if number not in map(str, range(1, 13)) or (kind == "video") != (int(number) >= 10):
        row.fail(
            f"question type {number!r} with {kind} data; types 1 to 9 ask about pictures, 10 to 12 about clips: "
            f"{', '.join(TYPES)}."
        )
    return kind, f"type/{TYPES[int(number) - 1]}"


TASKS = (Seed(ORIGINAL), Seed(IMAGE, ("image",)), Seed(VIDEO, ("video",)), Seed(UPDATED))
