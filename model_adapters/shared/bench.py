"""What the families' measurements of speed share: counted questions, turns and times, memory, the machine.

A time on its own says little on a machine that others use too. All contestants therefore take turns in one process,
and a ratio is that of medians, with the smallest and the largest ratio within one turn beside it.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import random
import statistics
import time
from bisect import bisect
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from vlmamba_eval.strict_json import parse_json

T = TypeVar("T")

MIB = 2**20


# =============================================================================
# What is asked
# =============================================================================


@dataclass(frozen=True, slots=True)
class Asked:
    """One question: tokens after the image, and tokens that are decoded."""

    tokens: int
    new_tokens: int


@dataclass(frozen=True, slots=True)
class AboutImage:
    """All questions about one image. The first `distinct` of them differ; the others repeat some of those."""

    questions: tuple[Asked, ...]
    distinct: int


@cache
def question_lengths(file: Path) -> dict[str, Any]:
    """Token counts of the real question lists, with one tokenizer; the file says how they were counted."""
    return parse_json(file.read_text(encoding="utf-8"))


def counted(file: Path, name: str, rng: random.Random, n: int) -> list[AboutImage]:
    """`n` images of a counted benchmark, in an order drawn from `rng`; beyond its number they come again.

    Random weights never end an answer. An answer of n tokens therefore becomes a limit of n + 1: a trained model
    decodes one token more, the end mark, so that the steps are the same.
    """
    known = question_lengths(file)[name]
    lengths, cumulated = [int(length) for length in known["answers"]], list(accumulate(known["answers"].values()))
    order: list[int] = []
    while len(order) < n:
        order += rng.sample(range(len(known["images"])), len(known["images"]))
    drawn = []
    for image in order[:n]:
        questions = tuple(
            Asked(tokens, 1 + lengths[bisect(cumulated, rng.randrange(cumulated[-1]))])
            for tokens in known["images"][image]
        )
        drawn.append(AboutImage(questions, known["distinct"][image]))
    return drawn


# =============================================================================
# Time
# =============================================================================


@dataclass
class Times(Generic[T]):
    """Seconds of one contestant, one for each repeat, and what it returned the first time."""

    seconds: list[float] = field(default_factory=list)
    returned: T | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as long as another: of the medians, and within single repeats."""

    of_medians: float
    least: float
    most: float


def take_turns(
    runs: dict[str, Callable[[], T]],
    repeats: int,
    device: torch.device | str,
    warm_ups: Mapping[str, Callable[[], object]] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Times[T]]:
    """Time every run `repeats` times, all in each repeat, another one first each time.

    `say` is told before each run which one it is and, once all had their first turn, how long the rest will take.

    A run's warm-up, which is not timed, goes before each of its turns: an evaluation runs for hours, and what another
    contestant has left in memory and caches is not part of it.
    """
    names = list(runs)
    times: dict[str, Times[T]] = {name: Times() for name in names}
    took: dict[str, float] = {}  # seconds of a turn, its warm-up included
    for repeat in range(repeats):
        first = repeat % len(names)
        order = names[first:] + names[:first]
        for place, name in enumerate(order):
            left = sum(took.get(other, 0.0) for other in order[place:]) + sum(took.values()) * (repeats - repeat - 1)
            estimate = f", about {left:,.0f} s left" if len(took) == len(names) else ""
            say(f"turn {repeat + 1} of {repeats}: {name}{estimate}")
            began = time.perf_counter()
            if warm_ups and name in warm_ups:
                warm_ups[name]()
            seconds, returned = timed(runs[name], device)
            times[name].seconds.append(seconds)
            if repeat == 0:
                times[name].returned = returned
            took[name] = time.perf_counter() - began
    return times


def timed(run: Callable[[], T], device: torch.device | str) -> tuple[float, T]:
    """Seconds until the device is done, and what the run returned."""
    gc.collect()
    began = now(device)
    returned = run()
    return now(device) - began, returned


def now(device: torch.device | str) -> float:
    """Seconds on the clock once the device has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds_of(run: Callable[[], object], device: torch.device | str, least: int = 5) -> float:
    """The median of at least `least` runs after two to warm up, within about half a second."""
    warm = [timed(run, device)[0] for _ in range(2)]
    series = []
    for _ in range(max(least, min(20, int(0.5 / max(warm[-1], 1e-6))))):
        began = now(device)
        run()
        series.append(now(device) - began)
    return statistics.median(series)


def matrix_rate(device: torch.device | str, dtype: torch.dtype, side: int) -> float:
    """Floating point operations per second of a product of two square matrices."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2.0 * side**3 / seconds_of(partial(torch.matmul, a, b), device)


def ratio(seconds: Sequence[float], base: Sequence[float]) -> Ratio:
    """Of two series that were measured in turns."""
    each = [a / b for a, b in zip(seconds, base, strict=True)]
    return Ratio(statistics.median(seconds) / statistics.median(base), min(each), max(each))


# =============================================================================
# Memory
# =============================================================================


class Peak:
    """The largest memory in use above what was in use before, in bytes; None if it can't be measured."""

    used: int | None = None


@contextmanager
def peak_memory(device: torch.device | str) -> Any:
    """Measure a block: allocations on a CUDA device; on a CPU the process's resident memory, which Linux tells."""
    peak = Peak()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        torch.cuda.synchronize(device)
        peak.used = torch.cuda.max_memory_allocated(device) - before
        return
    gc.collect()
    _give_back_freed_memory()
    measurable = _reset_resident_peak()
    before = _resident("VmRSS")
    yield peak
    after = _resident("VmHWM")
    if measurable and before is not None and after is not None:
        peak.used = max(0, after - before)


def _reset_resident_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
    except OSError:
        return False
    return True


def _give_back_freed_memory() -> None:
    """Without this, memory that an earlier block freed and the C library keeps would hide what the next one takes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if platform.system() == "Linux" else None
    if trim is not None:
        trim(0)


def _resident(key: str) -> int | None:
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    line = next((line for line in status.splitlines() if line.startswith(key + ":")), None)
    return None if line is None else int(line.split()[1]) * 1024


# =============================================================================
# The machine
# =============================================================================


def machine(device: torch.device | str) -> dict[str, str]:
    """What a number depends on, in words."""
    import transformers

    found = {
        "processor": _processor(),
        "cores": f"{os.cpu_count()}, {torch.get_num_threads()} threads used",
        "load before": _load(),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["GPU"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    return found


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux: what Python knows
    return platform.processor() or platform.machine()


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f} processes running" if hasattr(os, "getloadavg") else "unknown"
