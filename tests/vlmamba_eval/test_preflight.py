"""What a run would stumble over hours later is told before a model is loaded."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from tests.toys import ToyAdapter, ToyTask, write_toy_data
from vlmamba_eval.cli import cli
from vlmamba_eval.dataset import Dataset, load_dataset, samples_folder
from vlmamba_eval.preflight import preflight
from vlmamba_eval.registry import get_task
from vlmamba_eval.run import evaluate, finished
from vlmamba_eval.types import DataError, StoreError, UsageError


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return load_dataset(ToyTask(), str(write_toy_data(tmp_path / "data")))


def test_nothing_is_said_if_nothing_is_missing(dataset: Dataset, tmp_path: Path) -> None:
    assert preflight([dataset], tmp_path / "out") == []
    assert not (tmp_path / "out").exists()


def test_missing_pictures_are_counted_named_and_listed(dataset: Dataset, tmp_path: Path) -> None:
    images = tmp_path / "data/toy/images"
    for name in ("1", "3", "4", "5"):
        (images / f"{name}.png").unlink()
    expected = f"toy: 4 of 6 pictures are missing. The first: {images}/1.png, {images}/3.png, {images}/4.png. All of"
    with pytest.raises(DataError, match=rf"{expected} them: .*\n--download fetches them"):
        preflight([dataset], tmp_path / "out")
    listed = (tmp_path / "out/missing-images.txt").read_text().splitlines()
    assert listed == [f"{images}/{name}.png" for name in ("1", "3", "4", "5")]
    [note] = preflight([dataset], tmp_path / "out", allow_missing_images=True)
    assert note.endswith("Their questions fail and count as wrong.")


def test_all_that_stops_a_run_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model, the questions of every task, the pictures, and what scoring will lack: not one at each attempt."""
    monkeypatch.setattr("vlmamba_eval.prepare.installed", lambda extra: False)
    data = tmp_path / "data"
    for place in ("pope/coco", "mmbench"):
        shutil.copytree(samples_folder() / place, data / place)
    arguments = ["--model", "vlmamba-tinny", "--tasks", "pope,gqa,mmbench", "--allow-partial"]
    said = CliRunner().invoke(cli, [*arguments, "--data", str(data), "--out", str(tmp_path / "out")])
    assert isinstance(said.exception, UsageError)
    for part in (
        "Unknown model 'vlmamba-tinny'",
        "GQA's question file not found",
        "pope: 16 of 16 pictures are missing",
        "mmbench: `vlmamba-eval submit` needs",
    ):
        assert part in str(said.exception)
    assert len((tmp_path / "out/missing-images.txt").read_text().splitlines()) == 16


def test_a_folder_that_is_not_there_is_told_once(tmp_path: Path) -> None:
    arguments = ["--model", "vlmamba-tinny", "--tasks", "pope,pope_9000", "--data", str(tmp_path / "none")]
    said = CliRunner().invoke(cli, [*arguments, "--out", str(tmp_path / "out")])
    assert str(said.exception).count("no such folder") == 1


@pytest.mark.parametrize("place", ["file", "file/below"])
@pytest.mark.parametrize("gone", [False, True])
def test_a_place_that_holds_no_folder_is_told(dataset: Dataset, tmp_path: Path, place: str, gone: bool) -> None:
    (tmp_path / "file").touch()
    if gone:
        (tmp_path / "data/toy/images/0.png").unlink()
    with pytest.raises(StoreError, match=f"{place} cannot be written .*Give another folder with --out"):
        preflight([dataset], tmp_path / place, allow_missing_images=True)


def test_pictures_that_came_since_are_listed_no_more(dataset: Dataset, tmp_path: Path) -> None:
    picture = tmp_path / "data/toy/images/0.png"
    content = picture.read_bytes()
    picture.unlink()
    preflight([dataset], tmp_path, allow_missing_images=True)
    picture.write_bytes(content)
    assert preflight([dataset], tmp_path) == []
    assert not (tmp_path / "missing-images.txt").exists()


def test_a_picture_missing_from_two_lists_is_one(tmp_path: Path, dataset: Dataset) -> None:
    (tmp_path / "data/toy/images/0.png").unlink()
    with pytest.raises(DataError, match=r"toy: 1 of 6 pictures are missing\. toy: 1 of 6"):
        preflight([dataset, dataset], tmp_path)
    assert len((tmp_path / "missing-images.txt").read_text().splitlines()) == 1


def test_a_finished_run_needs_no_pictures(dataset: Dataset, tmp_path: Path) -> None:
    adapter = ToyAdapter()
    assert not finished(dataset, adapter.info, tmp_path / "out", "generate")
    evaluate(adapter, [dataset], tmp_path / "out")
    assert finished(dataset, adapter.info, tmp_path / "out", "generate")
    assert not finished(dataset, adapter.info, tmp_path / "out", "likelihood")


def test_absent_gold_labels_are_told(tmp_path: Path) -> None:
    path = write_toy_data(tmp_path) / "toy/toy.jsonl"
    path.write_text(path.read_text().replace('"answer"', '"said"'))
    [note] = preflight([load_dataset(ToyTask(), str(tmp_path))], tmp_path / "out")
    assert note.startswith("toy: gold labels: not here; answers are scored here, locally, but only with")


def test_an_absent_program_and_the_judge_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("vlmamba_eval.prepare.shutil.which", lambda program: None)
    captions, judged = (load_dataset(get_task(name), "samples") for name in ("nocaps", "mmvet"))
    notes = preflight([captions, judged], tmp_path / "out")
    assert "nocaps: scoring needs Java, which is not here" in notes
    assert "mmvet: gold labels: not here; a judge grades the answers (`vlmamba-eval judge`)" in notes


def test_the_sheet_that_a_server_wants_needs_an_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("vlmamba_eval.prepare.installed", lambda extra: extra != "xlsx")
    [note] = preflight([load_dataset(get_task("mmbench"), "samples")], tmp_path / "out")
    assert note == "mmbench: `vlmamba-eval submit` needs pip install 'vlmamba-eval[xlsx]'"


def test_a_disk_that_hardly_holds_the_answers_is_told(
    monkeypatch: pytest.MonkeyPatch, dataset: Dataset, tmp_path: Path
) -> None:
    monkeypatch.setattr("vlmamba_eval.preflight.shutil.disk_usage", lambda path: SimpleNamespace(free=2_000))
    out = tmp_path / "not/yet/there"
    assert preflight([dataset], out) == [f"{out}: all answers need about 12.8 kB; 2 kB are free."]
