"""What each benchmark declares of itself, number by number: whoever changes one changes it here too, on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from vlmamba_eval.registry import all_tasks, get_task

WORDS = ("measures", "paper", "scorer")  # for people alone


def declared(name: str) -> dict[str, Any]:
    info = {key: value for key, value in asdict(get_task(name).info).items() if key not in WORDS}
    return json.loads(json.dumps(info))


@pytest.mark.parametrize("name", all_tasks())
def test_a_benchmark_declares_what_is_written_down(name: str, golden: Callable[[str], list[dict[str, Any]]]) -> None:
    """Sizes, limits, versions, hashes, and where the files come from; a line per benchmark in `golden/declared.jsonl`.

    A changed prompt, reading or score raises `version`.
    """
    written = {row["name"]: row for row in golden("declared")}
    assert declared(name) == written[name]
    assert len(written) == len(all_tasks())
