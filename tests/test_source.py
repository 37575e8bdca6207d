"""What no file of this project may hold, and which rooms may know of which."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("vlmamba_eval", "tasks", "model_adapters")
SOURCES = sorted(path for room in (*PACKAGES, "tests") for path in (ROOT / room).rglob("*.py"))
TEXTS = {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".jsonl", ".csv", ".txt", ""}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


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
    assert list(faults(tree_of(path))) == []


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


def json_readers(tree: ast.AST) -> Iterator[int]:
    """The lines of calls that read JSON by another way than `strict_json`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and name_of(node) in (
            "json.loads", "json.load", "json.JSONDecoder", "msgspec.json.decode", "msgspec.json.Decoder",
        ):  # fmt: skip
            yield node.lineno
        if isinstance(node, ast.ImportFrom) and node.module in ("json", "msgspec.json"):
            yield node.lineno


OWN_READERS = {"vlmamba_eval/strict_json.py", "vlmamba_eval/store.py"}  # the store: answers, by the hundred thousand


def test_there_is_one_way_in_for_json() -> None:
    ours = [path for path in SOURCES if path.relative_to(ROOT).parts[0] in PACKAGES]
    found = {path for path in ours if any(json_readers(tree_of(path)))}
    assert {str(path.relative_to(ROOT)) for path in found} == OWN_READERS


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
    """The modules that a file imports, at once, late, or for type checking alone."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            package = ("vlmamba_eval", *path.relative_to(ROOT).parts)[: -node.level] if node.level else ()
            if node.level and path.is_relative_to(ROOT / "vlmamba_eval"):
                package = path.relative_to(ROOT).parts[: -node.level]
            base = ".".join((*package, *filter(None, [node.module])))
            yield from (f"{base}.{alias.name}" for alias in node.names)


def module_of(path: Path) -> str:
    """`tasks/pope.py` is `vlmamba_eval.tasks.pope`: the two folders are installed inside the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    inside = parts if parts[0] == "vlmamba_eval" else ("vlmamba_eval", *parts)
    return ".".join(inside).removesuffix(".__init__")


FILES = [path for path in SOURCES if path.relative_to(ROOT).parts[0] in PACKAGES and "recipes" not in path.parts]
MODULES = {module_of(path): path for path in FILES if not path.is_relative_to(ROOT / "vlmamba_eval" / "tasks")}


@cache
@cache
def arrows() -> set[tuple[str, str]]:
    """Every (module, imported module) of the project; experiments beside recipes use it from outside."""
    found = set()
    for module, path in MODULES.items():
        for name in imported(path):
            while name and name not in MODULES:
                name = name.rpartition(".")[0]
            if name not in ("", "vlmamba_eval", module):
                found.add((module, name))
    return found


PLUG_INS = ("vlmamba_eval.tasks.", "vlmamba_eval.model_adapters.", "vlmamba_eval.bridges.")


def room(module: str) -> str:
    """`tasks`, `model_adapters`, `bridges`, or the harness."""
    return next((plug_in for plug_in in PLUG_INS if f"{module}.".startswith(plug_in)), "harness")


def test_the_harness_imports_no_plug_in() -> None:
    """It asks the registry, which imports them by name at run time."""
    assert [arrow for arrow in arrows() if room(arrow[0]) == "harness" != room(arrow[1])] == []


def test_tasks_and_families_do_not_know_each_other() -> None:
    known = {"vlmamba_eval.model_adapters.vlmamba.recipes", "vlmamba_eval.model_adapters.vlmamba.train"}
    for module, name in arrows():
        pair = {room(module), room(name)} - {"harness"}
        if len(pair) == 2 and not any(module.startswith(prefix) for prefix in known):
            assert room(module) == "vlmamba_eval.bridges.", f"{module} imports {name}"


def test_there_is_no_circle() -> None:
    """Not among the harness's modules, nor between it and its plug-ins, imports for type checking included."""
    following: dict[str, set[str]] = {}
    for module, name in arrows():
        following.setdefault(module, set()).add(name)
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a circle: {' -> '.join([*path[path.index(module) :], module])}"
        if module not in done:
            for name in sorted(following.get(module, ())):
                walk(name, (*path, module))
            done.add(module)

    for module in sorted(MODULES):
        walk(module, ())


def test_nothing_imports_the_command_line() -> None:
    assert {module for module, name in arrows() if name == "vlmamba_eval.cli"} == {"vlmamba_eval.__main__"}


LIGHT = (
    *("adapter", "baselines", "cli", "dataset", "files", "folder", "hub", "images", "journal"),
    *("manifest", "nearest", "plan", "prepare", "registry", "rows", "store", "task", "types"),
)


def test_light_modules_stay_light() -> None:
    code = (
        f"import sys\nfor name in {LIGHT!r}: __import__(f'vlmamba_eval.{{name}}')\n"
        "from vlmamba_eval.registry import registry\nregistry()\n"
        "heavy = {'torch', 'transformers', 'pandas', 'datasets', 'numpy', 'scipy', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_vocabulary_stands_alone() -> None:
    assert not [name for module, name in arrows() if module == "vlmamba_eval.types"]


LARGEST = {
    "vlmamba_eval": 5000, "vlmamba_eval/answers": 700, "vlmamba_eval/bridges": 300, "vlmamba_eval/chat": 650,
    "vlmamba_eval/fetch": 1350, "vlmamba_eval/report": 2250, "tasks": 2800, "tasks/samples": 1450,
    "model_adapters": 50, "model_adapters/shared": 1950, "model_adapters/vlmamba": 7500,
}  # fmt: skip
"""Lines of code that a room may have; of a family of models not named here, 750."""


def lines_of_code(text: str, tree: ast.Module) -> int:
    """Lines with code on them: neither blank nor comment nor docstring."""
    lines = enumerate(map(str.strip, text.split("\n")), 1)
    found = {number for number, line in lines if line and not line.startswith("#")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            found.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(found)


def test_only_code_counts() -> None:
    text = '"""Two\nlines."""\n# one\n\nx = (\n    1,\n)\n\ndef f():\n    """No."""\n    return x\n'
    assert lines_of_code(text, ast.parse(text)) == 5


def test_no_room_grows_unnoticed() -> None:
    """Whoever adds to a full room looks first for what can go, then raises its number knowingly. -s prints them all."""
    sizes: Counter[str] = Counter()
    for path in MODULES.values():
        folder = "/".join(path.relative_to(ROOT).parts[:-1][:2])
        sizes[folder] += lines_of_code(path.read_text(encoding="utf-8"), tree_of(path))
    print(*(f"{size:6,} {name}" for name, size in sorted(sizes.items())), f"{sizes.total():6,} in all", sep="\n")
    assert {name: size for name, size in sizes.items() if size > LARGEST.get(name, 750)} == {}
