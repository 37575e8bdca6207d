"""What no file of this project may hold, and which rooms may know of which."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("vlmamba_eval", "tasks", "model_adapters")
SOURCES = sorted(path for room in (*PACKAGES, "tests") for path in (ROOT / room).rglob("*.py"))
TEXTS = {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".jsonl", ".csv", ".txt", ""}


def name_of(node: ast.expr) -> str:
    """`a.b.c` of a name or attribute; a question mark stands for what is neither."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def faults(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Whatever runs code that comes with data or a command line, and whatever swallows every error: (line, what)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            caught = name_of(node.type) if node.type else ""
            if not caught:
                yield node.lineno, "a bare except"
            if caught in ("Exception", "BaseException") and isinstance(node.body[0], ast.Pass):
                yield node.lineno, "every error passed over"
        if not isinstance(node, ast.Call):
            continue
        name = name_of(node.func)
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        if name in ("eval", "exec", "os.system", "os.popen") or name.endswith(("pickle.load", "pickle.loads")):
            yield node.lineno, name
        if name == "yaml.load" or (name == "torch.load" and not _is(given.get("weights_only"), True)):
            yield node.lineno, f"{name} of files that may hold code"
        for keyword in ("shell", "trust_remote_code"):
            if keyword in given and not _is(given[keyword], False):
                yield node.lineno, keyword


def _is(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_code_from_data_and_no_error_is_swallowed(path: Path) -> None:
    assert list(faults(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "line",
    [
        "eval(text)", "exec(text)", "pickle.load(f)", "pickle.loads(b)", "yaml.load(f)", "run(c, shell=True)",
        "run(c, shell=x)", "torch.load(f)", "torch.load(f, weights_only=False)", "load(n, trust_remote_code=True)",
        "try: f()\nexcept: g()", "try: f()\nexcept Exception: pass", "os.system(c)",
    ],
)  # fmt: skip
def test_the_check_sees_each_fault(line: str) -> None:
    assert list(faults(ast.parse(line)))


def test_nothing_names_this_or_that_machine() -> None:
    """Absolute paths and package indices belong to the machine where a line was written, not to the project."""
    machine = re.compile(
        r"""(?<![\w./~-])/(work|root|home|tmp|opt|mnt|Users)/|index-url|file:///|https?://[\w.:-]*/simple"""
    )
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout: there is no list of the project's files")
    found = []
    for name in listed.stdout.split("\0"):
        path = ROOT / name
        if path.suffix in TEXTS and path.is_file() and path != Path(__file__):
            for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), 1):
                if machine.search(line):
                    found.append(f"{name}:{number}: {line.strip()[:120]}")
    assert found == []


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports when it runs, those for type checking left out."""

    def walk(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and name_of(node.test).endswith("TYPE_CHECKING"):
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            yield ".".join((*package, *filter(None, [node.module])))
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    return walk(ast.parse(path.read_text(encoding="utf-8")))


def rooms() -> list[tuple[str, str]]:
    """Every (module, imported module) within the three packages; experiments beside recipes use them from outside."""
    arrows = []
    for package in PACKAGES:
        for path in (path for path in (ROOT / package).rglob("*.py") if "recipes" not in path.parts):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            arrows += [(module, name) for name in imported(path) if name.split(".")[0] in PACKAGES]
    return arrows


def test_tasks_and_adapters_know_only_the_vocabulary() -> None:
    for module, name in rooms():
        package = module.split(".")[0]
        if package != "vlmamba_eval":
            assert name == "vlmamba_eval.types" or name.split(".")[0] == package, f"{module} imports {name}"


def test_nothing_imports_the_command_line() -> None:
    assert {module for module, name in rooms() if name == "vlmamba_eval.cli"} == {"vlmamba_eval.__main__"}


def test_the_harness_knows_no_benchmark_and_no_model_by_name() -> None:
    """It asks the registries; only the command line names what is not a task or an adapter (assemble, bench)."""
    allowed = {
        "tasks",
        "vlmamba_eval.tasks.base",
        "vlmamba_eval.tasks.registry",
        "vlmamba_eval.model_adapters.base",
        "vlmamba_eval.model_adapters.registry",
    }
    for module, name in rooms():
        if module.startswith("vlmamba_eval.") and module != "vlmamba_eval.cli":
            assert name.startswith("vlmamba_eval") or name in allowed, f"{module} imports {name}"


HARNESS = ("types", "data", "dataset", "plan", "store", "prepare", "finished", "imported", "baselines", "cli")


def test_the_vocabulary_stands_alone_and_light_modules_stay_light() -> None:
    code = (
        f"import sys, tasks.registry, model_adapters.registry\n"
        f"for name in {HARNESS!r}: __import__(f'vlmamba_eval.{{name}}')\n"
        "vlmamba_eval.registry.all_tasks()\n"
        "heavy = {'torch', 'transformers', 'pandas', 'datasets', 'numpy', 'scipy', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not [name for module, name in rooms() if module == "vlmamba_eval.types"]
