"""A data folder as one benchmark sees it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from vlmamba_eval.archive import InArchive
from vlmamba_eval.rows import Row, read_json, read_jsonl, read_text, shorten
from vlmamba_eval.types import DataError, ImageRef


class Folder:
    """A data folder as one benchmark sees it: files are looked for in the benchmark's sub-folders, then in the root."""

    def __init__(self, root: Path, folders: Sequence[str] = ()) -> None:
        self.root = root
        self._roots = [root / name for name in folders] + [root]
        self._images: dict[tuple[Path, str], ImageRef] = {}

    def find(self, *candidates: str, what: str) -> Path:
        """The first of the candidate paths that exists. `what` says in words what is looked for, for the error."""
        found = self.find_optional(*candidates)
        if found is None:
            folders = "\n  ".join(f"{root}{'' if root.is_dir() else ' (no such folder)'}" for root in self._roots)
            raise DataError(
                f"{what} not found. Looked for {' or '.join(candidates)} in:\n  {folders}\n"
                "Put it there, or give another folder with --data; "
                "`vlmamba-eval prepare` lists every file that a benchmark needs and where it comes from."
            )
        return found

    def find_optional(self, *candidates: str) -> Path | None:
        """The first of the candidate paths that exists, or None. Raises `DataError` if a folder may not be entered."""
        for root in self._roots:
            for name in candidates:
                try:
                    if (root / name).exists():
                        return root / name
                except OSError as error:
                    raise DataError(f"{root / name} cannot be looked for: {error.strerror}.") from error
        return None

    def has(self, *patterns: str) -> bool:
        """Whether a file of one of these names (`*` matches anything) is there."""
        return any(next(root.glob(pattern), None) is not None for root in self._roots for pattern in patterns)

    # -- files ---------------------------------------------------------------------------------------------------------

    def json(self, path: Path) -> Any:
        """A whole JSON file. Raises `DataError` with line and column if it is damaged."""
        return read_json(path)

    def lines(self, path: Path) -> list[str]:
        """The lines of a text file, blank ones left out, their ends stripped."""
        return [line.strip() for line in read_text(path).split("\n") if line.strip()]

    def jsonl(self, path: Path) -> Iterator[Row]:
        """The rows of a JSON-lines file, blank lines left out."""
        return read_jsonl(path)

    def row(self, path: Path) -> Row:
        """A JSON file that is one object."""
        return Row(self.json(path), str(path))

    def rows(self, path: Path, field: str = "") -> Iterator[Row]:
        """The rows of a JSON file that is a list, or holds one under `field`. Each is forgotten when the next comes."""
        value = self.json(path)
        if field:
            value = Row(value, str(path)).get(field)
        if not isinstance(value, list):
            raise DataError(f"{path}: expected a list{f' under {field!r}' if field else ''}, found {shorten(value)}.")
        for i in range(len(value)):
            item, value[i] = value[i], None
            yield Row(item, f"{path}: {field or 'item'}[{i}]")

    def table(self, path: Path) -> dict[str, Row]:
        """The rows of a JSON file that is an object from id to row, in file order."""
        value = self.json(path)
        if not isinstance(value, dict):
            raise DataError(f"{path}: expected an object from id to row, found {shorten(value)}.")
        return {key: Row(item, f"{path}: entry {key!r}") for key, item in value.items()}

    def tsv(self, path: Path, columns: Sequence[str]) -> Iterator[Row]:
        """The rows of a tab-separated file with a header; every cell is text, so "None", "NA" and "nan" survive.

        `columns` are those that must be there. An absent cell is the empty string.
        """
        csv.field_size_limit(2**27)  # base64 images
        reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter="\t", strict=True)
        try:
            header = next(reader, [])
            missing = [name for name in columns if name not in header]
            if missing:
                raise DataError(
                    f"{path}:1: columns {', '.join(missing)} are missing; "
                    f"the header has {', '.join(header)[:200] or 'nothing'}. "
                    "Is this the official tab-separated file?"
                )
            for cells in reader:
                where = f"{path}:{reader.line_num}"
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise DataError(f"{where}: expected {len(header)} cells, found {len(cells)}.")
                yield Row(dict(zip(header, cells, strict=True)), where)
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num}: not a valid tab-separated row ({error}).") from None

    # -- images --------------------------------------------------------------------------------------------------------

    def image(self, folder: Path, name: str, where: str = "") -> ImageRef:
        """A picture below `folder`, opened when it is read. `where` names the first row that asks for it.

        Raises `DataError` at once for a name that leaves the folder; a missing file is noticed when it is read.
        """
        ref = self._images.get((folder, name))
        if ref is None:  # paths take longer to make than all else about a row
            ref = self._images[folder, name] = self._image(folder, name, where)
        return ref

    def _image(self, folder: Path, name: str, where: str) -> ImageRef:
        relative = PurePosixPath(name)
        prefix = f"{where}: " if where else ""
        if relative.is_absolute() or ".." in relative.parts or "\0" in name or "\\" in name or ":" in name or not name:
            raise DataError(
                f"{prefix}image name {name!r} leaves the image folder {folder}; expected a plain relative file name."
            )
        path = folder / relative
        if isinstance(path, InArchive):
            tar, member = path.place()
            return ImageRef(str(path), f"{where} ({path})" if where else str(path), path=str(tar), member=member)
        return ImageRef(str(path), f"{where} ({path})" if where else str(path), path=str(path), folder=str(folder))
