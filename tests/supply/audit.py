"""Whether an installed package has a known vulnerability: `make audit`, a part of CI.

pip-audit asks PyPI about each installed version, without its local label (2.13.0 for 2.13.0+cpu). A vulnerability
fails. Without an answer, as behind a mirror that serves files alone, the command says so and passes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from packaging.version import Version

OURS = "vlmamba-eval"
NAMED = 12  # packages without an answer that are named


def installed() -> list[str]:
    """`NAME==VERSION` of every package here but this project's own."""
    found = {(one.metadata["Name"].lower(), Version(one.version).public) for one in distributions()}
    return [f"{name}=={version}" for name, version in sorted(found) if name not in (OURS, "vlmamba-example")]


def audit(packages: Sequence[str], options: Sequence[str] = ()) -> tuple[int, str]:
    """(exit code, what to say) about these packages. `options` are pip-audit's own."""
    with tempfile.TemporaryDirectory() as folder:
        pinned = Path(folder, "packages.txt")
        pinned.write_text("\n".join(packages))
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(pinned), "--no-deps", "--disable-pip"]
        command += ["--format", "json", "--progress-spinner", "off", "--timeout", "5", *options]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONWARNINGS": "ignore"}
        )
    return judged(done.stdout, done.stderr)


def judged(report: str, errors: str = "") -> tuple[int, str]:
    """The same from pip-audit's JSON and what it wrote to standard error."""
    try:
        found: list[dict[str, Any]] = json.loads(report)["dependencies"]
    except ValueError:
        last = (errors.strip().splitlines() or ["it wrote nothing"])[-1]
        return 0, f"Dependencies were not audited: pip-audit got no answer ({last:.300})."
    bad = [(package, one) for package in found for one in package.get("vulns", ())]
    if bad:
        lines = [
            f"{package['name']} {package['version']}: {one['id']}; "
            + (f"mended in {', '.join(one['fix_versions'])}" if one["fix_versions"] else "no version mends it yet")
            for package, one in bad
        ]
        return 1, "\n".join(["Known vulnerabilities. Raise the bounds in pyproject.toml:", *lines])
    unknown = [package["name"] for package in found if "skip_reason" in package]
    if len(unknown) == len(found):
        return 0, "Dependencies were not audited: the package index here does not tell vulnerabilities."
    said = f"{len(found) - len(unknown)} packages have no known vulnerability."
    if unknown:
        more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
        said += f" Not on PyPI, so not audited: {', '.join(unknown[:NAMED])}{more}."
    return 0, said


if __name__ == "__main__":
    code, said = audit(installed())
    print(said)
    raise SystemExit(code)
