"""What is missing comes, whole and checked, or is named; nothing half ever stands under its name."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from tests.vlmamba_eval.fetch.server import SEND_BUFFER, Server
from vlmamba_eval.fetch.download import STATE, Download, Result
from vlmamba_eval.fetch.http import Http
from vlmamba_eval.fetch.plan import Batch, Wanted
from vlmamba_eval.sources import File, Pictures, Terms
from vlmamba_eval.types import DataError, UsageError

TERMS = Terms("free", "")


def picture(seed: int, side: int = 24) -> bytes:
    raw = io.BytesIO()
    Image.frombytes("RGB", (side, side), random.Random(seed).randbytes(3 * side * side)).save(raw, "JPEG")
    return raw.getvalue()


def archive(files: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
    return raw.getvalue()


MANY = {f"images/{i:05}.jpg": picture(i % 50) + i.to_bytes(4, "big") for i in range(3000)}
ZIP = archive(MANY)
NAMES = [f"{i:05}.jpg" for i in range(0, 3000, 29)] + ["00030.jpg", "00031.jpg"]


def pictures(root: Path, names: list[str], source: Pictures, folder: str = "gqa/images") -> Batch:
    return Batch(source, tuple(Wanted(root / folder / name, source, name) for name in names))


def run(root: Path, http: Http, *batches: Batch, mirror: str = "", whole: bool = False) -> Result:
    with Download(root, http, mirror, whole) as download:
        return download.fetch(download.resolve(batches))


def fetched(root: Path, folder: str = "gqa/images") -> dict[str, bytes]:
    """What stands in a folder, hidden files included."""
    return {path.name: path.read_bytes() for path in (root / folder).rglob("*")} if (root / folder).exists() else {}


EXPECTED = {name: MANY[f"images/{name}"] for name in NAMES}


def test_only_the_wanted_members_travel(server: Server, http: Http, tmp_path: Path) -> None:
    source = Pictures(TERMS, server.put("/images.zip", ZIP), "images/{name}")
    assert run(tmp_path, http, pictures(tmp_path, NAMES, source)) == Result(len(NAMES), ())
    assert fetched(tmp_path) == EXPECTED
    wanted = sum(map(len, EXPECTED.values()))
    directory = 3000 * (46 + len("images/00000.jpg")) + 22
    assert wanted + directory < server.sent["/images.zip"] < wanted + directory + 2**17 + 100 * len(NAMES)
    # two neighbours came in one request, so there is one request fewer, besides the look and the directory's two
    assert len(server.asked["/images.zip"]) <= 3 + len(NAMES) - 2


def test_what_is_there_is_not_fetched_again(server: Server, http: Http, tmp_path: Path) -> None:
    source = Pictures(TERMS, server.put("/images.zip", ZIP), "images/{name}")
    run(tmp_path, http, pictures(tmp_path, NAMES[:5], source))
    before = server.sent["/images.zip"]
    run(tmp_path, http, pictures(tmp_path, NAMES[5:6], source))  # the directory is kept
    assert server.sent["/images.zip"] - before < len(EXPECTED[NAMES[5]]) + 100


def test_one_picture_for_two_benchmarks_comes_once(server: Server, http: Http, tmp_path: Path) -> None:
    source = Pictures(TERMS, each=f"{server.url}/val/{{name}}")
    server.put("/val/a.jpg", picture(1))
    wanted = tuple(Wanted(tmp_path / task / "a.jpg", source, "a.jpg") for task in ("pope", "vqav2"))
    assert run(tmp_path, http, Batch(source, wanted)).failures == ()
    assert (tmp_path / "pope/a.jpg").read_bytes() == (tmp_path / "vqav2/a.jpg").read_bytes() == picture(1)
    assert len(server.asked["/val/a.jpg"]) == 1


def test_few_pictures_come_one_by_one_and_many_from_the_zip(server: Server, http: Http, tmp_path: Path) -> None:
    url = server.put("/images.zip", ZIP)
    for name in NAMES[:9]:
        server.put(f"/images/{name}", EXPECTED[name])
    source = Pictures(TERMS, url, "images/{name}", f"{server.url}/images/{{name}}", size=1000, zip_size=100_000)
    run(tmp_path, http, pictures(tmp_path, NAMES[:9], source))
    assert not server.asked["/images.zip"]
    assert fetched(tmp_path) == {name: EXPECTED[name] for name in NAMES[:9]}
    neighbours = {f"{i:05}.jpg": MANY[f"images/{i:05}.jpg"] for i in range(1000, 1200)}
    run(tmp_path, http, pictures(tmp_path, list(neighbours), source, "new"))
    assert len(server.asked["/images.zip"]) == 4  # a look, the directory in two pieces, and all neighbours together
    assert fetched(tmp_path, "new") == neighbours


def test_a_member_that_is_not_there_is_named_and_the_others_come(server: Server, http: Http, tmp_path: Path) -> None:
    source = Pictures(TERMS, server.put("/images.zip", ZIP), "images/{name}")
    result = run(tmp_path, http, pictures(tmp_path, ["00001.jpg", "nowhere.jpg"], source))
    assert result.failures == (f"{server.url}/images.zip lacks 1 picture (nowhere.jpg).",)
    assert list(fetched(tmp_path)) == ["00001.jpg"]


def test_files_come_whole_or_out_of_a_zip_and_match_their_digest(server: Server, http: Http, tmp_path: Path) -> None:
    content = b'{"questions": []}' * 1000
    sha, md5 = hashlib.sha256(content).hexdigest(), hashlib.md5(content).hexdigest()
    zipped = server.put("/q.zip", archive({"v1/q.json": content, "v1/other.json": b"x"}))
    files = [
        File("a/q.json", server.put("/q.json", content), TERMS, digest=f"sha256:{sha}"),
        File("b/q.json", server.put("/plain/q.json", content, ranges=False), TERMS, digest=f"md5:{md5}"),
        File("c/q.json", zipped, TERMS, member="q.json"),
    ]
    result = run(tmp_path, http, *(Batch(file, (Wanted(tmp_path / file.path, file),)) for file in files))
    assert result.failures == ()
    assert [(tmp_path / file.path).read_bytes() for file in files] == [content] * 3


def test_another_version_of_a_file_is_refused(server: Server, http: Http, tmp_path: Path) -> None:
    file = File("q.json", server.put("/q.json", b"other"), TERMS, digest=f"sha256:{'0' * 64}")
    (failure,) = run(tmp_path, http, Batch(file, (Wanted(tmp_path / "q.json", file),))).failures
    assert failure.startswith(f"{server.url}/q.json: expected sha256 000")
    assert "another version" in failure
    assert {path.name for path in tmp_path.iterdir()} == {STATE}


# -- bad servers -------------------------------------------------------------------------------------------------------


def test_a_wrong_byte_is_noticed_and_the_member_fetched_again(server: Server, http: Http, tmp_path: Path) -> None:
    source = Pictures(TERMS, server.put("/images.zip", ZIP), "images/{name}")
    with Download(tmp_path, http) as download:
        items = download.resolve([pictures(tmp_path, NAMES, source)])
        server.files["/images.zip"].spoil = 3
        assert download.fetch(items) == Result(len(NAMES), ())
    assert fetched(tmp_path) == EXPECTED


def test_a_server_that_always_sends_wrong_bytes_leaves_nothing(server: Server, http: Http, tmp_path: Path) -> None:
    source = Pictures(TERMS, server.put("/images.zip", ZIP), "images/{name}")
    with Download(tmp_path, http) as download:
        items = download.resolve([pictures(tmp_path, NAMES[:9], source)])
        server.files["/images.zip"].spoil = 10**6
        result = download.fetch(items)
    assert len(result.failures) == 9
    assert all(" is damaged" in failure or "expected a member" in failure for failure in result.failures)
    assert fetched(tmp_path) == {}


def test_cut_connections_are_taken_up_again(server: Server, http: Http, tmp_path: Path) -> None:
    source = Pictures(TERMS, server.put("/images.zip", ZIP, cut_after=700, cuts=40), "images/{name}")
    assert run(tmp_path, http, pictures(tmp_path, NAMES, source)) == Result(len(NAMES), ())
    assert fetched(tmp_path) == EXPECTED


def test_busy_servers_are_waited_for(server: Server, http: Http, tmp_path: Path) -> None:
    answers = [429, 503, 503, 500]
    source = Pictures(TERMS, each=f"{server.url}/{{name}}")
    for i in range(4):
        server.put(f"/{i}.jpg", picture(i), answers=answers[i : i + 1])
    assert run(tmp_path, http, pictures(tmp_path, [f"{i}.jpg" for i in range(4)], source)) == Result(4, ())


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"answers": [403] * 99}, "answers 403: it refuses"),
        ({"answers": [503] * 99}, "503: it is overloaded. Tried 3 times"),
        ({"answers": [429] * 99, "headers": {"Retry-After": "999"}}, "it asks to wait 999 seconds"),
        ({"headers": {"Content-Type": "text/html"}}, "a web page instead of the file"),
        ({"redirect": "/images.zip"}, "from one address to the next"),
        ({"ranges": False}, "no parts of files, and only some of this archive of"),
    ],
)
def test_every_bad_server_is_one_sentence(server: Server, http: Http, tmp_path: Path, how: dict, said: str) -> None:
    source = Pictures(TERMS, server.put("/images.zip", ZIP, **how), "images/{name}")
    (failure,) = run(tmp_path, http, pictures(tmp_path, NAMES, source)).failures
    assert failure.startswith(f"{len(set(NAMES)):,} pictures: {server.url}/images.zip")
    assert said in failure
    assert fetched(tmp_path) == {}
    assert server.sent["/images.zip"] < 2**17


def test_a_server_that_begins_to_refuse_ends_what_comes_from_it(server: Server, http: Http, tmp_path: Path) -> None:
    source = Pictures(TERMS, server.put("/images.zip", ZIP), "images/{name}")
    with Download(tmp_path, http) as download:
        items = download.resolve([pictures(tmp_path, NAMES, source)])
        server.files["/images.zip"].answers = [403] * 999
        (failure,) = download.fetch(items).failures
    assert "answers 403" in failure
    assert len(server.asked["/images.zip"]) < 3 + 10  # not one for each picture
    assert fetched(tmp_path) == {}


def test_a_web_page_or_a_cut_picture_is_no_picture(server: Server, http: Http, tmp_path: Path) -> None:
    server.put("/a.jpg", picture(1)[:-200])
    server.put("/b.jpg", b"<html>gone</html>")
    server.put("/c.jpg", picture(3))
    source = Pictures(TERMS, each=f"{server.url}/{{name}}")
    result = run(tmp_path, http, pictures(tmp_path, ["a.jpg", "b.jpg", "c.jpg", "d.jpg"], source))
    assert sorted(failure.split(": ")[0].rpartition("/")[2] for failure in result.failures) == [
        "a.jpg",
        "b.jpg",
        "d.jpg",
    ]
    assert fetched(tmp_path) == {"c.jpg": picture(3)}


def test_a_whole_archive_comes_if_told_to_and_is_kept(server: Server, http: Http, tmp_path: Path) -> None:
    source = Pictures(TERMS, server.put("/images.zip", ZIP, ranges=False), "images/{name}")
    assert run(tmp_path, http, pictures(tmp_path, NAMES[:50], source), whole=True).failures == ()
    assert run(tmp_path, http, pictures(tmp_path, NAMES, source)).failures == ()  # from the kept one
    assert fetched(tmp_path) == EXPECTED
    assert server.sent["/images.zip"] < 2 * len(ZIP)


def test_where_a_zip_can_not_be_had_pictures_come_one_by_one(server: Server, http: Http, tmp_path: Path) -> None:
    for name in NAMES:
        server.put(f"/images/{name}", EXPECTED[name])
    source = Pictures(TERMS, server.put("/images.zip", ZIP, ranges=False), each=f"{server.url}/images/{{name}}", size=1)
    assert run(tmp_path, http, pictures(tmp_path, NAMES, source)).failures == ()
    assert fetched(tmp_path) == EXPECTED


def test_a_full_disk_is_said_before_anything_comes(
    server: Server, http: Http, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmamba_eval.fetch.download.free_bytes", lambda folder: 1000)
    source = Pictures(TERMS, server.put("/images.zip", ZIP), "images/{name}")
    with pytest.raises(DataError, match=r"kB are needed, 1 kB are free. Nothing came"):
        run(tmp_path, http, pictures(tmp_path, NAMES, source))
    assert fetched(tmp_path) == {}


def test_two_downloads_into_one_folder_are_refused(http: Http, tmp_path: Path) -> None:
    with Download(tmp_path, http), pytest.raises(UsageError, match="another process is fetching"):
        run(tmp_path, http)


# -- mirrors -----------------------------------------------------------------------------------------------------------


def test_a_folder_of_zips_is_read_in_place(server: Server, http: Http, tmp_path: Path) -> None:
    zips = tmp_path / "zips"
    zips.mkdir()
    (zips / "images.zip").write_bytes(ZIP)
    source = Pictures(TERMS, "http://far.invalid/data/images.zip", "images/{name}", each="http://far.invalid/{name}")
    root = tmp_path / "data"
    assert run(root, http, pictures(root, NAMES, source), mirror=str(zips)) == Result(len(NAMES), ())
    assert fetched(root) == EXPECTED
    assert [path.name for path in zips.iterdir()] == ["images.zip"]


def test_a_mirror_is_looked_into_first_and_what_it_lacks_comes_from_the_source(
    server: Server, http: Http, tmp_path: Path
) -> None:
    server.put("/mirror/far.invalid/data/images.zip", ZIP)
    file = File("q.json", server.put("/q.json", b"{}"), TERMS)
    source = Pictures(TERMS, "http://far.invalid/data/images.zip", "images/{name}")
    wanted = Batch(file, (Wanted(tmp_path / "q.json", file),))
    result = run(tmp_path, http, pictures(tmp_path, NAMES, source), wanted, mirror=f"{server.url}/mirror/")
    assert result.failures == ()
    assert fetched(tmp_path) == EXPECTED
    assert (tmp_path / "q.json").read_bytes() == b"{}"


@pytest.mark.parametrize("each", ["", "http://127.0.0.1:9/{name}"])
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"answers": [403] * 99}, "answers 403: it refuses"),
        ({"answers": [404] * 99}, "answers 404: there is no such file"),
        ({"answers": [429] * 99, "headers": {"Retry-After": "999"}}, "it asks to wait 999 seconds"),
        ({"ranges": False}, "no parts of files, and only some of this archive"),
        ({"headers": {"Content-Type": "text/html"}}, "a web page instead of the file"),
        ({"redirect": "/mirror/images.zip"}, "from one address to the next"),
    ],
)
def test_a_bad_mirror_is_named_before_the_official_host_that_can_not_be_reached(
    server: Server, http: Http, tmp_path: Path, how: dict, said: str, each: str
) -> None:
    url = server.put("/mirror/images.zip", ZIP, **how)
    source = Pictures(TERMS, "http://127.0.0.1:9/images.zip", "images/{name}", each=each, size=1)
    first, *others = run(
        tmp_path, http, pictures(tmp_path, NAMES, source), mirror=url.removesuffix("/images.zip")
    ).failures
    assert url in first
    assert said in first
    assert len(others) == (0 if "ranges" in how and not each else 1)  # that mirror could be told to give the whole
    assert all("http://127.0.0.1:9/" in other and "no connection" in other for other in others)
    assert fetched(tmp_path) == {}


def test_a_disk_that_fills_while_files_come_is_said_and_what_came_is_kept(
    server: Server, http: Http, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [File(name, server.put(f"/{name}", b"{}"), TERMS) for name in ("a.json", "b.json")]
    first, second = (Batch(file, (Wanted(tmp_path / file.path, file),)) for file in files)
    run(tmp_path, http, first)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DataError, match=r"No space left on device\)\. .* Make room"):
            run(tmp_path, http, second)
    assert {path.name for path in tmp_path.iterdir()} == {STATE, "a.json"}
    run(tmp_path, http, second)
    assert (tmp_path / "b.json").read_bytes() == b"{}"


def test_a_mirror_that_is_nothing_is_refused(http: Http, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither a folder nor the beginning"):
        run(tmp_path, http, mirror=str(tmp_path / "nowhere"))


# -- kills -------------------------------------------------------------------------------------------------------------

TASK = """
from tests.vlmamba_eval.fetch.colours import TERMS, Colours
from vlmamba_eval.sources import File, Pictures

class Large(Colours):
    def load(self, data):
        for name in ("large.bin", "packed.bin"):
            data.find(name, what="a large file")
        return super().load(data)

HOST = "http://far.invalid"
TASKS = (
    Large(
        File("large/questions.jsonl", f"{HOST}/questions.jsonl", TERMS, size=1),
        File("large/large.bin", f"{HOST}/large.bin", TERMS, size=1),
        File("large/packed.bin", f"{HOST}/packed.zip", TERMS, member="packed.bin", size=1),
        Pictures(TERMS, f"{HOST}/big.zip", "images/{name}", size=1),
        name="large", questions=QUESTIONS, images=QUESTIONS,
    ),
)
"""


@pytest.mark.slow
def test_twenty_kills_lose_only_what_was_under_way(server: Server, tmp_path: Path) -> None:
    """Killed by the bytes that have come, so that a fast machine is killed as often as a slow one."""
    rng = random.Random(7)
    contents = {f"images/{i:05}.jpg": rng.randbytes(rng.randrange(5_000, 60_000)) for i in range(1500)}
    wanted = {f"{i:05}.jpg": contents[f"images/{i:05}.jpg"] for i in range(0, 1500, 4)}
    large, packed = rng.randbytes(12_000_000), b"".join(rng.randbytes(3000) + bytes(1000) for _ in range(3000))
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("packed.bin", packed)
    rows = [{"id": name, "image": name, "question": "?", "answer": "red"} for name in wanted]
    questions = "".join(json.dumps(row) + "\n" for row in rows).encode()
    served = {
        "big.zip": archive(contents),
        "large.bin": large,
        "packed.zip": raw.getvalue(),
        "questions.jsonl": questions,
    }
    for name, content in served.items():
        server.put(f"/mirror/{name}", content)
    server.pace = 0.002
    task, root = tmp_path / "large_task.py", tmp_path / "data"
    task.write_text(TASK.replace("QUESTIONS", str(len(wanted))))
    command = [sys.executable, "-m", "vlmamba_eval", "prepare", "--tasks", "large", "--include", str(task)]
    command += ["--data", str(root), "--download", "--yes", "--mirror", f"{server.url}/mirror"]
    kills = 0
    while True:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        enough = sum(server.sent.values()) + (rng.randrange(1_000, 2_500_000) if kills < 20 else 10**9)
        while process.poll() is None and sum(server.sent.values()) < enough:
            time.sleep(0.002)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
        for name, content in fetched(root, "large/pictures").items():  # nothing half under its name, at any time
            assert name.startswith(".") or content == wanted[name]
        while server.at_once:  # its answers end when they find nobody
            time.sleep(0.01)
    said = process.communicate()[0]
    assert process.returncode == 0, said
    assert kills == 20
    assert fetched(root, "large/pictures") == wanted
    assert {path.name for path in (root / "large").iterdir()} == {
        "questions.jsonl", "large.bin", "packed.bin", "pictures"
    }  # fmt: skip
    assert (root / "large/large.bin").read_bytes() == large
    assert (root / "large/packed.bin").read_bytes() == packed
    # Nothing came twice but what was under way: per kill at most four answers, of each no more than a picture and what
    # the sockets hold. Besides come the two zips' directories, and one byte per file and start.
    needed = sum(map(len, (*wanted.values(), large, raw.getvalue(), questions))) + 1500 * 62 + 2 * 2**17
    lost = sum(server.sent.values()) - needed
    print(f"needed {needed:,}, sent {lost:,} more in {kills} kills")
    assert lost < kills * 4 * (max(map(len, wanted.values())) + SEND_BUFFER)
    asked = [start for start, _ in filter(None, server.asked["/mirror/large.bin"]) if start]
    assert asked == sorted(asked)  # it went on where it was
    journal = [json.loads(line) for line in (root / STATE / "journal.jsonl").read_text().splitlines()]
    assert {line["path"] for line in journal} >= {"large/large.bin", "large/packed.bin"}
    assert {line["path"] for line in journal} >= {f"large/pictures/{name}" for name in wanted}
