"""The real lists of GQA, POPE and TextVQA: only their pictures travel, and an evaluation runs, from an archive too."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from tests.vlmamba_eval.fetch.server import Server
from vlmamba_eval.tasks.gqa import GQA

REAL = Path(os.environ.get("VLMAMBA_REAL", Path(__file__).parents[4] / "shared" / "real"))
OFFLINE = (
    "import socket, sys\n"
    "def no(*a, **k): raise OSError('sockets are blocked')\n"
    "socket.socket.connect = socket.create_connection = socket.getaddrinfo = no\n"
    "from vlmamba_eval.cli import main\n"
    "main()\n"
)


def jsonl(name: str) -> list[dict]:
    return [json.loads(line) for line in (REAL / name).read_text(encoding="utf-8").splitlines()]


def picture(rng: random.Random) -> bytes:
    raw = io.BytesIO()
    Image.frombytes("RGB", (40, 40), rng.randbytes(4800)).save(raw, "JPEG", quality=70)
    return raw.getvalue()


def archive(path: Path, folder: str, files: dict[str, bytes], others: int, rng: random.Random) -> int:
    """A zip of these files among others; the bytes of its directory."""
    names = [*files, *(f"other{i:06}.jpg" for i in range(others))]
    rng.shuffle(names)
    filling = rng.randbytes(20_000)
    with zipfile.ZipFile(path, "w") as zipped:
        for name in names:
            content = files.get(name)
            zipped.writestr(f"{folder}/{name}", filling[: rng.randrange(500, 20_000)] if content is None else content)
    with zipfile.ZipFile(path) as zipped:
        return path.stat().st_size - zipped.start_dir


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="no real files: set VLMAMBA_REAL")
def test_only_what_the_real_lists_ask_about_travels_and_an_evaluation_runs(server: Server, tmp_path: Path) -> None:
    rng = random.Random(3)
    gqa, textvqa = jsonl("gqa/llava_gqa_testdev_balanced.jsonl"), jsonl("textvqa/llava_textvqa_val_v051_ocr.jsonl")
    lists = sorted((REAL / "pope" / "coco").glob("*.json"))
    wanted = {
        "gqa/images": {row["image"]: picture(rng) for row in gqa},
        "textvqa/train_images": {f"{row['question_id']}.jpg": picture(rng) for row in textvqa},
        "pope/val2014": {row["image"]: picture(rng) for path in lists for row in map(json.loads, path.open())},
    }
    assert [len(files) for files in wanted.values()] == [398, 3166, 500]
    directories = {}
    for url, (folder, member) in {
        "images.zip": ("gqa/images", "images"),
        "train_val_images.zip": ("textvqa/train_images", "train_images"),
        "val2014.zip": ("pope/val2014", "val2014"),
    }.items():
        directories[url] = archive(tmp_path / url, member, wanted[folder], 20_000, rng)
        server.put(f"/m/{url}", tmp_path / url)
    # Official question files, rebuilt from LLaVA's; the answers are made up, and so are types, in the declared numbers.
    types = {
        kind: iter([name.removeprefix(f"{kind}/") for name, n in GQA.counts.items() if name.startswith(kind)
                    for _ in range(n)])
        for kind in ("structural", "semantic")
    }  # fmt: skip
    table = {
        row["question_id"]: {
            "imageId": row["image"].removesuffix(".jpg"), "question": row["text"].split("\n")[0], "answer": "yes",
            "isBalanced": True, "groups": {"global": None}, "semantic": [],
            "types": {kind: next(names) for kind, names in types.items()},
        }
        for row in gqa
    }  # fmt: skip
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("testdev_balanced_questions.json", json.dumps(table))
        zipped.writestr("train_all_questions/0.json", rng.randbytes(3_000_000))
    server.put("/m/questions1.2.zip", raw.getvalue())
    rows = [
        {"image_id": row["question_id"], "question": row["text"].split("\n")[0], "answers": ["yes"] * 10}
        for row in textvqa
    ]
    words = [
        {"image_id": name.removesuffix(".jpg"), "ocr_tokens": ["a", "b"]} for name in wanted["textvqa/train_images"]
    ]
    server.put("/m/TextVQA_0.5.1_val.json", json.dumps({"data": rows}).encode())
    server.put("/m/TextVQA_Rosetta_OCR_v0.2_val.json", json.dumps({"data": words}).encode())
    for path in lists:
        server.put(f"/m/{path.name}", path.read_bytes())

    def command(*arguments: str, cwd: Path = tmp_path, offline: bool = False) -> str:
        start = ["-c", OFFLINE] if offline else ["-m", "vlmamba_eval"]
        place = os.pathsep.join([str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": place}
        done = subprocess.run(
            [sys.executable, *start, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    tasks = ("--tasks", "gqa,pope,textvqa")
    said = command("prepare", *tasks, "--download", "--yes", "--mirror", f"{server.url}/m")
    assert "3 of 3 ready" in said
    for folder, files in wanted.items():
        assert {path.name: path.read_bytes() for path in (tmp_path / "data" / folder).iterdir()} == files
    for url, folder in zip(directories, wanted, strict=True):
        needed = sum(map(len, wanted[folder].values())) + directories[url]
        sent, whole = server.sent[f"/m/{url}"], (tmp_path / url).stat().st_size
        print(f"{url}: {whole:,} bytes, needed {needed:,} with its directory, sent {sent:,}")
        assert needed < sent < needed + 2**17 + 150 * len(wanted[folder])
    assert server.sent["/m/questions1.2.zip"] < len(raw.getvalue()) / 2

    limit = os.environ.get("VLMAMBA_REAL_LIMIT", "60")
    evaluation = ("--model", "vlmamba-tiny", *tasks, "--limit", limit)
    command(*evaluation, "--out", "folder")  # the default data is the folder that was filled
    assert "0 wrong" in command("prepare", *tasks, "--verify")
    said = command("prepare", *tasks, "--pack", "all.tar")
    assert "4,070 files" in said  # 4,064 pictures and six question files
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "all.tar").rename(elsewhere / "all.tar")
    (tmp_path / "data").rename(tmp_path / "gone")
    command(*evaluation, "--data", "all.tar", "--out", "archive", cwd=elsewhere, offline=True)
    for name in ("leaderboard.csv", "leaderboard.md"):
        assert (elsewhere / "archive" / name).read_bytes() == (tmp_path / "folder" / name).read_bytes()
