"""Change one thing in a module at a time, and see whether a test notices: `python -m tests.mutants`.

What is changed: comparisons, arithmetic, `and` and `or`, numbers, truth values, short texts, conditions, return values;
and statements are left out. Each mutant runs in a process of its own, forked from one that holds the libraries; the
module is changed as it is imported, never on the disk. A mutant is killed if a test fails, or takes far too long. First
the tests run once without any, to see which of them call which function: those that never call a function can't notice
what is changed in it, and are left out.

Left alone: docstrings, types, messages of errors, and what only Python's own machinery reads (`strict=`, `slots=`). A
survivor that behaves as before is listed in `equal.csv`, with the reason; all others need a test.
"""

from __future__ import annotations

import ast
import builtins
import copy
import csv
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

import click

ROOT = Path(__file__).parents[2]
EQUAL = Path(__file__).with_name("equal.csv")
HARNESS, TASKS = "tests/vlmamba_eval/test_{}.py", "tests/tasks/test_{}.py"
MEMORY = 6 * 2**30  # bytes of data that a mutant may take
START = 60  # seconds that tests may take to begin, and any of them beyond its time

# Which tests may notice a change: (files in tests/vlmamba_eval, files in tests/tasks), the nearest first.
COVERED: dict[str, tuple[str, str]] = {
    "vlmamba_eval/stats.py": ("stats tables paired compare", "pope mme captions"),
    "vlmamba_eval/table.py": ("stats tables paired", "pope mme"),
    "vlmamba_eval/sums.py": ("stats tables paired", "pope mme"),
    "vlmamba_eval/paired.py": ("paired compare", ""),
    "vlmamba_eval/score.py": ("run dataset store answer_files submit_and_judge compare", "captions"),
    "vlmamba_eval/dataset.py": ("dataset answer_files run submit_and_judge", "pope seed"),
    "vlmamba_eval/store.py": ("store run tables fuzz places", ""),
    "vlmamba_eval/journal.py": ("store strict_json run", "mmvet"),
    "vlmamba_eval/files.py": ("store strict_json run tables", ""),
    "vlmamba_eval/strict_json.py": ("strict_json", ""),
    "vlmamba_eval/rows.py": ("reading dataset strict_json answer_files fuzz", "mmbench"),
    "vlmamba_eval/generate.py": ("run plan workers", ""),
    "vlmamba_eval/plan.py": ("plan run dataset workers", ""),
    "vlmamba_eval/answers/asking.py": ("answer_files dataset cases", "pope textvqa mmbench scienceqa"),
    "vlmamba_eval/answers/cleaning.py": ("answer_files dataset", ""),
    "vlmamba_eval/answers/join.py": ("answer_files dataset cases", "pope seed mme"),
    "vlmamba_eval/answers/layouts.py": ("answer_files dataset cases strict_json fuzz", "mme"),
    "tasks/caption_metrics.py": ("", "captions"),
    "tasks/captions.py": ("answer_files", "captions identity declared"),
    "tasks/cobra.py": ("", "other_protocols identity declared"),
    "tasks/gqa.py": ("answer_files", "gqa other_protocols identity declared"),
    "tasks/mambavl.py": ("", "other_protocols identity declared"),
    "tasks/mmbench.py": ("answer_files", "mmbench identity declared"),
    "tasks/mme.py": ("answer_files", "mme other_protocols identity declared"),
    "tasks/mmmamba.py": ("", "other_protocols identity declared"),
    "tasks/mmvet.py": ("submit_and_judge", "mmvet identity declared"),
    "tasks/mmvet_judge.py": ("submit_and_judge", "mmvet"),
    "tasks/options.py": ("", "mmbench scienceqa seed"),
    "tasks/pope.py": ("stats answer_files", "pope other_protocols identity declared"),
    "tasks/refcoco.py": ("", "refcoco identity declared"),
    "tasks/scienceqa.py": ("answer_files", "scienceqa identity declared"),
    "tasks/seed.py": ("answer_files", "seed identity declared"),
    "tasks/textvqa.py": ("answer_files", "textvqa other_protocols identity declared"),
    "tasks/vizwiz.py": ("", "other_protocols vqa_accuracy identity declared"),
    "tasks/vqa_accuracy.py": ("", "vqa_accuracy vqav2 textvqa other_protocols"),
    "tasks/vqav2.py": ("answer_files", "vqav2 other_protocols identity declared"),
    "tasks/vsr.py": ("", "other_protocols identity declared"),
}
LIBRARIES = ("pytest", "_pytest.assertion.rewrite", "hypothesis", "numpy", "pandas", "msgspec", "PIL.Image", "filelock")


def tests_of(module: str) -> list[str]:
    """The test files that may notice a change of a module."""
    harness, tasks = COVERED[module]
    near, far = (TASKS, HARNESS) if module.startswith("tasks/") else (HARNESS, TASKS)
    near_names, far_names = (tasks, harness) if near is TASKS else (harness, tasks)
    return [near.format(name) for name in near_names.split()] + [far.format(name) for name in far_names.split()]


# =============================================================================
# What may be changed
# =============================================================================

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
}  # fmt: skip
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
UNREAD = {
    "strict", "frozen", "slots", "maxsize", "repr", "what", "encoding", "title", "measures", "paper", "scorer",
    "thread_name_prefix",
}  # fmt: skip


def changed(node: ast.AST) -> Iterator[ast.AST | None]:
    """Other nodes for this one; None leaves a statement out."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        for operator in COMPARISONS[type(node.ops[0])]:
            yield ast.Compare(node.left, [operator()], node.comparators)
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in ARITHMETIC:
        other = copy.copy(node)
        other.op = ARITHMETIC[type(node.op)]()
        yield other
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield node.operand
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield ast.Constant(not node.value)
        elif isinstance(node.value, int | float):
            yield ast.Constant(node.value + 1)
        elif isinstance(node.value, str) and 0 < len(node.value) <= 24:
            yield ast.Constant(node.value + "?")
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        for value in (True, False)[isinstance(node, ast.While) :]:
            other = copy.copy(node)
            other.test = ast.Constant(value)
            yield other
    elif isinstance(node, ast.Return) and node.value is not None:
        if not (isinstance(node.value, ast.Constant) and node.value.value in (None, False)):  # all the same to an `if`
            yield ast.Return(ast.Constant(None))
    elif isinstance(node, ast.Continue | ast.Break) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ):
        yield None


@dataclass(frozen=True)
class Mutant:
    """`before` in a function of a module becomes `after`; `place` counts the module's mutants."""

    module: str
    place: int
    line: int
    function: str
    before: str
    after: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.module, self.function, self.before, self.after


class Changer(ast.NodeTransformer):
    """Lists the mutants of a module, or makes the one at a place."""

    def __init__(self, module: str, wanted: int = -1) -> None:
        self.module, self.wanted = module, wanted
        self.found: list[Mutant] = []
        self._functions: list[str] = []

    def visit(self, node: ast.AST) -> ast.AST | None:
        if _left_alone(node):
            return node
        for other in changed(node):
            place = len(self.found)
            before, after = (_text(one) for one in (node, other))
            line = getattr(node, "lineno", 0)
            self.found.append(Mutant(self.module, place, line, ".".join(self._functions), before, after))
            if place == self.wanted:
                return ast.copy_location(ast.Pass() if other is None else other, node)
        named = isinstance(node, ast.FunctionDef | ast.ClassDef)
        if named:
            self._functions.append(node.name)  # type: ignore[attr-defined]
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list") or (field == "keywords" and not value):
                continue
            if isinstance(value, list):
                value[:] = [self.visit(item) if isinstance(item, ast.AST) else item for item in value]
            elif isinstance(value, ast.AST):
                setattr(node, field, self.visit(value))
        if named:
            self._functions.pop()
        return node


def _left_alone(node: ast.AST) -> bool:
    """Docstrings, messages, imports, and arguments that change no behaviour."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    if isinstance(node, ast.Raise | ast.Import | ast.ImportFrom | ast.JoinedStr | ast.Assert):
        return True
    if isinstance(node, ast.keyword) and node.arg in UNREAD:
        return True
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        return name in ("fail", "DataError", "StoreError", "UsageError", "note", "cast", "TypeVar", "damaged")
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _text(node: ast.AST | None) -> str:
    if node is None:
        return "pass"
    if isinstance(node, ast.If | ast.While):
        return f"{type(node).__name__.lower()} {ast.unparse(node.test)}"
    return ast.unparse(ast.fix_missing_locations(copy.copy(node)))


def mutants(module: str) -> list[Mutant]:
    """All mutants of a module."""
    changer = Changer(module)
    changer.visit(ast.parse((ROOT / module).read_text(encoding="utf-8")))
    return changer.found


# =============================================================================
# Trying one
# =============================================================================


class Importer(importlib.abc.MetaPathFinder):
    """Imports modules (by their files) from other syntax trees than the files'."""

    def __init__(self, changes: Mapping[str, ast.NodeTransformer]) -> None:
        self.loaders = {}
        for module, change in changes.items():
            name = module.removesuffix(".py").replace("/", ".")
            name = name if name.startswith("vlmamba_eval.") else f"vlmamba_eval.{name}"
            self.loaders[name] = Loader(name, str(ROOT / module))
            self.loaders[name].change = change

    def find_spec(self, fullname: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if (loader := self.loaders.get(fullname)) is None:
            return None
        return importlib.util.spec_from_file_location(fullname, loader.path, loader=loader)


class Loader(importlib.machinery.SourceFileLoader):
    """Compiles a changed tree in place of the file."""

    change: ast.NodeTransformer

    def get_code(self, fullname: str) -> CodeType:
        tree = ast.parse(Path(self.path).read_text(encoding="utf-8"))
        self.change.visit(tree)
        return compile(ast.fix_missing_locations(tree), self.path, "exec")


def run_tests(changes: Mapping[str, ast.NodeTransformer], files: Sequence[str], plugin: Plugin) -> bool:
    """Run test files over changed modules in a process of their own. Whether all tests passed."""
    child = os.fork()
    if child == 0:
        signal.alarm(START)
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        os.setsid()
        sys.meta_path.insert(0, Importer(changes))
        import pytest

        options = [*plugin.options, "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore"]
        failed = pytest.main([*options, *files], plugins=[plugin])
        plugin.end()
        os._exit(min(int(failed), 1))
    _, status = os.waitpid(child, 0)
    return status == 0


class Plugin:
    """What of pytest is changed."""

    options: tuple[str, ...] = ()

    def end(self) -> None:
        """Called after the tests."""


class Only(Plugin):
    """These tests alone, the quickest first, until one fails or takes ten times as long as it should."""

    options = ("-x",)

    def __init__(self, seconds: Mapping[str, float], known: Container[str]) -> None:
        self.seconds, self.known = seconds, known

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        # A test that was not there before, a mutant brought forth: a parameter that it changed.
        wanted = [item for item in items if item.nodeid in self.seconds or item.nodeid not in self.known]
        items[:] = sorted(wanted, key=lambda item: self.seconds.get(item.nodeid, 0.0))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        signal.alarm(START + int(10 * self.seconds.get(nodeid, 0.0)))


@dataclass
class Seen:
    """What the tests do without any mutant."""

    callers: dict[tuple[str, str], set[str]]
    """By module and function; "" stands for what is called outside of tests."""
    seconds: dict[str, float]
    failed: set[str]

    def noticing(self, mutant: Mutant) -> dict[str, float]:
        """The tests that may notice a mutant, and how long each takes."""
        files = tests_of(mutant.module)
        callers = self.callers.get((mutant.module, mutant.function), {""})
        return {
            test: seconds
            for test, seconds in self.seconds.items()
            if test.split("::")[0] in files and (test in callers or "" in callers) and test not in self.failed
        }


class Watch(Plugin):
    """Remembers which test calls which function, and writes it down at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen = Seen({}, {}, set())
        self._test = ""

    def called(self, module: str, function: str) -> None:
        self.seen.callers[module, function].add(self._test)

    def end(self) -> None:
        callers = [[*place, *tests] for place, tests in self.seen.callers.items()]
        self.path.write_text(json.dumps([callers, self.seen.seconds, list(self.seen.failed)]))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        signal.alarm(3600)
        self._test = nodeid

    def pytest_runtest_logfinish(self) -> None:
        self._test = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seen.seconds[report.nodeid] = self.seen.seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            self.seen.failed.add(report.nodeid)


class Teller(ast.NodeTransformer):
    """Makes each function of a module tell that it is called."""

    def __init__(self, module: str, watch: Watch) -> None:
        self.module, self.watch = module, watch
        self._names: list[str] = []

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._inside(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        key = self.module, ".".join([*self._names, node.name])
        self.watch.seen.callers[key] = set()
        self._inside(node)
        tell = ast.parse(f"__import__('builtins').called{key!r}").body
        place = int(ast.get_docstring(node) is not None)
        node.body[place:place] = tell
        return node

    def _inside(self, node: ast.ClassDef | ast.FunctionDef) -> ast.AST:
        self._names.append(node.name)
        self.generic_visit(node)
        self._names.pop()
        return node


def watch(modules: Sequence[str]) -> Seen:
    """Run the tests of modules once, as they are."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seen"
        plugin = Watch(path)
        builtins.called = plugin.called  # type: ignore[attr-defined]
        files = dict.fromkeys(file for module in modules for file in tests_of(module))
        run_tests({module: Teller(module, plugin) for module in modules}, list(files), plugin)
        callers, seconds, failed = json.loads(path.read_text())
        return Seen({(module, function): set(found) for module, function, *found in callers}, seconds, set(failed))


def survives(mutant: Mutant, seen: Seen) -> bool:
    """Whether all tests that may notice a mutant pass with it."""
    tests = seen.noticing(mutant)
    files = [file for file in tests_of(mutant.module) if any(test.startswith(f"{file}::") for test in tests)]
    changes = {mutant.module: Changer(mutant.module, mutant.place)}
    return not files or run_tests(changes, files, Only(tests, seen.seconds))


# =============================================================================
# The command
# =============================================================================


def equal() -> set[tuple[str, ...]]:
    """The mutants that behave as before."""
    with EQUAL.open(encoding="utf-8", newline="") as file:
        return {tuple(row[:4]) for row in csv.reader(file)}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--sample", default=300, show_default=True, help="How many mutants are drawn from all.")
@click.option("--seed", default=16, show_default=True)
@click.option("--module", "modules", multiple=True, type=click.Choice(list(COVERED)), help="Default: all.")
@click.option("--minutes", default=60.0, show_default=True, help="Stop after so long, with what was tried.")
@click.option("--least", default=0.0, help="Exit with 1 if a smaller part (0 to 1) of the mutants is killed.")
def main(sample: int, seed: int, modules: tuple[str, ...], minutes: float, least: float) -> None:
    """Say for each mutant whether a test notices it, then how many of those that change behaviour were killed."""
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    for library in LIBRARIES:
        importlib.import_module(library)
    population = [mutant for module in modules or COVERED for mutant in mutants(module)]
    drawn = random.Random(seed).sample(population, min(sample, len(population)))
    known, ends = equal(), time.monotonic() + 60 * minutes
    for listed in sorted(known - {mutant.key for module in COVERED for mutant in mutants(module)}):
        click.echo(f"LISTED as equal, but there is no such mutant: {', '.join(listed)}")
    seen = watch(sorted({mutant.module for mutant in drawn}))
    for test in sorted(seen.failed):
        click.echo(f"LEFT OUT {test}: it fails without any mutant.")
    killed, same, alive = 0, 0, 0
    for mutant in drawn:
        if time.monotonic() > ends:
            break
        if mutant.key in known:
            same += 1
            continue
        if survives(mutant, seen):
            alive += 1
            click.echo(f"SURVIVED {mutant.module}:{mutant.line} {mutant.function}: {mutant.before}  ->  {mutant.after}")
        else:
            killed += 1
    tried = killed + alive
    click.echo(
        f"{len(population):,} mutants; seed {seed}; {tried + same} tried, {same} of them equal in behaviour. "
        f"Killed {killed} of {tried}: {killed / max(tried, 1):.1%}."
    )
    if killed < least * tried:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
