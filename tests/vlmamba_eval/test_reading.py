"""Everything read from a data folder is untrusted: what is wrong gives an error that can be acted on."""

from __future__ import annotations

import base64
import gzip
import io
import struct
import zlib
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from PIL import Image

from tests.toys import picture, png_with, reference
from vlmamba_eval.folder import Folder
from vlmamba_eval.hub import Hub
from vlmamba_eval.images import open_image, read_image
from vlmamba_eval.rows import Row, read_jsonl, shorten
from vlmamba_eval.types import DataError, ImageRef


def opened(content: bytes) -> Image.Image:
    return open_image(ImageRef("k", "row 7 (x.jpg)", base64=base64.b64encode(content).decode()))


# -- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_the_five_formats_are_opened_as_rgb(kind: str) -> None:
    image = opened(picture("red", kind=kind))
    assert image.mode == "RGB"
    assert image.size == (8, 8)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "LA", "I;16", "1"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (4, 4)).save(buffer, "TIFF" if mode == "CMYK" else "PNG")
    if mode == "CMYK":
        buffer = io.BytesIO()
        Image.new(mode, (4, 4)).save(buffer, "JPEG")
    assert opened(buffer.getvalue()).mode == "RGB"


def test_grey_of_16_bits_is_scaled_not_clipped() -> None:
    buffer = io.BytesIO()
    image = Image.new("I;16", (4, 1))
    for x, value in enumerate((0, 257 * 100, 257 * 100 + 200, 65_535)):
        image.putpixel((x, 0), value)
    image.save(buffer, "PNG")
    decoded = opened(buffer.getvalue())
    assert [decoded.getpixel((x, 0)) for x in range(4)] == [(v, v, v) for v in (0, 100, 101, 255)]


def png(depth: int, colour: int, data: bytes, size: tuple[int, int] = (8, 8), interlaced: int = 0) -> bytes:
    """A PNG whose header may ask for more pixels than its data hold; everything else about it is right."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, interlaced)
    chunks = ((b"IHDR", header), (b"PLTE", bytes(range(6))), (b"IDAT", zlib.compress(data)), (b"IEND", b""))
    wanted = (chunk(*item) for item in chunks if item[0] != b"PLTE" or colour == 3)
    return b"\x89PNG\r\n\x1a\n" + b"".join(wanted)


def test_colour_of_16_bits_keeps_its_high_byte() -> None:
    decoded = opened(png(16, 2, b"\0" + struct.pack(">3H", 257 * 10, 257 * 100, 65_535), (1, 1)))
    assert decoded.getpixel((0, 0)) == (10, 100, 255)


SHAPES = [(8, 0, 72), (8, 2, 200), (16, 0, 136), (16, 2, 392), (8, 6, 264), (8, 4, 136), (1, 3, 16)]  # 8 x 8, not Adam7
ADAM7_SHAPES = [(8, 0, 64 + 15), (8, 2, 192 + 15)]  # 1 + 1 + 1 + 2 + 2 + 4 + 4 rows, each with a byte for its filter


@pytest.mark.parametrize(
    ("depth", "colour", "size", "interlaced"), [(*s, 0) for s in SHAPES] + [(*s, 1) for s in ADAM7_SHAPES]
)
@pytest.mark.parametrize("value", [0, 1])
def test_a_png_whose_pixels_end_early_is_refused(
    depth: int, colour: int, size: int, interlaced: int, value: int
) -> None:
    rows = bytes([value]) * size  # filter 1 adds the pixel to the left; black pictures are whole, too
    assert opened(png(depth, colour, rows, interlaced=interlaced)).size == (8, 8)
    for missing in (1, size // 2, size - 1):
        with pytest.raises(DataError, match=r"row 7 \(x\.jpg\)(: its pixel data end early|: damaged image)"):
            opened(png(depth, colour, rows[:-missing], interlaced=interlaced))


def test_a_png_of_one_row_may_not_lack_adam7s_last_pass() -> None:
    passes = b"\0\1\0\1\0\1\1\0\1\1\1\1"
    assert opened(png(8, 0, passes, (8, 1), interlaced=1)).size == (8, 1)
    with pytest.raises(DataError, match="expected 12 bytes, found 7"):
        opened(png(8, 0, passes[:7], (8, 1), interlaced=1))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_truncated_picture_is_an_error_never_half_grey(kind: str) -> None:
    content = picture("red", (64, 64), kind)
    with pytest.raises(DataError, match=r"row 7 \(x\.jpg\): damaged image .* Fetch it again"):
        opened(content[: len(content) // 2])


@pytest.mark.parametrize("content", [b"<html>not found</html>", b"\0" * 100])
def test_what_is_no_picture_says_how_it_begins(content: bytes) -> None:
    with pytest.raises(DataError, match=r"row 7 \(x\.jpg\): not an image of a known format \(JPEG, PNG"):
        opened(content)


def test_other_decoders_are_never_tried() -> None:
    with pytest.raises(DataError, match="not an image of a known format"):
        opened(picture("red", kind="TIFF"))


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    bomb = png_with(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0))
    with pytest.raises(DataError, match="row 7"):
        opened(bomb)


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/passwd", "file:x.png", "a\\b.png", "a/../../b.png", "", "x\0y"]
)
def test_a_name_that_leaves_the_folder_is_refused_with_its_row(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"questions\.jsonl:3: image name .* leaves the image folder"):
        Folder(tmp_path).image(tmp_path, name, "questions.jsonl:3")


def test_a_link_that_leaves_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "outside.png").write_bytes(picture())
    (tmp_path / "images" / "x.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(DataError, match="a link that leaves the image folder"):
        read_image(Folder(tmp_path).image(tmp_path / "images", "x.png"))


def test_a_missing_picture_is_reported_when_it_is_read_with_row_and_path(tmp_path: Path) -> None:
    image = Folder(tmp_path).image(tmp_path, "x.png", "questions.jsonl:3")
    with pytest.raises(DataError, match=r"questions\.jsonl:3 \(.*x\.png\): the image is missing"):
        read_image(image)


def test_a_picture_in_a_row_is_known_by_its_content() -> None:
    cell = base64.b64encode(picture()).decode()
    first, second = Row({"image": cell}, "a:1").image("image"), Row({"image": cell}, "a:2").image("image")
    assert first.key == second.key
    assert open_image(first).getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(DataError, match="a:3, field 'image': expected a base64-encoded image"):
        read_image(Row({"image": "no base64!"}, "a:3").image("image"))


# -- annotation files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": 2', r"x\.jsonl:2: not a valid JSON line .*cut off"),
        (b'{"a": 1}\n[1, 2]\n', r"x\.jsonl:2: expected one JSON object a line, found \[1, 2\]"),
        (b'{"a": NaN}\n', r"x\.jsonl:1: not a valid JSON line \(NaN is not a JSON number\)"),
        (b'{"a": 1, "a": 2}\n', r"x\.jsonl:1: not a valid JSON line \(key 'a' occurs twice"),
        (b'{"a": 1}\n{"a": "\xff"}\n', r"x\.jsonl:2: not UTF-8"),
        (b"[" * 200_000 + b"\n", r"x\.jsonl:1: not a valid JSON line"),
        (gzip.compress(b'{"a": 1}', mtime=0), r"x\.jsonl is compressed \(gzip\)\. Unpack it"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", r"x\.jsonl is a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>", r"x\.jsonl is a web page"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_jsonl(path))


def test_byte_order_mark_and_windows_line_ends_are_harmless(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": 2}\r\n')
    assert [row.integer("a") for row in read_jsonl(path)] == [1, 2]


def test_a_cut_json_file_names_line_and_remedy(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"a":\n  {"b": 1')
    with pytest.raises(DataError, match=r"x\.json:2: not valid JSON .* may be cut off"):
        Folder(tmp_path).json(path)


def test_fields_are_checked_by_name_and_type() -> None:
    row = Row({"id": True, "text": 3, "n": "4", "list": ["a", 1]}, "f.jsonl:9")
    with pytest.raises(DataError, match=r"f\.jsonl:9: field 'question' is missing; the row has 'id', 'text'"):
        row.text("question")
    for read in (lambda: row.text("text"), lambda: row.integer("n"), lambda: row.identifier("id")):
        with pytest.raises(DataError, match=r"f\.jsonl:9: field '.*' should be"):
            read()
    with pytest.raises(DataError, match="should be a list of texts"):
        row.texts("list")
    with pytest.raises(DataError, match="should be one of 'yes', 'no', found 'maybe'"):
        Row({"label": "maybe"}, "f:1").one_of("label", ("yes", "no"))


def test_none_na_and_nan_survive_a_tab_separated_file(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    path.write_text('index\tA\tB\n1\tNone\tNA\n2\tnan\t\n3\t"two\nlines"\tnull\n')
    rows = list(Folder(tmp_path).tsv(path, ["index", "A"]))
    assert [(row.text("A"), row.text("B")) for row in rows] == [
        ("None", "NA"),
        ("nan", ""),
        ("two\nlines", "null"),
    ]
    with pytest.raises(DataError, match=r"x\.tsv:1: columns C are missing; the header has index, A, B"):
        list(Folder(tmp_path).tsv(path, ["C"]))
    path.write_text("index\tA\n1\tx\ty\n")
    with pytest.raises(DataError, match=r"x\.tsv:2: expected 2 cells, found 3"):
        list(Folder(tmp_path).tsv(path, ["A"]))


def test_files_are_found_in_the_benchmarks_folder_or_in_the_root(tmp_path: Path) -> None:
    (tmp_path / "pope").mkdir()
    (tmp_path / "pope" / "b.json").write_text("[]")
    (tmp_path / "c.json").write_text("[]")
    folder = Folder(tmp_path, ["pope", "POPE"])
    assert folder.find("a.json", "b.json", what="x") == tmp_path / "pope" / "b.json"
    assert folder.find("c.json", what="x") == tmp_path / "c.json"
    with pytest.raises(DataError) as caught:
        folder.find("d.json", "e.json", what="questions")
    looked = f"  {tmp_path}/pope\n  {tmp_path}/POPE (no such folder)\n  {tmp_path}\n"
    assert str(caught.value).startswith(f"questions not found. Looked for d.json or e.json in:\n{looked}Put it there")


# -- hub -------------------------------------------------------------------------------------------------------------


def test_a_folder_that_may_not_be_entered_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", refused)
    with pytest.raises(DataError, match=r"pope/q\.json cannot be looked for: Permission denied"):
        Folder(tmp_path, ["pope"]).find_optional("q.json")


def test_a_data_set_is_read_without_decoding_its_pictures(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"question": datasets.Value("string"), "image": datasets.Image()})
    rows = {"question": ["a?", "b?"], "image": [{"bytes": picture("blue"), "path": None}, None]}
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data" / "test-0.parquet")
    first, second = Hub().rows(str(tmp_path), "test", image="image")
    assert first.text("question") == "a?"
    assert open_image(first.image("image")).getpixel((0, 0)) == (0, 0, 255)
    with pytest.raises(DataError, match="row 1: field 'image' should hold an image, found None"):
        second.image("image")


def test_a_data_set_that_cannot_be_had_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"expected a copy of a hub data set .* found another or a damaged one"):
        list(Hub().rows(str(tmp_path / "empty"), "test"))


def _same(image: ImageRef) -> ImageRef:
    return image


def test_a_reference_is_plain_data_that_another_process_can_open(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(picture())
    image = Folder(tmp_path).image(tmp_path, "x.png", "questions.jsonl:3")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pairs = [(held, *pool.map(_same, [held])) for held in (image, reference("k"))]
    for held, again in pairs:
        assert again == held
        assert read_image(again) == picture()


@pytest.mark.parametrize(("value", "number"), [(7, 7), ("007", 7), (0, 0), ("9" * 18, 10**18 - 1)])
def test_a_number_may_be_written_as_text(value: object, number: int) -> None:
    assert Row({"n": value}, "f:1").number("n") == number


@pytest.mark.parametrize("value", ["1" * 19, 10**18, "1.5", "-1", -1, "", " 1", "x", None, True, 1.0])
def test_what_is_no_number_is_refused_by_name(value: object) -> None:
    with pytest.raises(
        DataError, match=r"^f:1: field 'n' should be (a whole number|an id \(a number or text\)), found"
    ):
        Row({"n": value}, "f:1").number("n")


@pytest.mark.parametrize("value", [3, "ab", {"a": {}}, None, ({},)])
def test_rows_inside_a_row_are_a_list(value: object) -> None:
    with pytest.raises(DataError, match=r"^f:1: field 'rows' should be a list, found"):
        Row({"rows": value}, "f:1").rows("rows")
    [inner] = Row({"rows": [{"n": 1}]}, "f:1").rows("rows")
    assert (inner.integer("n"), inner.where) == (1, "f:1, rows[0]")
    assert Row({"rows": {"n": 1}}, "f:1").row("rows").where == "f:1, field 'rows'"


def test_what_an_error_quotes_is_cut_off() -> None:
    words = "word " * 120
    for more, there in (("", words), ("x", f"{words}...")):
        with pytest.raises(DataError) as caught:
            Row({}, "f:1").fail(f"{words}{more}")
        assert str(caught.value) == f"f:1: {there}"
    assert shorten("a" * 78) == repr("a" * 78)
    assert shorten("a" * 79) == "'" + "a" * 76 + "..."
    for n, ending in ((0, "no fields."), (8, ", '7'."), (9, ", '7' and 1 more."), (1_009, ", '7' and 1,001 more.")):
        with pytest.raises(DataError, match=rf"field 'id' is missing; the row has .*{ending}$"):
            Row({str(i): i for i in range(n)}, "f:1").get("id")


def test_a_default_stands_for_what_is_absent_or_null_and_for_nothing_else() -> None:
    row = Row({"null": None, "empty": "", "number": 3}, "f:1")
    assert [row.text(name, "default") for name in ("absent", "null", "empty")] == ["default", "default", ""]
    assert [name in row for name in ("absent", "null", "empty")] == [False, False, True]
    for name in ("null", "number"):
        with pytest.raises(DataError, match=f"field '{name}' should be text, found"):
            row.text(name)
    with pytest.raises(DataError, match="field 'number' should be text, found 3"):
        row.text("number", "default")
