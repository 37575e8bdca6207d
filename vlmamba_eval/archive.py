"""A data folder inside one tar file: `DATA.tar/gqa/...` is a path like any other, and is read in place."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from vlmamba_eval.strict_json import parse_json
from vlmamba_eval.types import DataError, UsageError

MANIFEST = "vlmamba-data.json"
"""The first member of an archive that `prepare --pack` wrote: what it holds, where, and the sha256 of each file."""

if TYPE_CHECKING:
    _Path = Path
else:
    _Path = type(Path())  # a class of its own on each system


def data_root(where: str) -> Path:
    """The data folder that `--data` names: a folder, or the inside of a tar file. Raises `UsageError`."""
    path = Path(where)
    if path.suffix == ".tar" and not path.exists():
        raise UsageError(
            f"--data {where}: no such archive. It is written where there is a network: vlmamba-eval prepare "
            f"--tasks A,B --data DIR --download --pack {where}"
        )
    return InArchive(path) if path.suffix == ".tar" and path.is_file() else path


class InArchive(_Path):
    """The tar file itself, which stands for a folder, or a place in it. Joining, parents and names are a path's own."""

    def place(self) -> tuple[Path, str]:
        """The tar file, and the name within it ("" for the tar itself)."""
        for parent in (self, *self.parents):
            if parent.suffix == ".tar" and (tar := Path(parent)).is_file():
                name = self.relative_to(parent).as_posix()
                return tar, "" if name == "." else name
        raise DataError(f"{self}: no tar file there any more.")

    def exists(self, **_: Any) -> bool:
        return self.is_file() or self.is_dir()

    def is_file(self, **_: Any) -> bool:
        tar, name = self.place()
        return name in index(tar).files

    def is_dir(self, **_: Any) -> bool:
        tar, name = self.place()
        return name in index(tar).folders

    def read_bytes(self) -> bytes:
        """The file's content. Raises `FileNotFoundError`, as any path does, and `DataError` for a damaged archive."""
        return read_member(*self.place())

    def glob(self, pattern: str, **_: Any) -> Iterator[InArchive]:  # type: ignore[override]
        """Files below here whose names match, by whole components (`*`, `?`, no `**`)."""
        depth = len(PurePosixPath(pattern).parts)
        for path in self._below():
            if len(path.relative_to(self).parts) == depth and PurePosixPath(path).match(pattern):
                yield path

    def rglob(self, pattern: str, **_: Any) -> Iterator[InArchive]:  # type: ignore[override]
        """Files at any depth whose last components match."""
        return (path for path in self._below() if PurePosixPath(path).match(pattern))

    def _below(self) -> Iterator[InArchive]:
        tar, name = self.place()
        start = f"{name}/" if name else ""
        return (type(self)(tar) / file for file in index(tar).files if file.startswith(start))


class Index:
    """Where each file of a tar lies: name -> (offset, size); and its folders, "" for the root."""

    def __init__(self, files: dict[str, tuple[int, int]]) -> None:
        self.files = files
        self.folders = {""}
        for name in files:
            while (name := name.rpartition("/")[0]) and name not in self.folders:
                self.folders.add(name)


def index(tar: Path) -> Index:
    """The index of a tar file, read once as long as it does not change. Raises `DataError`."""
    try:
        stat = tar.stat()
    except OSError as error:
        raise DataError(f"{tar} cannot be read ({error.strerror or error}).") from None
    return _index(tar, stat.st_size, stat.st_mtime_ns)


def read_member(tar: Path, name: str, limit: int | None = None) -> bytes:
    """One file of a tar. Raises `FileNotFoundError`; `DataError` for a damaged tar, or a file larger than `limit`."""
    place = index(tar).files.get(name)
    if place is None:
        raise FileNotFoundError(2, "No such file in the archive", f"{tar}/{name}")
    offset, size = place
    if limit is not None and size > limit:
        raise DataError(f"{tar}/{name}: larger than {limit >> 20} MiB.")
    with tar.open("rb") as file:
        file.seek(offset)
        content = file.read(size)
    if len(content) != size:
        raise DataError(f"{tar} ends within {name}: it is cut off. Copy it again.")
    return content


@lru_cache(maxsize=8)
def _index(tar: Path, size: int, changed: int) -> Index:
    try:
        with tarfile.open(tar, "r:") as archive:
            first = archive.next()
            if first is not None and first.name == MANIFEST and (file := archive.extractfile(first)) is not None:
                held = parse_json(file.read())
                if held["bytes"] == size - (first.offset_data + _padded(first.size)):  # as it was written
                    start = first.offset_data + _padded(first.size)
                    files = {item["path"]: (start + item["offset"], item["size"]) for item in held["files"]}
                    return Index({MANIFEST: (first.offset_data, first.size), **files})
            files = {
                member.name.removeprefix("./"): (member.offset_data, member.size)
                for member in archive.getmembers()
                if member.isreg() and member.type != tarfile.GNUTYPE_SPARSE
            }
    except (tarfile.TarError, OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise DataError(f"{tar} is no sound tar file ({error}). Compressed ones are not read in place.") from None
    return Index(files)


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
