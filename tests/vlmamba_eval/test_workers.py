"""Many workers, or shares on many machines, end with the bytes of one undisturbed process."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.toys import ToyAdapter, ToyTask, reference, write_toy_data
from vlmamba_eval.dataset import Dataset, load_dataset
from vlmamba_eval.merge import merge
from vlmamba_eval.plan import ImageJobs, Job, batches, finer, plan, share, size_of
from vlmamba_eval.run import Outcome, answer_share, evaluate
from vlmamba_eval.types import EvalError, Generation, ModelError, Question, Sample, UsageError
from vlmamba_eval.workers import Recipe, Worker, answer_on_workers

DERIVED = ("manifest.json", "answers.jsonl", "scores.json", "verdicts.jsonl", "DONE")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_toy_data(tmp_path / "data")


def toy(data: Path) -> Dataset:
    return load_dataset(ToyTask(), str(data))


def derived(outcome: Outcome) -> dict[str, bytes]:
    return {name: (outcome.folder / name).read_bytes() for name in DERIVED}


# -- shares ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 9))
def test_the_shares_are_the_plan_and_of_about_equal_size(sizes: list[int], of: int) -> None:
    groups = asked_about(sizes)
    cut = list(batches(groups, 10, 500))
    shares = [share(cut, 10, number, of) for number in range(1, of + 1)]
    keys = [group.image.key for part in shares for batch in part for group in batch if group.image]
    assert sorted(keys) == sorted(f"{i}" for i in range(len(sizes)))
    loads = [sum(size_of(batch, 10) for batch in part) for part in shares]
    largest = max((size_of(batch, 10) for part in shares for batch in part), default=0)
    assert max(loads) - min(loads) <= largest


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 80))
def test_batches_are_cut_no_finer_than_the_workers_need(sizes: list[int], wanted: int) -> None:
    groups = asked_about(sizes)
    cut = list(batches(groups, 10, 2_000))
    parts = finer(cut, 10, wanted)
    assert [group for batch in parts for group in batch] == groups
    assert len(parts) == max(len(cut), min(wanted, len(groups)))


def test_shares_of_a_long_list_keep_the_batches_of_one_process() -> None:
    """So that 16-bit arithmetic, which rounds by what else is in a batch, gives the same bytes."""
    cut = list(batches(asked_about([3] * 400), 10, 500))
    shares = [share(cut, 10, number, 4) for number in range(1, 5)]
    assert sorted(map(repr, (batch for part in shares for batch in part))) == sorted(map(repr, cut))


def asked_about(sizes: list[int]) -> list[ImageJobs]:
    """One picture for each number, with so many questions."""
    question = Question("Is it?", 4)
    return [
        ImageJobs(reference(f"{i}"), [Job(question, [("toy", f"{i}-{q}")]) for q in range(size)])
        for i, size in enumerate(sizes)
    ]


def test_merged_shares_are_byte_for_byte_one_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmamba_eval.registry.all_tasks", lambda: {"toy": ToyTask()})
    [whole] = evaluate(ToyAdapter(), [toy(data)], tmp_path / "whole")
    for number in (3, 1, 2):
        answered, failed = answer_share(ToyAdapter(), [toy(data)], tmp_path / "shards" / f"{number}", number, 3)
        assert (answered, failed) == (8, 0)
    [merged] = merge([tmp_path / "shards"], tmp_path / "merged")
    assert merged.complete
    assert derived(merged) == derived(whole)


def test_a_share_that_is_not_there_is_named_and_can_come_later(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmamba_eval.registry.all_tasks", lambda: {"toy": ToyTask()})
    told: list[str] = []
    answer_share(ToyAdapter(), [toy(data)], tmp_path / "shards" / "1-of-2", 1, 2)
    [merged] = merge([tmp_path / "shards"], tmp_path / "merged", note=told.append)
    assert (merged.complete, merged.scores.n_missing) == (False, 12)
    assert told == ["toy-model, Toy, 24 questions: part 2 of 2 is not there"]
    answer_share(ToyAdapter(poison="(2)"), [toy(data)], tmp_path / "shards" / "2-of-2", 2, 2)
    [merged] = merge([tmp_path / "shards"], tmp_path / "merged", note=told.append)
    assert (merged.complete, merged.scores.n_missing, merged.scores.n_error) == (False, 0, 3)
    answer_share(ToyAdapter(), [toy(data)], tmp_path / "shards" / "2-of-2", 2, 2)
    [merged] = merge([tmp_path / "shards"], tmp_path / "merged", note=told.append)
    assert merged.complete
    assert len(told) == 1
    with pytest.raises(UsageError, match="no shares there"):
        merge([tmp_path / "nowhere"], tmp_path / "merged")


def test_a_run_that_was_mended_ends_with_the_bytes_of_one_that_never_failed(data: Path, tmp_path: Path) -> None:
    [whole] = evaluate(ToyAdapter(), [toy(data)], tmp_path / "whole")
    evaluate(ToyAdapter(poison="(2)"), [toy(data)], tmp_path / "mended")
    [mended] = evaluate(ToyAdapter(), [toy(data)], tmp_path / "mended")
    assert derived(mended) == derived(whole)


@pytest.mark.parametrize("text", ["0/4", "5/4", "4", "a/b", "1/0", "-1/4"])
def test_a_part_that_cannot_be_is_refused(text: str) -> None:
    command = [sys.executable, "-m", "vlmamba_eval", "--model", "constant", "--tasks", "pope", "--shard", text]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"--shard {text}: expected I/N" in done.stderr


# -- Ray ---------------------------------------------------------------------------------------------------------------


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'vlmamba-eval\[ray\]'"):
        list(answer_on_workers(Recipe("constant"), [], print, device="cpu", image_tokens=0, workers=2))


def test_without_ray_the_command_says_so_before_it_reads_anything() -> None:
    code = "import sys; sys.modules['ray'] = None; from vlmamba_eval.cli import main; main()"
    command = [
        sys.executable,
        "-c",
        code,
        "--model",
        "constant",
        "--tasks",
        "gqa",
        "--data",
        "nowhere",
        "--workers",
        "2",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Several workers need Ray" in done.stderr
    assert "nowhere" not in done.stderr


@pytest.mark.parametrize(
    ("raised", "said"), [(ModelError("half is missing"), "half is missing"), (OSError("no GPU"), "OSError: no GPU")]
)
def test_a_model_that_a_worker_cannot_load_is_one_sentence(
    raised: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        raise raised

    monkeypatch.setattr("vlmamba_eval.registry.load", load)
    worker = Worker(Recipe("broken"))
    with pytest.raises(EvalError, match=rf"^A worker on \S+ cannot load broken: {said}$"):
        worker.answer([])


SLOW_COLOUR = """
import time
from vlmamba_eval.adapter import AdapterInfo
from vlmamba_eval.registry import Family
from vlmamba_eval.types import Generation

class Slow:
    info = AdapterInfo("slow", "none", "cpu", "none", image_tokens=10)
    def prepare(self, image):
        return image.getpixel((0, 0))
    def generate(self, batch):
        time.sleep(0.05)
        return [[Generation(str(item.image[0]), q.text, 1, "eos") for q in item.questions] for item in batch]

FAMILY = Family("slow", "slow", lambda name, options: Slow(), models={"slow": "slow"})
"""


DRIVER = """
import sys
from functools import partial
from pathlib import Path
from tests.toys import ToyTask
from vlmamba_eval.dataset import load_dataset
from vlmamba_eval.registry import load, registry
from vlmamba_eval.run import evaluate
from vlmamba_eval.workers import Recipe, answer_on_workers

include, data, out, workers = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
registry().include(include)
recipe = Recipe("slow", include=(include,))
ask = partial(answer_on_workers, recipe, device="cpu", image_tokens=10, workers=workers) if workers else None
dataset = load_dataset(ToyTask(questions=480, images=120), data)
evaluate(load("slow"), [dataset], out, answering=ask, batch_tokens=100)
"""


@pytest.mark.slow
def test_ray_workers_and_drivers_that_are_killed_lose_nothing_and_change_no_byte(tmp_path: Path) -> None:
    """kill -9, 20 times, after a random number of answers: of a random worker, or of the driver, which resumes."""
    pytest.importorskip("ray", reason="needs the extra `ray`")
    (tmp_path / "slow.py").write_text(SLOW_COLOUR)
    (tmp_path / "driver.py").write_text(DRIVER)
    data = write_toy_data(tmp_path / "data", images=120, questions=4)
    rng = random.Random(0)

    def start(out: str, workers: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, tmp_path / "driver.py", tmp_path / "slow.py", data, tmp_path / out, str(workers)]
        path = os.pathsep.join((str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")))
        return subprocess.Popen(
            command, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )

    def files(out: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (tmp_path / out).rglob("*") if path.name in DERIVED}

    def wait_for(answers: int, out: str, driver: subprocess.Popen[bytes]) -> int:
        """Return once there are so many answers; how many there are."""
        while True:
            there = files(out).get("answers.jsonl", b"").count(b"\n")
            if there >= answers:
                return there
            if driver.poll() is not None:
                raise AssertionError(driver.communicate()[1].decode()[-2000:])
            time.sleep(0.02)

    assert start("one", 0).wait() == 0
    killed = {"worker": 0, "driver": 0}
    for workers, of_workers, of_drivers in ((1, 4, 2), (2, 5, 2), (8, 5, 2)):
        out = f"{workers} workers"
        driver, there = start(out, workers), 0
        for victim in rng.sample(["worker", "driver"], counts=[of_workers, of_drivers], k=of_workers + of_drivers):
            there = wait_for(there + rng.randint(1, 24), out, driver)
            if victim == "driver":
                driver.kill()
                driver.communicate()
                driver = start(out, workers)
            else:
                os.kill(rng.choice(ray_workers_of(driver.pid)), signal.SIGKILL)
            killed[victim] += 1
        said = driver.communicate()[1].decode()
        assert driver.returncode == 0, said[-2000:]
        assert files(out) == files("one")
    assert killed == {"worker": 14, "driver": 6}


def ray_workers_of(driver: int) -> list[int]:
    """The processes of a driver's Ray workers: they have that title, and the driver among their ancestors."""
    parents, workers = dict[int, int](), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if (entry / "cmdline").read_bytes().startswith(b"ray::Worker"):
                    workers.append(int(entry.name))
            except OSError:  # it has just ended
                continue

    def descends(process: int) -> bool:
        return process == driver or (process in parents and descends(parents[process]))

    return [worker for worker in workers if descends(worker)]


def test_a_worker_prepares_pictures_while_its_model_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    busy, met, asked = threading.Lock(), threading.Event(), threading.Event()

    class Meets(ToyAdapter):
        def prepare(self, image: Image.Image) -> Any:
            if asked.is_set() and busy.locked():
                met.set()
            return super().prepare(image)

        def generate(self, batch: Any) -> Any:
            assert busy.acquire(blocking=False), "two batches at once"
            asked.set()
            met.wait(5)
            busy.release()
            return super().generate(batch)

    monkeypatch.setattr("vlmamba_eval.registry.load", lambda model, options: Meets())
    worker = Worker(Recipe("toy"))
    batches = [[ImageJobs(reference(f"{i}"), [Job(Question("?", 1), [("toy", f"{i}")])])] for i in range(2)]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(worker.answer, batches[0])
        assert asked.wait(5)
        both = [answer.result(10) for answer in (first, pool.submit(worker.answer, batches[1]))]
    assert met.is_set()
    assert [type(one) for answered, _ in both for group in answered for one in group.outcomes] == [Generation] * 2


def test_equal_plans_have_equal_shares_on_every_machine() -> None:
    samples = [Sample(f"{i}-{q}", reference(f"{i}"), "?", "a") for i in range(9) for q in range(i % 3 + 1)]
    cut = list(batches(plan([("toy", sample) for sample in samples], lambda _, one: Question(one.id, 4)), 10, 100))
    ask = partial(share, cut, 10, 2, 4)
    assert ask() == ask()
