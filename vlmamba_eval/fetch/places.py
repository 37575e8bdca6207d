"""Where the bytes of an address are: on a server, or in a local copy; a mirror is looked into first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from vlmamba_eval.fetch.http import CHUNK, FetchError, Found, Http, NoRangesError
from vlmamba_eval.types import UsageError

LACKS = (404, 410)  # answers of a server that does not have a file: a mirror need not have all


class Place(Protocol):
    """A file of which ranges can be read. `version` changes if its content does."""

    where: str
    size: int
    version: str

    def read(self, start: int, length: int) -> Iterator[bytes]:
        """The bytes of a range, in chunks."""
        ...


class LocalPlace:
    """A file on this machine."""

    def __init__(self, path: Path) -> None:
        stat = path.stat()
        self.path, self.where, self.size = path, str(path), stat.st_size
        self.version = f"{stat.st_size}-{stat.st_mtime_ns}"

    def read(self, start: int, length: int) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            file.seek(start)
            while length > 0:
                chunk = file.read(min(CHUNK, length))
                if not chunk:
                    raise FetchError(f"{self.path} ends {length:,} bytes too early: it is cut off.")
                length -= len(chunk)
                yield chunk


class RemotePlace:
    """A file on a server that gives ranges."""

    def __init__(self, http: Http, found: Found) -> None:
        if not found.ranges or found.size is None:
            raise NoRangesError(f"{found.url}: the server gives no parts of files.")
        self.http, self.found = http, found
        self.where, self.size, self.version = found.url, found.size, found.version

    def read(self, start: int, length: int) -> Iterator[bytes]:
        return self.http.read(self.found, start, length)


class Whole(Protocol):
    """What to do about a file whose server gives no ranges: a local copy of all of it, or `FetchError`."""

    def __call__(self, found: Found) -> LocalPlace: ...


class Places:
    """Addresses to places, each looked up once: in the mirror if there is one, else where the address leads.

    A mirror is a folder or the beginning of an address. It holds a file under the official address's host and path, or
    under its last name only. `note` is told once of every reason why a mirror's server does not give what it should.
    """

    def __init__(self, http: Http, mirror: str = "", note: Callable[[str], None] = lambda message: None) -> None:
        self.http, self._note = http, note
        self.mirror = mirror.rstrip("/")
        self._remote = mirror.startswith(("http://", "https://"))
        if mirror and not self._remote and not Path(mirror).is_dir():
            raise UsageError(f"--mirror {mirror}: neither a folder nor the beginning of an http or https address.")
        self._found: dict[str, Found | LocalPlace | FetchError] = {}
        self._complaints: dict[str, tuple[str, int]] = {}  # by reason, with the status

    @property
    def complaints(self) -> tuple[str, ...]:
        """Why the mirror's server did not give what was looked for in it: a sentence per reason.

        That it lacks a file is only said if nothing else is wrong.
        """
        graver = [message for message, status in self._complaints.values() if status not in LACKS]
        return tuple(graver or (message for message, _ in self._complaints.values()))

    def complain(self, error: FetchError) -> None:
        """Note why an address in the mirror is of no use, so that it can be said if the official one fails as well."""
        address, _, sentence = str(error).partition(": ")
        reason = sentence.partition(". ")[0].rstrip(".")
        if self._remote and address.startswith(self.mirror) and reason not in self._complaints:
            self._complaints[reason] = f"--mirror: {error}", error.status
            if error.status not in LACKS:
                self._note(f"--mirror: {error} The official addresses are asked.")

    def find(self, url: str) -> Found | LocalPlace:
        """What is known of an address. Raises `FetchError`."""
        if url not in self._found:
            try:
                self._found[url] = self._in_mirror(url) or self.http.find(url)
            except FetchError as error:  # not asked for twice: a host that is away costs seconds
                self._found[url] = error
        found = self._found[url]
        if isinstance(found, FetchError):
            raise found
        return found

    def open(self, url: str, whole: Whole) -> Place:
        """The place of an address; `whole` is asked if its server gives no ranges."""
        found = self.find(url)
        if isinstance(found, LocalPlace):
            return found
        if not found.ranges:
            self._found[url] = local = whole(found)
            return local
        return RemotePlace(self.http, found)

    def _in_mirror(self, url: str) -> Found | LocalPlace | None:
        if not self.mirror:
            return None
        parts = urlsplit(url)
        names = (f"{parts.netloc}{parts.path}", parts.path.rpartition("/")[2])
        problem = None
        for name in names:
            if not self._remote:
                path = Path(self.mirror) / name
                if path.is_file():
                    return LocalPlace(path)
                continue
            try:
                return self.http.find(f"{self.mirror}/{name}")
            except FetchError as error:
                problem = error if problem is None or problem.status in LACKS else problem
        if problem is not None:
            self.complain(problem)
        return None
