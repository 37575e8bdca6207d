"""Whatever stands in a file, a reader gives a typed error or reads it; never another exception, never a hang."""

from __future__ import annotations

import json
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.odd import feed
from vlmamba_eval import archive, journal
from vlmamba_eval.answer_files import read_answer_file
from vlmamba_eval.dataset import Dataset, has_samples, load_dataset, samples_folder
from vlmamba_eval.fetch.pack import pack, verify
from vlmamba_eval.fetch.places import LocalPlace
from vlmamba_eval.fetch.zips import read_directory
from vlmamba_eval.registry import all_tasks, get_task
from vlmamba_eval.report.cost import read_telemetry
from vlmamba_eval.score import grade
from vlmamba_eval.stats import summarise
from vlmamba_eval.store import data_source, read_answers, read_manifest, read_scores, read_verdicts
from vlmamba_eval.task import GradesLists, Task
from vlmamba_eval.types import Answer, DataError, Generation

EXAMPLES = [
    pytest.param(10, id="a few"),
    pytest.param(1_000, id="many", marks=pytest.mark.slow),
]
many = pytest.mark.parametrize("examples", EXAMPLES)

# =============================================================================
# Annotations
# =============================================================================

TASKS = [task for task in all_tasks().values() if has_samples(task)]


def annotation_files(task: Task) -> list[Path]:
    """The sample files of a benchmark that are text, relative to the samples' folder."""
    root = samples_folder()
    folders = [root / name for name in task.info.folders if (root / name).is_dir()]
    kinds = (".json", ".jsonl", ".tsv", ".txt")
    return sorted({p.relative_to(root) for folder in folders for p in folder.rglob("*") if p.suffix in kinds})[:6]


def cases() -> list[Any]:
    """Every task with many examples; with a few, one of the tasks that are read by the same function."""
    found, readers = [], set()
    for task in TASKS:
        if type(task).load not in readers:
            found.append(pytest.param(task, 10, id=f"{task.info.name}-a few"))
        readers.add(type(task).load)
        found.append(pytest.param(task, 500, id=f"{task.info.name}-many", marks=pytest.mark.slow))
    return found


@pytest.mark.parametrize(("task", "examples"), cases())
def test_no_annotation_file_brings_a_reader_down(task: Task, tmp_path: Path, examples: int) -> None:
    """From the file to the scores, for ids, groups and labels go all the way."""
    for file in annotation_files(task):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(samples_folder() / file, tmp_path / file)

    def read() -> None:
        dataset = load_dataset(task, str(tmp_path), allow_partial=True)
        for sample in dataset.samples[:50]:
            task.prompt(sample)
        if dataset.labelled and not isinstance(task, GradesLists):
            answers = {s.id: Answer(s.id, Generation("yes, A (B) 3", "", 3, "eos"), None) for s in dataset.samples}
            summarise(task, grade(dataset, answers), dataset.extra, replicates=2)

    feed([tmp_path / file for file in annotation_files(task)], read, examples)


# =============================================================================
# Answers of other programs
# =============================================================================


@pytest.fixture(scope="module")
def pope() -> Dataset:
    return load_dataset(get_task("pope"), "samples")


def saved_answers(pope: Dataset) -> dict[str, str]:
    """The same answers as each program writes them: file name -> content."""
    samples = pope.samples[:12]
    prompts = [pope.task.prompt(s) for s in samples]
    keys = [s.answer_key for s in samples]
    docs = [{"doc_id": i, "doc": {"question_id": k}, "resps": [["yes"]], "filtered_resps": ["yes"],
             "input": p} for i, (k, p) in enumerate(zip(keys, prompts, strict=True))]  # fmt: skip

    def lines(rows: list[dict[str, object]]) -> str:
        return "".join(json.dumps(row) + "\n" for row in rows)

    return {
        "llava.jsonl": lines([{"question_id": k, "prompt": p, "text": "yes", "model_id": "m", "metadata": {}}
                              for k, p in zip(keys, prompts, strict=True)]),
        "vqa.json": json.dumps([{"question_id": k, "answer": "yes"} for k in keys]),
        "gqa.json": json.dumps([{"questionId": k, "prediction": "yes"} for k in keys], indent=1),
        "coco.json": json.dumps([{"image_id": k, "caption": "a cat"} for k in keys]),
        "seed.jsonl": lines([{"question_id": k, "prediction": "A"} for k in keys]),
        "mmvet.json": json.dumps(dict.fromkeys(keys, "yes")),
        "scienceqa.json": json.dumps({"acc": 1.0, "results": dict.fromkeys(keys, 1),
                                      "outputs": dict.fromkeys(keys, "A")}),
        "existence.txt": "".join(f"0{i}.jpg\t{p}\tYes\tyes\n" for i, p in enumerate(prompts)),
        "a_samples_pope.jsonl": lines(docs),
        "old_lmms.json": json.dumps({"args": {}, "logs": docs}),
        "vlmevalkit.tsv": "index\tquestion\tprediction\n" + "".join(
            f"{k}\t{p.splitlines()[0]}\tyes\n" for k, p in zip(keys, prompts, strict=True)),
        "vlmevalkit.csv": "index,prediction\n" + "".join(f"{k},yes\n" for k in keys),
        "results.json": json.dumps({k: {"question": p, "model_output": "yes"}
                                    for k, p in zip(keys, prompts, strict=True)}),
    }  # fmt: skip


LAYOUTS = ("llava.jsonl", "vqa.json", "gqa.json", "coco.json", "seed.jsonl", "mmvet.json", "scienceqa.json",
           "existence.txt", "a_samples_pope.jsonl", "old_lmms.json", "vlmevalkit.tsv", "vlmevalkit.csv",
           "results.json")  # fmt: skip


@many
@pytest.mark.parametrize("name", LAYOUTS)
def test_no_answer_file_brings_a_reader_down(pope: Dataset, name: str, tmp_path: Path, examples: int) -> None:
    path = tmp_path / name
    path.write_text(saved_answers(pope)[name])
    feed([path], lambda: read_answer_file(pope, path), examples)


@many
def test_no_sheet_brings_a_reader_down(pope: Dataset, tmp_path: Path, examples: int) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in [["index", "prediction"], *([s.answer_key, "yes"] for s in pope.samples[:3])]:
        book.active.append(row)
    path = tmp_path / "sheet.xlsx"
    book.save(path)
    feed([path], lambda: read_answer_file(pope, path), examples)


# =============================================================================
# Our own files, after somebody else had them
# =============================================================================


@many
def test_no_run_on_disk_brings_a_reader_down(pope: Dataset, tmp_path: Path, examples: int) -> None:
    from vlmamba_eval.model_adapters.constant import Constant
    from vlmamba_eval.run import evaluate

    [outcome] = evaluate(Constant("yes"), [pope], tmp_path)
    folder = outcome.folder
    readers: dict[str, Callable[[Path], object]] = {
        "manifest.json": read_manifest,
        "answers.jsonl": read_answers,
        "scores.json": read_scores,
        "DONE": read_scores,
        "verdicts.jsonl": lambda run: list(read_verdicts(run)),
        "telemetry.jsonl": lambda run: (read_telemetry(run), data_source(run)),
    }
    for name, read in readers.items():
        feed([folder / name], lambda read=read: read(folder), examples)


@many
def test_no_line_with_a_right_check_sum_brings_a_reader_down(pope: Dataset, tmp_path: Path, examples: int) -> None:
    """Whoever changes a line can mend its check sum as well: the fields are checked besides."""
    plain, sealed = tmp_path / "plain.jsonl", tmp_path / "answers.jsonl"
    record = {"id": "a", "text": "yes", "prompt": "?", "n_tokens": 1, "stop": "eos", "likelihoods": [[-1.5, 2]]}
    failed = {"id": "b", "failure": {"kind": "model_error", "message": "broken"}}
    plain.write_text("".join(json.dumps(row) + "\n" for row in (record, failed)))

    def read() -> None:
        lines = [line for line in plain.read_bytes().split(b"\n") if line.endswith(b"}")]
        sealed.write_bytes(b"".join(
            line[:-1] + b', "crc": "%08x"}\n' % zlib.crc32(line[:-1]) for line in lines
        ))  # fmt: skip
        read_answers(tmp_path)
        list(journal.read(sealed))

    feed([plain], read, 2 * examples)


# =============================================================================
# Archives
# =============================================================================


@many
def test_no_directory_of_a_zip_brings_a_reader_down(tmp_path: Path, examples: int) -> None:
    path = tmp_path / "pictures.zip"
    with zipfile.ZipFile(path, "w") as made:
        for i in range(3):
            made.writestr(f"val2014/{i}.jpg", bytes(100 * i), zipfile.ZIP_DEFLATED)
    feed([path], lambda: read_directory(LocalPlace(path), None), 3 * examples)


@many
def test_no_kept_directory_of_a_zip_is_believed(tmp_path: Path, examples: int) -> None:
    """It is read again from the zip."""
    path, cache = tmp_path / "pictures.zip", tmp_path / "cache"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("val2014/1.jpg", bytes(100))

    class Elsewhere:
        """A zip on a server, for which a directory is kept."""

        def __init__(self) -> None:
            self.place = LocalPlace(path)
            self.where, self.size, self.version = "https://example.org/pictures.zip", self.place.size, "1"
            self.read = self.place.read

    read_directory(Elsewhere(), cache)
    [kept] = cache.iterdir()
    feed([kept], lambda: read_directory(Elsewhere(), cache).members.keys(), examples)


@many
def test_no_archive_of_data_brings_a_reader_down(tmp_path: Path, examples: int) -> None:
    """Neither by its bytes, nor by its list of files, if that is written as another would write it."""
    made, path, listed = tmp_path / "made.tar", tmp_path / "data.tar", tmp_path / archive.MANIFEST
    data = tmp_path / "data"
    data.mkdir()
    (data / "mine.jsonl").write_text('{"id": "1", "question": "Red?", "answer": "yes", "image": "a.png"}\n')
    Image.new("RGB", (2, 2)).save(data / "a.png")
    task = get_task(f"file:{data / 'mine.jsonl'}")
    pack([task], str(data), made)
    path.write_bytes(made.read_bytes())
    listed.write_bytes(archive.InArchive(made).joinpath(archive.MANIFEST).read_bytes())

    def check() -> None:
        archive._index.cache_clear()  # an archive of equal size that changed within one tick of the clock
        verify([task], str(path))

    def check_listed() -> None:
        with tarfile.open(path, "w") as tar, tarfile.open(made) as old:
            tar.add(listed, archive.MANIFEST)
            for member in old.getmembers()[1:]:
                tar.addfile(member, old.extractfile(member))
        check()

    feed([path], check, examples)
    feed([listed], check_listed, examples)


@pytest.mark.parametrize("error", [ValueError("9" * 10), RecursionError(), DataError("a " * 2500), DataError("no")])
def test_an_untyped_error_and_an_unreadable_message_are_seen(error: Exception, tmp_path: Path) -> None:
    """The check itself: a reader that fails at one of many inputs."""
    path = tmp_path / "a.json"
    path.write_text('{"a": "b"}')

    def read() -> None:
        if b"\\ud800" in path.read_bytes():
            raise error

    with pytest.raises(type(error) if not isinstance(error, DataError) else AssertionError):
        feed([path], read, 300)
