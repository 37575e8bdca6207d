"""Many workers, or shares on many machines, end with the bytes of one undisturbed process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.toys import ToyAdapter, ToyTask, reference, write_toy_data
from vlmamba_eval.dataset import Dataset, load_dataset
from vlmamba_eval.merge import merge
from vlmamba_eval.plan import ImageJobs, Job, batches, finer, plan, share, size_of
from vlmamba_eval.run import Outcome, answer_share, evaluate
from vlmamba_eval.types import EvalError, ModelError, Question, Sample, UsageError
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


def test_a_share_that_is_not_there_is_counted_and_can_come_later(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmamba_eval.registry.all_tasks", lambda: {"toy": ToyTask()})
    answer_share(ToyAdapter(), [toy(data)], tmp_path / "shards" / "1", 1, 2)
    answer_share(ToyAdapter(poison="(2)"), [toy(data)], tmp_path / "shards" / "2", 2, 2)
    [merged] = merge([tmp_path / "shards"], tmp_path / "merged")
    assert (merged.complete, merged.scores.n_missing, merged.scores.n_error) == (False, 0, 3)
    answer_share(ToyAdapter(), [toy(data)], tmp_path / "shards" / "2", 2, 2)
    [merged] = merge([tmp_path / "shards"], tmp_path / "merged")
    assert merged.complete
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


@pytest.mark.slow
def test_ray_workers_that_are_killed_lose_nothing_and_change_no_byte(tmp_path: Path) -> None:
    """kill -9 of workers at random moments, 10 times; then of the driver, which resumes."""
    ray = pytest.importorskip("ray")
    (tmp_path / "slow.py").write_text(SLOW_COLOUR)
    data = write_toy_data(tmp_path / "data", images=60, questions=4)
    code = (
        "import sys\nfrom pathlib import Path\nfrom vlmamba_eval.registry import registry, load\n"
        "from vlmamba_eval.run import evaluate\nfrom vlmamba_eval.dataset import load_dataset\n"
        "from functools import partial\nfrom tests.toys import ToyTask\n"
        "from vlmamba_eval.workers import Recipe, answer_on_workers\n"
        "include, data, out, n = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])\n"
        "registry().include(include)\n"
        "recipe = Recipe('slow', include=(include,))\n"
        "ask = partial(answer_on_workers, recipe, device='cpu', image_tokens=10, workers=n) if n else None\n"
        "dataset = load_dataset(ToyTask(questions=240, images=60), data)\n"
        "evaluate(load('slow'), [dataset], out, answering=ask, batch_tokens=100)\n"
    )

    def start(out: str, workers: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", code, tmp_path / "slow.py", data, tmp_path / out, str(workers)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def files(out: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (tmp_path / out).rglob("*") if path.name in DERIVED}

    def workers_of(driver: int) -> list[int]:
        """The processes of the driver's Ray workers, by their title."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    line = (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                if line.startswith(b"ray::Worker"):
                    found.append(int(entry.name))
        return found

    assert start("one", 0).wait() == 0
    assert start("two", 2).wait() == 0
    assert files("two") == files("one")
    for round_ in range(10):
        driver = start(f"killed {round_}", 2)
        time.sleep(4 + 0.3 * round_)
        victims = workers_of(driver.pid)
        for victim in victims[:1]:
            os.kill(victim, signal.SIGKILL)
        _, said = driver.communicate()
        assert driver.returncode == 0, said.decode()[-2000:]
        assert files(f"killed {round_}") == files("one")
    driver = start("driver", 2)
    time.sleep(6)
    driver.kill()
    driver.wait()
    assert start("driver", 2).wait() == 0
    assert files("driver") == files("one")
    assert ray.__version__


def test_equal_plans_have_equal_shares_on_every_machine() -> None:
    samples = [Sample(f"{i}-{q}", reference(f"{i}"), "?", "a") for i in range(9) for q in range(i % 3 + 1)]
    cut = list(batches(plan([("toy", sample) for sample in samples], lambda _, one: Question(one.id, 4)), 10, 100))
    ask = partial(share, cut, 10, 2, 4)
    assert ask() == ask()
