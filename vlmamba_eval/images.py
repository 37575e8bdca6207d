"""Opening a picture: by an allow-list of decoders, and never outside its folder. Everything read here is untrusted."""

from __future__ import annotations

import base64
import binascii
import io
import warnings
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
        if resolved.stat().st_size > MAX_IMAGE_BYTES:
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
    decompression-bomb limit stays. `info[ENCODED]` keeps the file as it was. Raises `DataError`.
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
                plain = image.mode == "RGB" and image.format == "JPEG"
                decoded = image if plain else image.convert("RGB")
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
