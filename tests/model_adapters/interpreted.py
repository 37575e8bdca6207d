"""Tests of Triton's kernels on a machine without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def under_the_interpreter(file: str, *arguments: str) -> str:
    """What pytest prints about a file of tests under Triton's interpreter; none of them may fail.

    In a process of its own, since Triton decides at its first import whether it compiles or interprets.
    """
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", file, *arguments],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
