"""The Triton kernels, on every machine: the tests of `test_ssd.py` under Triton's interpreter.

A process of its own, since Triton decides at its first import whether it compiles or interprets.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


def test_the_kernels_pass_all_tests_of_the_scan_under_the_interpreter():
    here = Path(__file__).parent
    root = here.parents[3]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", str(here / "test_ssd.py")],
        cwd=root,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
