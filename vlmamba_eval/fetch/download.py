"""Fetching what is missing: in parallel, taken up again after a kill, checked, and put under its name only when whole.

In `DATA/.fetch` lie: the lock, directories of zips, parts of large files, archives fetched whole, and `journal.jsonl`
with the sha256 of every file that came.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import queue
import shutil
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from vlmamba_eval.fetch.http import DamagedError, FetchError, Found, Http, NoRangesError, Stopped
from vlmamba_eval.fetch.places import LocalPlace, Place, Places
from vlmamba_eval.fetch.plan import Batch, free_bytes, in_bytes
from vlmamba_eval.fetch.zips import Directory, Member, read_directory, unpack
from vlmamba_eval.files import take_lock
from vlmamba_eval.images import MAX_IMAGE_BYTES, open_image
from vlmamba_eval.sources import File, Pictures
from vlmamba_eval.types import DataError, ImageRef, UsageError

STATE = ".fetch"
LARGE = 4 * 2**20  # bytes: such a file is kept in part when a download stops
RUN = 4 * 2**20  # members that lie next to each other travel in one request, up to so many bytes
GAP = 512  # bytes between two members that are fetched rather than asked for again
WORKERS = 8
TRIES = 3  # at a file that arrives damaged
PICTURES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Item:
    """A file to fetch, resolved: `targets` are where it belongs, `start` and `length` its bytes at `place`.

    Without a place it is asked for whole at `url`. `group` is what fails together (one source).
    """

    targets: tuple[Path, ...]
    url: str
    group: str
    place: Place | None = None
    start: int = 0
    length: int = 0
    size: int = 0  # of the file, if it is known
    member: Member | None = None
    digest: str = ""


class Progress:
    """What a download tells; this one says nothing. Called from several threads."""

    def total(self, size: int) -> None:
        """How many bytes are to come altogether, as far as is known."""

    def came(self, size: int) -> None:
        """So many bytes more have come."""

    def note(self, message: str) -> None:
        """Something that the user should know."""


@dataclass(frozen=True)
class Result:
    """How a download ended: files put under their names, and a sentence for each that could not be had."""

    fetched: int
    failures: tuple[str, ...]


class Download:
    """Fetches into one data folder; only one at a time may. Use it as a context manager.

    `whole` allows fetching whole archives if a server gives no ranges.
    """

    def __init__(self, root: Path, http: Http, mirror: str = "", whole: bool = False, progress: Progress | None = None):
        self.root, self.http, self.whole = root, http, whole
        self.progress = progress or Progress()
        self.places = Places(http, mirror, self.progress.note)
        self.state = root / STATE
        self._failures: list[str] = []
        self._dead: dict[str, str] = {}
        self._lock = threading.Lock()
        self._fetched = 0

    def __enter__(self) -> Download:
        try:
            self.state.mkdir(parents=True, exist_ok=True)
            self._guard = take_lock(self.state / "lock")
        except Timeout:
            raise UsageError(f"{self.root}: another process is fetching into this folder. Wait for it.") from None
        except OSError as error:
            raise self._unusable(error) from None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        self._guard.release()
        if isinstance(error, OSError):
            raise self._unusable(error) from None

    def _unusable(self, error: OSError) -> DataError:
        remedy = "Make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Mend that, or give another folder"
        return DataError(
            f"{error.filename or self.root} can't be used ({error.strerror or error}). What has come is kept. "
            f"{remedy}, and run the same command again."
        )

    # -- what exactly --------------------------------------------------------------------------------------------------

    def resolve(self, batches: Sequence[Batch]) -> list[Item]:
        """Where exactly each file's bytes are: asks servers, reads directories of zips. What can't be had is noted."""
        items: list[Item] = []
        for batch in batches:
            try:
                items += self._resolve(batch)
            except FetchError as error:
                self._failures.append(f"{batch.what}: {error}")
        return items

    def _resolve(self, batch: Batch) -> list[Item]:
        source = batch.source
        targets: dict[str, list[Path]] = {}
        for wanted in batch.wanted:
            targets.setdefault(wanted.name, []).append(wanted.path)
        if isinstance(source, File):
            return [self._file(source, tuple(targets[""]))]
        if batch.one_by_one and not self._mirrored(source.url):
            return self._one_by_one(source, targets)
        try:
            directory = self._directory(source.url)
        except FetchError as error:
            if not source.each:
                raise
            self.places.complain(error)
            return self._one_by_one(source, targets)
        items, absent = [], []
        place = self._open(source.url)
        for name, paths in targets.items():
            member = directory.find(source.member.replace("{name}", name))
            if member is None:
                absent.append(name)
            else:
                items.append(_of_member(place, member, source.url, tuple(paths)))
        if absent:
            self._failures.append(f"{source.url} lacks {_some(absent, 'picture')}.")
        return items

    def _file(self, source: File, targets: tuple[Path, ...]) -> Item:
        if source.member:
            member = self._directory(source.url).find(source.member)
            if member is None:
                raise FetchError(f"{source.url} has no member {source.member}.")
            return _of_member(self._open(source.url), member, source.url, targets, source.digest)
        found = self.places.find(source.url)
        if isinstance(found, Found) and not found.ranges:
            return Item(targets, found.url, source.url, size=found.size or 0, digest=source.digest)
        place = self._open(source.url)
        return Item(targets, place.where, source.url, place, 0, place.size, place.size, digest=source.digest)

    def _one_by_one(self, source: Pictures, targets: dict[str, list[Path]]) -> list[Item]:
        items = []
        mirrored = self._mirrored(source.each.replace("{name}", next(iter(targets))))
        for name, paths in targets.items():
            url = source.each.replace("{name}", name)
            place = None
            if mirrored:
                try:
                    place = self._open(url)
                except FetchError as error:
                    self._failures.append(str(error))
                    continue
            where = place.where if place else url
            length = place.size if place else 0
            items.append(Item(tuple(paths), where, source.each, place, 0, length, length or source.size))
        return items

    def _mirrored(self, url: str) -> bool:
        if not url or not self.places.mirror:
            return False
        try:
            found = self.places.find(url)
        except FetchError:
            return False
        return isinstance(found, LocalPlace) or found.url != url

    def _open(self, url: str) -> Place:
        kept = self.state / "whole" / url.rpartition("/")[2]
        if kept.is_file():
            return LocalPlace(kept)
        return self.places.open(url, lambda found: self._fetch_whole(found, kept))

    def _directory(self, url: str) -> Directory:
        return read_directory(self._open(url), self.state / "directories", self.progress.came)

    def _fetch_whole(self, found: Found, kept: Path) -> LocalPlace:
        size = "of unknown size" if found.size is None else f"of {in_bytes(found.size)}"
        if not self.whole:
            raise NoRangesError(
                f"{found.url}: the server gives no parts of files, and only some of this archive {size} is needed. "
                "Give --whole to fetch all of it, or --mirror for another place."
            )
        if found.size is not None:
            self._check_disk(found.size)
        self.progress.note(f"{found.url}: fetched whole, {size}; kept as {kept}")
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_name(f"{kept.name}.part")
        self._again(lambda: _write_all(part, self._counted(self.http.read_whole(found))))
        part.replace(kept)
        return LocalPlace(kept)

    # -- all of it -----------------------------------------------------------------------------------------------------

    def fetch(self, items: Sequence[Item]) -> Result:
        """Fetch and put under their names; a kill loses no more than the files under way. Raises `DataError` for a full
        disk before it begins."""
        self._check_disk(sum(item.size * len(item.targets) for item in items))
        self.progress.total(sum(item.length or item.size for item in items))
        jobs: queue.SimpleQueue[list[Item] | None] = queue.SimpleQueue()
        for run in _runs(items):
            jobs.put(run)
        problems: list[BaseException] = []
        # Daemons, so that an interruption does not wait for a silent server.
        workers = [threading.Thread(target=self._work, args=(jobs, problems), daemon=True) for _ in range(WORKERS)]
        for worker in workers:
            jobs.put(None)
            worker.start()
        try:
            for worker in workers:
                while worker.is_alive():
                    worker.join(0.2)
        except BaseException:
            self.http.stop.set()
            raise
        if problems:
            raise problems[0]
        failures = (*self._failures, *self._dead.values())
        result = Result(self._fetched, (*self.places.complaints, *failures) if failures else ())
        self._fetched, self._failures, self._dead = 0, [], {}
        return result

    def _work(self, jobs: queue.SimpleQueue[list[Item] | None], problems: list[BaseException]) -> None:
        while (run := jobs.get()) is not None and not problems:
            try:
                self._job(run)
            except BaseException as problem:  # noqa: BLE001 - raised again by `fetch`
                problems.append(problem)

    def _job(self, run: list[Item]) -> None:
        """Fetch files that lie next to each other; what fails is noted."""
        if run[0].group in self._dead:
            return
        try:
            if len(run) == 1:
                self._single(run[0])
            else:
                self._several(run)
        except Stopped:
            return
        except FetchError as error:
            self._fail(run[0], error)

    def _fail(self, item: Item, error: DataError) -> None:
        """A file that is not there is one failure; a server that refuses or is gone ends all that comes from it."""
        status = getattr(error, "status", 0)
        with self._lock:
            if isinstance(error, DamagedError) or status in (404, 410):
                self._failures.append(str(error))
            else:
                self._dead.setdefault(item.group, str(error))

    def _several(self, run: list[Item]) -> None:
        """Members in one request, each put under its name as soon as its bytes are there."""
        place, start, end = run[0].place, run[0].start, run[-1].start + run[-1].length
        assert place is not None  # noqa: S101 - runs are made of members
        damaged: list[Item] = []
        with closing(_Stream(self._counted(place.read(start, end - start)), start)) as stream:
            for item in run:
                stream.skip_to(item.start)
                raw = b"".join(stream.take(item.length))
                try:
                    self._finish(item, lambda raw=raw: iter([raw]))
                except DamagedError:
                    damaged.append(item)
        for item in damaged:  # not before, for the stream holds one of the host's connections
            self._job([item])

    def _single(self, item: Item) -> None:
        if item.place is None:
            self._again(lambda: self._finish(item, lambda: self._whole_file(item)))
        elif item.length < LARGE or isinstance(item.place, LocalPlace):
            place = item.place
            self._again(lambda: self._finish(item, lambda: self._counted(place.read(item.start, item.length))))
        else:
            self._again(lambda: self._in_parts(item))

    def _whole_file(self, item: Item) -> Iterator[bytes]:
        if item.targets[0].suffix.lower() in PICTURES:
            return self._counted(iter([self.http.read_small(item.url, MAX_IMAGE_BYTES)]))
        return self._counted(self.http.read_whole(Found(item.url, item.size or None, False, "")))

    def _in_parts(self, item: Item) -> None:
        """A large file: its bytes are kept as they come, so that a later start goes on after them."""
        place = item.place
        assert place is not None  # noqa: S101 - the caller looked
        name = f"{place.where} {place.version} {item.start} {item.length}"
        part = self.state / "parts" / hashlib.sha256(name.encode()).hexdigest()[:24]
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as file:
            have = file.tell()
            if have > item.length:  # can't be ours
                file.truncate(0)
                have = 0
            self.progress.came(have)
            for chunk in self._counted(place.read(item.start + have, item.length - have)):
                file.write(chunk)
        try:
            self._finish(item, lambda: LocalPlace(part).read(0, item.length))
        finally:
            part.unlink()

    def _again(self, attempt: Callable[[], object]) -> None:
        """Try a few times what arrives damaged."""
        for left in reversed(range(TRIES)):
            try:
                attempt()
                return
            except DamagedError:
                if not left:
                    raise

    def _counted(self, chunks: Iterator[bytes]) -> Generator[bytes]:
        for chunk in chunks:
            self.progress.came(len(chunk))
            yield chunk

    # -- under its name ------------------------------------------------------------------------------------------------

    def _finish(self, item: Item, chunks: Callable[[], Iterator[bytes]]) -> None:
        """Unpack, check, write beside the target, move. Raises `DamagedError` with nothing left behind."""
        first = item.targets[0]
        first.parent.mkdir(parents=True, exist_ok=True)
        fresh = first.with_name(f".{first.name}.part")
        digests = [hashlib.sha256()]
        declared, _, expected = item.digest.partition(":")
        if declared and declared != "sha256":
            digests.append(hashlib.new(declared, usedforsecurity=False))
        try:
            with fresh.open("wb") as file:
                data = chunks()
                for chunk in unpack(item.member, data, item.url) if item.member else data:
                    for digest in digests:
                        digest.update(chunk)
                    file.write(chunk)
                size = file.tell()
                file.flush()
                os.fsync(file.fileno())
            if expected and digests[-1].hexdigest() != expected:
                raise DamagedError(
                    f"{item.url}: expected {declared} {expected}, found {digests[-1].hexdigest()} ({size:,} bytes). "
                    "The file is another version than this benchmark's, or was changed on its way."
                )
            if item.member is None and first.suffix.lower() in PICTURES:
                open_image(ImageRef(item.url, item.url, path=str(fresh), folder=str(fresh.parent)))
        except DataError as error:
            fresh.unlink(missing_ok=True)
            raise error if isinstance(error, FetchError) else DamagedError(str(error)) from None
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
        for target in item.targets[1:]:
            _same(fresh, target)
        self._record(item, size, digests[0].hexdigest())
        fresh.replace(first)

    def _record(self, item: Item, size: int, sha256: str) -> None:
        inside = item.member.name if item.member else ""
        lines = "".join(
            json.dumps(
                {"path": _relative(path, self.root), "size": size, "sha256": sha256, "url": item.url, "member": inside}
            )
            + "\n"
            for path in item.targets
        )
        with self._lock, (self.state / "journal.jsonl").open("a", encoding="utf-8") as file:
            file.write(lines)
            self._fetched += 1

    def _check_disk(self, size: int) -> None:
        free = free_bytes(self.root)
        if size > free:
            raise DataError(f"{self.root}: {in_bytes(size)} are needed, {in_bytes(free)} are free. Nothing came.")


class _Stream:
    """Chunks as a stream from which exact numbers of bytes are taken; `at` is its place in the file."""

    def __init__(self, chunks: Generator[bytes], at: int) -> None:
        self.chunks, self.at, self.held = chunks, at, b""

    def take(self, length: int) -> Iterator[bytes]:
        self.at += length
        while length > 0:
            if not self.held:
                self.held = next(self.chunks)
            piece, self.held = self.held[:length], self.held[length:]
            length -= len(piece)
            yield piece

    def close(self) -> None:
        self.chunks.close()

    def skip_to(self, place: int) -> None:
        for _ in self.take(place - self.at):
            pass


def _runs(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Items in the order of their bytes; small members that lie next to each other are one run."""
    run: list[Item] = []
    for item in sorted(items, key=lambda item: (item.group, item.url, item.start)):
        last = run[-1] if run else None
        joins = (
            last is not None
            and item.member is not None
            and last.member is not None
            and item.place is last.place
            and 0 <= item.start - (last.start + last.length) <= GAP
            and item.start + item.length - run[0].start <= RUN
        )
        if run and not joins:
            yield run
            run = []
        run.append(item)
    if run:
        yield run


def _of_member(place: Place, member: Member, url: str, targets: tuple[Path, ...], digest: str = "") -> Item:
    start, length = member.start, member.end - member.start
    return Item(targets, place.where, url, place, start, length, member.size, member, digest)


def _write_all(path: Path, chunks: Iterator[bytes]) -> None:
    with path.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


def _same(file: Path, target: Path) -> None:
    """The same content under another name: a second name of the file if the disk can, else a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.part")
    fresh.unlink(missing_ok=True)
    try:
        os.link(file, fresh)
    except OSError:
        shutil.copyfile(file, fresh)
    fresh.replace(target)


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _some(names: Sequence[str], noun: str) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names):,} {noun}{'s' if len(names) != 1 else ''} ({shown})"
