"""Data sets on the hub, through `datasets`: no login, images left encoded until they are read."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from vlmamba_eval.archive import InArchive
from vlmamba_eval.rows import Row
from vlmamba_eval.types import DataError, HubCell, ImageRef


class Hub:
    """Reads data sets of the hub, and remembers which; with `snapshot`, this local copy of the one that is asked for.

    `revisions` maps each data set that was read to the commit that its name resolved to, for the manifest.
    """

    def __init__(self, snapshot: Path | None = None) -> None:
        self.snapshot = snapshot
        self.revisions: dict[str, str] = {}

    def rows(self, dataset: str, split: str, *, config: str | None = None, image: str | None = None) -> Iterator[Row]:
        """The rows of one split. Column `image`, if named, becomes an `ImageRef` (None if the row has none).

        A column of lists of images becomes a tuple of them. Raises `DataError` if the data set can't be had.
        """
        dataset = str(self.snapshot.resolve()) if self.snapshot else dataset
        commit = self._resolve(dataset)
        loaded = _load(dataset, config, split, commit)
        pictures: Iterator[Any] = iter(())
        if image is not None:
            if image not in loaded.column_names:
                raise DataError(f"{dataset}: column {image!r} is missing; it has {', '.join(loaded.column_names)}.")
            pictures = _hub_images(loaded, image, dataset, config, split, commit)
            loaded = loaded.remove_columns([image])
        for i, values in enumerate(loaded):
            row = dict(values)
            if image is not None:
                row[image] = next(pictures)
            yield Row(row, f"{dataset} ({split}) row {i}")

    def _resolve(self, dataset: str) -> str | None:
        """The commit that the name means: what the hub says, or without a network what was fetched before."""
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


def is_snapshot(folder: Path) -> bool:
    """Whether a folder is a hub data set as `huggingface-cli download` leaves it: README.md and parquet files."""
    if isinstance(folder, InArchive):
        return False
    try:
        return (folder / "README.md").is_file() and any(
            next(folder.glob(pattern), None) for pattern in ("*.parquet", "*/*.parquet")
        )
    except OSError:  # a folder that may not be entered: whoever reads it says so
        return False


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


def _hub_images(
    pictures: Any, column: str, dataset: str, config: str | None, split: str, revision: str | None
) -> Iterator[ImageRef | tuple[ImageRef, ...] | None]:
    """What a data set's image column holds in each row; the pictures stay where they are until they are read."""
    import pyarrow
    import pyarrow.compute

    def reference(row: int, place: int | None = None) -> ImageRef:
        cell = HubCell(dataset, config, split, revision, column, row, place)
        end = "" if place is None else f"[{place}]"
        name = f"{dataset}/{config}/{split}"
        key = f"{name}/{row}" if place is None else f"{name}/{row}/{place}"
        return ImageRef(key, f"{name} row {row}, column {column!r}{end}", hub=cell)

    stored = pictures.data.column(column)
    if isinstance(stored.type, pyarrow.ListType | pyarrow.LargeListType):
        for row, length in enumerate(pyarrow.compute.call_function("list_value_length", [stored]).to_pylist()):
            yield tuple(reference(row, place) for place in range(length or 0))
    else:
        for row, there in enumerate(stored.is_valid().to_pylist()):
            yield reference(row) if there else None


def read_cell(cell: HubCell) -> bytes | None:
    """The encoded picture in a cell, None if it holds none. Raises `DataError` if the data set can't be had."""
    value = _column(cell.dataset, cell.config, cell.split, cell.revision, cell.column)[cell.row][cell.column]
    value = value if cell.place is None else value[cell.place]
    return None if value is None else value.get("bytes")


@lru_cache(maxsize=8)
def _column(dataset: str, config: str | None, split: str, revision: str | None, column: str) -> Any:
    """One image column of a data set, its pictures encoded."""
    import datasets

    pictures = _load(dataset, config, split, revision).select_columns([column])
    feature, plain = pictures.features[column], datasets.Image(decode=False)
    if isinstance(feature, datasets.Image):
        return pictures.cast_column(column, plain)
    return pictures.cast_column(column, [plain] if isinstance(feature, list) else type(feature)(plain))


@lru_cache(maxsize=8)
def _load(dataset: str, config: str | None, split: str, revision: str | None) -> Any:
    import datasets

    try:
        return datasets.load_dataset(dataset, config, split=split, revision=revision, token=False)
    except Exception as error:  # noqa: BLE001 - datasets raises many types; each means: not to be had
        if Path(dataset).is_dir():
            raise DataError(
                f"{dataset}: expected a copy of a hub data set with {config or 'a default'} list and split {split}, "
                f"found another or a damaged one: {error}\nDownload the data set again, whole, with its README.md."
            ) from None
        raise DataError(
            f"{dataset} ({config or 'default'}, {split}) cannot be loaded from the hub: {error}\n"
            "Check the network, or put the official files into a folder and give it with --data DIR."
        ) from None
