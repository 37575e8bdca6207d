"""The pictures of the report's page: small ones inside it, or links to where they are."""

from __future__ import annotations

import base64
import io
import os
import urllib.parse
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from vlmamba_eval.images import open_image
from vlmamba_eval.report.questions import as_json
from vlmamba_eval.types import DataError, ImageRef

Choice = Literal["embed", "link", "none"]
THUMBNAIL = 256  # pixels of the longer side


def pictures(
    keys: Sequence[str],
    images: Mapping[str, ImageRef],
    choice: Choice,
    folder: Path | None,
    room: int,
    order: Sequence[int],
) -> tuple[str, str]:
    """The pictures as JSON, by number (null: not there), and a sentence about them."""
    if not keys:
        return "[]", "These questions have no pictures."
    shown: list[str | None] = [None] * len(keys)
    if choice == "none":
        return as_json([]), "Pictures were left out of this page (--images none)."
    if choice == "link":
        for number in order:
            ref = images.get(keys[number])
            if ref and ref.path and not ref.member:
                shown[number] = _link(Path(ref.path), folder)
        there = sum(item is not None for item in shown)
        return as_json(
            shown
        ), f"{there:,} of {len(keys):,} pictures are read from where the benchmark is on this machine."
    used = 0
    with ThreadPoolExecutor(2, thread_name_prefix="thumbnail") as pool:
        refs = [images.get(keys[number]) for number in order]
        for number, small in zip(order, pool.map(_thumbnail, refs), strict=True):
            if small is not None and used + len(small) + 4 <= room:
                shown[number] = small
                used += len(small) + 4
    there = sum(item is not None for item in shown)
    if there == len(keys):
        return as_json(shown), f"{there:,} pictures, at most {THUMBNAIL} pixels a side, are part of this page."
    missing = (
        "the others would make it larger than 30 MB: --images link reads them from the disk"
        if there
        else "where the benchmark is was not found: give its folder with --data"
    )
    return as_json(shown), f"{there:,} of {len(keys):,} pictures are part of this page; {missing}."


def _thumbnail(ref: ImageRef | None) -> str | None:
    """A small JPEG as base64; None if the picture can't be read, which its question's verdict says anyway."""
    if ref is None:
        return None
    try:
        image = open_image(ref)
    except DataError:
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=72, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def _link(path: Path, folder: Path | None) -> str:
    """A file's address as seen from the page."""
    resolved = path.resolve()
    if folder is None:
        return resolved.as_uri()
    return urllib.parse.quote(os.fsencode(Path(os.path.relpath(resolved, folder.resolve())).as_posix()))
