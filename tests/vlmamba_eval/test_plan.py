"""Questions are grouped by image across tasks, equal ones asked once, and limits take whole images."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.toys import picture, reference
from vlmamba_eval.dataset import limited
from vlmamba_eval.folder import Folder
from vlmamba_eval.plan import batches, estimated_tokens, finer, plan, share, size_of
from vlmamba_eval.types import Question, Sample


def sample(name: str, image: str | None, text: str = "?") -> Sample:
    return Sample(name, reference(image) if image else None, text, None)


def asked(task: str, *samples: Sample) -> list[tuple[str, Sample]]:
    return [(task, item) for item in samples]


def ask(task: str, item: Sample) -> Question:
    return Question(item.question, {"brief": 8}.get(task, 16))


def test_questions_of_one_image_meet_across_tasks_in_order_of_appearance() -> None:
    groups = plan(asked("a", sample("1", "x", "q1"), sample("2", "y", "q2")) + asked("b", sample("3", "x", "q3")), ask)
    assert [[job.question.text for job in group.jobs] for group in groups] == [["q1", "q3"], ["q2"]]


def test_exact_duplicates_are_asked_once_and_recorded_for_each() -> None:
    [group] = plan(asked("a", sample("1", "x"), sample("2", "x")) + asked("b", sample("1", "x")), ask)
    assert [job.recipients for job in group.jobs] == [[("a", "1"), ("a", "2"), ("b", "1")]]


def test_equal_texts_about_other_images_or_with_another_limit_are_not_duplicates() -> None:
    groups = plan(asked("a", sample("1", "x"), sample("2", "y")) + asked("brief", sample("3", "x")), ask)
    assert [len(group.jobs) for group in groups] == [2, 1]


def test_text_alone_shares_nothing_but_equal_texts() -> None:
    groups = plan(asked("a", sample("1", None, "p"), sample("2", None, "q"), sample("3", None, "p")), ask)
    assert [(group.image, len(group.jobs[0].recipients)) for group in groups] == [(None, 2), (None, 1)]


def test_one_picture_in_two_folders_is_one_image_and_equal_names_alone_are_not_enough(tmp_path: Path) -> None:
    for folder, colour in (("vqav2", "red"), ("pope", "red"), ("other", "blue")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "COCO_1.png").write_bytes(picture(colour))
    images = [Folder(tmp_path).image(tmp_path / folder, "COCO_1.png") for folder in ("vqav2", "pope", "other")]
    groups = plan([("t", Sample(str(i), image, str(i), None)) for i, image in enumerate(images)], ask)
    assert [len(group.jobs) for group in groups] == [2, 1]


def test_a_missing_picture_does_not_stop_the_planning(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(picture())
    images = [Folder(tmp_path).image(tmp_path / folder, "x.png") for folder in ("a", "b")]
    assert len(plan([("t", Sample(str(i), image, "?", None)) for i, image in enumerate(images)], ask)) == 2


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=40), st.integers(1, 400))
def test_batches_keep_every_group_whole_and_within_the_budget(places: list[tuple[int, int]], budget: int) -> None:
    groups = plan([("t", sample(str(i), f"image {image}", f"q{q}")) for i, (image, q) in enumerate(places)], ask)
    packed = list(batches(groups, 20, budget))
    assert [group for batch in packed for group in batch] == groups
    for batch in packed:
        assert len(batch) == 1 or size_of(batch, 20) <= budget
    for batch, following in pairwise(packed):
        assert size_of([*batch, following[0]], 20) > budget  # no batch ends before it is full


def test_tokens_are_estimated_from_characters_with_room_for_template_and_answer() -> None:
    [group] = plan(asked("a", sample("1", "x", "q" * 40), sample("2", "x", "p" * 7)), ask)
    [text] = plan(asked("a", sample("1", None, "q" * 40)), ask)
    assert (estimated_tokens(group, 576), estimated_tokens(text, 576)) == (576 + (10 + 32) + (1 + 32), 10 + 32)
    assert size_of([group, text], 576) == 651 + 42


def test_pictures_of_unlike_names_are_not_read_to_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files of one name may be one picture; 40,000 others are not worth reading."""
    images = [Folder(tmp_path).image(tmp_path, f"{i % 3}.png") for i in range(4)]
    read: list[str] = []
    monkeypatch.setattr("vlmamba_eval.plan.read_image", lambda image: read.append(image.key) or b"")
    assert len(plan([("t", Sample(str(i), image, str(i), None)) for i, image in enumerate(images)], ask)) == 3
    assert read == []


def test_each_machine_gets_eight_batches_of_the_one_plan_the_largest_halved_first() -> None:
    groups = plan([("t", sample(f"{i}", f"image {i}")) for i in range(68)], ask)
    cut = [groups[:64], groups[64:65], groups[65:]]
    shares = [share(cut, 20, number, 2) for number in (1, 2)]
    assert [[len(batch) for batch in one] for one in shares] == [[4, 4, 4, 4, 4, 4, 8, 3], [4, 4, 4, 4, 4, 4, 8, 1]]
    assert [len(batch) for batch in finer(cut, 20, 16)] == [4] * 12 + [8, 8, 1, 3]
    assert [group for batch in finer(cut, 20, 16) for group in batch] == groups
    assert share(cut, 20, 1, 1) == cut  # alone, nothing is made finer
    assert [len(batch) for batch in finer(cut, 20, 1_000)] == [1] * 68


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 3))
def test_a_limit_takes_whole_images_and_a_larger_one_contains_a_smaller(small: int, large: int, seed: int) -> None:
    samples = [sample(f"{i}-{q}", f"image {i}") for i in range(12) for q in range(1 + i % 4)]
    small, large = sorted((small, large))
    chosen, more = limited(samples, small, seed), limited(samples, large, seed)
    assert {item.id for item in chosen} <= {item.id for item in more}
    assert len(chosen) >= min(small, len(samples))
    for item in samples:
        whole = [other for other in samples if other.image == item.image]
        assert (item in chosen) == all(other in chosen for other in whole)


def test_the_sample_depends_on_the_seed_and_not_on_where_the_data_lies() -> None:
    here = [sample(f"{i}", f"here/{i}") for i in range(30)]
    there = [sample(f"{i}", f"there/{i}") for i in range(30)]
    ids = [item.id for item in limited(here, 10, 0)]
    assert len(ids) == 10
    assert ids == [item.id for item in limited(there, 10, 0)]
    assert ids != [item.id for item in limited(here, 10, 1)]
