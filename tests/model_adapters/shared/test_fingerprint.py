from __future__ import annotations

from pathlib import Path

import pytest

from vlmamba_eval.model_adapters.shared import fingerprint


def test_files_of_one_name_in_several_folders_are_all_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "_CACHE_FROM", 1)
    files = [tmp_path / folder / "model.safetensors" for folder in ("dino", "siglip")]
    for path in files:
        path.parent.mkdir()
        path.write_text(path.parent.name)
    cache = tmp_path / "fingerprint.json"
    first = fingerprint.of_files(files, cache)
    assert fingerprint.of_files(files, cache) == first
    files[0].write_text("changed")
    assert fingerprint.of_files(files, cache) != first


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "_CACHE_FROM", 1)
    (tmp_path / "a").write_text("x")
    found = fingerprint.of_files([tmp_path / "a"], tmp_path / "no such folder" / "fingerprint.json")
    assert found.startswith("sha256:")
