"""The same plan on many workers, through Ray: each is a process that holds the model, on this machine or in a cluster.

The unit of work is a batch of whole images, handed out as workers become free, the largest first. What a worker that
died had in hand goes to another. Only the driver writes to the disk; workers need the model and the pictures. Ray is an
extra (`pip install 'vlmamba-eval[ray]'`), imported when workers are asked for.
"""

from __future__ import annotations

import os
import platform
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmamba_eval.adapter import Adapter
from vlmamba_eval.generate import Answered, generate
from vlmamba_eval.plan import EACH, Group, ImageJobs, finer, size_of, written
from vlmamba_eval.types import EvalError, Scoring, UsageError

IN_HAND = 2  # batches per worker: while one is answered, the next one's pictures are prepared
LOSSES = 3  # times that a batch may lose its worker before it is taken to be the cause


@dataclass(frozen=True)
class Recipe:
    """What a worker needs to make the model: the words of the command line."""

    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    include: tuple[Path, ...] = ()
    scoring: Scoring = "generate"


class Worker:
    """One process with its own model, which several threads ask in turn.

    If that can't be loaded, `answer` says why: an actor that fails to begin would be taken for one that died, and begun
    again.
    """

    def __init__(self, recipe: Recipe) -> None:
        from vlmamba_eval.registry import load, registry

        self.recipe = recipe
        self.turn = threading.Lock()
        self.adapter: Adapter | None = None
        self.problem = ""
        try:
            for path in recipe.include:
                registry().include(path)
            self.adapter = load(recipe.model, recipe.options)
        except Exception as error:  # noqa: BLE001 - whatever it is, the driver is told
            said = str(error) if isinstance(error, EvalError) else f"{type(error).__name__}: {error}"
            self.problem = f"A worker on {platform.node()} cannot load {recipe.model}: {said}"

    def answer(self, groups: list[ImageJobs]) -> tuple[list[Answered], list[str]]:
        """Each group's outcomes, and what should be told. Raises `EvalError` without a model."""
        if self.adapter is None:
            raise EvalError(self.problem)
        notes: list[str] = []
        found = generate(self.adapter, [groups], scoring=self.recipe.scoring, note=notes.append, turn=self.turn)
        return [answered for batch in found for answered in batch], notes


@dataclass
class _Unit:
    """One batch, and how many workers died with it."""

    groups: list[Group]
    losses: int = 0


def answer_on_workers(
    recipe: Recipe,
    batches: Sequence[list[Group]],
    note: Callable[[str], None],
    *,
    device: str,
    image_tokens: int,
    workers: int | None = None,
    address: str | None = None,
) -> Iterator[list[Answered]]:
    """Answer batches of questions on `workers` processes of this machine, or of the Ray cluster at `address`.

    `device` is the model's, of which each worker takes one if it is a GPU. Without a number there are as many workers
    as GPUs (or, on CPUs, as two cores each). Batches come as they are done; the order of answers on the disk does not
    depend on it in the end (`store.Run.settle`). Raises `UsageError` without Ray, `EvalError` if workers keep dying.
    """
    ray = find_ray()
    on_gpus = device.startswith("cuda")
    ray.init(
        address=address,
        num_cpus=None if address or workers is None else max(workers, os.cpu_count() or 1),
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        namespace="vlmamba-eval",
    )
    try:
        resources = ray.cluster_resources()
        there = int(resources.get("GPU", 0)) if on_gpus else max(1, int(resources.get("CPU", 1)) // 2)
        count = workers or there
        if on_gpus and count > there:
            raise UsageError(f"{count} workers need a GPU each, and Ray sees {there}. Give --workers {max(there, 1)}.")
        threads = max(1, int(resources.get("CPU", 1)) // count)
        environment = {} if on_gpus else {"OMP_NUM_THREADS": str(threads)}
        actor = ray.remote(
            num_gpus=1 if on_gpus else 0,
            num_cpus=0,
            max_restarts=0,
            max_concurrency=IN_HAND,
            runtime_env={"env_vars": environment},
        )(Worker)
        if count > 1:
            batches = finer(batches, image_tokens, EACH * count)
        todo = deque(_Unit(batch) for batch in sorted(batches, key=lambda batch: -size_of(batch, image_tokens)))
        count = min(count, len(todo))
        note(f"{len(todo):,} batches on {count} {'worker' if count == 1 else 'workers'}.")
        yield from _hand_out(ray, [actor.remote(recipe) for _ in range(count)], actor, recipe, todo, note)
    finally:
        ray.shutdown()


def _hand_out(
    ray: Any, actors: list[Any], actor: Any, recipe: Recipe, todo: deque[_Unit], note: Callable[[str], None]
) -> Iterator[list[Answered]]:
    running: dict[Any, tuple[_Unit, Any]] = {}  # future -> what, by whom

    def give(worker: Any) -> None:
        while todo and sum(by is worker for _, by in running.values()) < IN_HAND:
            unit = todo.popleft()
            running[worker.answer.remote(written(unit.groups))] = unit, worker

    # One batch each before anybody gets a second: the largest are spread.
    for _ in range(IN_HAND):
        for worker in actors:
            if todo:
                unit = todo.popleft()
                running[worker.answer.remote(written(unit.groups))] = unit, worker
    while running:
        [future, *_], _ = ray.wait(list(running), num_returns=1)
        unit, worker = running.pop(future)
        try:
            answered, notes = ray.get(future)
        except ray.exceptions.RayActorError as error:
            lost = [unit] + [running.pop(other)[0] for other, (_, by) in list(running.items()) if by is worker]
            unit.losses += 1
            if unit.losses > LOSSES:
                raise EvalError(
                    f"A batch of {len(unit.groups)} images lost its worker {unit.losses} times: {error}\n"
                    "What was answered is safe. Try --batch-tokens with a smaller number, or one worker without Ray."
                ) from None
            note(f"A worker died; its {len(lost)} batches go to others.")
            todo.extendleft(reversed(lost))
            actors = [other for other in actors if other is not worker]
            actors.append(actor.remote(recipe))
            for other in actors:
                give(other)
            continue
        except ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(getattr(error, "cause", None), EvalError) else error
            raise cause if isinstance(cause, EvalError) else EvalError(f"A worker failed: {cause}") from None
        for message in notes:
            note(message)
        give(worker)
        yield answered


def find_ray() -> Any:
    """The package. Raises `UsageError` if it is not installed."""
    try:
        import ray  # type: ignore[import-not-found] - an extra
        import ray.exceptions  # type: ignore[import-not-found]
    except ImportError:
        raise UsageError(
            "Several workers need Ray: pip install 'vlmamba-eval[ray]'. Or share by --shard I/N."
        ) from None
    return ray
