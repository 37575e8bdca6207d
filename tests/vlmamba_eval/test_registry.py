"""Anybody can add a benchmark or a model: from another package, from a plain file, or questions without any code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.toys import picture
from vlmamba_eval.registry import GROUPS, Family, Registry, get_task, get_tasks, names_of, options_of, registry
from vlmamba_eval.task import Task
from vlmamba_eval.types import DataError, UsageError

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "tests" / "example_package"


def run(*arguments: str, cwd: Path, path: tuple[Path, ...] = ()) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path)), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "vlmamba_eval", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)


def installed(package: Path, where: Path) -> Path:
    """The package as an installer leaves it: its modules, and its metadata with the entry points."""
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--target",
            where,
            package,
        ],
        check=True,
        capture_output=True,
    )
    return where


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(EXAMPLE, tmp_path_factory.mktemp("site"))


def vizwiz(folder: Path) -> Path:
    """Two rows of VizWiz, each about a red picture."""
    rows = [
        {"image": f"VizWiz_val_{i}.png", "question": "Which colour is it?", "answers": [{"answer": "#ff0000"}] * 10}
        for i in range(2)
    ]
    (folder / "vizwiz" / "val").mkdir(parents=True)
    (folder / "vizwiz" / "val.json").write_text(json.dumps(rows))
    for row in rows:
        (folder / "vizwiz" / "val" / row["image"]).write_bytes(picture("red"))
    return folder


def test_another_packages_benchmark_and_model_are_found_by_entry_points(site: Path, tmp_path: Path) -> None:
    listed = run("list", "tasks", cwd=tmp_path, path=(site,)).stdout
    assert next(line for line in listed.splitlines() if line.startswith("example_vizwiz")).endswith("vlmamba-example")
    assert "corner" in run("list", "models", "colour", cwd=tmp_path, path=(site,)).stdout
    data = vizwiz(tmp_path / "data")
    arguments = ("--tasks", "example_vizwiz", "--data", str(data), "--allow-partial", "--model", "colour")
    done = run(*arguments, "--model-option", "corner=last", cwd=tmp_path, path=(site,))
    assert done.returncode == 0, done.stderr
    assert "100.0" in done.stdout
    wrong = run(*arguments, "--model-option", "corner=middle", cwd=tmp_path, path=(site,))
    assert wrong.returncode == 2
    assert "Invalid enum value 'middle'" in wrong.stderr


def test_a_plain_file_adds_a_benchmark_and_a_model(tmp_path: Path) -> None:
    found = Registry()
    found.include(EXAMPLE / "vlmamba_example")
    assert found.origins["task", "example_vizwiz"].endswith("vizwiz.py")
    assert [option.name for option in options_of(found.families["colour"])] == ["corner"]
    assert ("colour", "one") in names_of([found.families["colour"]])


def test_what_a_plain_file_lacks_or_does_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        Registry().include(tmp_path / "none.py")
    for name, text, message in (
        ("empty", "", "exports neither TASKS"),
        ("broken", "1 / 0", "ZeroDivisionError"),
        ("odd", "TASKS = ('gqa',)", "should be a tuple of `vlmamba_eval.task.Task`"),
        ("model", "FAMILY = 3", "should be a `vlmamba_eval.registry.Family`"),
    ):
        (tmp_path / f"{name}.py").write_text(text)
        with pytest.raises(UsageError, match=message):
            Registry().include(tmp_path / f"{name}.py")


def test_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from vlmamba_eval.registry import Family\nFAMILY = Family('vlmamba', 'mine', lambda name, options: None)\n"
    )
    with pytest.raises(UsageError, match=r"The family 'vlmamba' of .*mine\.py has the name of one of vlmamba-eval"):
        Registry().include(tmp_path / "mine.py")


def test_everything_of_ours_is_known_and_says_so() -> None:
    known = registry()
    assert all(isinstance(task, Task) for task in known.tasks.values())
    assert all(isinstance(family, Family) and family.summary for family in known.families.values())
    assert set(known.origins) == {*(("task", t) for t in known.tasks), *(("family", f) for f in known.families)}


def test_groups_and_the_papers_abbreviations_stand_for_tasks() -> None:
    assert [task.info.name for task in get_tasks(["sqa", "VQA-T", "mmb", "textvqa"])] == [
        "scienceqa_img", "textvqa", "mmbench",
    ]  # fmt: skip
    for name, members in GROUPS.items():
        assert [task.info.name for task in get_tasks([name])] == list(members)
    with pytest.raises(UsageError, match="Did you mean: paper"):
        get_tasks(["papers"])


HOSTILE = "raise SystemExit('a file of the user was imported')\n"


def test_files_of_the_user_change_nothing(tmp_path: Path) -> None:
    """A `tasks.py` or `model_adapters/` in the current folder, or on PYTHONPATH, is the user's own affair."""
    for name in ("tasks.py", "model_adapters.py", "types_.py", "registry.py", "store.py"):
        (tmp_path / name).write_text(HOSTILE)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "__init__.py").write_text(HOSTILE)
    done = run("--model", "constant:no", "--tasks", "pope", "--data", "samples", cwd=tmp_path, path=(tmp_path, ROOT))
    assert done.returncode == 0, done.stderr
    assert "a file of the user" not in done.stdout + done.stderr


def test_a_wheel_installs_one_name_and_runs_beside_a_hostile_file(tmp_path: Path) -> None:
    """Built from a source distribution, installed without its dependencies beside those that are here."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "-w", tmp_path / "dist", ROOT], check=True, capture_output=True)
    [wheel] = (tmp_path / "dist").glob("vlmamba_eval-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"vlmamba_eval"}
    for wanted in (
        "vlmamba_eval/tasks/pope.py",
        "vlmamba_eval/tasks/samples/data/pope/coco/coco_pope_popular.json",
        "vlmamba_eval/model_adapters/vlmamba/tiny/model.safetensors",
        "vlmamba_eval/baselines.csv",
    ):
        assert wanted in names
    venv.create(tmp_path / "env", with_pip=False)
    site = next((tmp_path / "env").glob("lib/python*/site-packages"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    ours = [entry for entry in sys.path if entry.endswith("site-packages")]
    (site / "zz.pth").write_text("\n".join(ours) + "\n")
    (tmp_path / "tasks.py").write_text(HOSTILE)
    command = [tmp_path / "env" / "bin" / "python", "-m", "vlmamba_eval"]
    arguments = ["--model", "constant", "--tasks", "pope,gqa", "--data", "samples", "--out", "out"]
    done = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    where = subprocess.run(
        [command[0], "-c", "import vlmamba_eval; print(vlmamba_eval.__file__)"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert where.stdout.strip().startswith(str(site))


# -- questions of one's own --------------------------------------------------------------------------------------------


def test_questions_of_ones_own_need_no_code(tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(picture("red"))
    rows = [
        {"question": "Is it red?", "answer": "yes", "image": "red.png", "group": "easy"},
        {"question": "Which is it?", "answer": "blue", "options": ["red", "blue"], "image": "red.png"},
        {"question": "What colour?", "answer": ["red", "crimson"], "image": "red.png"},
        {"question": "How many?", "answer": ["yes"] * 6 + ["two"] * 4, "type": "short"},
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = get_task(f"file:{tmp_path / 'mine.jsonl'}")
    done = run(
        "--model", "constant:yes", "--tasks", f"file:{tmp_path / 'mine.jsonl'}", cwd=tmp_path, path=(ROOT,)
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "50.0" in done.stdout  # yes to the first and, with six of ten annotators, to the last
    [first, second, third, last] = task.load(None).samples  # type: ignore[arg-type]
    assert task.prompt(first) == "Is it red?\nAnswer the question using a single word or phrase."
    assert second.target == "B"
    assert task.grade(second, "B").credit == 1.0
    assert task.grade(third, "Crimson.").credit == 1.0
    assert task.grade(last, "two").credit == 1.0
    assert task.grade(last, "three").credit == 0.0


def test_a_table_with_tabs_does_as_well(tmp_path: Path) -> None:
    (tmp_path / "mine.tsv").write_text('question\tanswer\tA\tB\nWhich?\tred\tred\tblue\nWhat?\t["a", "b"]\t\t\n')
    first, second = get_task(f"file:{tmp_path / 'mine.tsv'}").load(None).samples  # type: ignore[arg-type]
    assert (first.choices, first.target) == (("red", "blue"), "A")
    assert second.target == ("a", "b")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "?"}, "field 'answer' should hold the right answer"),
        ({"question": "?", "answer": "a", "anwser": 1}, "column 'anwser' is not known here"),
        ({"question": "?", "answer": "c", "options": ["a", "b"]}, "should be the letter or the text of one"),
        ({"question": "?", "answer": "maybe", "type": "yes_no"}, "should be yes or no"),
        ({"question": "?", "answer": "a", "type": "essay"}, "should be one of 'yes_no', 'choice', 'short'"),
        ({"question": "?", "answer": "a", "image": "../x.png"}, "leaves the image folder"),
        ({"question": "?", "answer": ["a"] * 11}, "at most 10 references"),
        ({"question": "?", "answer": "A", "options": ["a"]}, "2 to 8 options, found 1"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, row: dict, message: str) -> None:
    (tmp_path / "mine.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=rf"mine\.jsonl:1: .*{message}"):
        get_task(f"file:{tmp_path / 'mine.jsonl'}")
