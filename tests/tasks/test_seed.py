"""SEED-Bench: the official script's cases, lists and layouts, ranking by likelihood, and refused files."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlmamba_eval.answer_files import read_answer_file
from vlmamba_eval.dataset import Dataset, load_dataset, read_folder, read_hub
from vlmamba_eval.folder import Folder
from vlmamba_eval.hub import Hub
from vlmamba_eval.images import read_image
from vlmamba_eval.manifest import DataIdentity
from vlmamba_eval.plan import plan
from vlmamba_eval.score import answer_text
from vlmamba_eval.task import LETTER_ANSWER
from vlmamba_eval.tasks.seed import ORIGINAL, TASKS, TYPES
from vlmamba_eval.types import DataError, Generation, ImageRef, Likelihood, Question, Sample

SEED, IMAGE, VIDEO, UPDATED = TASKS
Scores = dict[tuple[str, str], float]
Put = Callable[[str, Any], Path]


def question(number: str = "101669", type_id: int = 5, answer: str = "A", **changes: Any) -> dict[str, Any]:
    choices = {"choice_a": "One", "choice_b": "Two", "choice_c": "Three", "choice_d": "Four"}
    kind = "image" if type_id < 10 else "video"
    row = {"answer": answer, **choices, "data_id": "14_25", "data_type": kind, "question": "How many towels?"}
    return {**row, "question_id": number, "question_type_id": type_id, **changes}


def load(put: Put, rows: list[dict[str, Any]], task: Any = SEED) -> list[Sample]:
    path = put("seed_bench/SEED-Bench.json", {"questions": rows, "question_type": {"Instances Counting": 5}})
    return read_folder(task, path.parents[1]).samples


def bare(answer: str = "A") -> Sample:
    return Sample("1", ImageRef("i", "i"), "Which?", answer, ("a", "b", "c", "d"), ("image", f"type/{TYPES[0]}"))


# =============================================================================
# Scoring
# =============================================================================


def test_every_golden_answer_is_graded_as_the_official_script_does(
    golden: Callable[[str], list[dict[str, Any]]],
) -> None:
    cases = [line for line in golden("seed") if line["kind"] == "case"]
    assert len(cases) == 183
    for case in cases:
        assert SEED.grade(bare(case["answer"]), case["text"]).credit == case["correct"], case


def test_golden_files_score_as_the_official_script_scores_them(
    put: Put, golden: Callable[[str], list[dict[str, Any]]], score: Callable[..., Scores]
) -> None:
    """Missing answers are wrong; if no answer of a type is right, the script fails and the plain count stands."""
    files = [line for line in golden("seed") if line["kind"] == "file"]
    assert len(files) == 3
    for case in files:
        samples = load(put, [{**question(), **row} for row in case["questions"]])
        scores = score(SEED, samples, {str(row["question_id"]): row["text"] for row in case["predictions"]})
        totals = case["correct_total"]
        assert scores["accuracy", "all"] == pytest.approx(totals["all"]["percent"], abs=1e-8)
        for kind in ("image", "video"):
            assert scores[f"{kind}_accuracy", "all"] == pytest.approx(totals[kind]["percent"], abs=1e-8)
        for name, percent in case.get("per_type_percent_2dp", {}).items():
            assert round(scores["accuracy", f"type/{name.lower()}"], 2) == percent


@pytest.mark.parametrize(
    ("model", "all_", "image", "video"), [("gold", 100, 100, 100), ("", 0, 0, 0), ("A", 50, 75, 0)]
)
def test_degenerate_models_get_their_closed_form_scores(
    put: Put, score: Callable[..., Scores], model: str, all_: float, image: float, video: float
) -> None:
    rows = [question(str(i), 1, "AAAB"[i]) for i in range(4)] + [question(f"v{i}", 10, "C") for i in range(2)]
    samples = load(put, rows)
    random.Random(0).shuffle(samples)
    scores = score(SEED, samples, {s.id: str(s.target) if model == "gold" else model for s in samples})
    found = (scores["accuracy", "all"], scores["image_accuracy", "all"], scores["video_accuracy", "all"])
    assert found == (all_, image, video)


def test_the_order_of_questions_changes_nothing(samples_folder: Path, score: Callable[..., Scores]) -> None:
    samples = read_folder(SEED, samples_folder).samples
    texts = {s.id: random.Random(s.id).choice("AB") for s in samples}
    before = score(SEED, samples, texts)
    random.Random(1).shuffle(samples)
    assert score(SEED, samples, dict(reversed(texts.items()))) == pytest.approx(before)


# =============================================================================
# Ranking
# =============================================================================


def test_ranking_asks_without_options_and_takes_the_lowest_mean_loss(put: Put) -> None:
    (s,) = load(put, [question()])
    assert SEED.likelihood_prompt(s) == "How many towels?"
    assert SEED.continuations(s) == ("One", "Two", "Three", "Four")
    ranked = tuple(Likelihood(total, n) for total, n in ((-3.0, 1), (-4.0, 4), (-2.2, 2), (-9.0, 3)))
    assert SEED.choose(s, Generation("Three", "", 0, "likelihood", ranked)) == "B"
    empty = (Likelihood(-3.0, 0), Likelihood(-2.0, 1), Likelihood(-9.0, 3), Likelihood(-8.0, 2))  # a choice of no token
    assert SEED.choose(s, Generation("Two", "", 0, "likelihood", empty)) == "B"
    assert answer_text(SEED, s, Generation("Three", "", 0, "likelihood", ranked)) == "B"
    assert answer_text(SEED, s, Generation("Three", "", 0, "eos")) == "Three"


def test_equal_choices_are_told_apart_by_their_place(put: Put) -> None:
    (s,) = load(put, [question(choice_b="One", answer="B")])
    ranked = tuple(Likelihood(total, 1) for total in (-2.0, -1.0, -3.0, -4.0))
    assert SEED.choose(s, Generation("One", "", 0, "likelihood", ranked)) == "B"


# =============================================================================
# Layouts
# =============================================================================


def test_the_prompt_is_llavas_byte_for_byte(put: Put) -> None:
    (s,) = load(put, [question()])
    assert SEED.prompt(s) == f"How many towels?\nA. One\nB. Two\nC. Three\nD. Four\n{LETTER_ANSWER}"


def test_lists_are_told_by_the_kind_of_question(put: Put) -> None:
    rows = [question("1", 1), question("v2", 12)]
    assert [s.id for s in load(put, rows)] == ["1", "v2"]
    assert [s.id for s in load(put, rows, IMAGE)] == ["1"]
    assert [s.id for s in load(put, rows, VIDEO)] == ["v2"]


def test_pictures_have_no_extension_and_may_be_shared_and_clips_have_one_frame(put: Put) -> None:
    put("seed_bench/SEED-Bench-image/14_25", b"picture")
    put("seed_bench/SEED-Bench-video-image/10_v1738.png", b"frame")
    first, second, clip = load(put, [question("1"), question("2"), question("v1738", 10, data_id="94328.webm")])
    assert first.image is not None
    assert clip.image is not None
    assert second.image is not None
    assert first.image.key == second.image.key
    assert (read_image(first.image), read_image(clip.image)) == (b"picture", b"frame")


@pytest.mark.parametrize("there", ["SEED-Bench-image", "SEED-Bench-video-image"])
@pytest.mark.parametrize("place", ["seed_bench", "."])
def test_both_folders_of_pictures_lie_where_one_of_them_is(put: Put, tmp_path: Path, place: str, there: str) -> None:
    put(f"{place}/{there}/x", b"")
    found = load(put, [question("1"), question("v2", 10)])
    assert [Path(s.image.path).relative_to(tmp_path / place).as_posix() for s in found if s.image] == [
        "SEED-Bench-image/14_25",
        "SEED-Bench-video-image/10_v2.png",
    ]


def test_llavas_question_file_alone_gives_prompts_without_labels(put: Put) -> None:
    text = f"How many?\nA. One\nor two\nB. Two\nC. Three\nD. Four\n{LETTER_ANSWER}"
    rows = [
        {"question_id": 101669, "image": "SEED-Bench-image/14_25", "text": text, "category": 5},
        {"question_id": "v1738", "image": "SEED-Bench-video-image/10_v1738.png", "text": text, "category": 10},
    ]
    path = put("seed_bench/llava-seed-bench.jsonl", rows)
    samples = read_folder(SEED, path.parents[1]).samples
    assert [(s.id, s.target, s.groups) for s in samples] == [
        ("101669", None, ("image", "type/instances counting")),
        ("v1738", None, ("video", "type/action recognition")),
    ]
    assert [SEED.prompt(s) for s in samples] == [text, text]
    assert samples[0].choices[0] == "One\nor two"


def test_the_hubs_rows_load_as_the_updated_list_with_a_clips_middle_frame(hub: Callable[..., Hub]) -> None:
    frames = tuple(ImageRef(str(i), "") for i in range(8))
    rows = [question("1", 1), question("2", 1), question("v3", 10, data_id="3.webm")]
    tables = {("lmms-lab-encoder/SEED-Bench", None, "test"): rows}

    class ListHub(hub):  # type: ignore[valid-type, misc]
        def rows(self, *args: Any, **named: Any):
            for row in super().rows(*args, **named):
                row.values["image"] = frames if row.values["data_type"] == "video" else frames[:1]
                yield row

    samples = read_hub(UPDATED, ListHub(tables)).samples
    assert [s.image.key for s in samples if s.image] == ["lmms-lab-encoder/SEED-Bench/14_25"] * 2 + ["3"]
    assert [s.id for s in read_hub(IMAGE, ListHub(tables)).samples] == ["1", "2"]
    with pytest.raises(DataError, match="column 'image' should hold a list of pictures"):
        read_hub(UPDATED, hub(tables))
    with pytest.raises(DataError, match="the hub holds no copy of this list"):
        read_hub(SEED, hub(tables))


def test_a_real_hub_column_of_picture_lists_is_read_lazily(tmp_path: Path) -> None:
    import datasets

    feature = {"image": datasets.Sequence(datasets.Image()), "n": datasets.Value("int64")}
    rows = [{"image": [{"bytes": f"{i}{k}".encode(), "path": None} for k in range(i)], "n": i} for i in range(3)]
    datasets.Dataset.from_list(rows, features=datasets.Features(feature)).to_parquet(str(tmp_path / "test.parquet"))
    found = list(Hub().rows(str(tmp_path), "test", image="image"))
    assert [[read_image(ref) for ref in row.values["image"]] for row in found] == [[], [b"10"], [b"20", b"21"]]
    assert len({ref.key for row in found for ref in row.values["image"]}) == 3


def test_the_bundled_samples_load_with_all_twelve_types(samples_folder: Path) -> None:
    samples = read_folder(SEED, samples_folder).samples
    assert {s.groups[1] for s in samples} == {f"type/{name}" for name in TYPES}
    assert all(s.image and len(read_image(s.image)) > 100 for s in samples)
    assert len({s.image.key for s in samples if s.image}) < len(samples)


def test_llavas_answer_file_has_numbers_for_pictures_and_texts_for_clips(put: Put) -> None:
    samples = load(put, [question("101669"), question("v1738", 10)])
    rows = [
        {
            "question_id": number,
            "prompt": SEED.prompt(s),
            "text": "A",
            "answer_id": "x",
            "model_id": "m",
            "metadata": {},
        }
        for number, s in zip(("v1738", 101669), reversed(samples), strict=True)
    ]
    assert set(read_answer_file(Dataset(SEED, samples, DataIdentity(len(samples), "")), put("merge.jsonl", rows))) == {
        "101669",
        "v1738",
    }
    with pytest.raises(DataError, match="question '7' is not in SEED-Bench"):
        read_answer_file(
            Dataset(SEED, samples, DataIdentity(len(samples), "")),
            put("merge.jsonl", [*rows, {**rows[0], "question_id": 7}]),
        )


# =============================================================================
# Submission and bad input
# =============================================================================


def test_the_submission_is_in_the_order_of_the_questions(put: Put, tmp_path: Path) -> None:
    samples = load(put, [question("2"), question("1")])
    (path,) = SEED.submit(samples, {"1": "A", "2": "B"}, tmp_path, None)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"question_id": "2", "prediction": "B"},
        {"question_id": "1", "prediction": "A"},
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": "E"}, "field 'answer' should be one of 'A', 'B', 'C', 'D', found 'E'"),
        ({"choice_d": None}, "field 'choice_d' should be text"),
        ({"data_type": "audio"}, "field 'data_type' should be one of"),
        ({"question_type_id": 13}, "question type '13' with image data"),
        ({"question_type_id": 10}, "question type '10' with image data"),
        ({"question_type_id": 9, "data_type": "video"}, "question type '9' with video data"),
        ({"question_type_id": 0}, "question type '0' with image data"),
        ({"question_type_id": 13, "data_type": "video"}, "question type '13' with video data"),
        ({"data_id": "../../x"}, "leaves the image folder"),
        ({"question_id": None}, "field 'question_id' should be an id"),
    ],
)
def test_a_bad_question_is_refused_with_its_place(put: Put, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        load(put, [question("1"), question("2", **changes)])
    assert "SEED-Bench.json: questions[1]" in str(error.value)


def test_bad_files_are_refused(put: Put, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="SEED-Bench's questions not found"):
        read_folder(SEED, tmp_path)
    folder = Folder(put("seed_bench/SEED-Bench.json", [question()]).parents[1], ORIGINAL.folders)
    with pytest.raises(DataError, match="expected an object with named fields"):
        read_folder(SEED, folder.root)
    put("seed_bench/SEED-Bench.json", {"questions": [{"text": "POPE?"}]})
    with pytest.raises(DataError, match="field 'data_type' is missing"):
        read_folder(SEED, folder.root)
    put("seed_bench/SEED-Bench.json", b'{"questions": [\n"caf\xe9"]}')
    with pytest.raises(DataError, match=r"SEED-Bench\.json:2: not UTF-8"):
        read_folder(SEED, folder.root)
    (tmp_path / "seed_bench/SEED-Bench.json").unlink()
    put("seed_bench/llava-seed-bench.jsonl", [{"question_id": 1, "image": "a", "text": "Is it?", "category": "1"}])
    with pytest.raises(DataError, match=r"jsonl:1: field 'text' should be a question, choices A\. to D\."):
        read_folder(SEED, folder.root)


def test_a_question_that_stands_twice_is_asked_once_counted_twice_and_submitted_twice(put: Put, tmp_path: Path) -> None:
    """Question 49914 is twice in the official list."""
    thrice = [question("49914", 1)] * 3
    assert [s.id for s in load(put, thrice)] == ["49914", "49914#2", "49914#3"]
    rows = [question("49914", 1), question("7", 1), question("49914", 1)]
    samples = read_folder(SEED, put("seed_bench/SEED-Bench.json", {"questions": rows}).parents[1]).samples
    assert [(s.id, s.answer_key) for s in samples] == [("49914", "49914"), ("7", "7"), ("49914#2", "49914")]
    [group] = plan([("seed", s) for s in samples if s.answer_key == "49914"], lambda _, s: Question(SEED.prompt(s), 1))
    assert [job.recipients for job in group.jobs] == [[("seed", "49914"), ("seed", "49914#2")]]
    (path,) = SEED.submit(samples, {"49914": "A", "7": "B", "49914#2": "A"}, tmp_path, None)
    written = [json.loads(line)["question_id"] for line in path.read_text().splitlines()]
    assert written == ["49914", "7", "49914"]


def test_an_id_that_asks_two_things_stays_an_error(put: Put) -> None:
    rows = [question("49914", 1), question("49914", 1, question="Another?")]
    path = put("seed_bench/SEED-Bench.json", {"questions": rows})
    with pytest.raises(DataError, match="question id '49914' occurs twice"):
        load_dataset(SEED, str(path.parents[1]), allow_partial=True)


def test_llavas_file_may_name_the_type(put: Put) -> None:
    text = f"How many?\nA. One\nB. Two\nC. Three\nD. Four\n{LETTER_ANSWER}"
    row = {"question_id": "101669", "image": "SEED-Bench-image/1", "text": text, "category": "Instances Counting"}
    path = put("seed_bench/llava-seed-bench.jsonl", [row])
    (s,) = read_folder(SEED, path.parents[1]).samples
    assert s.groups == ("image", "type/instances counting")
    put("seed_bench/llava-seed-bench.jsonl", [row | {"category": "Fortune Telling"}])
    with pytest.raises(DataError, match="question type 'Fortune Telling' with image data"):
        read_folder(SEED, path.parents[1])


def test_another_map_of_types_is_another_benchmark(put: Put) -> None:
    ours = {"Scene Understanding": 1, "Instance Identity": 2, "Instances Counting": 5}
    path = put("seed_bench/SEED-Bench.json", {"questions": [question("1", 1)], "question_type": ours})
    assert len(read_folder(SEED, path.parents[1]).samples) == 1
    theirs = ours | {"Visual Referring": 9}
    put("seed_bench/SEED-Bench.json", {"questions": [question("1", 1)], "question_type": theirs})
    with pytest.raises(DataError, match="type 9 is 'Visual Referring', here it is 'text understanding'"):
        read_folder(SEED, path.parents[1])
    for number in (0, 13):
        content = {"questions": [question("1", 1)], "question_type": ours | {"Scene Understanding": number}}
        put("seed_bench/SEED-Bench.json", content)
        with pytest.raises(DataError, match=f"type {number} is 'Scene Understanding', here it is 'none'"):
            read_folder(SEED, path.parents[1])
    put(
        "seed_bench/SEED-Bench.json",
        {"questions": [question("1", 1)], "question_type": {"Procedure understanding": 12}},
    )
    assert len(read_folder(SEED, path.parents[1]).samples) == 1
