"""The command line and a server in trouble: a killed run goes on, nothing is lost, and no file holds the key."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.servers import Asked, ChatServer, answer, cut, drop, status
from vlmamba_eval.dataset import load_dataset
from vlmamba_eval.images import read_image
from vlmamba_eval.registry import get_task
from vlmamba_eval.store import ANSWERS, read_answers

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
SECRET = "sk-very-secret-0123456789"
TROUBLE = [status(500, SECRET.encode()), drop, cut, status(429, SECRET.encode(), retry_after="0.01"), None, None, None]


def behave(asked: Asked) -> Any:
    """Some trouble at first for most questions; one question that never gets an answer."""
    if asked.text.startswith("Is there a cross"):
        return status(400, f"the key {SECRET} may not ask this".encode())
    time.sleep(0.01)
    act = TROUBLE[(len(asked.text) + asked.nth * 4) % len(TROUBLE)] if asked.nth < 3 else None
    return act or answer(f"yes {SECRET}")


def start(server: ChatServer, out: Path) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "vlmamba_eval",
        "--model",
        "openai:toy",
        "--tasks",
        "pope,mme",
        "--data",
        "samples",
    ]
    command += ["--out", str(out), "--model-option", f"base_url={server.url}", "--max-errors", "100"]
    environment = {**os.environ, "OPENAI_API_KEY": SECRET, "NO_PROXY": "127.0.0.1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def asked_for(asked: Asked) -> tuple[bytes, str]:
    """(picture's file, text) of a request."""
    [image] = [part for part in asked.body["messages"][-1]["content"] if part["type"] == "image_url"]
    return base64.b64decode(image["image_url"]["url"].partition(",")[2]), asked.text


def answered(out: Path) -> set[tuple[bytes, str]]:
    """(picture's file, text) of every question that has its answer on the disk."""
    found = set()
    for path in out.rglob(ANSWERS):
        samples = {sample.id: sample for sample in load_dataset(get_task(path.parent.parent.name), "samples").samples}
        for key, one in read_answers(path.parent).items():
            image = samples[key].image
            assert image is not None
            if one.generation is not None:
                found.add((read_image(image), one.generation.prompt.removeprefix("<image>\n")))
    return found


def lines(out: Path) -> int:
    return sum(len(path.read_bytes().splitlines()) for path in out.rglob(ANSWERS))


def test_a_killed_run_against_a_failing_server_goes_on_and_no_file_holds_the_key(tmp_path: Path) -> None:
    with ChatServer(behave) as server:
        first = start(server, tmp_path)
        until = time.monotonic() + 120
        while lines(tmp_path) < 60 and time.monotonic() < until:
            time.sleep(0.02)
        first.send_signal(signal.SIGKILL)
        said = [*first.communicate()]
        kept = lines(tmp_path)
        assert 60 <= kept < 452
        safe, before = answered(tmp_path), len(server.asked)
        second = start(server, tmp_path)
        said += second.communicate()
    assert second.returncode == 0, said[-1]
    again = {asked_for(asked) for asked in server.asked[before:]}
    assert len(safe) > 30
    assert not again & safe  # asked twice is at most what had no answer on the disk
    assert again | safe >= {asked_for(asked) for asked in server.asked[:before]}  # and nothing is lost
    folders = {path.parent.parent.name: path.parent for path in tmp_path.rglob(ANSWERS)}
    answers = {name: read_answers(folder) for name, folder in folders.items()}
    assert {name: len(found) for name, found in answers.items()} == {"pope": 288, "mme": 164}
    for found in answers.values():
        for one in found.values():
            if one.failure is not None:
                assert "may not ask this" in one.failure.message
            else:
                assert one.generation is not None
                assert one.generation.text == "yes [key]"
    assert any(one.failure for one in answers["pope"].values())
    assert {asked.headers["Authorization"] for asked in server.asked} == {f"Bearer {SECRET}"}
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"[key]" in written
    assert SECRET.encode() not in written
    assert SECRET not in "".join(said)
