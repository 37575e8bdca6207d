"""A run answers every question exactly once, whatever happens in between."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
import weakref
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.toys import ToyAdapter, ToyTask, picture, png_with, reference, write_toy_data
from vlmamba_eval.answer_files import score_answers
from vlmamba_eval.dataset import Dataset, load_dataset
from vlmamba_eval.generate import batch_tokens_for, checked, generate, halving
from vlmamba_eval.plan import ImageJobs, Job
from vlmamba_eval.run import Outcome, evaluate
from vlmamba_eval.store import read_answers, read_verdicts
from vlmamba_eval.types import (
    Failure,
    Generation,
    ImageQuestions,
    Likelihood,
    OutOfMemory,
    Progress,
    Question,
    Score,
    UsageError,
)

DERIVED = ("manifest.json", "answers.jsonl", "scores.json", "verdicts.jsonl", "DONE")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_toy_data(tmp_path / "data")


def toy(data: Path, task: ToyTask | None = None) -> Dataset:
    return load_dataset(task or ToyTask(), str(data))


def run(data: Path, out: Path, adapter: ToyAdapter | None = None, **options: int) -> Outcome:
    return evaluate(adapter or ToyAdapter(), [toy(data)], out, **options)[0]  # type: ignore[arg-type]


def derived(outcome: Outcome) -> dict[str, bytes]:
    return {name: (outcome.folder / name).read_bytes() for name in DERIVED}


def headline(outcome: Outcome) -> Score:
    return next(score for score in outcome.scores.scores if score.headline)


def test_every_question_is_answered_and_scored(data: Path, tmp_path: Path) -> None:
    outcome = run(data, tmp_path)
    assert outcome.complete
    assert headline(outcome).value == pytest.approx(100 * 21 / 24)  # three of the repeated questions have a false gold
    assert (headline(outcome).n, headline(outcome).n_images) == (24, 6)


def test_duplicates_are_asked_once_and_each_image_is_prepared_once(data: Path, tmp_path: Path) -> None:
    adapter = ToyAdapter()
    outcome = run(data, tmp_path, adapter)
    assert adapter.images_prepared == 6
    assert len(adapter.asked) == 18  # of 24: "What colour (1)?" is asked twice about every image
    assert len(read_answers(outcome.folder)) == 24


def test_two_tasks_share_their_images(tmp_path: Path) -> None:
    data = write_toy_data(tmp_path / "data")
    write_toy_data(data, "other")
    adapter = ToyAdapter()
    evaluate(adapter, [toy(data), toy(data, ToyTask("other"))], tmp_path / "out")
    assert adapter.images_prepared == 6  # of 12 files: each picture lies in both folders under one name


def test_a_finished_run_generates_nothing_again(data: Path, tmp_path: Path) -> None:
    first = run(data, tmp_path)
    before = derived(first)
    adapter = ToyAdapter()
    assert derived(run(data, tmp_path, adapter)) == before
    assert adapter.asked == []


def test_another_model_or_another_limit_is_another_run(data: Path, tmp_path: Path) -> None:
    first = run(data, tmp_path)
    limited = evaluate(ToyAdapter(), [load_dataset(ToyTask(), str(data), limit=4)], tmp_path)[0]
    assert limited.folder != first.folder
    assert limited.scores.marks == ("PARTIAL",)


def test_the_batch_budget_changes_nothing_but_the_batches(data: Path, tmp_path: Path) -> None:
    one = run(data, tmp_path / "a", batch_tokens=1)
    all_at_once = run(data, tmp_path / "b", batch_tokens=100_000)
    assert derived(one) == derived(all_at_once)


@pytest.mark.parametrize("memory", [1, 2, 3, 5, 11])
def test_out_of_memory_halves_the_batch_and_each_question_is_still_answered_once(
    data: Path, tmp_path: Path, memory: int
) -> None:
    adapter = ToyAdapter(memory=memory)
    outcome = run(data, tmp_path / "small", adapter)
    assert outcome.complete
    assert set(Counter(adapter.asked).values()) == {6}  # three texts, six images
    assert derived(outcome) == derived(run(data, tmp_path / "large"))


def test_out_of_memory_on_one_question_fails_that_question_alone(data: Path, tmp_path: Path) -> None:
    class Tight(ToyAdapter):
        def generate(self, batch):
            from vlmamba_eval.types import OutOfMemory

            if any("(3)" in question.text for item in batch for question in item.questions):
                raise OutOfMemory("too long")
            return super().generate(batch)

    outcome = run(data, tmp_path, Tight())
    assert not outcome.complete
    assert outcome.scores.n_error == 6
    assert "INCOMPLETE" in outcome.scores.marks


def test_a_question_that_an_adapter_cannot_stand_fails_alone_until_the_next_run(data: Path, tmp_path: Path) -> None:
    outcome = run(data, tmp_path, ToyAdapter(poison="(2)"))
    failed = [answer for answer in read_answers(outcome.folder).values() if answer.failure]
    assert len(failed) == 6
    assert failed[0].failure is not None
    assert failed[0].failure.kind == "model_error"
    message = "ValueError: the toy can't stand this question"
    assert failed[0].failure.message == message
    again = run(data, tmp_path)
    assert again.complete
    assert headline(again).value == pytest.approx(100 * 21 / 24)


def test_of_an_error_that_quotes_a_tensor_only_the_beginning_is_kept(data: Path, tmp_path: Path) -> None:
    class Talkative(ToyAdapter):
        def generate(self, batch: Any) -> Any:
            raise ValueError("tensor of " + "0.0, " * 100_000)

    outcome = run(data, tmp_path, Talkative())
    messages = {answer.failure.message for answer in read_answers(outcome.folder).values() if answer.failure}
    assert {message[:30] for message in messages} == {"ValueError: tensor of 0.0, 0.0"}
    assert max(map(len, messages)) < 1100


def test_a_missing_picture_fails_its_questions_alone_and_nothing_computed_is_lost(data: Path, tmp_path: Path) -> None:
    picture = data / "toy" / "images" / "2.png"
    content = picture.read_bytes()
    picture.unlink()
    told = Told()
    outcome = evaluate(ToyAdapter(), [toy(data)], tmp_path, progress=told)[0]
    assert not outcome.complete
    assert (outcome.scores.n_error, headline(outcome).n) == (4, 24)
    assert "2.png): the image is missing" in told.notes[0]
    picture.write_bytes(content)
    adapter = ToyAdapter()
    healed = run(data, tmp_path, adapter)
    assert healed.complete
    assert len(adapter.asked) == 3
    assert healed.scores == run(data, tmp_path / "fresh").scores


def test_a_picture_that_the_adapter_cannot_prepare_fails_its_questions_alone(data: Path, tmp_path: Path) -> None:
    class Picky(ToyAdapter):
        def prepare(self, image):
            if image.getpixel((0, 0)) == (0, 0, 255):
                raise MemoryError("no blue, please")
            return super().prepare(image)

    outcome = run(data, tmp_path, Picky())
    failures = [answer.failure for answer in read_answers(outcome.folder).values() if answer.failure]
    assert len(failures) == 12  # three of six pictures
    assert {(failure.kind, failure.message) for failure in failures} == {
        ("model_error", "MemoryError: no blue, please")
    }


class Told(Progress):
    """Keeps the notes of a run."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def test_a_run_says_which_picture_could_not_be_prepared(data: Path, tmp_path: Path) -> None:
    class Picky(ToyAdapter):
        def prepare(self, image):
            raise MemoryError("no pictures, please")

        def generate(self, batch):
            raise AssertionError("there is nothing to ask")

    told = Told()
    (data / "toy" / "images" / "0.png").write_bytes(b"")
    evaluate(Picky(), [toy(data)], tmp_path, progress=told)
    assert len(told.notes) == 6
    assert "0.png): " in told.notes[0]
    assert told.notes[1].endswith("1.png) can't be prepared: MemoryError: no pictures, please")


def test_a_batch_that_fails_is_halved_picture_by_picture_then_question_by_question() -> None:
    """Every step is told, with the reason; answers that are there are not asked for again."""
    asked: list[list[int]] = []

    def ask(batch: Any) -> Any:
        asked.append([len(item.questions) for item in batch])
        if len(batch) > 1:
            raise OutOfMemory("")
        if any(question.text == "bad" for question in batch[0].questions):
            raise OutOfMemory("4 GiB") if len(batch[0].questions) > 1 else TimeoutError("takes too long")
        return [[generation() for _ in batch[0].questions]]

    questions = [Question("good", 1), Question("bad", 1), Question("good", 1)]
    notes: list[str] = []
    pictures = [ImageQuestions(None, tuple(questions[:1])), ImageQuestions(None, tuple(questions))]
    found = halving(ask, [*pictures, pictures[0]], notes.append)
    assert asked == [[1, 3, 1], [1], [3, 1], [3], [1], [2], [1], [1], [1]]
    assert found == [[generation()], [generation(), Failure("timeout", "takes too long"), generation()], [generation()]]
    assert notes == [
        "3 images together: out of memory; trying 1 at a time.",
        "2 images together: out of memory; trying 1 at a time.",
        "3 questions about one image together: out of memory: 4 GiB; trying 1 at a time.",
        "2 questions about one image together: out of memory: 4 GiB; trying 1 at a time.",
        "A question failed: takes too long",
    ]


def test_an_interrupted_run_prepares_no_more_pictures() -> None:
    class Interrupted(ToyAdapter):
        def prepare(self, image: Image.Image) -> Any:
            time.sleep(0.01)
            return super().prepare(image)

        def generate(self, batch):
            raise KeyboardInterrupt

    adapter = Interrupted()
    groups = [ImageJobs(reference(f"{i}"), [Job(Question("?", 1), [("toy", f"{i}")])]) for i in range(1_000)]
    with pytest.raises(KeyboardInterrupt):
        list(generate(adapter, [groups[:1], groups[1:]]))
    assert adapter.images_prepared < 500


def test_a_failure_that_an_adapter_returns_is_told() -> None:
    notes: list[str] = []
    failed = Failure("model_error", "it has no eyes")
    batch = [ImageQuestions(None, (Question("a", 1), Question("b", 1)))]
    assert checked([[generation(), failed]], batch, notes.append) == [[generation(), failed]]
    assert notes == ["A question failed: it has no eyes"]


@pytest.mark.parametrize(
    ("likelihoods", "problem"),
    [
        ((Likelihood(-1.0, 1), Likelihood(-2.0, 2)), ""),
        ((Likelihood(-1.0, 1),), "1 likelihoods for 2 continuations"),
        ([Likelihood(-1.0, 1), Likelihood(-2.0, 2)], "expected a tuple of Likelihood"),
        ((Likelihood(-1.0, 1), Likelihood(-2, 2)), "expected a tuple of Likelihood"),
        ((Likelihood(-1.0, 1), Likelihood(-2.0, 2.0)), "expected a tuple of Likelihood"),  # type: ignore[arg-type]
        ((Likelihood(-1.0, 1), -2.0), "expected a tuple of Likelihood"),
        ((), "0 likelihoods for 2 continuations"),
    ],
)
def test_every_continuation_must_have_its_likelihood(likelihoods: Any, problem: str) -> None:
    said = Generation("a", "", 1, "likelihood", likelihoods)
    [[found]] = checked([[said]], [ImageQuestions(None, (Question("?", 1, ("a", "b")),))], lambda message: None)
    if problem:
        assert isinstance(found, Failure)
        assert problem in found.message
    else:
        assert found is said


def test_the_budget_of_a_batch_depends_on_the_kind_of_device() -> None:
    devices = ("cpu", "cuda", "cuda:1", "server", "mps:0")
    assert [batch_tokens_for(device) for device in devices] == [16_384, 65_536, 65_536, 4_096, 16_384]


def test_untrained_weights_mark_the_result_and_answers_of_others_do_not(data: Path, tmp_path: Path) -> None:
    random = ToyAdapter()
    random.info = replace(random.info, untrained=True)
    assert run(data, tmp_path, random).scores.marks == ("UNTRAINED",)
    assert run(data, tmp_path / "trained").scores.marks == ()
    path = tmp_path / "answers.jsonl"
    path.write_text('{"question_id": "0-1", "text": "red"}\n')
    assert score_answers(toy(data), path, tmp_path / "theirs").scores.marks == ("INCOMPLETE",)


def test_every_question_has_a_row_of_what_became_of_it(data: Path, tmp_path: Path) -> None:
    (data / "toy" / "images" / "1.png").unlink()

    class Long(ToyAdapter):
        def _answer(self, pixel: Any, question: Question) -> Generation:
            return replace(super()._answer(pixel, question), stop="length" if "(2)" in question.text else "eos")

    outcome = run(data, tmp_path, Long())
    rows = {row["id"]: row for row in read_verdicts(outcome.folder)}
    assert list(rows) == sorted(rows)
    assert rows["2-2"] == {
        "id": "2-2", "image": rows["2-1"]["image"], "question": "What colour (2)?\nAnswer briefly.", "gold": "red",
        "answer": "red", "parsed": "red", "credit": 1.0, "valid": True, "groups": ["even"], "state": "ok",
        "truncated": True, "error": None,
    }  # fmt: skip
    assert rows["2-1"]["image"].endswith("2.png")
    assert (rows["2-1"]["truncated"], rows["2-1"]["groups"]) == (False, ["odd"])
    failed = rows["1-1"]
    assert "the image is missing" in failed.pop("error")
    assert {name: failed[name] for name in ("answer", "parsed", "credit", "valid", "state", "truncated")} == {
        "answer": None, "parsed": None, "credit": None, "valid": None, "state": "error", "truncated": False,
    }  # fmt: skip
    [score] = [score for score in outcome.scores.scores if score.headline]
    assert (score.n_truncated, score.n_error) == (5, 4)


BAD = {
    "empty": b"",
    "web page": b"<!DOCTYPE html><html>404</html>",
    "cut": picture("red", (64, 64))[:80],
    "TIFF": picture(kind="TIFF"),
    "PDF": picture(kind="PDF"),
    "strip": picture("red", (20_000, 1)),
    "comment that unpacks to a gigabyte": png_with(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**30 // 16)) * 16),
    "header of 30,000 x 30,000": png_with(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)),
}


def test_every_bad_picture_is_a_data_error_and_costs_no_other_answer(tmp_path: Path) -> None:
    data = write_toy_data(tmp_path / "data", images=len(BAD) + 1)
    for i, content in enumerate(BAD.values()):
        (data / "toy" / "images" / f"{i}.png").write_bytes(content)
    task = ToyTask(questions=4 * len(BAD) + 4, images=len(BAD) + 1)
    outcome = evaluate(ToyAdapter(), [toy(data, task)], tmp_path)[0]
    answers = read_answers(outcome.folder)
    kinds = {name: answers[f"{i}-0"].failure for i, name in enumerate(BAD)}
    assert {name: failure and failure.kind for name, failure in kinds.items()} == dict.fromkeys(BAD, "data_error")
    assert answers[f"{len(BAD)}-0"].failure is None
    assert outcome.scores.n_error == 4 * len(BAD)


def test_answers_are_on_the_disk_before_a_scorer_can_fail(data: Path, tmp_path: Path) -> None:
    class Broken(ToyTask):
        def grade(self, sample, text):
            raise ZeroDivisionError("a fault in the scorer")

    with pytest.raises(ZeroDivisionError):
        evaluate(ToyAdapter(), [toy(data, Broken())], tmp_path)
    adapter = ToyAdapter()
    assert run(data, tmp_path, adapter).complete
    assert adapter.asked == []


def test_shuffled_questions_and_another_hash_seed_or_clock_change_no_byte(data: Path, tmp_path: Path) -> None:
    path = data / "toy" / "toy.jsonl"
    lines = path.read_text().splitlines()
    found = []
    for i, (order, environment) in enumerate(
        [(lines, {}), (lines[::-1], {"PYTHONHASHSEED": "1", "TZ": "Asia/Tokyo"}), (lines, {"PYTHONHASHSEED": "2"})]
    ):
        path.write_text("\n".join(order) + "\n")
        script = CHILD.replace("questions=160, images=40", "").replace("0.004", "0")
        command = [sys.executable, "-c", script, str(data), str(tmp_path / str(i))]
        subprocess.run(command, check=True, env=os.environ | environment)
        found.append({p.name: p.read_bytes() for p in (tmp_path / str(i)).rglob("*") if p.name in DERIVED})
    assert found[0] == found[2]
    for name in set(DERIVED) - {"answers.jsonl", "DONE"}:  # answers are in the order of the questions; DONE seals that
        assert found[0][name] == found[1][name]
    assert sorted(found[0]["answers.jsonl"].split(b"\n")) == sorted(found[1]["answers.jsonl"].split(b"\n"))


def test_tolerated_errors_leave_the_run_complete_but_marked(data: Path, tmp_path: Path) -> None:
    (data / "toy" / "images" / "2.png").write_bytes(b"")
    outcome = run(data, tmp_path, max_errors=4)
    assert outcome.complete
    assert outcome.scores.marks == ("INCOMPLETE",)
    assert not run(data, tmp_path, max_errors=3).complete


def test_likelihood_is_another_run_and_says_so(data: Path, tmp_path: Path) -> None:
    generated = run(data, tmp_path)
    ranked = evaluate(ToyAdapter(), [toy(data)], tmp_path, scoring="likelihood")[0]
    assert ranked.folder != generated.folder
    assert ranked.scores.scoring == "likelihood"
    assert read_answers(ranked.folder)["0-1"].generation.likelihoods[1].logprob == -3.0  # type: ignore[union-attr]


def test_a_task_without_choices_refuses_likelihood(data: Path, tmp_path: Path) -> None:
    class Open(ToyTask):
        def continuations(self, sample):
            return ()

    with pytest.raises(UsageError, match="toy has no choices to rank"):
        evaluate(ToyAdapter(), [toy(data, Open())], tmp_path, scoring="likelihood")


CHILD = """
import sys, time
from pathlib import Path
from tests.toys import ToyAdapter, ToyTask
from vlmamba_eval.dataset import load_dataset
from vlmamba_eval.run import evaluate
class Slow(ToyAdapter):
    def generate(self, batch):
        time.sleep(0.004)
        return super().generate(batch)
evaluate(Slow(), [load_dataset(ToyTask(questions=160, images=40), sys.argv[1])], Path(sys.argv[2]), batch_tokens=1)
"""


def test_killed_at_random_points_and_resumed_the_run_ends_byte_for_byte_the_same(tmp_path: Path) -> None:
    """Twelve SIGKILLs, each followed by a resumption, against a run that nobody disturbed."""
    data = write_toy_data(tmp_path / "data", images=40)
    command = [sys.executable, "-c", CHILD, str(data)]
    undisturbed = tmp_path / "undisturbed"
    subprocess.run([*command, str(undisturbed)], check=True)
    disturbed = tmp_path / "disturbed"
    for i in range(12):
        with subprocess.Popen([*command, str(disturbed)]) as child:
            answers = disturbed / "runs"
            began = time.monotonic()
            while not list(answers.rglob("answers.jsonl")) and child.poll() is None:
                time.sleep(0.002)
                assert time.monotonic() - began < 60
            time.sleep(0.013 * (i % 5))
            child.send_signal(signal.SIGKILL)
    subprocess.run([*command, str(disturbed)], check=True)
    expected = {p.relative_to(undisturbed): p.read_bytes() for p in undisturbed.rglob("*") if p.name in DERIVED}
    found = {p.relative_to(disturbed): p.read_bytes() for p in disturbed.rglob("*") if p.name in DERIVED}
    assert len(expected) == len(DERIVED)
    assert found == expected


def test_an_adapter_that_returns_too_few_answers_is_found_out(data: Path, tmp_path: Path) -> None:
    class Forgetful(ToyAdapter):
        def generate(self, batch):
            return super().generate(batch)[:-1]

    outcome = run(data, tmp_path, Forgetful())
    assert outcome.scores.n_error == 24


def test_the_harness_costs_at_most_a_fifth_of_a_millisecond_a_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20,000 questions about 1,000 pictures without a model, decoding left out: 0.06 ms where this was written.

    In processor time, so that a busy machine does not fail it. No file stays open.
    """
    data = write_toy_data(tmp_path / "data", images=1000, questions=20)
    dataset = load_dataset(ToyTask(questions=20_000, images=1000), str(data))
    monkeypatch.setattr("vlmamba_eval.generate.open_image", lambda _: Image.new("RGB", (8, 8), "red"))
    files = len(os.listdir("/dev/fd"))
    began = time.process_time()
    evaluate(ToyAdapter(), [dataset], tmp_path / "out")
    assert (time.process_time() - began) / 20_000 < 0.2e-3
    assert len(os.listdir("/dev/fd")) == files


@pytest.mark.parametrize(
    ("nbytes", "fewest", "most"),
    [
        (None, 4, 3 * 4),  # nobody knows how large: the last batch, this one and the next
        (2**25, 3 * 4 + 1, 16 + 2 * 4),  # half a GiB of them
        (100, 100, 200),
    ],
)
def test_pictures_are_prepared_as_far_ahead_as_memory_allows(
    nbytes: int | None, fewest: int, most: int, tmp_path: Path
) -> None:
    class Picture:
        def __init__(self) -> None:
            if nbytes is not None:
                self.nbytes = nbytes

    alive: weakref.WeakSet = weakref.WeakSet()

    class Counting(ToyAdapter):
        most = 0

        def prepare(self, image: Any) -> Any:
            alive.add(one := Picture())
            return {"pixels": [one], "text": "picture"}

        def generate(self, batch: Any) -> Any:
            until = time.monotonic() + (10 if self.most else 0)  # how large they are is known from the first batch
            while len(alive) < fewest and time.monotonic() < until and self.most < fewest:
                time.sleep(0.001)
            self.most = max(self.most, len(alive))
            return super().generate([ImageQuestions(None, item.questions) for item in batch])

    data = write_toy_data(tmp_path / "data", images=200)
    adapter = Counting()
    tokens_of_four = 4 * (10 + 3 * 40)
    dataset = load_dataset(ToyTask(questions=800, images=200), str(data))
    evaluate(adapter, [dataset], tmp_path / "out", batch_tokens=tokens_of_four)
    assert fewest <= adapter.most <= most


class Hanging(ToyAdapter):
    """Never answers one question."""

    def _answer(self, pixel: Any, question: Question) -> Generation:
        if "(3)" in question.text:
            time.sleep(30)
        return super()._answer(pixel, question)


def test_a_question_that_hangs_fails_alone_as_a_timeout(data: Path, tmp_path: Path) -> None:
    (data / "toy" / "toy.jsonl").write_text("\n".join((data / "toy" / "toy.jsonl").read_text().splitlines()[:8]))
    dataset = load_dataset(ToyTask(questions=8, images=2), str(data))
    began = time.monotonic()
    [outcome] = evaluate(Hanging(), [dataset], tmp_path, seconds=0.2)
    assert time.monotonic() - began < 10
    failed = [answer for answer in read_answers(outcome.folder).values() if answer.failure]
    assert [(a.id, a.failure.kind) for a in failed if a.failure] == [("0-3", "timeout"), ("1-3", "timeout")]


def test_a_picture_that_takes_too_long_is_given_up(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(ToyAdapter):
        def prepare(self, image: Image.Image) -> Any:
            if image.getpixel((0, 0)) == (0, 0, 255):
                time.sleep(30)
            return super().prepare(image)

    monkeypatch.setattr("vlmamba_eval.generate.IMAGE_SECONDS", 0.2)
    outcome = run(data, tmp_path, Slow())
    failed = [answer for answer in read_answers(outcome.folder).values() if answer.failure]
    assert {answer.failure.kind for answer in failed if answer.failure} == {"timeout"}
    assert len(failed) == 12


def generation(text: Any = "red", n_tokens: Any = 1, stop: Any = "eos") -> Generation:
    """A generation with a field that is not of its type."""
    return Generation(text, "", n_tokens, stop)


@pytest.mark.parametrize(
    "said",
    [None, b"red", "red", 3, generation(text=None), generation(n_tokens=np.int64(1)), generation(n_tokens=True),
     generation(text=b"red"), generation(stop="because")],
    ids=repr,
)  # fmt: skip
def test_what_is_no_answer_is_a_failure_of_its_question_and_never_stored(data: Path, tmp_path: Path, said: Any) -> None:
    class Odd(ToyAdapter):
        def _answer(self, pixel: Any, question: Question) -> Generation:
            return said if "(2)" in question.text else super()._answer(pixel, question)

    outcome = run(data, tmp_path, Odd())
    answers = read_answers(outcome.folder)
    assert [key for key, answer in answers.items() if answer.failure] == [f"{i}-2" for i in range(6)]
    assert all(a.failure.message.startswith("the model returned ") for a in answers.values() if a.failure)


def test_another_number_of_answers_than_questions_fails_only_what_has_no_place(data: Path, tmp_path: Path) -> None:
    class Short(ToyAdapter):
        def generate(self, batch):
            found = super().generate(batch)
            return [row[:-1] if len(row) == 1 and "(3)" in item.questions[0].text else row
                    for row, item in zip(found, batch, strict=True)]  # fmt: skip

    class Long(ToyAdapter):
        def generate(self, batch):
            return [*super().generate(batch), []]

    assert run(data, tmp_path / "short", Short()).complete  # it is short for one question alone, and asked for more
    assert run(data, tmp_path / "long", Long()).scores.n_error == 24


def test_too_many_errors_stop_a_run_and_so_do_first_questions_that_all_fail_alike(data: Path, tmp_path: Path) -> None:
    told = Told()
    [outcome] = evaluate(ToyAdapter(poison="(1)"), [toy(data)], tmp_path, batch_tokens=1, stop_after=3, progress=told)
    assert (outcome.scores.n_error, outcome.scores.n_missing) == (4, 16)
    assert told.notes[-1] == "Stopped: 4 questions failed, more than 3."
    big = write_toy_data(tmp_path / "big", images=40)
    dataset = load_dataset(ToyTask(questions=160, images=40), str(big))
    [outcome] = evaluate(ToyAdapter(poison="colour"), [dataset], tmp_path / "big out", batch_tokens=1, progress=told)
    assert outcome.scores.n_error == 24
    assert told.notes[-1].startswith("Stopped: the first 24 questions all failed alike: ValueError")
    assert evaluate(ToyAdapter(), [dataset], tmp_path / "big out")[0].complete
