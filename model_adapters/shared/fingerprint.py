"""What identifies a checkpoint's parameters: a hash of its files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from vlmamba_eval.strict_json import parse_json

# Hashing less than this takes no time worth a file beside the weights.
_CACHE_FROM = 64 * 2**20


def of_files(files: Sequence[Path], cache: Path) -> str:
    """`sha256:...` of files, in their order.

    For large files the hash is kept in `cache`, if that can be written, and taken anew when a file's size or time of
    change differs.
    """
    # A list: files of several folders may have the same name.
    marks = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        known = parse_json(cache.read_text(encoding="utf-8"))
        if known["files"] == marks:
            return str(known["fingerprint"])
    digest = hashlib.sha256()
    for path in files:
        digest.update(_sha256(path))
    found = f"sha256:{digest.hexdigest()}"
    if sum(path.stat().st_size for path in files) >= _CACHE_FROM:
        with contextlib.suppress(OSError):
            # Replaced and not written through: what stands there may be a link to somewhere else.
            with tempfile.NamedTemporaryFile("w", dir=cache.parent, prefix=".fingerprint-", delete=False) as file:
                file.write(json.dumps({"files": marks, "fingerprint": found}, indent=2) + "\n")
            os.replace(file.name, cache)
    return found


def _sha256(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.digest()
