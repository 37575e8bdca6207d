"""Opening a picture: by an allow-list of decoders, and never outside its folder. Everything read here is untrusted."""

from __future__ import annotations

import base64
import binascii
import io
import stat
import struct
import warnings
import zlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from vlmamba_eval.archive import read_member
from vlmamba_eval.rows import shorten
from vlmamba_eval.types import DataError, ImageRef

if TYPE_CHECKING:
    from PIL import Image

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
# Far above any benchmark image, far below what would exhaust memory, also when a strip is padded to a square.
MAX_PIXELS = 64_000_000
MAX_SIDE = 10_000
MAX_IMAGE_BYTES = 64 * 2**20
ENCODED = "vlmamba_eval.encoded"
"""Where `Image.info` of an opened picture holds its file: (format, mode, bytes)."""
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
INFLATED_AT_ONCE = 2**20  # bytes
KEPT_BLOCKS = 64  # of Pillow's 16 MiB: fresh memory for each large picture costs as much time as decoding it


def read_image(ref: ImageRef) -> bytes:
    """The encoded picture that a reference names. Raises `DataError` if it is missing or can't be read."""
    if ref.hub is not None:
        from vlmamba_eval.hub import read_cell

        raw = read_cell(ref.hub)
        if raw is None:
            raise DataError(f"{ref.where} holds no image.")
        return raw
    if ref.base64:
        try:
            return base64.b64decode(_plain_base64(ref.base64), validate=True)
        except (binascii.Error, ValueError) as error:
            raise DataError(
                f"{ref.where}: expected a base64-encoded image, found {shorten(ref.base64)} ({error})."
            ) from None
    if not ref.path:
        raise DataError(f"{ref.where} holds no image.")
    return _read_file(ref)


def _plain_base64(text: str) -> str:
    """Base64 without what other copies add: a data URL's head, line breaks."""
    head, comma, body = text.partition(",")
    text = body if comma and head.startswith("data:") and head.endswith(";base64") else text
    return "".join(text.split())


def _read_file(ref: ImageRef) -> bytes:
    if ref.member:
        try:
            return read_member(Path(ref.path), ref.member, MAX_IMAGE_BYTES)
        except FileNotFoundError:
            raise DataError(f"{ref.where}: the image is missing from the archive. Pack it again.") from None
    path, folder = Path(ref.path), Path(ref.folder)
    try:
        resolved = path.resolve(strict=True)
        if not resolved.is_relative_to(_resolved(folder)):
            raise DataError(f"{ref.where} is a link that leaves the image folder {folder}; it is not followed.")
        found = resolved.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for
            raise DataError(f"{ref.where}: expected an image, found a folder, a pipe or a device.")
        if found.st_size > MAX_IMAGE_BYTES:
            raise DataError(f"{ref.where}: larger than {MAX_IMAGE_BYTES >> 20} MiB; no benchmark image is.")
        return resolved.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{ref.where}: the image is missing. `vlmamba-eval prepare --download` fetches it.") from None
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links; a name that no file system takes
        raise DataError(f"{ref.where}: the image cannot be read ({error}).") from None


@lru_cache(maxsize=64)
def _resolved(folder: Path) -> Path:
    return folder.resolve()


def open_image(ref: ImageRef) -> Image.Image:
    """Read and decode a picture to RGB.

    Only JPEG, PNG, WEBP, BMP and GIF (its first frame); a truncated file is an error, never a half-grey picture; the
    decompression-bomb limit stays. Grey of 16 bits is scaled to 8. `info[ENCODED]` keeps the file as it was. Raises
    `DataError`.
    """
    from PIL import Image

    raw = read_image(ref)
    if Image.core.get_blocks_max() < KEPT_BLOCKS:
        Image.core.set_blocks_max(KEPT_BLOCKS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(raw), formats=IMAGE_FORMATS) as image:
                width, height = image.size
                if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
                    raise DataError(
                        f"{ref.where}: {width:,} x {height:,} pixels; at most {MAX_PIXELS:,} are decoded, "
                        f"and {MAX_SIDE:,} a side."
                    )
                image.load()
                if image.format == "PNG":
                    _refuse_short_png(ref, image, raw)
                plain = image.mode == "RGB" and image.format == "JPEG"
                decoded = image if plain else _eight_bits(image).convert("RGB")
                decoded.info[ENCODED] = (image.format, image.mode, raw)
                return decoded
    except DataError:
        raise
    except Image.UnidentifiedImageError:
        raise DataError(
            f"{ref.where}: not an image of a known format ({', '.join(IMAGE_FORMATS)}); "
            f"it begins with {raw[:16]!r} ({len(raw)} bytes). Fetch it again."
        ) from None
    except Exception as error:  # noqa: BLE001 - decoders raise many types on damaged files
        raise DataError(f"{ref.where}: damaged image ({type(error).__name__}: {error}). Fetch it again.") from None


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits scaled by 1/257 to 8, which Pillow would clip at 255; other pictures as they are."""
    if not image.mode.startswith("I"):
        return image
    import numpy as np
    from PIL import Image

    return Image.fromarray(np.rint(np.asarray(image).clip(0, 65_535) / 257).astype(np.uint8))


def _refuse_short_png(ref: ImageRef, image: Image.Image, raw: bytes) -> None:
    """Refuse pixel data that end early within a zlib stream that is whole: Pillow leaves the rest black, silently.

    What was not written is zero, so data are counted only if one of the last two rows is: the last row, or that of
    Adam7's last pass. A single row may lack its end alone.
    """
    height = image.height
    last = (image.crop((0, row, image.width, row + 1)).tobytes() for row in range(max(height - 2, 0), height))
    if height > 1 and all(any(row) for row in last):
        return
    expected, found = _png_bytes(raw)
    if found < expected:
        raise DataError(
            f"{ref.where}: its pixel data end early: expected {expected:,} bytes, found {found:,}. Fetch it again."
        )


def _png_bytes(raw: bytes) -> tuple[int, int]:
    """How many bytes of filtered rows a PNG's header asks for, and how many its data hold (counted no further)."""
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", raw, 16)
    expected = 0
    for left, top, across, down in ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            expected += rows * (1 + (columns * depth * PNG_CHANNELS[colour] + 7) // 8)
    found, at, stream = 0, 8, zlib.decompressobj()
    while at + 8 <= len(raw) and found < expected:
        length, kind = struct.unpack_from(">I4s", raw, at)
        data = raw[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        while data and found < expected and not stream.eof:
            found += len(stream.decompress(data, INFLATED_AT_ONCE))
            data = stream.unconsumed_tail
        at += length + 12
    return expected, found + len(stream.flush())
