"""What benchmarks need, what is there and what is missing: shown, fetched, and settled before a run."""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmamba_eval.archive import InArchive, data_root
from vlmamba_eval.dataset import Dataset, load_dataset
from vlmamba_eval.fetch.plan import Need, about, announce, batches, in_bytes, look
from vlmamba_eval.hub import Hub, is_snapshot
from vlmamba_eval.sources import ByHand, File, Pictures, in_words
from vlmamba_eval.task import SCORED
from vlmamba_eval.types import DataError, EvalError, UsageError

if TYPE_CHECKING:
    from vlmamba_eval.fetch.download import Progress
    from vlmamba_eval.fetch.http import Http
    from vlmamba_eval.rows import Row
    from vlmamba_eval.task import Task, TaskInfo

HOME = "data"
"""The data folder that `--data auto` looks into, and fills."""

Ask = Callable[[str], bool]
"""Shows a plan and says whether it shall be carried out."""

# =============================================================================
# In words
# =============================================================================


def describe(need: Need, where: str) -> list[str]:
    """One benchmark's state: counts and hash of its questions, pictures, what is missing and how to get it."""
    info = need.task.info
    lines = [f"{info.name}: {info.title}, {info.split}: {info.questions:,} questions"]
    dataset = need.dataset
    if dataset is None:
        lines += [f"  {line}" for line in need.problem.splitlines()]
        return lines + _remedies(need, where)
    lines.append(f"  questions: {len(dataset.samples):,}, {_checked(dataset)}")
    missing = [wanted.path for wanted in need.missing if isinstance(wanted.source, Pictures)]
    missing += [Path(image.path) for image in need.unsourced]
    lines.append(f"  images: {need.pictures - len(missing):,} of {need.pictures:,}")
    if missing:
        lines.append(f"  missing, for example: {', '.join(map(str, missing[:3]))}")
    lines += [f"  {need}" for need in scoring_needs(dataset)]
    if need.ready:
        return [*lines, "  ready: a run needs no network"]
    return lines + _remedies(need, where)


def scoring_needs(dataset: Dataset) -> list[str]:
    """What scoring this data set, or submitting its answers, needs and does not find, one sentence each."""
    info = dataset.task.info
    needs = [f"scoring needs {text}, which is not here" for text, there in requirements(info) if not there]
    if not dataset.labelled:
        needs.insert(0, f"gold labels: not here; {_who_scores(info)}")
    if info.submission_extra and not installed(info.submission_extra):
        needs.append(f"`vlmamba-eval submit` needs pip install 'vlmamba-eval[{info.submission_extra}]'")
    return needs


def _who_scores(info: TaskInfo) -> str:
    if info.scored == "server":
        return "the benchmark's server scores what `vlmamba-eval submit` writes"
    if info.scored == "judge":
        return "a judge grades the answers (`vlmamba-eval judge`)"
    file = next((source.path for source in info.sources if isinstance(source, File)), "the official annotation file")
    return f"answers are scored here, locally, but only with {file}"


def _checked(dataset: Dataset) -> str:
    sha = dataset.identity.sha256
    if "SAMPLES" in dataset.identity.marks:
        return f"the bundled samples, compared with nothing, sha256 {sha[:16]}..."
    checked = "as declared" if dataset.task.info.sha256 else "none is declared to compare with"
    return f"count as declared, sha256 {sha[:16]}... ({checked})"


def _remedies(need: Need, where: str) -> list[str]:
    info = need.task.info
    lines = []
    if (need.missing or need.expected) and where not in ("hub", "samples"):
        size = f" ({about(need.size)})" if need.size else ""
        lines.append(
            f"  to fetch what is missing{size}: vlmamba-eval prepare --tasks {info.name} --data {where} --download"
        )
    if info.sources:
        lines += ["  where it comes from:", *(f"    {in_words(source)}" for source in info.sources)]
    if info.hub and where != "hub":
        lines.append(f"    or without files: --data hub ({info.hub})")
    return lines


def overview(needs: Sequence[Need]) -> list[tuple[str, ...]]:
    """A table of all: one row per benchmark, the header first."""
    rows = [("task", "state", "questions", "pictures", "to fetch", "scored", "scoring needs")]
    for need in needs:
        info, dataset = need.task.info, need.dataset
        if dataset is None:
            files = [source for source in info.sources if isinstance(source, File)]
            questions = "not as declared" if files and not need.missing else "missing"
            pictures = f"{info.images:,} missing" if info.images else "number unknown"
        else:
            questions = f"{len(dataset.samples):,}" + ("" if dataset.labelled or info.scored != "here" else ", no gold")
            lacking = need.missing_pictures
            pictures = f"{lacking:,} missing" if lacking else f"{need.pictures:,}"
        fetch = about(need.size) if need.missing or need.expected else ""
        sources = [source for source in info.sources if isinstance(source, Pictures)]
        if dataset is None and not info.images:
            if sources:
                most = sum(source.zip_size for source in sources)
                size = f"at most {in_bytes(most)}" if most else "size unknown until asked"
                fetch = f"{f'{fetch}, ' if fetch else ''}pictures: {size}"
            elif not need.by_hand:
                pictures = "in its file"
        if need.by_hand:
            fetch = f"{fetch}, some by hand" if fetch else f"by hand{' or --data hub' if info.hub else ''}"
        wants = ", ".join(text if there else f"{text}: not here" for text, there in requirements(info))
        rows.append((info.name, "ready" if need.ready else "-", questions, pictures, fetch, SCORED[info.scored], wants))
    return rows


def count_ready(needs: Sequence[Need]) -> str:
    """The closing line."""
    return f"{sum(need.ready for need in needs)} of {len(needs)} ready"


def requirements(info: TaskInfo) -> list[tuple[str, bool]]:
    """What scoring needs besides the answers, each with whether it is here."""
    found = []
    if info.extra:
        found.append((f"pip install 'vlmamba-eval[{info.extra}]'", installed(info.extra)))
    for program in info.programs:
        found.append((program.capitalize(), shutil.which(program) is not None))
    if info.scored == "judge":
        found.append(("a judge (--judge-url, its key in OPENAI_API_KEY)", installed("judge")))
    return found


def installed(extra: str) -> bool:
    """Whether everything that an extra of this package asks for is installed."""
    try:
        wanted = importlib.metadata.requires("vlmamba-eval") or []
    except importlib.metadata.PackageNotFoundError:
        return True  # run from its source, which knows no extras
    for requirement in wanted:
        if re.search(rf"extra\s*==\s*['\"]{re.escape(extra)}['\"]", requirement):
            name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
            try:
                importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                return False
    return True


# =============================================================================
# Fetching
# =============================================================================


def fetch(
    needs: Sequence[Need],
    where: str,
    *,
    ask: Ask,
    say: Callable[[str], None],
    mirror: str = "",
    whole: bool = False,
    http: Http | None = None,
    progress: Progress | None = None,
    **load: Any,
) -> list[Need]:
    """Fetch what is missing into a data folder, question files first, then the pictures that they ask about.

    The plan is shown, with sizes as declared, before anything travels; it is shown again if servers and zips tell of
    clearly more. `load` goes to `load_dataset`. Returns what is needed afterwards.
    """
    from vlmamba_eval.fetch.download import Download

    root = data_root(where)
    if isinstance(root, InArchive):
        raise UsageError(f"--data {where}: nothing is fetched into an archive. Give a folder, and pack it again.")
    plan = announce(needs, root)
    if not plan:
        return list(needs)
    if mirror:
        plan.insert(0, f"Looked for in {mirror} first:")
    announced = sum(need.size for need in needs)
    if not ask("\n".join(["To be fetched:", *plan])):
        return list(needs)
    if http is None:
        from vlmamba_eval.fetch.http import Http

        http = Http()
    with Download(root, http, mirror, whole, progress) as download:
        wanted = [batch for batch in batches(needs) if isinstance(batch.source, File)]
        if wanted:
            _tell(download.fetch(download.resolve(wanted)).failures, say)
            needs = [look(need.task, where, **load) for need in needs]
        wanted = [batch for batch in batches(needs) if isinstance(batch.source, Pictures)]
        if wanted:
            items = download.resolve(wanted)
            size = sum(item.length or item.size for item in items)
            n = sum(len(item.targets) for item in items)
            message = f"To fetch: {n:,} pictures, {in_bytes(size)}."
            if size > 1.25 * announced + 10e6:
                if not ask(f"{message} That is more than was said before ({in_bytes(announced)})."):
                    return list(needs)
            elif items:
                say(message)
            _tell(download.fetch(items).failures, say)
            needs = [look(need.task, where, **load) for need in needs]
    return list(needs)


def _tell(failures: Iterable[str], say: Callable[[str], None]) -> None:
    failures = list(failures)
    for failure in failures[:10]:
        say(f"Not fetched: {failure}")
    if len(failures) > 10:
        say(f"Not fetched: {len(failures) - 10:,} more.")


# =============================================================================
# Before a run
# =============================================================================


def settle(
    tasks: Sequence[Task],
    data: str,
    *,
    ask: Ask | None,
    say: Callable[[str], None],
    problems: list[EvalError] | None = None,
    http: Http | None = None,
    progress: Progress | None = None,
    **load: Any,
) -> list[Dataset]:
    """The data sets of a run. What is missing is fetched if `ask` agrees; without `ask` nothing is.

    `data` is `auto`, or what `load_dataset` reads: missing pictures are left to `preflight`. Raises one error for all
    tasks whose questions are not there; with `problems`, they are added to these, and the other tasks' data returned.
    """
    errors: list[EvalError] = [] if problems is None else problems
    wheres = [task.data or (_auto(task, ask is not None, load) if data == "auto" else data) for task in tasks]
    found: dict[str, Dataset] = {}
    for where in dict.fromkeys(wheres):
        chosen = [task for task, place in zip(tasks, wheres, strict=True) if place == where]
        if where in ("hub", "samples") or data_root(where).is_file() or is_snapshot(data_root(where)):
            for task in chosen:
                if where == "hub" and data == "auto" and ask is not None and not _hub_cached(task.info.hub):
                    _ask_for_hub(task, ask)
                try:
                    found[task.info.name] = load_dataset(task, where, **load)
                except EvalError as error:
                    errors.append(error)
            continue
        needs = [look(task, where, **load) for task in chosen]
        if ask is not None and not isinstance(data_root(where), InArchive):
            needs = fetch(needs, where, ask=ask, say=say, http=http, progress=progress, **load)
        lacking = [need for need in needs if need.dataset is None]
        size = sum(need.size for need in lacking if need.missing)
        for need in lacking:
            hint = f"--download fetches what is missing into {where}: {about(size)}." if size else ""
            errors.append(_lacking(need, hint if need is lacking[-1] else ""))
        found.update((need.task.info.name, need.dataset) for need in needs if need.dataset is not None)
    if errors and problems is None:
        raise together(errors)
    return [found[task.info.name] for task in tasks if task.info.name in found]


def _ask_for_hub(task: Task, ask: Ask) -> None:
    info = task.info
    plan = [f"To be fetched:\n  {info.name}, {hub_size(task)}, from the hub's open copy {info.hub}"]
    plan += [f"  (the official files come {in_words(source)})" for source in info.sources if isinstance(source, ByHand)]
    if not ask("\n".join(plan)):
        raise DataError(f"{info.name}: its data is not here, and nothing was fetched.")


def _lacking(need: Need, hint: str) -> EvalError:
    assert need.error is not None  # noqa: S101 - there is one if there is no data set
    hints = [f"  {in_words(source)}" for source in need.by_hand]
    if hint:
        hints.insert(0, hint)
    return type(need.error)("\n".join([str(need.error), *hints]))


def together(errors: Sequence[EvalError]) -> EvalError:
    """One error that says what all of them say, of the first one's type; what begins alike is said once."""
    said = {text.split("\n")[0]: text for text in map(str, errors)}
    return type(errors[0])("\n".join(said.values()))


def _auto(task: Task, may_fetch: bool, load: dict[str, Any]) -> str:
    """Where a task's data is, or shall be: the folder, if all is there or can come; else the hub's copy."""
    info = task.info
    need = look(task, HOME, **load)
    if need.ready or not info.hub:
        return HOME
    if not may_fetch or need.by_hand or _hub_cached(info.hub):
        return "hub"
    return HOME


def _hub_cached(name: str) -> bool:
    """Whether a data set of the hub was fetched before, as far as the cache's files tell."""
    from huggingface_hub import try_to_load_from_cache

    return Path(name).is_dir() or isinstance(try_to_load_from_cache(name, "README.md", repo_type="dataset"), str)


class _Listing(Hub):
    """A hub that only notes what is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[tuple[str, str | None]] = []

    def rows(self, dataset: str, split: str, *, config: str | None = None, image: str | None = None) -> Iterator[Row]:
        self.parts.append((dataset, config))
        return iter(())


def hub_size(task: Task) -> str:
    """How much the hub's copy of a task's data is, in words, from the data set's own card."""
    listing = _Listing()
    with contextlib.suppress(EvalError):  # no rows come, of course
        task.load_hub(listing)
    total = 0
    for dataset, config in dict.fromkeys(listing.parts):
        try:
            import datasets

            total += datasets.load_dataset_builder(dataset, config, token=False).info.download_size or 0
        except Exception:  # noqa: BLE001 - network and hub errors of many types; the size is a courtesy
            return "size unknown"
    return about(total)
