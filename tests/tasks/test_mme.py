from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlmamba_eval.answer_files import read_answer_file
from vlmamba_eval.dataset import load_dataset, read_folder, read_hub
from vlmamba_eval.images import open_image, read_image
from vlmamba_eval.prepare import settle
from vlmamba_eval.registry import get_task
from vlmamba_eval.tasks.mme import CATEGORIES, COGNITION, OWN_FOLDER, PERCEPTION, TASKS
from vlmamba_eval.types import DataError, ImageRef, Sample

Score = Callable[..., dict[tuple[str, str], float]]
Put = Callable[..., Path]
(MME,) = TASKS
SUFFIX = "\nAnswer the question using a single word or phrase."
YES, NO = "Is there anything of {} in this picture?", "Is this picture altogether without anything?"
RELEASE = "MME/MME_Benchmark_release_version"


def question_file(category: str, stem: str) -> str:
    return f"{RELEASE}/{category}/{'questions_answers_YN/' if category in OWN_FOLDER else ''}{stem}.txt"


@pytest.fixture
def release(put: Put, tmp_path: Path) -> Path:
    """Two pictures in each category; only code_reasoning has its pictures, one with an unusual extension."""
    for category in CATEGORIES:
        for stem in ("0001", "0002"):
            lines = [f"{YES.format(category)} Please answer yes or no.\tYes", f"{NO}  Please answer yes or no.\tNo"]
            put(question_file(category, stem), "\r\n".join(lines) + "\n")
    put(f"{RELEASE}/code_reasoning/0001.jpg", b"")
    put(f"{RELEASE}/code_reasoning/0002.png", b"")
    return tmp_path


def load(root: Path) -> list[Sample]:
    return read_folder(MME, root).samples


# -- scoring -----------------------------------------------------------------------------------------------------------


def test_every_golden_answer_is_read_as_the_official_tool_reads_it(golden: Callable[[str], Any], release: Path) -> None:
    sample = load(release)[0]
    cases = [case for case in golden("mme") if case["kind"] == "parse"]
    assert len(cases) == 651
    for case in cases:
        verdict = MME.grade(sample, case["text"])
        assert verdict.parsed == case["parsed"], case
        assert verdict.valid == (case["parsed"] != "other")


def test_every_golden_folder_has_the_official_scores(golden: Callable[[str], Any], score: Score) -> None:
    folders = [case for case in golden("mme") if case["kind"] == "folder"]
    assert len(folders) == 5
    for case in folders:
        samples, texts = [], {}
        for category, lines in case["files"].items():
            for i, (image, question, gold, answer) in enumerate(lines):
                picture = ImageRef(f"{category}/{image}", "")
                groups = (category, "perception" if category in PERCEPTION else "cognition")
                key = f"{category}/{i}"
                samples.append(Sample(key, picture, question, gold, groups=groups, external_id=picture.key))
                texts[key] = answer
        values = score(MME, samples, texts)
        expected = case.get("expected", case)
        for name in ("perception", "cognition"):
            assert values[name, "all"] == pytest.approx(expected[name], abs=1e-8), case["name"]
        assert values["total", "all"] == pytest.approx(expected["perception"] + expected["cognition"], abs=1e-8)
        for category, numbers in expected.get("categories", {}).items():
            assert values["score", category] == pytest.approx(numbers["score"], abs=1e-8)
            assert values["other", category] == numbers["other"]
            for name in ("acc", "acc_plus", "precision", "recall"):
                ours = values[name, category]
                # scikit-learn gives 0 if precision or recall is undefined.
                assert (0 if math.isnan(ours) else ours) == pytest.approx(100 * numbers[name], abs=1e-8)


def test_degenerate_models_have_closed_form_scores(release: Path, score: Score) -> None:
    samples = load(release)
    gold = score(MME, samples, {s.id: f"{s.target}." for s in samples})
    assert (gold["perception", "all"], gold["cognition", "all"], gold["total", "all"]) == (2000, 800, 2800)
    for word in ("Yes", "No"):
        always = score(MME, samples, {s.id: word for s in samples})
        assert (always["perception", "all"], always["cognition", "all"]) == (500, 200)
        assert (always["acc", "OCR"], always["acc_plus", "OCR"], always["score", "OCR"]) == (50, 0, 50)
    empty = score(MME, samples, {s.id: "" for s in samples})
    assert (empty["perception", "all"], empty["other", "count"]) == (0, 4)
    missing = score(MME, samples, {})
    assert (missing["perception", "all"], missing["other", "count"]) == (0, 0)


def test_a_missing_answer_spoils_its_pair(release: Path, score: Score) -> None:
    samples = load(release)
    one = next(s for s in samples if s.groups[0] == "count")
    values = score(MME, samples, {s.id: str(s.target) for s in samples if s is not one})
    assert (values["acc", "count"], values["acc_plus", "count"]) == (75, 50)
    assert values["perception", "all"] == 2000 - 75


def test_the_order_of_rows_changes_nothing(release: Path, score: Score) -> None:
    samples = load(release)
    rng = random.Random(1)
    texts = {s.id: rng.choice(["Yes", "No", "maybe"]) for s in samples}
    assert score(MME, rng.sample(samples, len(samples)), texts) == score(MME, samples, texts)


def test_categories_that_are_not_there_add_nothing_and_lower_the_bound(release: Path, score: Score) -> None:
    samples = [s for s in load(release) if s.groups[0] in ("count", "OCR")]
    values = score(MME, samples, {s.id: str(s.target) for s in samples})
    assert values["perception", "all"] == 400
    assert math.isnan(values["cognition", "all"])


# -- loading -----------------------------------------------------------------------------------------------------------


def test_the_release_loads_without_its_pictures(release: Path) -> None:
    samples = load(release)
    assert len(samples) == len({s.id for s in samples}) == 56
    assert len({s.image.key for s in samples if s.image}) == 28
    names = {s.external_id for s in samples}
    assert {"artwork/images/0001.jpg", "count/0002.jpg", "text_translation/0001.png"} <= names
    assert {"code_reasoning/0001.jpg", "code_reasoning/0002.png"} <= names, "pictures that are there keep their name"
    assert {MME.stratum(s) for s in samples} == set(CATEGORIES)
    first = samples[0]
    assert first.id == f"existence/0001.jpg/{YES.format('existence')}"
    assert first.groups == ("existence", "perception")
    assert first.target == "Yes"
    assert first.where.endswith("existence/0001.txt:1")


def test_prompts_replace_the_requests_of_the_release(release: Path) -> None:
    yes, no = load(release)[:2]
    assert MME.prompt(yes) == YES.format("existence") + SUFFIX
    assert MME.prompt(no) == NO + SUFFIX, "the two spaces before the request go too"


def test_prompts_tell_the_two_questions_of_a_picture_apart(release: Path, put: Put) -> None:
    """LLaVA's answers repeat the question_id; the prompt joins them, in any order and either form of request."""
    samples = load(release)
    rows = [
        {"question_id": s.external_id, "prompt": prompt, "text": str(s.target)}
        for s in reversed(samples)
        for prompt in [MME.prompt(s) if s.groups[1] == "cognition" else f"<image>\n{s.fields['asked']}"]
    ]
    dataset = load_dataset(MME, str(release), allow_partial=True)
    answers = read_answer_file(dataset, put("answers.jsonl", rows))
    assert {key: a.generation.text for key, a in answers.items() if a.generation} == {s.id: s.target for s in samples}


def test_llavas_question_file_alone_gives_the_same_questions_without_labels(release: Path, put: Put) -> None:
    samples = load(release)
    rows = [
        {"question_id": s.external_id, "image": s.external_id, "text": MME.prompt(s), "category": s.groups[0]}
        for s in samples
    ]
    put("llava/MME/llava_mme.jsonl", rows)
    unlabelled = load(release / "llava")
    assert all(s.target is None for s in unlabelled)
    assert [(s.id, s.external_id, s.groups) for s in unlabelled] == [(s.id, s.external_id, s.groups) for s in samples]
    with pytest.raises(DataError, match="no gold answer"):
        MME.submit(unlabelled, {}, release, None)
    put("llava/MME/llava_mme.jsonl", [{**rows[0], "image": "elsewhere/1.jpg"}])
    with pytest.raises(DataError, match=r"llava_mme.jsonl:1: field 'image' should begin with its category's folder"):
        load(release / "llava")


def test_a_picture_outside_the_release_is_refused(put: Put, tmp_path: Path) -> None:
    row = {"question_id": "count/1.jpg", "image": "count/../../1.jpg", "text": f"One?{SUFFIX}", "category": "count"}
    put("MME/llava_mme.jsonl", [row])
    with pytest.raises(DataError, match=r"llava_mme.jsonl:1: image name .* leaves the image folder"):
        load(tmp_path)


def test_the_hubs_rows_get_llavas_names(hub: Callable[..., Any]) -> None:
    rows = [
        {
            "question_id": "artwork/1.jpg",
            "question": f"{q}? Please answer yes or no.",
            "answer": a,
            "category": "artwork",
        }
        for q, a in (("Old", "Yes"), ("New", "No"))
    ]
    samples = read_hub(MME, hub({("lmms-lab-encoder/MME", None, "test"): rows})).samples
    assert [(s.id, s.external_id, s.target) for s in samples] == [
        ("artwork/1.jpg/Old?", "artwork/images/1.jpg", "Yes"),
        ("artwork/1.jpg/New?", "artwork/images/1.jpg", "No"),
    ]
    assert len({s.image.key for s in samples if s.image}) == 1
    with pytest.raises(DataError, match="row 0: field 'question_id' should be category/picture"):
        read_hub(MME, hub({("lmms-lab-encoder/MME", None, "test"): [{**rows[0], "question_id": "zoo/1.jpg"}]}))


def test_five_categories_keep_their_pictures_in_a_folder_of_their_own(hub: Callable[..., Any]) -> None:
    """So the release has them, and LLaVA's question_id; the hub's ids leave the folder out."""
    own, plain = "posters celebrity scene landmark artwork", "existence count position color OCR"
    plain += " commonsense_reasoning numerical_calculation text_translation code_reasoning"
    ids = [f"{category}/1.jpg" for category in f"{own} {plain}".split()]
    rows = [{"question_id": key, "question": "Old?", "answer": "Yes"} for key in ids]
    samples = read_hub(MME, hub({("lmms-lab-encoder/MME", None, "test"): rows})).samples
    assert [s.external_id for s in samples] == [
        *(f"{category}/images/1.jpg" for category in own.split()),
        *(f"{category}/1.jpg" for category in plain.split()),
    ]
    assert [MME.aliases(s) for s in samples] == [(key,) for key in ids]


def test_a_downloaded_copy_of_the_hubs_data_set_is_data(tmp_path: Path) -> None:
    import datasets
    from PIL import Image

    texts = {name: datasets.Value("string") for name in ("question_id", "question", "answer", "category")}
    rows = [
        {
            "question_id": "artwork/1.jpg",
            "image": Image.new("RGB", (4, 4), "red"),
            "question": f"{q}? Please answer yes or no.",
            "answer": a,
            "category": "artwork",
        }
        for q, a in (("Old", "Yes"), ("New", "No"))
    ]
    table = datasets.Dataset.from_list(rows, features=datasets.Features({"image": datasets.Image(), **texts}))
    (tmp_path / "data").mkdir()
    table.to_parquet(str(tmp_path / "data/test-00000-of-00001.parquet"))
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: [{split: test, path: data/test-*}]\n---\n"
    )
    (dataset,) = settle([MME], str(tmp_path), ask=None, say=print, allow_partial=True)
    assert [s.id for s in dataset.samples] == ["artwork/1.jpg/Old?", "artwork/1.jpg/New?"]
    image = dataset.samples[0].image
    assert image is not None
    assert open_image(image).size == (4, 4)
    with pytest.raises(DataError, match=r"expected 2,374 questions .* found 2"):
        settle([MME], str(tmp_path), ask=None, say=print)
    with pytest.raises(DataError, match="expected a copy of a hub data set with a default list and split validation"):
        settle([get_task("vqav2")], str(tmp_path), ask=None, say=print)


def test_the_bundled_samples_load() -> None:
    samples = load_dataset(MME, "samples").samples
    assert {s.groups[0] for s in samples} == set(CATEGORIES)
    assert all(s.image and read_image(s.image)[:4] in (b"\xff\xd8\xff\xe0", b"\x89PNG") for s in samples)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Is it? Please answer yes or no.\tYes\n", "expected two lines"),
        ("Is it?\tYes\nIs it not?\tYes\n", "expected two lines"),
        ("Is it?\tYes\nIs it not?\tMaybe\n", "expected two lines"),
        ("Is it? Yes\nIs it not? No\n", "expected two lines"),
        ("Is it?\tYes\nIs\tnot?\tNo\n", "expected two lines"),
        (b"Is it?\tYes\nIs it n\xf6t?\tNo\n", "0001.txt:2: not UTF-8"),
    ],
)
def test_a_bad_question_file_is_an_error_that_names_it(
    release: Path, put: Put, content: str | bytes, message: str
) -> None:
    put(question_file("posters", "0001"), content)
    with pytest.raises(DataError, match=message) as error:
        load(release)
    assert "posters/questions_answers_YN/0001.txt" in str(error.value)


@pytest.mark.parametrize("before", ["", "<image>\n", "  "])
@pytest.mark.parametrize("request_", [" Please answer yes or no.", "  Please answer yes or no.", SUFFIX, ""])
def test_a_question_is_the_same_whichever_request_stands_behind_it(before: str, request_: str) -> None:
    assert MME.join_key(f"{before}Is  it red?{request_}") == "Is it red?"


def test_a_missing_category_is_named(release: Path) -> None:
    for path in (release / RELEASE / "OCR").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"OCR: no question files"):
        load(release)


def test_the_official_result_files_read_back(release: Path, tmp_path: Path) -> None:
    samples = load(release)
    folder = tmp_path / "upload"
    folder.mkdir()
    texts = {s.id: str(s.target) for s in samples}
    texts[samples[1].id] = "no\tor\nyes"
    paths = MME.submit(random.Random(1).sample(samples, len(samples)), texts, folder, None)
    assert sorted(path.stem for path in paths) == sorted(CATEGORIES)
    lines = (folder / "existence.txt").read_text().splitlines()
    assert len(lines) == 4
    by_image = [line.split("\t")[0] for line in lines]
    assert by_image == ["0001.jpg", "0001.jpg", "0002.jpg", "0002.jpg"]
    assert f"0001.jpg\t{NO}  Please answer yes or no.\tNo\tno or yes" in lines
    assert len(COGNITION) == 4
