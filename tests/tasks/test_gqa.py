from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlmamba_eval.answer_files import read_answer_file
from vlmamba_eval.dataset import load_dataset, read_folder, read_hub
from vlmamba_eval.images import read_image
from vlmamba_eval.sums import Sums
from vlmamba_eval.tasks.gqa import TASKS
from vlmamba_eval.types import DataError, Loaded

Score = Callable[..., dict[tuple[str, str], float]]
Put = Callable[..., Path]
(GQA,) = TASKS
FILE = "gqa/data/testdev_balanced_questions.json"
SUFFIX = "\nAnswer the question using a single word or phrase."


def entry(answer: str = "yes", group: str | None = None, structural: str = "verify", **other: Any) -> dict[str, Any]:
    return {
        "imageId": "n1",
        "question": "Is the sky blue?",
        "answer": answer,
        "isBalanced": True,
        "groups": {"global": group, "local": "1-x"},
        "types": {"structural": structural, "semantic": "attr", "detailed": "x"},
        "semantic": [
            {"operation": "select", "argument": "sky (1)", "dependencies": []},
            {"operation": "exist", "argument": "?", "dependencies": [0]},
        ],
        **other,
    }


@pytest.fixture
def load(put: Put, tmp_path: Path) -> Callable[[dict[str, Any]], Loaded]:
    def run(table: dict[str, Any]) -> Loaded:
        put(FILE, table)
        return read_folder(GQA, tmp_path)

    return run


# -- scoring -----------------------------------------------------------------------------------------------------------


def test_every_golden_answer_is_converted_and_scored_officially(
    golden: Callable[[str], Any], load: Callable[[Any], Loaded]
) -> None:
    cases = [case for case in golden("gqa") if case["kind"] == "case"]
    assert len(cases) == 617
    samples = load({str(i): entry(case["gold"]) for i, case in enumerate(cases)})
    for sample, case in zip(samples.samples, cases, strict=True):
        verdict = GQA.grade(sample, case["text"])
        assert (verdict.parsed, verdict.credit) == (case["prediction"], case["correct"]), case


def test_every_golden_file_has_the_official_metrics(
    golden: Callable[[str], Any], load: Callable[[Any], Loaded], score: Score
) -> None:
    files = [case for case in golden("gqa") if case["kind"] == "file"]
    assert len(files) == 3
    for case in files:
        samples = load(case["questions"])
        values = score(GQA, samples, {text["question_id"]: text["text"] for text in case["texts"]})
        expected = {("accuracy", "all"): case["metrics"]["accuracy"]}
        expected |= {("accuracy", name): case["metrics"][name] for name in ("open", "binary")}
        kinds = ("StructuralType", "structural"), ("SemanticType", "semantic"), ("Steps", "steps"), ("Length", "words")
        for theirs, ours in kinds:
            for name, numbers in case["metrics"][f"accuracyPer{theirs}"].items():
                expected["accuracy", f"{ours}/{name}"] = numbers["percent"]
                assert sum(f"{ours}/{name}" in s.groups for s in samples.samples) == numbers["n"]
        expected["distribution", "all"] = case["metrics"]["distribution"]
        assert values == pytest.approx(expected, abs=1e-8), case["name"]


def test_predictions_outside_a_groups_gold_answers_play_no_part_in_its_distribution(
    load: Callable[[Any], Loaded], score: Score
) -> None:
    table = {"1": entry("red", "color"), "2": entry("red", "color"), "3": entry("blue", "color"), "4": entry("car")}
    samples = load(table)
    # red: expected 2, observed 1; blue: expected 1, observed 0. Question 4 has no group.
    values = score(GQA, samples, {"1": "red", "2": "scarlet", "3": "navy", "4": "red"})
    assert values["distribution", "all"] == pytest.approx((1 / 2 + 1 / 1) / 100)


def test_an_answer_that_is_not_gold_in_a_replicate_has_no_term_there() -> None:
    """Of two answers of a group one was drawn, the other was only said."""
    columns = {("gold", "g|red"): 2.0, ("gold", "g|blue"): 0.0, ("said", "g|red"): 1.0, ("said", "g|blue"): 3.0}
    index = {column: i for i, column in enumerate([("n", "all"), ("credit", "all"), *columns])}
    sums = Sums(index, np.array([[4.0, 1.0, *columns.values()]]), (), ("n", "credit", "gold", "said"))
    [distribution] = [one.value for one in GQA.metrics(sums) if one.name == "distribution"]
    assert distribution == pytest.approx((1 - 2) ** 2 / 2 / 100)


def test_degenerate_models_have_closed_form_scores(load: Callable[[Any], Loaded], score: Score) -> None:
    answers = ["yes", "no", "yes", "red"]
    samples = load({str(i): entry(a, "g", "query" if a == "red" else "verify") for i, a in enumerate(answers)})
    gold = score(GQA, samples, {s.id: f"{str(s.target).upper()}." for s in samples.samples})
    assert gold["accuracy", "all"] == gold["accuracy", "open"] == gold["accuracy", "binary"] == 100
    assert gold["distribution", "all"] == 0
    always_yes = score(GQA, samples, {s.id: "Yes" for s in samples.samples})
    assert always_yes["accuracy", "all"] == 50
    assert always_yes["accuracy", "binary"] == pytest.approx(200 / 3)
    assert always_yes["accuracy", "structural/query"] == 0
    # yes: expected 2, observed 4; no: 1, 0; red: 1, 0
    assert always_yes["distribution", "all"] == pytest.approx((4 / 2 + 1 + 1) / 100)
    empty = score(GQA, samples, {s.id: "" for s in samples.samples})
    missing = score(GQA, samples, {})
    assert empty == missing
    assert empty["accuracy", "all"] == 0
    assert empty["distribution", "all"] == pytest.approx((2 + 1 + 1) / 100)


def test_the_order_of_rows_changes_nothing(load: Callable[[Any], Loaded], score: Score) -> None:
    rng = random.Random(1)
    colours = ["red", "green", "blue"]
    samples = load({str(i): entry(rng.choice(colours), rng.choice(["a", "b", None])) for i in range(60)})
    texts = {s.id: rng.choice(colours) for s in samples.samples}
    assert score(GQA, rng.sample(samples.samples, 60), texts, samples.extra) == score(GQA, samples, texts)


def test_only_an_empty_answer_is_invalid(load: Callable[[Any], Loaded]) -> None:
    (sample,) = load({"1": entry()}).samples
    assert [GQA.grade(sample, text).valid for text in ("maybe", "", ".", " ")] == [True, False, False, False]


# -- loading -----------------------------------------------------------------------------------------------------------


def test_the_official_file_loads(load: Callable[[Any], Loaded]) -> None:
    table = {"201": entry(), "202": entry("red", "color", "query"), "203": entry(isBalanced=False)}
    first, second = load(table).samples
    assert (first.id, first.answer_key, first.target) == ("201", "201", "yes")
    assert first.groups == ("binary", "structural/verify", "semantic/attr", "steps/1", "words/4")
    assert second.groups[0] == "open"
    assert first.image
    assert second.image
    assert first.image.key == second.image.key
    assert first.image.where.endswith("entry '201' (" + str(Path(first.image.key)) + ")")
    assert first.image.key.endswith("gqa/images/n1.jpg")
    assert GQA.prompt(first) == "Is the sky blue?" + SUFFIX


def test_llavas_question_file_alone_gives_prompts_without_labels(put: Put, tmp_path: Path) -> None:
    row = {"question_id": "201", "image": "n1.jpg", "text": f"Is the sky blue?{SUFFIX}", "category": "default"}
    put("gqa/llava_gqa_testdev_balanced.jsonl", [row, {**row, "question_id": 202, "image": "n2.jpg"}])
    first, second = read_folder(GQA, tmp_path).samples
    assert (first.id, second.id, first.target, first.question) == ("201", "202", None, "Is the sky blue?")
    assert GQA.prompt(first) == row["text"]
    assert first.image
    assert Path(first.image.path) == tmp_path / "gqa/images/n1.jpg"
    assert first.where.endswith("llava_gqa_testdev_balanced.jsonl:1")


def test_the_bundled_samples_load(samples_folder: Path) -> None:
    samples = load_dataset(GQA, "samples").samples
    assert len({s.groups[1] for s in samples}) > 3
    assert all(s.image and read_image(s.image)[:2] == b"\xff\xd8" for s in samples)


def test_the_hubs_images_are_joined_by_id(hub: Callable[..., Any]) -> None:
    rows = [{"id": "201", **entry()}, {"id": "202", **entry("red", "color", "query")}]
    tables = {
        ("lmms-lab-encoder/GQA", "testdev_balanced_instructions", "testdev"): rows,
        ("lmms-lab-encoder/GQA", "testdev_balanced_images", "testdev"): [{"id": "n0"}, {"id": "n1"}],
    }
    samples = read_hub(GQA, hub(tables)).samples
    assert [s.id for s in samples] == ["201", "202"]
    assert {s.image.key for s in samples if s.image} == {"lmms-lab-encoder/GQA/testdev_balanced_images/testdev/1"}
    rows[1]["imageId"] = "n7"
    with pytest.raises(DataError, match=r"row 1: picture 'n7' is not among the 2 of testdev_balanced_images"):
        read_hub(GQA, hub(tables))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "expected an object from id to row"),
        ('{"1": {', r"testdev_balanced_questions.json:1: not valid JSON"),
        ('{"1": 2}', "entry '1': expected an object with named fields"),
        ({"1": {"question": "?", "isBalanced": True}}, "entry '1': field 'imageId' is missing"),
        ({"1": {**entry(), "answer": 3}}, "entry '1': field 'answer' should be text"),
        ({"1": {**entry(), "types": "verify"}}, "entry '1', field 'types': expected an object"),
        ({"1": {**entry(), "imageId": "../../x"}}, "entry '1': image name .* leaves the image folder"),
        (json.dumps({"1": entry()})[:-1] + ', "1": {}}', "key '1' occurs twice"),
        (b'{"1": "\xff"}', r"testdev_balanced_questions.json:1: not UTF-8"),
    ],
)
def test_a_bad_question_file_is_an_error_that_names_its_entry(
    load: Callable[[Any], Loaded], content: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load(content)


def test_without_any_file_the_error_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="GQA's question file not found"):
        read_folder(GQA, tmp_path)


def test_the_predictions_file_holds_every_question(load: Callable[[Any], Loaded], tmp_path: Path) -> None:
    samples = load({"201": entry(), "202": entry("red")}).samples
    (path,) = GQA.submit(samples, {"201": "Yes.", "202": ""}, tmp_path, {})
    assert path.name == "testdev_balanced_predictions.json"
    expected = [{"questionId": "201", "prediction": "yes"}, {"questionId": "202", "prediction": ""}]
    assert json.loads(path.read_text()) == expected


# -- real files --------------------------------------------------------------------------------------------------------


def test_llavas_question_file_loads_with_its_prompts(real: Path) -> None:
    rows = [json.loads(line) for line in (real / "gqa/llava_gqa_testdev_balanced.jsonl").read_text().splitlines()]
    dataset = load_dataset(GQA, str(real))
    assert not dataset.labelled
    assert [(s.id, GQA.prompt(s)) for s in dataset.samples] == [(row["question_id"], row["text"]) for row in rows]


def test_the_released_llava_answers_convert_to_the_known_predictions(real: Path) -> None:
    expected = json.loads((real / "expected.json").read_text())["gqa"]
    dataset = load_dataset(GQA, str(real))
    answers = read_answer_file(dataset, real / "gqa/answers/llava-v1.5-13b.jsonl")
    assert len(answers) == expected["n"]
    lines: list[str] = []
    for key, answer in answers.items():  # in the order of the answer file
        assert answer.generation
        lines.append(f"{key}\t{GQA.grade(dataset.samples[0], answer.generation.text).parsed}")
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == expected["converted_predictions_sha256"]
