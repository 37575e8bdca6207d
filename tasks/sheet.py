"""An Excel sheet that comes back as it was written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from vlmamba_eval.types import DataError, UsageError

Row = Sequence[int | str | None]
MAX_CELL = 32_767  # characters; Excel's limit
# What XML or UTF-8 can't hold, and what Excel reads as an escaped character (_x000D_).
ILLEGAL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]|_x[0-9a-fA-F]{4}_")


def write_sheet(path: Path, columns: Sequence[str], rows: Sequence[Row]) -> Path:
    """Write one sheet and read it back. Text is never taken for a formula or a link.

    Characters that a sheet can't hold are left out, and texts end after 32,767 characters; None is an empty cell.
    Raises `DataError` if the file that was written holds something else.
    """
    try:
        import openpyxl
        from openpyxl.cell import WriteOnlyCell
    except ImportError:
        raise UsageError("Excel sheets need openpyxl: pip install 'vlmamba-eval[xlsx]'.") from None

    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")
    expected = [list(columns), *([_storable(value) for value in row] for row in rows)]
    for row in expected:
        cells = [WriteOnlyCell(sheet, value) for value in row]
        for cell, value in zip(cells, row, strict=True):
            if isinstance(value, str):
                cell.data_type = "s"
        sheet.append(cells)
    book.save(path)

    written = openpyxl.load_workbook(path, read_only=True)
    found = [[*row, *[None] * (len(columns) - len(row))] for row in written.worksheets[0].iter_rows(values_only=True)]
    written.close()
    if found != expected:
        place = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), len(found))
        raise DataError(f"{path}: row {place + 1} is not what was written; the sheet has {len(found)} rows.")
    return path


def _storable(value: int | str | None) -> int | str | None:
    if not isinstance(value, str):
        return value
    return ILLEGAL.sub("", value.replace("\r\n", "\n").replace("\r", "\n"))[:MAX_CELL] or None
