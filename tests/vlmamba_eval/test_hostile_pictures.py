"""About a hundred pictures that are damaged, odd or none at all: each is right, or fails its own question alone."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import resource
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from PIL import Image

from tests.odd import readable
from tests.toys import ToyAdapter, ToyTask, png_with
from vlmamba_eval.dataset import load_dataset
from vlmamba_eval.images import open_image
from vlmamba_eval.run import evaluate
from vlmamba_eval.store import read_answers
from vlmamba_eval.types import DataError, ImageRef

SIZE = (48, 40)
Fate = Literal["good", "bad", "either"]


def encoded(image: Image.Image, kind: str, **how: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def noise(mode: str = "RGB") -> Image.Image:
    colour = Image.frombytes("RGB", SIZE, random.Random(3).randbytes(3 * SIZE[0] * SIZE[1]))
    return colour.convert(mode)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def pictures() -> Iterator[tuple[str, bytes, Fate]]:
    """(name, content, what becomes of it)."""
    whole = {kind: encoded(noise(), kind) for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF")}
    rng = random.Random(5)
    for kind, content in whole.items():
        yield f"{kind}.whole", content, "good"
        for part in (10, len(content) // 4, len(content) // 2, len(content) * 9 // 10):
            yield f"{kind}.cut at {part}", content[:part], "bad"
        yield f"{kind}.without its last byte", content[:-1], "either"
        yield f"{kind}.and more", content + b"more" * 100, "good"
        for n in range(3):
            flipped = bytearray(content)
            for _ in range(5):
                flipped[rng.randrange(12, len(flipped))] ^= 1 << rng.randrange(8)
            yield f"{kind}.flipped {n}", bytes(flipped), "either"
    for mode in ("L", "P", "RGBA", "LA", "1", "I;16"):
        image = noise("L").convert("I").convert("I;16") if mode == "I;16" else noise("L" if mode == "LA" else mode)
        yield f"PNG.{mode.replace(';', '')}", encoded(image.convert("LA") if mode == "LA" else image, "PNG"), "good"
    yield "PNG.transparent colour", encoded(noise("P"), "PNG", transparency=3), "good"
    yield "JPEG.for print", encoded(noise("CMYK"), "JPEG"), "good"
    yield "JPEG.grey", encoded(noise("L"), "JPEG"), "good"
    yield "JPEG.progressive", encoded(noise(), "JPEG", progressive=True), "good"
    yield "JPEG.turned", encoded(noise(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"), "good"  # fmt: skip # noqa: E501
    yield "JPEG.broken notes", encoded(noise(), "JPEG", exif=b"Exif\0\0" + b"\xff" * 500), "good"
    yield "JPEG.broken colour profile", encoded(noise(), "JPEG", icc_profile=b"\xff" * 500), "good"
    yield "JPEG.no height", whole["JPEG"].replace(struct.pack(">HH", 40, 48), struct.pack(">HH", 0, 48), 1), "bad"
    yield "JPEG.no tables", whole["JPEG"].replace(b"\xff\xdb", b"\xff\xec"), "bad"
    for kind in ("GIF", "WEBP"):
        moving = encoded(noise(), kind, save_all=True, append_images=[noise("L").convert("RGB")] * 3, duration=10)
        yield f"{kind}.moving", moving, "good"
    for width, height, fate in ((1, 1, "good"), (9_000, 1, "good"), (1, 9_000, "good"), (10_001, 1, "bad")):
        yield f"PNG.{width} x {height}", encoded(Image.new("L", (width, height), 9), "PNG"), fate  # type: ignore[misc]
    for name, header in {
        "a bomb": (60_000, 60_000, 8, 2), "no width": (0, 1, 8, 2), "no height": (1, 0, 8, 2), "depth 3": (1, 1, 3, 2),
        "colour 7": (1, 1, 8, 7), "a negative width": (2**32 - 1, 1, 8, 2), "no palette": (1, 1, 8, 3),
    }.items():  # fmt: skip
        yield f"PNG.{name}", png_with(b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0)), "either" if name == "no palette" else "bad"  # fmt: skip # noqa: E501
    yield "BMP.a bomb", whole["BMP"][:18] + struct.pack("<ii", 60_000, 60_000) + whole["BMP"][26:], "bad"
    yield "BMP.negative", whole["BMP"][:18] + struct.pack("<ii", -48, 40) + whole["BMP"][26:], "bad"
    yield "GIF.a bomb", whole["GIF"][:6] + struct.pack("<HH", 65_535, 65_535) + whole["GIF"][10:], "bad"
    bomb = zlib.compress(bytes(64 * 2**20), 1)
    for name in (b"zTXt", b"iCCP"):
        yield f"PNG.{name.decode()} bomb", png_with(name, b"a\0\0" + bomb), "either"
    start, rest = whole["PNG"][:33], whole["PNG"][33:]
    yield "PNG.no data", start + chunk(b"IEND", b""), "bad"
    yield "PNG.no end", whole["PNG"][:-12], "either"
    yield "PNG.two headers", start + start[8:] + rest, "either"
    yield "PNG.a wrong check sum", whole["PNG"][:-16] + bytes(4) + whole["PNG"][-12:], "either"
    yield "PNG.a chunk without end", start + struct.pack(">I", 2**31 - 1) + b"tEXt" + rest, "bad"
    yield "PNG.letters in the place of a name", start + chunk(b"\0\xff\0\xff", b"") + rest, "bad"
    for name, content in {
        "nothing": b"", "zeros": bytes(5000), "a web page": b"<!DOCTYPE html><html>not found</html>",
        "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n",
        "packed": gzip.compress(whole["PNG"]), "a document": b"%PDF-1.7\n" + bytes(100),
        "a drawing": b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>',
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "an archive": b"PK\3\4" + bytes(99),
        "TIFF": encoded(noise(), "TIFF"), "PPM": encoded(noise(), "PPM"), "ICO": encoded(noise(), "ICO"),
        "TGA": encoded(noise(), "TGA"), "JPEG 2000's first bytes": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99),
    }.items():  # fmt: skip
        yield f"no picture.{name}", content, "bad"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Fate]]:
    """A toy benchmark with a question about each: its folder, and what becomes of each."""
    tmp_path = tmp_path_factory.mktemp("pictures")
    folder = tmp_path / "toy" / "images"
    folder.mkdir(parents=True)
    fates: dict[str, Fate] = {}
    for name, content, fate in pictures():
        (folder / name).write_bytes(content)
        fates[name] = fate
    (tmp_path / "elsewhere.png").write_bytes(encoded(noise(), "PNG"))
    (folder / "a folder").mkdir()
    os.mkfifo(folder / "a pipe")
    (folder / "a link out").symlink_to(tmp_path / "elsewhere.png")
    (folder / "a link to itself").symlink_to(folder / "a link to itself")
    (folder / "a link to nothing").symlink_to(folder / "nothing")
    (folder / "a link within").symlink_to(folder / "PNG.whole")
    for name in ("a folder", "a pipe", "a link out", "a link to itself", "a link to nothing", "missing"):
        fates[name] = "bad"
    fates["a link within"] = "good"
    rows = [{"id": name, "image": name, "question": f"What is {name}?", "answer": "grey"} for name in fates]
    (tmp_path / "toy" / "toy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(fates) >= 84
    return tmp_path, fates


def test_each_is_right_or_a_typed_error_soon_and_in_little_memory(made: tuple[Path, dict[str, Fate]]) -> None:
    data, fates = made
    folder = data / "toy" / "images"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, fate in fates.items():
        began = time.process_time()
        image = None
        try:
            image = open_image(ImageRef(name, name, path=str(folder / name), folder=str(folder)))
        except DataError as error:
            readable(error)
        assert fate == "either" or (image is not None) == (fate == "good"), name
        if image is not None:
            assert len(image.tobytes()) == 3 * image.width * image.height
        assert time.process_time() - began < 5, name
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 1024  # MiB


def test_in_a_run_each_bad_one_fails_its_own_question_and_the_others_are_answered(
    made: tuple[Path, dict[str, Fate]], tmp_path: Path
) -> None:
    data, fates = made
    dataset = load_dataset(ToyTask(questions=len(fates), images=len(fates)), str(data))
    [outcome] = evaluate(ToyAdapter(), [dataset], tmp_path, batch_tokens=100, stop_after=len(fates))
    answers = read_answers(outcome.folder)
    assert set(answers) == set(fates)
    for name, fate in fates.items():
        failure = answers[name].failure
        assert fate == "either" or (failure is None) == (fate == "good"), (name, failure)
        assert failure is None or failure.kind == "data_error", (name, failure)
    assert not outcome.complete
