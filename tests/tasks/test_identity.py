"""A list that is not the benchmark's is refused, for every task: altered in one question, its size tells nothing."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from vlmamba_eval.dataset import load_dataset
from vlmamba_eval.identity import identity, list_problem
from vlmamba_eval.registry import all_tasks, get_task
from vlmamba_eval.task import Task
from vlmamba_eval.types import DataError, ImageRef, Loaded, Sample

TASKS = list(all_tasks())
KNOWN_BY_WORDS = [name for name in TASKS if get_task(name).info.sha256]
KNOWN_BY_GROUPS = [name for name in TASKS if get_task(name).info.counts]
KNOWN_BY_LABELS = [name for name in TASKS if get_task(name).info.labels_sha256]
GROUP = {"mme": "existence", "mme_mmmamba": "existence"}


@pytest.fixture(autouse=True)
def declared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks are shared by all tests: what a test declares for one is gone after it."""
    for name in TASKS:
        monkeypatch.setattr(get_task(name), "info", get_task(name).info)


def small_list(task: Task) -> list[Sample]:
    """Four questions about two pictures, as the task would hold them."""
    fields = {"hint": "", "words": (), "base": 0, "split": "dev", "asked": "?"}
    groups = (GROUP.get(task.info.name, next(iter(task.info.counts), "any")),)
    return [
        Sample(
            f"a/{n}", ImageRef(f"{n // 2}", f"{n // 2}.png"), f"What is {n}?", "A", ("red", "blue"), groups, fields,
            external_id=f"existence/{n // 2}.png", where=f"list.json:{n + 1}",
        )
        for n in range(4)
    ]  # fmt: skip


def declare(task: Task, samples: list[Sample]) -> None:
    """Let the small list be the benchmark's, in everything that the task declares about its own."""
    counts = Counter(group for sample in samples for group in sample.groups) if task.info.counts else {}
    task.info = replace(
        task.info,
        questions=len(samples),
        images=2,
        ids=r"a/\d" if task.info.ids else "",
        counts=counts,
        sha256=(identity(task, samples),) if task.info.sha256 else (),
        labels_sha256=(identity(task, samples, labels=True),) if task.info.labels_sha256 else (),
    )


@pytest.mark.parametrize("name", TASKS)
def test_every_list_has_an_identity_beyond_its_size(name: str) -> None:
    info = get_task(name).info
    assert info.sha256 or info.counts or info.ids


@pytest.mark.parametrize("name", KNOWN_BY_WORDS)
def test_another_question_in_a_list_of_the_right_size_is_refused(name: str) -> None:
    task = get_task(name)
    samples = small_list(task)
    declare(task, samples)
    assert list_problem(task, samples) == ""
    altered = [*samples[:-1], replace(samples[-1], id="a/7", question="What is 7?", external_id="existence/7.png")]
    assert "the 4 questions are not those of" in list_problem(task, altered)


@pytest.mark.parametrize("name", KNOWN_BY_GROUPS)
def test_a_question_of_another_group_is_refused(name: str) -> None:
    task = get_task(name)
    samples = small_list(task)
    declare(task, samples)
    kind = samples[0].groups[0].rpartition("/")[0]
    moved = [*samples[:-1], replace(samples[-1], groups=(f"{kind}/other" if kind else "other",))]
    assert list_problem(task, moved).startswith(f"expected 4 questions of {samples[0].groups[0]} ")
    if kind:  # LLaVA's question files name no groups: there is nothing to count
        assert list_problem(task, [replace(sample, groups=()) for sample in samples]) == ""


@pytest.mark.parametrize("name", KNOWN_BY_LABELS)
def test_another_gold_label_is_refused(name: str) -> None:
    task = get_task(name)
    samples = small_list(task)
    declare(task, samples)
    altered = [*samples[:-1], replace(samples[-1], target="B")]
    assert "the gold labels are not those of" in list_problem(task, altered)


@pytest.mark.parametrize("name", [name for name in TASKS if get_task(name).info.ids])
def test_an_id_of_another_list_is_refused_with_its_row(name: str) -> None:
    task = get_task(name)
    samples = small_list(task)
    declare(task, samples)
    altered = [*samples[:-1], replace(samples[-1], id="b")]
    assert list_problem(task, altered).startswith("list.json:4: 'b' has not the form of ")


def test_an_altered_list_stops_a_run_or_is_marked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    task = get_task("vsr")
    samples = small_list(task)
    declare(task, samples)
    monkeypatch.setattr(type(task), "load", lambda self, folder: Loaded(samples))
    assert load_dataset(task, str(tmp_path)).identity.marks == ()
    samples[0] = replace(samples[0], question="What is new?")
    with pytest.raises(DataError, match=r"^vsr: the 4 questions are not those of zeroshot test.*--allow-partial"):
        load_dataset(task, str(tmp_path))
    assert load_dataset(task, str(tmp_path), allow_partial=True).identity.marks == ("PARTIAL",)


def test_order_and_white_space_do_not_change_a_list() -> None:
    task = get_task("vsr")
    samples = small_list(task)
    spaced = [replace(sample, question=f" {sample.question.replace(' ', '  ')}\n") for sample in samples]
    assert identity(task, samples) == identity(task, spaced[::-1])
    assert identity(task, samples) != identity(task, [replace(sample, image=None) for sample in samples])


@pytest.mark.parametrize("name", ["pope", "pope_cobra", "pope_mambavl", "gqa", "gqa_cobra", "gqa_mmmamba", "textvqa"])
def test_the_true_lists_have_their_declared_identity(name: str, real: Path) -> None:
    assert load_dataset(get_task(name), str(real)).identity.marks == ()


@pytest.mark.parametrize("name", ["scienceqa", "scienceqa_img"])
def test_the_released_scienceqa_and_llavas_copy_of_it_are_one_list(name: str, real: Path, tmp_path: Path) -> None:
    task = get_task(name)
    released = load_dataset(task, str(real)).samples
    (tmp_path / "scienceqa").mkdir()
    (tmp_path / "scienceqa/llava_test_CQM-A.json").write_bytes((real / "scienceqa/llava_test_CQM-A.json").read_bytes())
    llava = load_dataset(task, str(tmp_path)).samples
    assert identity(task, released, labels=True) == identity(task, llava, labels=True)


def test_one_label_of_the_true_pope_list_altered_is_refused(real: Path, tmp_path: Path) -> None:
    for split in ("adversarial", "random", "popular"):
        rows = [json.loads(line) for line in (real / f"pope/coco/coco_pope_{split}.json").read_text().splitlines()]
        if split == "popular":
            rows[7]["label"] = {"yes": "no", "no": "yes"}[rows[7]["label"]]
        path = tmp_path / f"pope/coco/coco_pope_{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match="pope: the gold labels are not those of COCO val2014"):
        load_dataset(get_task("pope"), str(tmp_path))


ANOTHER = ["pope_9000", "seed", "seed_updated", "mmbench", "mmbench_20231003", "scienceqa", "refcoco", "nocaps"]


@pytest.mark.parametrize("name", ANOTHER)
def test_the_whole_list_of_another_task_is_refused_by_its_name_even_as_a_part(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As when POPE's pinned list lies in the folder of `pope_9000`: its numbers would stand under the wrong name."""
    task = get_task(name)
    other = next(t for t in all_tasks().values() if type(t) is type(task) and t.info.name != name)
    samples = small_list(other)
    declare(other, samples)
    task.info = replace(task.info, questions=5)
    monkeypatch.setattr(type(task), "load", lambda self, folder: Loaded(samples))
    with pytest.raises(DataError, match=re.escape(f"This is the list of {other.info.name}: use --tasks")):
        load_dataset(task, str(tmp_path), allow_partial=True)
    monkeypatch.setattr(type(task), "load", lambda self, folder: Loaded(samples[:2]))
    assert load_dataset(task, str(tmp_path), allow_partial=True).identity.marks == ("PARTIAL",)


def test_a_size_alone_makes_no_list_anothers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    task, other = get_task("refcoco"), get_task("refcoco+")
    samples = small_list(other)
    monkeypatch.setattr(type(task), "load", lambda self, folder: Loaded(samples))
    other.info = replace(other.info, questions=4, images=2, ids="")
    assert load_dataset(task, str(tmp_path), allow_partial=True).identity.marks == ("PARTIAL",)
    other.info = replace(other.info, ids=r"a/\d")
    with pytest.raises(DataError, match="This is the list of refcoco"):
        load_dataset(task, str(tmp_path), allow_partial=True)


def test_the_pinned_pope_list_is_no_part_of_the_later_one(real: Path) -> None:
    with pytest.raises(DataError, match=r"^pope_9000: expected 9,000 .* This is the list of pope: use --tasks pope\."):
        load_dataset(get_task("pope_9000"), str(real), allow_partial=True)
