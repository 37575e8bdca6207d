"""One tar file of everything that some tasks need; and the check of what was fetched or packed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmamba_eval.archive import MANIFEST, InArchive, data_root
from vlmamba_eval.dataset import load_dataset, read_folder
from vlmamba_eval.fetch.download import STATE
from vlmamba_eval.fetch.plan import is_there
from vlmamba_eval.images import open_image
from vlmamba_eval.strict_json import parse_json
from vlmamba_eval.types import DataError, EvalError, ImageRef, UsageError

if TYPE_CHECKING:
    from vlmamba_eval.task import Task

FORMAT = 1


@dataclass(frozen=True)
class Packed:
    """What was written: how many files, how many bytes the tar has."""

    path: Path
    files: int
    size: int


def pack(
    tasks: Sequence[Task], where: str, target: Path, advance: Callable[[int, int], None] = lambda done, total: None
) -> Packed:
    """Write all that the tasks need into one tar: question files as they were read, and every picture asked about.

    The bytes depend only on the files: sorted names, no dates, no owners. Raises `DataError` if something is missing.
    """
    if where in ("hub", "samples"):
        raise UsageError("--pack needs the folder that holds the files: --data DIR. The hub has a cache of its own.")
    root = data_root(where)
    files: dict[str, Path] = {}
    lists: dict[str, dict[str, Any]] = {}
    for task in tasks:
        dataset = load_dataset(task, where)  # refuses other lists than the declared one
        lists[task.info.name] = {"version": task.info.version, "questions": len(dataset.samples)}
        images = {s.image.key: s.image for s in dataset.samples if s.image is not None and s.image.path}
        missing = [image for image in images.values() if not is_there(image)]
        if missing:
            raise DataError(
                f"{task.info.name}: {len(missing):,} of {len(images):,} pictures are missing, for example "
                f"{missing[0].path}. `vlmamba-eval prepare --tasks {task.info.name} --data {where} --download` "
                "fetches them."
            )
        paths = [InArchive(i.path) / i.member if i.member else Path(i.path) for i in images.values()]
        for path in (*_files_read(task, root), *paths):
            files[_name(path, root)] = path
    held: list[dict[str, Any]] = []
    offset = 0
    for done, (name, path) in enumerate(sorted(files.items()), 1):
        digest, size = hashlib.sha256(), 0
        for chunk in _chunks(path):
            digest.update(chunk)
            size += len(chunk)
        header = len(_header(name, size).tobuf(tarfile.PAX_FORMAT))
        held.append({"path": name, "size": size, "sha256": digest.hexdigest(), "offset": offset + header})
        offset += header + size + -size % tarfile.BLOCKSIZE
        advance(done, 2 * len(files))
    end = offset + 2 * tarfile.BLOCKSIZE
    end += -end % tarfile.RECORDSIZE
    manifest = {"format": FORMAT, "tasks": lists, "bytes": end, "files": held}
    written = _write(target, manifest, files, lambda n: advance(len(files) + n, 2 * len(files)))
    return Packed(target, len(files), written)


def _write(target: Path, manifest: dict[str, Any], files: Mapping[str, Path], advance: Callable[[int], None]) -> int:
    fresh = target.with_name(f".{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    content = (json.dumps(manifest, indent=0, sort_keys=True) + "\n").encode()
    # What follows the manifest must not depend on where it begins, so the end is padded from there.
    try:
        with fresh.open("wb") as raw:
            _add(raw, MANIFEST, len(content), iter([content]))
            start = raw.tell()
            for done, item in enumerate(manifest["files"], 1):
                digest = _add(raw, item["path"], item["size"], _chunks(files[item["path"]]))
                if digest != item["sha256"]:
                    raise DataError(f"{files[item['path']]} changed while it was packed. Begin again.")
                advance(done)
            raw.write(b"\0" * (start + manifest["bytes"] - raw.tell()))
            size = raw.tell()
            raw.flush()
            os.fsync(raw.fileno())
        fresh.replace(target)
    except OSError as error:
        raise DataError(f"{target} cannot be written ({error.strerror or error}).") from None
    finally:
        fresh.unlink(missing_ok=True)
    return size


def _header(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    return info


def _add(raw: io.BufferedWriter, name: str, size: int, chunks: Iterator[bytes]) -> str:
    raw.write(_header(name, size).tobuf(tarfile.PAX_FORMAT))
    digest, written = hashlib.sha256(), 0
    for chunk in chunks:
        digest.update(chunk)
        written += len(chunk)
        raw.write(chunk)
    if written != size:
        raise DataError(f"{name} changed while it was packed. Begin again.")
    raw.write(b"\0" * (-size % tarfile.BLOCKSIZE))
    return digest.hexdigest()


def _chunks(path: Path) -> Iterator[bytes]:
    if isinstance(path, InArchive):
        yield path.read_bytes()
        return
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            yield chunk


def _name(path: Path, root: Path) -> str:
    if not path.is_relative_to(root):
        raise DataError(f"{path} is not in {root}, so it has no place in an archive of that folder.")
    return path.relative_to(root).as_posix()


# =============================================================================
# Which files a task reads
# =============================================================================


def _files_read(task: Task, root: Path) -> list[Path]:
    """The files that the task's `load` reads, found by letting it read."""
    if isinstance(root, InArchive):
        noting: Any = _NotingInArchive(root)
        plain: Callable[[str], Path] = InArchive
    else:
        noting, plain = _Noting(root), Path
    _read.clear()
    read_folder(task, noting)
    return [plain(path) for path in dict.fromkeys(_read)]


_read: list[str] = []

if TYPE_CHECKING:
    _Path = Path
else:
    _Path = type(Path())


class _Noting(_Path):
    """A path that notes when it is read; so do all that are made from it."""

    def read_bytes(self) -> bytes:
        _read.append(str(self))
        return super().read_bytes()


class _NotingInArchive(InArchive):
    def read_bytes(self) -> bytes:
        _read.append(str(self))
        return super().read_bytes()


# =============================================================================
# Whether all is right
# =============================================================================


@dataclass(frozen=True)
class Checked:
    """What `verify` found: files whose sha256 is as noted, files that were only decoded, and a sentence per problem."""

    hashed: int
    decoded: int
    problems: tuple[str, ...]


def verify(
    tasks: Sequence[Task], where: str, advance: Callable[[int, int], None] = lambda done, total: None
) -> Checked:
    """Check an archive, its unpacked folder, or a folder that `--download` filled.

    Each file that the manifest or the journal names must have its sha256. Then each task must load, and its pictures
    that neither names must decode.
    """
    root = data_root(where)
    noted, packed = _noted(root)
    problems: list[str] = []
    decode: dict[str, ImageRef] = {}
    needed: set[str] = set()
    for task in tasks:
        try:
            dataset = load_dataset(task, where)
            needed |= {_name(path, root) for path in _files_read(task, root)}
        except EvalError as error:
            problems.append(f"{task.info.name}: {error}")
            continue
        for image in {s.image.key: s.image for s in dataset.samples if s.image is not None and s.image.path}.values():
            name = image.member or _name(Path(image.path), root)
            if name in noted:
                needed.add(name)
            else:
                decode[name] = image
    # Of a folder that was filled bit by bit, what the tasks need; of an archive, all.
    hashes = {name: item for name, item in noted.items() if packed or name in needed}
    total = len(hashes) + len(decode)
    for done, (name, item) in enumerate(hashes.items(), 1):
        problem = _wrong(root / name, item)
        problems += [problem] if problem else []
        advance(done, total)
    for done, image in enumerate(decode.values(), len(hashes) + 1):
        try:
            open_image(image)
        except DataError as error:
            problems.append(str(error))
        advance(done, total)
    return Checked(len(hashes), len(decode), tuple(problems))


def _noted(root: Path) -> tuple[dict[str, dict[str, Any]], bool]:
    """What is noted of each file by name, and whether that is a manifest of all."""
    try:
        if (root / MANIFEST).is_file():
            manifest = parse_json((root / MANIFEST).read_bytes())
            return {item["path"]: item for item in manifest["files"]}, True
        journal = root / STATE / "journal.jsonl"
        if not isinstance(root, InArchive) and journal.is_file():
            lines = journal.read_text(encoding="utf-8").splitlines()
            items = [parse_json(line) for line in lines if line.endswith("}")]  # a kill may have cut one
            return {item["path"]: item for item in items}, False
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{root}: its list of files is damaged ({type(error).__name__}: {error}).") from None
    return {}, False


def _wrong(path: Path, item: Mapping[str, Any]) -> str:
    try:
        digest = hashlib.sha256()
        for chunk in _chunks(path):
            digest.update(chunk)
    except FileNotFoundError:
        return f"{path} is missing."
    except (OSError, DataError) as error:
        return f"{path} cannot be read ({error})."
    if digest.hexdigest() != item["sha256"]:
        return f"{path} is not the file that was noted: expected sha256 {item['sha256']}, found {digest.hexdigest()}."
    return ""
