"""`python -m tasks.samples [FOLDER]`: write the bundled samples again, byte for byte (into `tasks/samples/data`)."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tasks.samples import DATA
from tasks.samples.writers import write_all

if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else DATA
    if target == DATA and target.exists():
        shutil.rmtree(target)
    write_all(target)
    files = [path for path in target.rglob("*") if path.is_file()]
    print(f"{len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.2f} MB in {target.resolve()}")
