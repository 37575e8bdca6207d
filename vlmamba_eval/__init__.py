"""vlmamba-eval: measures vision-language models with a Mamba language model on the LLaVA benchmark suite.

import vlmamba_eval
frame = vlmamba_eval.load_runs("results")          # every score of every run, one row per metric
verdicts = vlmamba_eval.load_verdicts("results/runs/MODEL/TASK/KEY")   # one row per question
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

__version__ = "0.2.0"


def load_runs(*paths: str | Path) -> pd.DataFrame:
    """Every score of the runs at or below the paths: one row per metric, the columns of `leaderboard.csv`.

    Raises `StoreError` for a run that is damaged, or was edited after it was scored.
    """
    import pandas as pd

    from vlmamba_eval.report.tables import COLUMNS, load_runs, tidy
    from vlmamba_eval.store import find_runs

    folders = [folder for path in paths for folder in find_runs(Path(path))]
    frame = pd.DataFrame(tidy(load_runs(folders, Path()), []), columns=pd.Index(COLUMNS))
    for name in ("n", "n_images", "n_unparsed", "n_missing", "n_error", "n_foreign", "n_truncated", "version"):
        frame[name] = frame[name].astype("Int64")
    return frame


def load_verdicts(*folders: str | Path) -> pd.DataFrame:
    """One row per question of the given run folders: what was asked, answered and read, and what it is worth.

    The columns are those of `verdicts.jsonl`, after `model`, `task` and `key`. Raises `StoreError`.
    """
    import pandas as pd

    from vlmamba_eval.store import read_manifest, read_verdicts

    rows = []
    for folder in map(Path, folders):
        manifest = read_manifest(folder)
        who = {"model": manifest.name, "task": manifest.task.name, "key": manifest.key}
        rows += [who | row for row in read_verdicts(folder)]
    return pd.DataFrame(rows)
