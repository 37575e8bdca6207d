"""An append-only file of records that survives a crash: answers, judgements, and what a bridge has asked.

One JSON object per line, in ASCII, ending with the CRC-32 of what stands before it. `append` returns once its lines
are on the disk. A process that dies loses at most the line it was writing: opening the file for writing cuts off such a
torn tail. A damaged line before it is refused, never skipped.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeVar

from vlmamba_eval.files import UNFINISHED, cannot_write, sync_folder
from vlmamba_eval.strict_json import parse_json
from vlmamba_eval.types import StoreError

T = TypeVar("T")
_MARK = b', "crc": "'


def encode(record: Mapping[str, Any]) -> bytes:
    """The record's line, newline-terminated. The record has at least one field."""
    body = json.dumps(record)[:-1].encode()
    return body + b', "crc": "%08x"}\n' % zlib.crc32(body)


def whole(line: bytes) -> bytes:
    """A line without newline and check sum, as JSON. Raises `ValueError` if the check sum does not fit."""
    body, mark, end = line.rpartition(_MARK)
    if not mark or len(end) != 10 or not end.endswith(b'"}') or zlib.crc32(body) != int(end[:8], 16):
        raise ValueError("its check sum does not fit")
    return body + b"}"


def _plain(line: bytes) -> Any:
    return parse_json(line, constants=True)  # a likelihood may be -Infinity


def read(path: Path, what: str = "record", decode: Callable[[bytes], T] = _plain) -> Iterator[tuple[int, T]]:
    """(line number, record) of a journal, without touching it; a torn last line is left out.

    `what` names a record in messages; `decode` reads one from its JSON. Raises `StoreError` for a damaged line.
    """
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                try:
                    record = decode(whole(line[:-1]))
                except (ValueError, TypeError, KeyError, RecursionError) as error:
                    raise StoreError(damaged(path, number, what, str(error))) from None
                yield number, record
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror or error}). Restore it from a copy.") from None


def damaged(path: Path, number: int, what: str, why: str) -> str:
    """The message for a line that can't be used."""
    return (
        f"{path}:{number}: this {what} is damaged ({why}). It is not skipped silently: delete the line to have it made "
        "again, or restore the file from a copy."
    )


class Journal:
    """A journal opened for writing; a torn tail is cut off. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        self._size = 0

    def __enter__(self) -> Journal:
        try:
            self._file = open(self.path, "ab", buffering=0)
            self._size = _whole_lines(self.path)
            os.ftruncate(self._file.fileno(), self._size)
        except OSError as error:
            self.close()
            raise StoreError(cannot_write(self.path, error)) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what was appended is on the disk."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write records, one line each, and return once they are on the disk.

        Raises `StoreError` if that is impossible (disk full); the file then ends with the last whole record.
        """
        if self._file is None:
            raise StoreError(cannot_write(self.path, OSError(errno.EROFS, os.strerror(errno.EROFS))))
        lines = b"".join(map(encode, records))
        try:
            view = memoryview(lines)
            while view:
                view = view[self._file.write(view) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):  # else the torn tail is cut off when the journal is opened again
                os.ftruncate(self._file.fileno(), self._size)
            raise StoreError(cannot_write(self.path, error)) from error
        self._size += len(lines)

    def rewrite(self, lines: Iterable[bytes]) -> None:
        """Put these lines in the place of all that is there, at once: a reader sees the old file or the new one.

        Raises `StoreError`; the old file then stays.
        """
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}{UNFINISHED}")
        try:
            with open(temporary, "wb") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
            self.close()
            os.replace(temporary, self.path)
            sync_folder(self.path.parent)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise StoreError(cannot_write(self.path, error)) from error
        self.__enter__()


def _whole_lines(path: Path) -> int:
    """The size of a file up to its last line end."""
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 2**16)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
    return 0
