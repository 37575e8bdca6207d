"""Writing and reading the project's own files: whole or not at all, checked against a type."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from filelock import BaseFileLock, FileLock, SoftFileLock

from vlmamba_eval.strict_json import parse_json
from vlmamba_eval.types import StoreError

T = TypeVar("T")
UNFINISHED = ".tmp"  # the end of a temporary file's name
ABANDONED = 3600.0  # seconds after which the writer of a temporary file is taken for dead


def write_atomic(path: Path, content: str | Callable[[], Iterable[str]]) -> None:
    """Write a text file so that a reader sees the old content or the new one, also after a power failure.

    A long one comes in pieces, from a function that may be called twice.

    Temporary file in the same folder, flush, fsync, rename, fsync of the folder. What has no UTF-8 (a lone surrogate)
    is written as its JSON escape. A file that holds the content already is not touched, so that what is finished can
    be shown again from a disk that can only be read. What killed writers of this file left is removed. Raises
    `StoreError`.
    """

    def encoded() -> Iterator[bytes]:
        return (
            piece.encode(errors="backslashreplace") for piece in ([content] if isinstance(content, str) else content())
        )

    try:
        if path.is_file() and _holds(path, encoded()):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
        try:
            with os.fdopen(handle, "wb") as file:
                file.writelines(encoded())
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(OSError):  # some network file systems have no permissions
                os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        remove_leftovers(path.parent, path.name, ABANDONED)
        sync_folder(path.parent)
    except OSError as error:
        raise StoreError(cannot_write(path, error)) from error


def _holds(path: Path, pieces: Iterable[bytes]) -> bool:
    with open(path, "rb") as file:
        return all(file.read(len(piece)) == piece for piece in pieces) and not file.read(1)


def write_json(path: Path, value: Any) -> None:
    """Write JSON (of plain data or dataclasses) atomically, indented, keys in the given order."""
    plain = msgspec.to_builtins(value)
    write_atomic(path, json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_typed(path: Path, kind: type[T], *, format: int, missing: str, remedy: str) -> T:
    """A JSON file of this project's as a dataclass, every field checked. Raises `StoreError`.

    `missing` and `remedy` say what to do about a file that is not there, or damaged.
    """
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"{path} is missing. {missing}") from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror or error}).") from None
    except ValueError as error:
        raise StoreError(f"{path} is damaged: expected JSON ({error}). {remedy}") from None
    if isinstance(value, dict) and value.get("format") != format:
        raise StoreError(
            f"{path} is of format {value.get('format')!r:.80}; this version of vlmamba-eval reads format {format}. "
            "Read it with the version that wrote it, or evaluate again with another --out."
        )
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, UnicodeError) as error:  # half a surrogate pair
        raise StoreError(f"{path} is damaged: {str(error)[:300]}. {remedy}") from None


def cannot_write(path: Path, error: OSError) -> str:
    """The message for a file that can't be written: why, and what to do."""
    remedy = "Give another folder with --out"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        existing = next((p for p in (path, *path.parents) if os.path.exists(p)), Path("/"))
        free = shutil.disk_usage(existing).free / 2**20
        remedy = f"{free:,.1f} MiB are free there: make room, or give another folder"
    return (
        f"{path} cannot be written ({error.strerror or error}). What was answered before is safe. "
        f"{remedy}, and run the same command again."
    )


def sync_folder(folder: Path) -> None:
    """Have a folder's entries on the disk, as far as the file system can (CIFS and some FUSE can't)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.ENOSYS, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path, name: str = "", seconds: float = 0.0) -> None:
    """Remove temporary files that writers of a file, or of any, left when they were killed.

    Only those that are older than so many seconds, for a folder that others may write to.
    """
    for path in folder.glob(f".{glob.escape(name) or '*'}.*{UNFINISHED}"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime >= seconds:
                path.unlink()


def take_lock(path: Path) -> BaseFileLock:
    """Take a lock that one process at a time has, without waiting. Raises filelock's `Timeout`, or `OSError`.

    On a file system without locks (NFS without its daemon, some FUSE) a file beside it stands for one. That of a killed
    process of this machine is taken over.
    """
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP):  # for ENOSYS filelock does the same by itself
            raise
        lock = SoftFileLock(path.with_name(f"{path.name}-file"), timeout=0)
        lock.acquire()
    return lock
