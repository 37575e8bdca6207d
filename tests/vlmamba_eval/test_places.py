"""A run ends as well on file systems that lack locks, permissions or synced folders, and after writers that died."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.toys import in_a_child
from tests.vlmamba_eval.test_store import MANIFEST, SCORES, answer
from vlmamba_eval.fetch.download import Download
from vlmamba_eval.fetch.http import Http
from vlmamba_eval.files import ABANDONED, write_atomic
from vlmamba_eval.store import Run, read_answers, read_scores
from vlmamba_eval.types import DataError, StoreError, UsageError


def refuse(code: int) -> Callable[..., None]:
    def call(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return call


def whole_run(folder: Path) -> None:
    """Written, closed, and read back."""
    with Run(folder, MANIFEST) as run:
        run.append([answer(0), answer(1), answer(2)])
        run.finish(SCORES, list, complete=True)
    assert list(read_answers(folder)) == ["0", "1", "2"]
    assert read_scores(folder) == SCORES


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
@pytest.mark.filterwarnings("ignore:flock not supported")  # filelock's own note
class TestWithoutLocks:
    @pytest.fixture(autouse=True)
    def no_locks(self, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fcntl, "flock", refuse(code))

    def test_a_run_is_whole_and_a_second_writer_is_refused(self, tmp_path: Path) -> None:
        whole_run(tmp_path)
        owner = f"is being written by process {os.getpid()} on "
        with Run(tmp_path, MANIFEST), pytest.raises(StoreError, match=owner), Run(tmp_path, MANIFEST):
            pass
        with Run(tmp_path, MANIFEST):
            pass

    def test_a_killed_owner_does_not_keep_the_run(self, tmp_path: Path) -> None:
        def killed() -> None:
            Run(tmp_path, MANIFEST).__enter__()
            os._exit(9)

        assert in_a_child(killed) == 9
        whole_run(tmp_path)

    def test_two_downloads_do_not_share_a_folder(self, tmp_path: Path) -> None:
        with Download(tmp_path, Http()), pytest.raises(UsageError, match="another process"):
            Download(tmp_path, Http()).__enter__()
        with Download(tmp_path, Http()):
            pass


def test_permissions_that_cannot_be_set_are_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "chmod", refuse(errno.EPERM))
    whole_run(tmp_path)


def folder_sync(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """From here on a file can be synced, and a folder can't."""
    really = os.fsync
    fail = refuse(code)
    monkeypatch.setattr(
        os, "fsync", lambda file: fail() if stat.S_ISDIR(os.fstat(file).st_mode) else really(file)
    )  # fmt: skip


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM, errno.ENOSYS])
def test_folders_that_cannot_be_synced_are_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    folder_sync(monkeypatch, code)
    whole_run(tmp_path)


def test_a_broken_disk_below_a_folder_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_sync(monkeypatch, errno.EIO)
    with pytest.raises(StoreError, match=r"cannot be written \(Input/output error\)"):
        whole_run(tmp_path)


# -- what killed writers leave -----------------------------------------------------------------------------------------


def killed_at_the_nth_rename(n: int, work: Callable[[], None]) -> None:
    def killed() -> None:
        left = n
        really = os.replace

        def rename(*arguments: Path) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os._exit(9)
            really(*arguments)

        os.replace = rename  # of the child alone
        work()

    assert in_a_child(killed) == 9


@pytest.mark.parametrize("n", range(1, 7))
def test_the_next_writer_of_a_run_removes_what_a_killed_one_left(tmp_path: Path, n: int) -> None:
    """Of every file: the owner's name, the manifest, the answers put in order, verdicts, scores, the seal."""

    def write() -> None:
        with Run(tmp_path, MANIFEST) as run:
            run.append([answer(1), answer(0)])
            run.settle(["0", "1"])
            run.finish(SCORES, lambda: [{"id": "0"}], complete=True)

    killed_at_the_nth_rename(n, write)
    before = sorted(path.name for path in tmp_path.glob(".*.tmp"))
    assert len(before) == 1
    with Run(tmp_path, MANIFEST):
        assert not list(tmp_path.glob(".*.tmp")), before


def test_elsewhere_only_old_ones_are_removed_for_their_writer_may_live(tmp_path: Path) -> None:
    path = tmp_path / "table[1].md"
    killed_at_the_nth_rename(1, lambda: write_atomic(path, "first"))
    [left] = tmp_path.iterdir()
    write_atomic(path, "second")
    assert left.exists()
    long_ago = left.stat().st_mtime - ABANDONED - 1
    os.utime(left, (long_ago, long_ago))
    write_atomic(tmp_path / "table.md", "another file's writer leaves it")
    assert left.exists()
    write_atomic(path, "third")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["table.md", "table[1].md"]


# -- downloads ---------------------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_made_is_said_before_anything_is_fetched(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/data/\.fetch can't be used \(Not a directory\)\. .* another folder"):
        Download(tmp_path / "file/data", Http()).__enter__()
