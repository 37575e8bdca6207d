"""Write the bundled samples again, byte for byte: `python -m vlmamba_eval.tasks.samples [FOLDER]`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from vlmamba_eval.tasks.samples import DATA
from vlmamba_eval.tasks.samples.writers import write_all

if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else DATA
    if target == DATA and target.exists():
        shutil.rmtree(target)
    write_all(target)
    files = [path for path in target.rglob("*") if path.is_file()]
    print(f"{len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.2f} MB in {target.resolve()}")
