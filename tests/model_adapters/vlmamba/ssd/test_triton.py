"""The Triton kernels, on every machine: the tests of `test_ssd.py` under Triton's interpreter.

A process of its own, since Triton decides at its first import whether it compiles or interprets.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.model_adapters.interpreted import under_the_interpreter

pytest.importorskip("triton")


def test_the_kernels_pass_all_tests_of_the_scan_under_the_interpreter():
    assert " passed" in under_the_interpreter(str(Path(__file__).with_name("test_ssd.py")), "-x")
