"""Members of zips of real structure, by ranges."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from tests.vlmamba_eval.fetch.server import Server
from vlmamba_eval.fetch.http import DamagedError, FetchError, Http
from vlmamba_eval.fetch.places import LocalPlace, Place, RemotePlace
from vlmamba_eval.fetch.zips import TAIL, read_directory, unpack


def make(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED, comment: bytes = b"") -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.comment = comment
    return raw.getvalue()


def extract(place: Place, name: str) -> bytes:
    member = read_directory(place, None).find(name)
    assert member is not None
    return b"".join(unpack(member, place.read(member.start, member.end - member.start), place.where))


def content(i: int) -> bytes:
    return f"picture {i} ".encode() * (i % 7 + 1)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_one_member_of_thousands_travels_alone(server: Server, http: Http, tmp_path: Path, method: int) -> None:
    files = {f"images/deep/{i % 10}/n{i:06}.jpg": content(i) for i in range(5000)}
    url = server.put("/images.zip", make(files, method))
    place = RemotePlace(http, http.find(url))
    directory = read_directory(place, tmp_path)
    before = server.sent["/images.zip"]
    member = directory.find("n004321.jpg")
    assert member is not None
    assert b"".join(unpack(member, place.read(member.start, member.end - member.start), url)) == content(4321)
    assert server.sent["/images.zip"] - before == member.end - member.start < 300


def test_the_directory_is_fetched_once_until_the_file_changes(server: Server, http: Http, tmp_path: Path) -> None:
    url = server.put("/a.zip", make({f"{i:0100}": b"" for i in range(3000)}))
    place = RemotePlace(http, http.find(url))
    first = read_directory(place, tmp_path)
    sent = server.sent["/a.zip"]
    assert read_directory(place, tmp_path).members == first.members
    assert server.sent["/a.zip"] == sent
    server.files["/a.zip"].tag = '"2"'
    read_directory(RemotePlace(http, http.find(url)), tmp_path)
    assert server.sent["/a.zip"] > sent + TAIL


def test_zip64_is_read(server: Server, http: Http, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)  # so that sizes and offsets above it are written as zip64
    raw = make({f"{i}.bin": bytes([i]) * 700 for i in range(9)}, zipfile.ZIP_STORED)
    monkeypatch.undo()
    assert b"PK\6\6" in raw  # the end of a zip64 directory
    place = RemotePlace(http, http.find(server.put("/big.zip", raw)))
    assert extract(place, "7.bin") == bytes([7]) * 700


def test_what_stands_before_and_after_a_zip_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(b"#!/bin/sh\n" + make({"x/a.txt": b"hello"}, comment=b"c" * 3000))
    assert extract(LocalPlace(path), "a.txt") == b"hello"


def test_a_member_is_found_under_other_folders_but_only_one() -> None:
    place_of = {"GQA/images/1.jpg": b"1", "__MACOSX/GQA/images/1.jpg": b"x", "a/2.jpg": b"", "b/2.jpg": b""}
    directory = read_directory(_Held(make(place_of)), None)
    assert directory.find("images/1.jpg") == directory.members["GQA/images/1.jpg"]
    assert directory.find("a/2.jpg") == directory.members["a/2.jpg"]
    assert directory.find("2.jpg") is None  # which of the two?
    assert directory.find("mages/1.jpg") is None


@pytest.mark.parametrize(
    "bad", [b"", b"<html>no zip</html>" * 99, make({"a": b"1"})[:-5]], ids=["empty", "a web page", "cut off"]
)
def test_no_zip_is_a_sentence(bad: bytes) -> None:
    with pytest.raises(FetchError, match="held is not a sound zip file"):
        read_directory(_Held(bad), None)


def test_an_empty_zip_is_sound() -> None:
    assert read_directory(_Held(b"PK\5\6" + bytes(18)), None).members == {}


def test_a_wrong_byte_in_the_directory_is_a_sentence() -> None:
    raw = bytearray(make({"a.txt": b"hello" * 50}))
    raw[raw.rindex(b"PK\1\2")] = 0
    with pytest.raises(FetchError, match="not a sound zip file"):
        read_directory(_Held(bytes(raw)), None)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_any_wrong_byte_of_a_member_is_noticed(method: int) -> None:
    plain, harmless = bytes(range(256)), 0
    whole = make({"a.txt": plain}, method)
    member = read_directory(_Held(whole), None).members["a.txt"]
    data = range(member.end - member.packed, member.end)
    for at in (0, *data):
        raw = bytearray(whole)
        raw[at] ^= 0x10
        try:  # the last bits of a deflated stream mean nothing
            assert b"".join(unpack(member, _Held(bytes(raw)).read(member.start, member.end), "held")) == plain
            harmless += 1
        except DamagedError as error:
            assert "a.txt in held" in str(error)  # noqa: PT017
    assert harmless <= 1


class _Held:
    """Bytes as a place."""

    where, version = "held", ""

    def __init__(self, raw: bytes) -> None:
        self.raw, self.size = raw, len(raw)

    def read(self, start: int, length: int):
        for at in range(start, start + length, 20):
            yield self.raw[at : min(at + 20, start + length)]
