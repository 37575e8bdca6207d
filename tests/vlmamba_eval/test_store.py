"""A run on disk survives what happens to files."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmamba_eval import journal
from vlmamba_eval.adapter import AdapterInfo
from vlmamba_eval.files import write_atomic, write_json
from vlmamba_eval.manifest import DataIdentity, Manifest, TaskIdentity, folder_name
from vlmamba_eval.store import (
    ANSWERS,
    Run,
    data_source,
    find_runs,
    read_answers,
    read_manifest,
    read_scores,
    read_verdicts,
)
from vlmamba_eval.types import Answer, Failure, Generation, Likelihood, Score, Scores, StoreError

MODEL = AdapterInfo("m", "a", "cpu", "float32")
MANIFEST = Manifest(TaskIdentity("toy", 1, "test", "own"), DataIdentity(3, "0"), model=MODEL)
SCORES = Scores("m", "toy", "Toy", "test", "accuracy", "generate", None, (), 3, 0, 0)


def answer(i: int, text: str = "yes") -> Answer:
    return Answer(str(i), Generation(text, "USER: ? ASSISTANT:", 1, "eos"))


def filled(folder: Path, n: int = 3) -> Path:
    with Run(folder, MANIFEST) as run:
        run.append([answer(i) for i in range(n)])
    return folder


@given(st.text(), st.text(), st.sampled_from([(), (Likelihood(-1.25, 3), Likelihood(-0.1, 1))]))
@settings(max_examples=40)
def test_an_answer_survives_writing_and_reading_whatever_its_text(text: str, prompt: str, likelihoods: tuple) -> None:
    original = Answer("id\n\u2028", Generation(text, prompt, 2, "length", likelihoods))
    with tempfile.TemporaryDirectory() as folder:
        with Run(Path(folder), MANIFEST) as run:
            run.append([original])
        raw = (Path(folder) / ANSWERS).read_bytes()
        assert raw.count(b"\n") == 1
        assert read_answers(Path(folder)) == {original.id: original}


@pytest.mark.parametrize("text", ["None", "NA", "nan", "", "007", "1.0", "null", '", "crc": "00000000"}', "\ud800"])
def test_awkward_answers_stay_what_they_are(tmp_path: Path, text: str) -> None:
    with Run(tmp_path, MANIFEST) as run:
        run.append([answer(0, text)])
    assert read_answers(tmp_path) == {"0": answer(0, text)}


def test_a_torn_tail_is_cut_off_at_whatever_byte_it_was_torn(tmp_path: Path) -> None:
    path = filled(tmp_path) / ANSWERS
    whole = path.read_bytes()
    last_two = whole[:-1].rfind(b"\n", 0, whole[:-1].rfind(b"\n")) + 1
    for size in range(last_two, len(whole)):
        path.write_bytes(whole[:size])
        with Run(tmp_path, MANIFEST) as run:
            kept = whole[:size].count(b"\n")
            assert list(run.answers) == [str(i) for i in range(kept)]
            run.append([answer(i) for i in range(kept, 3)])
        assert path.read_bytes() == whole


@pytest.mark.parametrize("torn", [0, 1, 2**16 - 1, 2**16, 2**16 + 1, 150_000])
@pytest.mark.parametrize("lines", [0, 1, 2])
def test_a_torn_tail_of_any_length_is_cut_off(tmp_path: Path, torn: int, lines: int) -> None:
    path = tmp_path / ANSWERS
    whole = b"".join(journal.encode({"id": str(i), "text": "y" * 70_000}) for i in range(lines))
    path.write_bytes(whole + b"x" * torn)
    with journal.Journal(path) as opened:
        assert path.read_bytes() == whole
        opened.append([{"id": "next"}])
    assert path.read_bytes() == whole + journal.encode({"id": "next"})


@pytest.mark.parametrize("damage", [slice(0, 1), slice(-1, None), slice(-2, -1), slice(-3, -2), slice(10, 11)])
def test_a_line_with_one_byte_less_or_another_is_damaged(tmp_path: Path, damage: slice) -> None:
    line = journal.encode({"id": "0", "text": "yes"})[:-1]
    place = range(len(line))[damage][0]
    for changed in (line[:place] + line[place + 1 :], line[:place] + b"~" + line[place + 1 :], line + b"}"):
        (tmp_path / ANSWERS).write_bytes(changed + b"\n")
        with pytest.raises(StoreError, match=r"answers\.jsonl:1: this answer is damaged"):
            read_answers(tmp_path)
    with pytest.raises(StoreError, match=r"answers\.jsonl:1: this record is damaged"):
        list(journal.read(tmp_path / ANSWERS))


def test_reading_a_run_that_another_process_writes_changes_nothing(tmp_path: Path) -> None:
    path = filled(tmp_path) / ANSWERS
    torn = path.read_bytes()[:-5]
    path.write_bytes(torn)
    assert list(read_answers(tmp_path)) == ["0", "1"]
    assert path.read_bytes() == torn


def test_what_is_written_is_on_the_disk_before_anything_else_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is synced before it takes its name, its folder after; answers are synced with every append."""
    synced: list[str] = []

    def fsync(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/dev/fd/{descriptor}")).name)

    with Run(tmp_path / "run", MANIFEST) as run:
        monkeypatch.setattr(os, "fsync", fsync)
        run.append([answer(0), answer(1)])
        assert synced == [ANSWERS]
        synced.clear()
        write_atomic(tmp_path / "run" / "x", "content")
        assert synced[0].startswith(".x.")
        assert synced[1:] == ["run"]


def test_a_file_is_readable_by_everybody_and_by_people(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.json"
    write_json(path, {"b": [1, None], "a": "é\ud800"})
    assert path.read_text() == '{\n "b": [\n  1,\n  null\n ],\n "a": "é\\ud800"\n}\n'
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})


def test_a_writer_is_taken_for_dead_after_an_hour(tmp_path: Path) -> None:
    for age, stays in ((3600.5, False), (3000, True)):
        left = tmp_path / f".x.{age}.tmp"
        left.touch()
        os.utime(left, (time.time() - age, time.time() - age))
        write_atomic(tmp_path / "x", f"{age}")
        assert left.exists() == stays


def test_only_folders_with_manifest_and_scores_are_runs(tmp_path: Path) -> None:
    for name in ("b", "a", "unfinished"):
        filled(tmp_path / "runs" / name)
    for name in ("b", "a", "stray"):
        (tmp_path / "runs" / name).mkdir(exist_ok=True)
        (tmp_path / "runs" / name / "scores.json").write_text("{}")
    assert find_runs(tmp_path) == [tmp_path / "runs" / "a", tmp_path / "runs" / "b"]
    assert find_runs(tmp_path / "runs" / "b") == [tmp_path / "runs" / "b"]


def test_a_damaged_line_is_refused_by_file_and_line(tmp_path: Path) -> None:
    path = filled(tmp_path) / ANSWERS
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"\n") + 10] ^= 1
    path.write_bytes(raw)
    with pytest.raises(StoreError, match=r"answers\.jsonl:2: this answer is damaged"), Run(tmp_path, MANIFEST):
        pass


def test_a_run_that_could_not_be_opened_is_not_held(tmp_path: Path) -> None:
    path = filled(tmp_path) / ANSWERS
    whole = path.read_bytes()
    path.write_bytes(b"{}\n")
    run = Run(tmp_path, MANIFEST)
    with pytest.raises(StoreError, match="damaged"):
        run.__enter__()
    path.write_bytes(whole)
    with Run(tmp_path, MANIFEST) as other:
        assert len(other.answers) == 3


def test_two_answers_to_one_question_are_refused(tmp_path: Path) -> None:
    path = filled(tmp_path) / ANSWERS
    line = path.read_bytes().split(b"\n")[1]
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(StoreError, match="sample '1' has two answers"), Run(tmp_path, MANIFEST):
        pass


def test_what_a_line_leaves_out_has_its_usual_value(tmp_path: Path) -> None:
    (tmp_path / ANSWERS).write_bytes(journal.encode({"id": "0", "text": "yes"}))
    assert read_answers(tmp_path) == {"0": Answer("0", Generation("yes", "", 0, "unknown"))}


def test_verdicts_are_read_back_and_a_damaged_line_is_named(tmp_path: Path) -> None:
    rows = [{"id": "0", "credit": 0.3, "groups": ["a"]}, {"id": "1", "credit": None, "error": "half a pair \ud800"}]
    with Run(filled(tmp_path), MANIFEST) as run:
        run.finish(SCORES, lambda: iter(rows), complete=False)
    assert list(read_verdicts(tmp_path)) == rows
    path = tmp_path / "verdicts.jsonl"
    path.write_text(path.read_text() + '{"id": \n')
    with pytest.raises(StoreError, match=r"verdicts\.jsonl:3 is damaged: .* Delete it, then run"):
        list(read_verdicts(tmp_path))
    path.write_bytes(b"\xff\n")
    with pytest.raises(StoreError, match=r"verdicts\.jsonl is damaged: .* Delete it, then run"):
        list(read_verdicts(tmp_path))
    path.unlink()
    with pytest.raises(StoreError, match=r"verdicts\.jsonl cannot be read \(No such file or directory\)\. To have it"):
        list(read_verdicts(tmp_path))


def test_a_sample_is_answered_failed_or_missing(tmp_path: Path) -> None:
    with Run(tmp_path, MANIFEST) as run:
        run.append([answer(0), Answer("1", None, Failure("timeout", "too long"))])
        assert [run.state(key) for key in "012"] == ["ok", "error", "missing"]


def test_a_failed_answer_may_be_tried_again(tmp_path: Path) -> None:
    with Run(tmp_path, MANIFEST) as run:
        run.append([Answer("0", None, Failure("data_error", "no such image"))])
        run.append([answer(0)])
    with Run(tmp_path, MANIFEST) as run:
        assert run.state("0") == "ok"
    assert read_answers(tmp_path) == {"0": answer(0)}


def test_another_configuration_is_refused_with_the_difference(tmp_path: Path) -> None:
    filled(tmp_path)
    other = replace(MANIFEST, model=replace(MODEL, weights="b"))
    with pytest.raises(StoreError, match=r"model\.weights: 'a' on disk, 'b' now"), Run(tmp_path, other):
        pass


def test_the_key_depends_on_content_not_on_order() -> None:
    def key(settings: dict[str, Any]) -> str:
        return replace(MANIFEST, model=replace(MODEL, settings=settings)).key

    assert key({"a": 1, "b": {"c": 2, "d": 3}}) == key({"b": {"d": 3, "c": 2}, "a": 1})
    assert key({"a": 1}) != key({"a": 2})


def test_a_second_process_on_the_same_run_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from vlmamba_eval.store import Run\n"
        "from tests.vlmamba_eval.test_store import MANIFEST\n"
        "with Run(Path(sys.argv[1]), MANIFEST): print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdin is not None
        assert owner.stdout is not None
        assert owner.stdout.readline() == "open\n"
        with pytest.raises(StoreError, match=f"process {owner.pid} on "), Run(tmp_path, MANIFEST):
            pass
        owner.kill()
    with Run(tmp_path, MANIFEST):
        pass  # the lock of a killed owner is free


@pytest.mark.parametrize("locks", [True, False])
@pytest.mark.filterwarnings("ignore:flock not supported")  # filelock's own note
def test_a_second_writer_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: bool) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    def sleep(_: float) -> None:
        raise AssertionError("it waits")

    if not locks:
        monkeypatch.setattr("fcntl.flock", refuse)
    with Run(tmp_path, MANIFEST):
        monkeypatch.setattr(time, "sleep", sleep)
        with pytest.raises(StoreError, match="is being written by process"), Run(tmp_path, MANIFEST):
            pass


def test_whatever_the_owner_of_a_run_wrote_of_itself_is_shown(tmp_path: Path) -> None:
    with Run(tmp_path, MANIFEST):
        (tmp_path / ".owner").write_bytes(b"process 7 on \xff\n")
        with (
            pytest.raises(StoreError, match="is being written by process 7 on \ufffd\\. Wait"),
            Run(tmp_path, MANIFEST),
        ):
            pass
        (tmp_path / ".owner").unlink()
        with (
            pytest.raises(StoreError, match=r"written by another process\. Wait for it"),
            Run(tmp_path, MANIFEST),
        ):
            pass


def test_answers_in_order_are_not_written_again(tmp_path: Path) -> None:
    path = filled(tmp_path) / ANSWERS
    before = path.stat().st_ino
    with Run(tmp_path, MANIFEST) as run:
        run.settle(["0", "1", "2", "not asked yet"])
        assert path.stat().st_ino == before
        run.settle(["2", "0", "1"])
        assert path.stat().st_ino != before
    assert list(read_answers(tmp_path)) == ["2", "0", "1"]


def test_settling_leaves_out_failures_that_a_later_try_mended(tmp_path: Path) -> None:
    failed = Answer("0", None, Failure("data_error", "no such image"))
    for name, reopen in (("at once", False), ("after another start", True)):
        with Run(tmp_path / name, MANIFEST) as run:
            run.append([failed])
            run.append([answer(1)])
        with Run(tmp_path / name, MANIFEST) as run:
            run.append([answer(0)])
            run.append([answer(2)])
            if not reopen:
                run.settle(["0", "1", "2"])
        with Run(tmp_path / name, MANIFEST) as run:
            run.settle(["0", "1", "2"])
        assert (tmp_path / name / ANSWERS).read_bytes().count(b"\n") == 3
        assert read_answers(tmp_path / name) == {str(i): answer(i) for i in range(3)}


def test_settling_leaves_out_answers_that_nobody_asks_for(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    with Run(tmp_path, MANIFEST) as run:
        run.settle(["0"])
        assert list(run.answers) == ["0"]
    assert read_answers(tmp_path) == {"0": answer(0)}


def test_a_full_disk_keeps_what_was_answered_and_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = None
    with Run(tmp_path, MANIFEST) as run:
        run.append([answer(0)])
        before = (tmp_path / ANSWERS).read_bytes()

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1234.5 * 2**20))
        with pytest.raises(
            StoreError, match=r"answers\.jsonl cannot be written \(No space left on device\)\. .* 1,234\.5 MiB are free"
        ):
            run.append([answer(1)])
    assert (tmp_path / ANSWERS).read_bytes() == before


def test_a_run_of_another_format_is_refused_with_what_to_do(tmp_path: Path) -> None:
    filled(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"format": 2', '"format": 7'))
    for read in (lambda: read_manifest(tmp_path), lambda: Run(tmp_path, MANIFEST).__enter__()):
        with pytest.raises(StoreError, match=r"manifest\.json is of format 7; .* reads format 2\. Read it with"):
            read()


SCORE = Score("accuracy", "test", "all", 50.0, 40.0, None, 3, 1, 0, 0, 0, 0, True)
READERS = {"manifest.json": read_manifest, "scores.json": read_scores}


def damaged_json(whole: dict[str, Any]) -> Iterator[bytes]:
    """What may be left of a JSON file: cut off, overwritten, or with one field absent or of another type."""
    text = json.dumps(whole).encode()
    yield from (b"", text[: len(text) // 2], text[:-1], b"[]", b"3", b"null", b'{"format": 2}', bytes(range(256)))
    yield b"[" * 100_000
    for field in whole:
        yield json.dumps(whole | {field: {"a": [1]}}).encode()
    for field in ("format", "task", "data", "sha256"):
        if field in whole:
            yield json.dumps({name: value for name, value in whole.items() if name != field}).encode()
    if "scores" in whole:
        scores = whole["scores"]
        for field in fields(Scores):
            yield json.dumps(whole | {"scores": scores | {field.name: {"a": [1]}}}).encode()
        row = scores["scores"][0]
        for field in fields(Score):
            yield json.dumps(whole | {"scores": scores | {"scores": [row, row | {field.name: ["x"]}]}}).encode()
        yield json.dumps(whole | {"scores": scores | {"scores": [row | {"value": 99.0}]}}).encode()


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_an_error_that_names_it_and_says_what_to_do(tmp_path: Path, name: str) -> None:
    read = READERS[name]
    with Run(filled(tmp_path), MANIFEST) as run:
        run.finish(replace(SCORES, marks=("PARTIAL",), scores=(SCORE,)), list, complete=False)
    path = tmp_path / name
    whole = json.loads(path.read_text())
    assert read(tmp_path) in (MANIFEST, replace(SCORES, marks=("PARTIAL",), scores=(SCORE,)))
    for content in damaged_json(whole):
        path.write_bytes(content)
        with pytest.raises(StoreError) as caught:
            read(tmp_path)
        assert re.match(re.escape(str(path)) + " (is|was) ", str(caught.value)), content
        assert re.search(r"Delete it, then run the same evaluation|Read it with the version", str(caught.value))
    path.unlink()
    with pytest.raises(StoreError, match=f"{name} is missing"):
        read(tmp_path)
    path.mkdir()
    with pytest.raises(StoreError, match=rf"{name} cannot be read \(Is a directory\)"):
        read(tmp_path)


def test_a_finished_run_is_sealed(tmp_path: Path) -> None:
    """One changed digit in the scores, or one answer more or less, and nothing is shown."""
    with Run(filled(tmp_path), MANIFEST) as run:
        run.finish(replace(SCORES, scores=(SCORE,)), list, complete=True)
    assert read_scores(tmp_path).scores == (SCORE,)
    path = tmp_path / "scores.json"
    whole = path.read_text()
    path.write_text(whole.replace("50.0", "90.0"))
    with pytest.raises(StoreError, match=r"scores\.json was edited"):
        read_scores(tmp_path)
    path.write_text(whole)
    answers = tmp_path / ANSWERS
    answers.write_bytes(b"".join(answers.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(StoreError, match=r"answers\.jsonl changed after the run was finished"):
        read_scores(tmp_path)


def test_answers_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / ANSWERS).unlink()
    (tmp_path / ANSWERS).mkdir()
    with pytest.raises(StoreError, match=r"answers\.jsonl cannot be written"), Run(tmp_path, MANIFEST):
        pass
    with pytest.raises(StoreError, match=r"answers\.jsonl cannot be read"):
        read_answers(tmp_path)


def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on nothing can be written, as on a disk that is mounted for reading alone."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    monkeypatch.setattr("tempfile.mkstemp", refuse)
    really_open = open

    def read_only_open(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        return really_open(file, mode, *rest, **named) if set(mode) <= set("rbt") else refuse()

    monkeypatch.setattr("builtins.open", read_only_open)


def test_a_finished_run_opens_on_a_disk_that_can_only_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Run(filled(tmp_path), MANIFEST) as run:
        run.finish(SCORES, list, complete=True)
    read_only(monkeypatch)
    with Run(tmp_path, MANIFEST) as run:
        assert list(run.answers) == ["0", "1", "2"]
        run.finish(SCORES, list, complete=True)  # nothing changes, so nothing is written
        for change in (
            lambda: run.append([answer(3)]),
            lambda: run.log(event="start"),
            lambda: run.finish(replace(SCORES, n=4), list, complete=True),
        ):
            with pytest.raises(StoreError, match=r"cannot be written \(Read-only file system\)"):
                change()


def test_an_unfinished_run_on_such_a_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path)
    read_only(monkeypatch)
    with pytest.raises(StoreError, match="cannot be written"), Run(tmp_path, MANIFEST):
        pass


def test_damaged_telemetry_harms_nothing(tmp_path: Path) -> None:
    with Run(tmp_path, MANIFEST) as run:
        run.log(event="start", data="/first")
        run.log(event="start", data="/second")
        run.log(event="end")
    assert data_source(tmp_path) == "/second"
    path = tmp_path / "telemetry.jsonl"
    path.write_bytes(path.read_bytes() + b'[]\n{"torn}\n\xff\x00{"data": ')
    assert data_source(tmp_path) == "/second"
    path.write_bytes(b"\x00")
    assert data_source(tmp_path) is None
    path.unlink()
    path.mkdir()
    assert data_source(tmp_path) is None


def test_derived_files_come_last_and_done_only_when_complete(tmp_path: Path) -> None:
    with Run(tmp_path, MANIFEST) as run:
        run.finish(SCORES, list, complete=False)
        assert not (tmp_path / "DONE").exists()
        run.finish(SCORES, list, complete=True)
    assert (tmp_path / "DONE").exists()
    assert read_scores(tmp_path) == SCORES
    assert not list(tmp_path.glob(".scores.json*"))


@pytest.mark.parametrize("name", ["../../etc", "a/b", "C:\\x", "", "...", "a b%", "é"])
def test_no_model_name_leaves_the_results_folder(name: str) -> None:
    safe = folder_name(name)
    assert safe
    assert set(safe) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    assert not safe.startswith(".")
