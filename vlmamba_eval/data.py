"""Where samples come from: a local folder, the bundled samples, or the hub.

Everything read here is untrusted. A wrong file is a `DataError` that names file and line; an image is opened lazily,
by an allow-list of decoders, and never outside its folder.
"""

from __future__ import annotations

import base64
import binascii
import csv
import hashlib
import io
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NoReturn

from vlmamba_eval.types import DataError, ImageRef

if TYPE_CHECKING:
    from PIL import Image

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
# Far above any benchmark image, far below what would exhaust memory, also when a strip is padded to a square.
MAX_PIXELS = 64_000_000
MAX_SIDE = 10_000
MAX_IMAGE_BYTES = 64 * 2**20
PACKED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip; Excel sheets are such files too"}


# =============================================================================
# Rows
# =============================================================================


class Row:
    """One annotation row with checked access: a missing or ill-typed field is an error that names file and row."""

    __slots__ = ("values", "where")

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, Mapping):
            raise DataError(f"{where}: expected an object with named fields, found {_shorten(values)}.")
        self.values = values
        self.where = where

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def fail(self, message: str) -> NoReturn:
        """Raise a `DataError` about this row."""
        raise DataError(f"{self.where}: {message}")

    def get(self, name: str) -> Any:
        """The field as it is. Raises `DataError` where it is absent."""
        try:
            return self.values[name]
        except KeyError:
            there = [repr(field) for field in self.values]
            named = ", ".join(there[:8]) + (f" and {len(there) - 8:,} more" if len(there) > 8 else "")
            self.fail(f"field {name!r} is missing; the row has {named or 'no fields'}.")

    def text(self, name: str, default: str | None = None) -> str:
        """A string field; `default`, where given, stands for an absent or null one."""
        value = self.values.get(name) if default is not None else self.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            self.fail(f"field {name!r} should be text, found {_shorten(value)}.")
        return value

    def integer(self, name: str) -> int:
        """An integer field (not a truth value)."""
        value = self.get(name)
        if not isinstance(value, int) or isinstance(value, bool):
            self.fail(f"field {name!r} should be a whole number, found {_shorten(value)}.")
        return value

    def identifier(self, name: str) -> str:
        """An id: a whole number or a non-empty text, as text."""
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
            self.fail(f"field {name!r} should be an id (a number or text), found {_shorten(value)}.")
        return str(value)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings."""
        value = self.get(name)
        if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(v, str) for v in value):
            self.fail(f"field {name!r} should be a list of texts, found {_shorten(value)}.")
        return tuple(value)

    def one_of(self, name: str, allowed: Sequence[str]) -> str:
        """A string field with one of a few values."""
        value = self.text(name)
        if value not in allowed:
            self.fail(f"field {name!r} should be one of {', '.join(map(repr, allowed))}, found {value!r}.")
        return value

    def row(self, name: str) -> Row:
        """A nested object."""
        return Row(self.get(name), f"{self.where}, field {name!r}")

    def rows(self, name: str) -> list[Row]:
        """A list of nested objects."""
        value = self.get(name)
        if not isinstance(value, list):
            self.fail(f"field {name!r} should be a list, found {_shorten(value)}.")
        return [Row(item, f"{self.where}, {name}[{i}]") for i, item in enumerate(value)]

    def image(self, name: str, key: str = "") -> ImageRef:
        """An image held by the row itself: base64 text (TSV files), or bytes (hub data sets).

        Without a `key` the picture's identity is the sha256 of its content.
        """
        value = self.get(name)
        if isinstance(value, ImageRef):
            return ImageRef(key, value.where, value.read) if key else value
        if not isinstance(value, str):
            self.fail(f"field {name!r} should hold an image, found {_shorten(value)}.")
        where = f"{self.where}, field {name!r}"
        return ImageRef(key or hashlib.sha256(value.encode()).hexdigest(), where, lambda: _from_base64(value, where))


def _from_base64(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{where}: expected a base64-encoded image, found {_shorten(text)} ({error}).") from None


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


# =============================================================================
# A folder
# =============================================================================


class Folder:
    """A data folder as one benchmark sees it: files are looked for in the benchmark's sub-folders, then in the root."""

    def __init__(self, root: Path, folders: Sequence[str] = ()) -> None:
        self.root = root
        self._roots = [root / name for name in folders] + [root]

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
        """The first of the candidate paths that exists, or None."""
        for root in self._roots:
            for name in candidates:
                if (root / name).exists():
                    return root / name
        return None

    # -- files ---------------------------------------------------------------------------------------------------------

    def json(self, path: Path) -> Any:
        """A whole JSON file. Raises `DataError` with line and column where it is damaged."""
        text = read_text(path)
        try:
            return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}:{error.lineno}: not valid JSON ({error.msg}, column {error.colno}); it begins with "
                f"{text[:40]!r}. The file may be cut off or be something else: fetch it again and compare its size."
            ) from None
        except (_BadJSON, RecursionError) as error:
            raise DataError(f"{path}: not valid JSON ({error}).") from None

    def lines(self, path: Path) -> list[str]:
        """The lines of a text file, blank ones left out, their ends stripped."""
        return [line.strip() for line in read_text(path).split("\n") if line.strip()]

    def jsonl(self, path: Path) -> Iterator[Row]:
        """The rows of a JSON-lines file, blank lines left out."""
        return read_jsonl(path)

    def row(self, path: Path) -> Row:
        """A JSON file that is one object."""
        return Row(self.json(path), str(path))

    def rows(self, path: Path, field: str = "") -> list[Row]:
        """The rows of a JSON file that is a list, or holds one under `field`."""
        value = self.json(path)
        if field:
            value = Row(value, str(path)).get(field)
        if not isinstance(value, list):
            raise DataError(f"{path}: expected a list{f' under {field!r}' if field else ''}, found {_shorten(value)}.")
        return [Row(item, f"{path}: {field or 'item'}[{i}]") for i, item in enumerate(value)]

    def table(self, path: Path) -> dict[str, Row]:
        """The rows of a JSON file that is an object from id to row, in file order."""
        value = self.json(path)
        if not isinstance(value, dict):
            raise DataError(f"{path}: expected an object from id to row, found {_shorten(value)}.")
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
                    f"the header has {', '.join(header) or 'nothing'}. Is this the official tab-separated file?"
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
        """A picture below `folder`, opened when it is read. `where` names the row that asks for it.

        Raises `DataError` at once for a name that leaves the folder, and on reading for a missing file.
        """
        relative = PurePosixPath(name)
        prefix = f"{where}: " if where else ""
        if relative.is_absolute() or ".." in relative.parts or "\0" in name or "\\" in name or ":" in name or not name:
            raise DataError(
                f"{prefix}image name {name!r} leaves the image folder {folder}; expected a plain relative file name."
            )
        path = folder / relative

        def read() -> bytes:
            return _read_image_file(path, folder, prefix)

        return ImageRef(str(path), f"{where} ({path})" if where else str(path), read, path=str(path))


def _read_image_file(path: Path, folder: Path, prefix: str) -> bytes:
    try:
        resolved = path.resolve(strict=True)
        if not resolved.is_relative_to(_resolved(folder)):
            raise DataError(f"{prefix}{path} is a link that leaves the image folder {folder}; it is not followed.")
        if resolved.stat().st_size > MAX_IMAGE_BYTES:
            raise DataError(f"{prefix}{path}: larger than {MAX_IMAGE_BYTES >> 20} MiB; no benchmark image is.")
        return resolved.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{prefix}image {path} is missing. Unpack the benchmark's images there.") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise DataError(f"{prefix}image {path} cannot be read ({error}).") from None


@lru_cache(maxsize=64)
def _resolved(folder: Path) -> Path:
    return folder.resolve()


def read_text(path: Path) -> str:
    """A UTF-8 file, with or without a byte order mark. Raises `DataError` naming the first bad line."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}).") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        packed = next((kind for magic, kind in PACKED.items() if raw.startswith(magic)), "")
        if packed:
            raise DataError(f"{path} is compressed ({packed}). Unpack it and give what was inside.") from None
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: not UTF-8 (byte {error.start}: {raw[error.start]:#04x}). Save the file as UTF-8."
        ) from None


def read_jsonl(path: Path) -> Iterator[Row]:
    """The rows of a JSON-lines file, blank lines left out. Raises `DataError` naming file and line."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            where = f"{path}:{number}"
            try:
                value = json.loads(line, parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{where}: not a valid JSON line ({error.msg}, column {error.colno}): {_shorten(line)}. "
                    "The file may be cut off or hold something else."
                ) from None
            except (_BadJSON, RecursionError) as error:
                raise DataError(f"{where}: not a valid JSON line ({error}).") from None
            if not isinstance(value, dict):
                raise DataError(f"{where}: expected one JSON object a line, found {_shorten(value)}.")
            yield Row(value, where)


class _BadJSON(ValueError):
    pass


def _refuse_constant(name: str) -> NoReturn:
    raise _BadJSON(f"{name} is no JSON number")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _BadJSON(f"key {twice!r} occurs twice in one object")
    return result


# =============================================================================
# The hub
# =============================================================================


class Hub:
    """Data sets on the hub, through `datasets`: no login, images left encoded until they are read.

    `revisions` maps each data set that was read to the commit that its name resolved to, for the manifest.
    """

    def __init__(self) -> None:
        self.revisions: dict[str, str] = {}

    def rows(self, dataset: str, split: str, *, config: str | None = None, image: str | None = None) -> Iterator[Row]:
        """The rows of one split. Column `image`, where named, becomes an `ImageRef` (None where the row has none).

        A column of lists of images becomes a tuple of them. Raises `DataError` where the data set can't be had.
        """
        import datasets

        commit = self._resolve(dataset)
        try:
            loaded = datasets.load_dataset(dataset, config, split=split, revision=commit, token=False)
        except Exception as error:  # noqa: BLE001 - datasets raises many types; each means: not to be had
            raise DataError(
                f"{dataset} ({config or 'default'}, {split}) cannot be loaded from the hub: {error}\n"
                "Check the network, or put the official files into a folder and give it with --data DIR."
            ) from None
        pictures: Iterator[Any] = iter(())
        if image is not None:
            if image not in loaded.column_names:
                raise DataError(f"{dataset}: column {image!r} is missing; it has {', '.join(loaded.column_names)}.")
            pictures = _hub_images(loaded.select_columns([image]), image, f"{dataset}/{config}/{split}")
            loaded = loaded.remove_columns([image])
        for i, values in enumerate(loaded):
            row = dict(values)
            if image is not None:
                row[image] = next(pictures)
            yield Row(row, f"{dataset} ({split}) row {i}")

    def _resolve(self, dataset: str) -> str | None:
        """The commit that the name stands for: what the hub says, or without a network what was fetched before."""
        if Path(dataset).is_dir():
            return None
        if dataset not in self.revisions:
            import huggingface_hub

            try:
                commit = huggingface_hub.HfApi().dataset_info(dataset, token=False).sha
            except Exception as error:  # noqa: BLE001 - network and hub errors of many types
                commit = _fetched_before(dataset)
                if commit is None:
                    raise DataError(
                        f"{dataset} cannot be found on the hub: {error}\n"
                        "Check the network, or put the official files into a folder and give it with --data DIR."
                    ) from None
            self.revisions[dataset] = commit or ""
        return self.revisions[dataset] or None


def _fetched_before(dataset: str) -> str | None:
    """The commit of `main` in the local cache of the hub."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return None
    for repo in repos:
        if repo.repo_type == "dataset" and repo.repo_id == dataset and "main" in repo.refs:
            return repo.refs["main"].commit_hash
    return None


def _hub_images(pictures: Any, column: str, name: str) -> Iterator[ImageRef | tuple[ImageRef, ...] | None]:
    """What a data set's image column holds in each row; the pictures stay encoded until they are read."""
    import datasets
    import pyarrow
    import pyarrow.compute

    stored, feature, plain = pictures.data.column(column), pictures.features[column], datasets.Image(decode=False)
    if isinstance(stored.type, pyarrow.ListType | pyarrow.LargeListType):
        lengths = pyarrow.compute.call_function("list_value_length", [stored]).to_pylist()
        pictures = pictures.cast_column(column, [plain] if isinstance(feature, list) else type(feature)(plain))
        for i, length in enumerate(lengths):
            yield tuple(_hub_image(pictures, column, name, i, place) for place in range(length or 0))
    else:
        there = stored.is_valid().to_pylist()
        pictures = pictures.cast_column(column, plain)
        for i, some in enumerate(there):
            yield _hub_image(pictures, column, name, i) if some else None


def _hub_image(pictures: Any, column: str, name: str, index: int, place: int | None = None) -> ImageRef:
    where = f"{name} row {index}, column {column!r}" + ("" if place is None else f"[{place}]")

    def read() -> bytes:
        value = pictures[index][column]
        value = value if place is None else value[place]
        if value is None or value.get("bytes") is None:
            raise DataError(f"{where} holds no image.")
        return value["bytes"]

    return ImageRef(f"{name}/{index}" if place is None else f"{name}/{index}/{place}", where, read)


# =============================================================================
# Images
# =============================================================================


def open_image(ref: ImageRef) -> Image.Image:
    """Read and decode a picture to RGB.

    Only JPEG, PNG, WEBP, BMP and GIF (its first frame); a truncated file is an error, never a half-grey picture; the
    decompression-bomb limit stands. Raises `DataError`.
    """
    from PIL import Image

    raw = ref.read()
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
                return image.convert("RGB")
    except DataError:
        raise
    except Image.UnidentifiedImageError:
        raise DataError(
            f"{ref.where}: not an image of a known format ({', '.join(IMAGE_FORMATS)}); "
            f"it begins with {raw[:16]!r} ({len(raw)} bytes). Fetch it again."
        ) from None
    except Exception as error:  # noqa: BLE001 - decoders raise many types on damaged files
        raise DataError(f"{ref.where}: damaged image ({type(error).__name__}: {error}). Fetch it again.") from None
