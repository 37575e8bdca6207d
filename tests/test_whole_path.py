"""The whole path, from the command line to the tables, with the bundled model on the bundled samples."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vlmamba_eval.dataset import samples_folder

REAL = Path(os.environ.get("VLMAMBA_REAL", Path(__file__).parents[2] / "shared" / "real"))
DERIVED = ("manifest.json", "answers.jsonl", "scores.json", "DONE", "leaderboard.md", "leaderboard.csv")


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "vlmamba_eval", *map(str, arguments)]


def evaluate(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("--model", "vlmamba-tiny", *arguments), capture_output=True, text=True, check=False, timeout=600
    )


def derived(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.name in DERIVED}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    out = tmp_path_factory.mktemp("finished")
    return out, evaluate("--tasks", "gqa,pope,mme", "--data", "samples", "--limit", "40", "--out", out)


def test_one_command_leaves_tables_and_prints_their_paths_last(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, done = finished
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == [str(out / "leaderboard.md"), str(out / "leaderboard.csv")]
    assert "SAMPLES" in done.stdout
    with open(out / "leaderboard.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    measured = [row for row in rows if row["status"] != "published"]
    assert {row["task"] for row in measured} == {"gqa", "pope", "mme"}
    assert all("SAMPLES" in row["status"] and "PARTIAL" in row["status"] for row in measured)
    assert {row["model"] for row in rows if row["status"] == "published"} == {
        "llava-1.5-7b", "llava-1.5-13b", "vl-mamba",
    }  # fmt: skip


def test_answers_hold_the_prompt_really_sent(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    [path] = (finished[0] / "runs").glob("*/pope/*/answers.jsonl")
    first = json.loads(path.read_text().splitlines()[0])
    assert "<image>\nIs there a" in first["prompt"]
    assert first["prompt"].endswith("\nAnswer the question using a single word or phrase. ASSISTANT:")
    assert set(first) == {"id", "prompt", "text", "n_tokens", "stop", "crc"}


def test_the_same_command_again_only_prints_its_report(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, first = finished
    before = derived(out)
    again = evaluate("--tasks", "gqa,pope,mme", "--data", "samples", "--limit", "40", "--out", out)
    assert again.returncode == 0
    assert "Finished before" in again.stderr.splitlines()[0]
    assert again.stdout == first.stdout
    assert derived(out) == before


def test_reports_come_again_from_the_runs_on_disk(
    finished: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    out, _ = finished
    done = subprocess.run(
        command("report", out / "runs", "--baselines", "vl-mamba", "--out", tmp_path), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "VL-Mamba" in done.stdout
    assert "LLaVA-1.5-7B" not in done.stdout
    assert (tmp_path / "leaderboard.csv").exists()


def interrupted(out: Path, number: int) -> subprocess.CompletedProcess[str]:
    arguments = ["--tasks", "pope", "--data", "samples", "--batch-tokens", "1", "--out", str(out)]
    with subprocess.Popen(
        command("--model", "vlmamba-tiny", *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        began = time.monotonic()
        while not any(path.stat().st_size for path in out.rglob("answers.jsonl")) and child.poll() is None:
            time.sleep(0.01)
            assert time.monotonic() - began < 120
        child.send_signal(number)
        output, errors = child.communicate()
    return subprocess.CompletedProcess(arguments, child.returncode, output, errors)


@pytest.fixture
def heeded() -> Iterator[None]:
    """A shell starts what stands before `&` with SIGINT ignored, and its children inherit that, but not a handler."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_is_resumable_and_says_so(tmp_path: Path, number: int, code: int) -> None:
    done = interrupted(tmp_path, number)
    assert done.returncode == code, done.stderr
    assert "They are safe; continue with the same command:" in done.stderr
    again = evaluate("--tasks", "pope", "--data", "samples", "--out", tmp_path)
    assert again.returncode == 0, again.stderr
    assert "Resuming: " in again.stderr.splitlines()[0]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A copy of the sample POPE that a test may damage; as a folder it is not the declared list."""
    copy = tmp_path / "data"
    shutil.copytree(samples_folder() / "pope", copy / "pope")
    return copy


def spoil(folder: Path, what: str) -> str:
    """Damage a data folder; what the error must say."""
    picture = sorted((folder / "val2014").iterdir())[0]
    questions = folder / "coco" / "coco_pope_popular.json"
    lines = questions.read_text().splitlines()
    if what == "missing image":
        picture.unlink()
        return f"({picture}): the image is missing"
    if what == "truncated image":
        picture.write_bytes(picture.read_bytes()[:200])
        return "damaged image"
    if what == "cut line":
        questions.write_text("\n".join(lines)[:-30])
        return f"{questions}:{len(lines)}: not a valid JSON line"
    if what == "duplicate id":
        questions.write_text("\n".join([*lines, lines[3]]))
        return f"{questions}:{len(lines) + 1}: question id"
    assert what == "path that leaves the folder"
    questions.write_text("\n".join([lines[0].replace("COCO_", "../COCO_"), *lines[1:]]))
    return f"{questions}:1: image name"


@pytest.mark.parametrize("what", ["cut line", "duplicate id", "path that leaves the folder"])
def test_bad_annotations_stop_the_run_before_the_model_is_loaded(data: Path, tmp_path: Path, what: str) -> None:
    message = spoil(data / "pope", what)
    done = evaluate("--tasks", "pope", "--data", data, "--allow-partial", "--out", tmp_path / "out")
    assert done.returncode == 1
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_missing_pictures_stop_the_run_before_the_model_is_loaded(data: Path, tmp_path: Path) -> None:
    [missing, *_] = pictures = sorted((data / "pope" / "val2014").iterdir())
    missing.unlink()
    out = tmp_path / "out"
    done = evaluate("--tasks", "pope", "--data", data, "--allow-partial", "--out", out)
    assert done.returncode == 1
    assert f"pope: 1 of {len(pictures)} pictures are missing. The first: {missing}. All of them: {out}" in done.stderr
    assert (out / "missing-images.txt").read_text() == f"{missing}\n"
    assert not (out / "runs").exists()


@pytest.mark.parametrize("what", ["missing image", "truncated image"])
def test_a_bad_picture_fails_its_questions_and_keeps_all_other_answers(data: Path, tmp_path: Path, what: str) -> None:
    message = spoil(data / "pope", what)
    out = tmp_path / "out"
    done = evaluate("--tasks", "pope", "--data", data, "--allow-partial", "--allow-missing-images", "--out", out)
    assert done.returncode == 3
    assert message in done.stderr
    assert "INCOMPLETE" in done.stdout
    [path] = out.rglob("answers.jsonl")
    answers = [json.loads(line) for line in path.read_text().splitlines()]
    failed = [answer for answer in answers if "failure" in answer]
    assert 0 < len(failed) < len(answers)
    assert {answer["failure"]["kind"] for answer in failed} == {"data_error"}


# =============================================================================
# Full size
# =============================================================================


@pytest.fixture(scope="module")
def full_pope(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 8,910 questions of the pinned release, about 500 drawn pictures under their real names."""
    if not (REAL / "pope" / "coco").is_dir():
        pytest.skip(f"the real POPE lists are not in {REAL}; VLMAMBA_REAL names their folder")
    from vlmamba_eval.tasks.samples.scene import draw, random_scene

    folder = tmp_path_factory.mktemp("real") / "pope"
    shutil.copytree(REAL / "pope" / "coco", folder / "coco", copy_function=shutil.copyfile)
    (folder / "val2014").mkdir()
    names = {
        json.loads(line)["image"] for path in (folder / "coco").iterdir() for line in path.read_text().splitlines()
    }
    for i, name in enumerate(sorted(names)):
        draw(random_scene(random.Random(i))).save(folder / "val2014" / name, quality=90)
    return folder.parent


@pytest.mark.slow
def test_pope_at_full_size_encodes_each_picture_once_and_killed_four_times_ends_byte_for_byte_the_same(
    full_pope: Path, tmp_path: Path
) -> None:
    from vlmamba_eval.dataset import load_dataset
    from vlmamba_eval.registry import get_task, load
    from vlmamba_eval.run import evaluate as run

    adapter = load("vlmamba-tiny")
    [outcome] = run(adapter, [load_dataset(get_task("pope"), str(full_pope))], tmp_path / "undisturbed")
    assert outcome.complete
    assert adapter.engine.images_encoded == 500  # type: ignore[attr-defined]

    arguments = ("--tasks", "pope", "--data", full_pope, "--out", tmp_path / "disturbed")
    for part in (0.2, 0.35, 0.5, 0.65):
        with subprocess.Popen(command("--model", "vlmamba-tiny", *arguments), stderr=subprocess.DEVNULL) as child:
            while answered(tmp_path / "disturbed") < part * 8910:
                assert child.poll() is None
                time.sleep(0.05)
            child.send_signal(signal.SIGKILL)
    assert evaluate(*arguments).returncode == 0
    undisturbed = derived(tmp_path / "undisturbed")
    assert len(undisturbed) == len(DERIVED) - 2  # the leaderboard is the command's
    assert undisturbed.items() < derived(tmp_path / "disturbed").items()


def answered(out: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in out.rglob("answers.jsonl"))
