"""The members of a zip without the rest of it: its directory, then each member's own bytes."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from vlmamba_eval.fetch.http import DamagedError, FetchError
from vlmamba_eval.fetch.places import LocalPlace, Place
from vlmamba_eval.strict_json import parse_json

TAIL = 2**17  # read at once: the end of the directory, and all of a small one
HEADER = struct.Struct("<4sHHHHHIIIHH")  # a member's own header, before its name
KINDS = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}


@dataclass(frozen=True)
class Member:
    """A member of a zip. `end` is where the next thing in the file begins: header and data are in between."""

    name: str
    start: int
    end: int
    packed: int  # bytes in the zip
    size: int  # bytes of the file
    crc: int
    method: int


class Directory:
    """The members of a zip by name."""

    def __init__(self, where: str, members: list[Member]) -> None:
        self.where = where
        self.members = {member.name: member for member in members}
        self._by_last: dict[str, list[Member]] = {}
        for member in members:
            self._by_last.setdefault(member.name.rpartition("/")[2], []).append(member)

    def find(self, name: str) -> Member | None:
        """The member of that name, or the only one whose longer name ends with it (zips differ in the folder above)."""
        if name in self.members:
            return self.members[name]
        ending = [m for m in self._by_last.get(name.rpartition("/")[2], ()) if m.name.endswith(f"/{name}")]
        ending = [m for m in ending if not m.name.startswith("__MACOSX/")]
        return ending[0] if len(ending) == 1 else None


def read_directory(place: Place, cache: Path | None, advance: Callable[[int], None] = lambda n: None) -> Directory:
    """The directory of a zip, zip64 included. `cache` is a folder that keeps it, so that it is fetched once.

    `advance` is told of bytes that came. Raises `FetchError` for what is not a zip.
    """
    kept = None
    if cache is not None and not isinstance(place, LocalPlace):
        kept = cache / f"{hashlib.sha256(f'{place.where} {place.size} {place.version}'.encode()).hexdigest()[:24]}.json"
        if kept.is_file():
            with contextlib.suppress(OSError, ValueError):  # damaged: it is fetched again
                return Directory(place.where, msgspec.convert(parse_json(kept.read_bytes()), list[Member]))
    try:
        with zipfile.ZipFile(_Ranges(place, advance)) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
            end = archive.start_dir
    except (zipfile.BadZipFile, struct.error, ValueError, NotImplementedError, UnicodeDecodeError) as error:
        raise FetchError(f"{place.where} is not a sound zip file ({error}). Was it cut off?") from None
    infos.sort(key=lambda info: info.header_offset)
    ends = [info.header_offset for info in infos[1:]] + [end] * bool(infos)
    members = [
        Member(i.filename, i.header_offset, after, i.compress_size, i.file_size, i.CRC, i.compress_type)
        for i, after in zip(infos, ends, strict=True)
    ]
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        fresh = kept.with_suffix(".new")
        fresh.write_text(json.dumps([asdict(member) for member in members]), encoding="utf-8")
        fresh.replace(kept)
    return Directory(place.where, members)


def unpack(member: Member, chunks: Iterator[bytes], where: str) -> Iterator[bytes]:
    """The file in a member, from the member's bytes in the zip, header first. Size and CRC are checked at the end.

    Raises `DamagedError`; then nothing that was yielded may be used.
    """
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= HEADER.size:
            break
    named = f"{member.name} in {where}"
    if len(head) < HEADER.size or head[:4] != b"PK\3\4":
        raise DamagedError(f"{named}: expected a member of a zip, found {head[:8]!r}. The server sent something else.")
    *_, name_length, extra_length = HEADER.unpack(head[: HEADER.size])
    skip, left = HEADER.size + name_length + extra_length, member.packed
    if member.method not in KINDS:
        raise FetchError(f"{named} is packed in a way that is not read here (method {member.method}).")
    inflate = zlib.decompressobj(-zlib.MAX_WBITS) if member.method == zipfile.ZIP_DEFLATED else None
    crc = size = 0
    for chunk in _joined(head, chunks):
        data = chunk[skip:] if skip else chunk
        skip = max(0, skip - len(chunk))
        data = data[:left]
        left -= len(data)
        try:
            plain = inflate.decompress(data) if inflate else data
        except zlib.error as error:
            raise DamagedError(f"{named} is damaged ({error}).") from None
        crc, size = zlib.crc32(plain, crc), size + len(plain)
        if size > member.size:
            break
        yield plain
    if size != member.size or crc != member.crc:
        raise DamagedError(
            f"{named} is damaged: expected {member.size:,} bytes with CRC {member.crc:08x}, "
            f"found {size:,} with {crc:08x}."
        )


def _joined(head: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield head
    yield from rest


class _Ranges(io.RawIOBase):
    """A place as a file that zipfile can seek in: the tail is read once, the directory in one more piece."""

    def __init__(self, place: Place, advance: Callable[[int], None]) -> None:
        self._place, self._advance = place, advance
        self._at = 0
        self._tail_start = max(0, place.size - TAIL)
        self._tail = self._read(self._tail_start, place.size - self._tail_start)

    def _read(self, start: int, length: int) -> bytes:
        parts = []
        for chunk in self._place.read(start, length):
            parts.append(chunk)
            self._advance(len(chunk))
        return b"".join(parts)

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._place.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        left = self._place.size - self._at
        size = left if size is None or size < 0 else max(0, min(size, left))
        start, end = self._at, self._at + size
        before = self._read(start, min(end, self._tail_start) - start) if start < self._tail_start else b""
        self._at = end
        return before + self._tail[max(0, start - self._tail_start) : max(0, end - self._tail_start)]

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
