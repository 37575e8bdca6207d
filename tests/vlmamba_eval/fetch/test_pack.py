"""One archive of everything: the same bytes each time, read in place, checked to the byte."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest

from tests.vlmamba_eval.fetch.colours import NAMES, Colours, fill, picture
from vlmamba_eval.archive import MANIFEST, InArchive, data_root
from vlmamba_eval.dataset import load_dataset
from vlmamba_eval.fetch.pack import pack, verify
from vlmamba_eval.images import open_image, read_image
from vlmamba_eval.types import DataError, ImageRef, UsageError

TASK = Colours()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return fill(tmp_path / "data")


@pytest.fixture
def packed(data: Path, tmp_path: Path) -> Path:
    return pack([TASK], str(data), tmp_path / "colours.tar").path


def images(where: Path) -> dict[str, bytes]:
    samples = load_dataset(TASK, str(where)).samples
    return {Path(s.image.member or s.image.path).name: read_image(s.image) for s in samples if s.image}


def test_an_archive_holds_what_is_needed_and_nothing_else(packed: Path) -> None:
    with tarfile.open(packed) as archive:
        names = archive.getnames()
    assert names == [
        MANIFEST,
        "colours/hints/what-red.txt",
        *(f"colours/pictures/{name}.png" for name in sorted(NAMES)),
        "colours/questions.jsonl",
    ]


def test_an_archive_is_read_in_place(packed: Path, data: Path) -> None:
    inside, outside = load_dataset(TASK, str(packed)), load_dataset(TASK, str(data))
    assert inside.identity == outside.identity
    assert [s.target for s in inside.samples] == [s.target for s in outside.samples]
    assert images(packed) == images(data) == {f"{name}.png": picture(name) for name in NAMES}
    assert open_image(inside.samples[0].image).getpixel((0, 0)) == (255, 0, 0)  # type: ignore[arg-type]


def test_an_archive_s_bytes_depend_on_its_files_alone(packed: Path, data: Path, tmp_path: Path) -> None:
    for path in data.rglob("*"):
        os.utime(path, (1, 1))
    again = fill(tmp_path / "elsewhere")
    assert pack([TASK], str(data), tmp_path / "b.tar").path.read_bytes() == packed.read_bytes()
    assert pack([TASK], str(again), tmp_path / "c.tar").path.read_bytes() == packed.read_bytes()
    assert pack([TASK], str(packed), tmp_path / "d.tar").path.read_bytes() == packed.read_bytes()


def test_an_archive_can_be_unpacked_by_tar_and_verified(packed: Path, tmp_path: Path) -> None:
    with tarfile.open(packed) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    for where in (packed, tmp_path / "unpacked"):
        assert verify([TASK], str(where)).problems == ()
        assert verify([TASK], str(where)).hashed == 6


def test_a_tar_that_somebody_else_made_is_read_as_well(data: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "own.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        archive.add(data, ".")
    assert images(tmp_path / "own.tar") == images(data)
    checked = verify([TASK], str(tmp_path / "own.tar"))
    assert (checked.hashed, checked.decoded, checked.problems) == (0, 4, ())


def test_every_changed_byte_is_found_by_verify(packed: Path) -> None:
    whole = packed.read_bytes()
    manifest = json.loads(InArchive(packed).joinpath(MANIFEST).read_bytes())
    with tarfile.open(packed) as archive:
        places = {member.name: member.offset_data for member in archive if member.name != MANIFEST}
    for item in manifest["files"]:
        raw = bytearray(whole)
        raw[places[item["path"]] + item["size"] // 2] ^= 1
        packed.write_bytes(raw)
        problems = verify([TASK], str(packed)).problems
        assert any(f"{packed}/{item['path']} is not the file that was noted" in problem for problem in problems)


def test_a_cut_archive_is_an_error_that_says_so(packed: Path) -> None:
    whole = packed.read_bytes()
    for size in (0, 100, 700, len(whole) // 2, len(whole) - 9000):
        packed.write_bytes(whole[:size])
        with pytest.raises(DataError, match=rf"{packed}"):
            images(packed)


def test_a_compressed_archive_is_not_mistaken_for_a_folder(data: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "own.tar", "w:gz") as archive:
        archive.add(data, ".")
    with pytest.raises(DataError, match="no sound tar file"):
        load_dataset(TASK, str(tmp_path / "own.tar"))


def test_links_and_names_that_lead_out_are_not_followed(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "evil.tar"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("colours/pictures/red.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        archive.add(data / "colours" / "questions.jsonl", "colours/questions.jsonl")
    samples = load_dataset(TASK, str(path)).samples
    with pytest.raises(DataError, match="the image is missing from the archive"):
        read_image(samples[0].image)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="missing from the archive"):
        read_image(ImageRef("x", "x", path=str(path), member="../../etc/passwd"))


def test_what_is_missing_is_said_before_anything_is_written(data: Path, tmp_path: Path) -> None:
    (data / "colours/pictures/red.png").unlink()
    with pytest.raises(DataError, match=r"colours: 1 of 4 pictures are missing, for example .*red.png"):
        pack([TASK], str(data), tmp_path / "a.tar")
    assert not list(tmp_path.glob("*a.tar*"))
    with pytest.raises(UsageError, match="--pack needs the folder"):
        pack([TASK], "hub", tmp_path / "a.tar")


def test_verify_decodes_what_nobody_noted(data: Path) -> None:
    assert verify([TASK], str(data)).decoded == 4
    (data / "colours/pictures/red.png").write_bytes(picture("red")[:-40])
    (problem,) = verify([TASK], str(data)).problems
    assert "red.png" in problem
    assert "Fetch it again" in problem


def test_a_path_in_an_archive_is_a_path(packed: Path) -> None:
    root = data_root(str(packed))
    assert isinstance(root, InArchive)
    assert (root / "colours").is_dir()
    assert not (root / "colours").is_file()
    assert (root / "colours" / "questions.jsonl").exists()
    assert not (root / "nowhere").exists()
    assert {p.name for p in (root / "colours").glob("hints/*.txt")} == {"what-red.txt"}
    assert {p.name for p in root.rglob("*.png")} == {f"{name}.png" for name in NAMES}
    assert not list((root / "colours").glob("*.png"))
    with pytest.raises(FileNotFoundError):
        (root / "nowhere").read_bytes()
