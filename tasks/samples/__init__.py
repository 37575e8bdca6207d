"""Scenes drawn by our own code, asked about in the official file formats of the benchmarks.

They let every command run from end to end without a download and without anybody's licence, and they are what the
small bundled model is trained and measured on. Scores on them say nothing about photographs.
"""

from pathlib import Path

DATA = Path(__file__).parent / "data"
"""The bundled data folder, used like any `--data DIR`."""
