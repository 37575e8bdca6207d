"""The layouts in which other programs keep answers, recognised by content; a file's name decides nothing.

LLaVA               JSON lines: question_id, text, prompt, model_id
official lists      VQA, GQA, COCO, SEED, MM-Vet, ScienceQA: a JSON list, an object from id to text, or JSON lines
lmms-eval           *_samples_*.jsonl: doc, arguments or input, resps, filtered_resps
                    (github.com/EvolvingLMMs-Lab/lmms-eval, loggers/evaluation_tracker.py)
vlm-evaluation      results.json: an object from id to {question_id, question, model_output}
                    (github.com/TRI-ML/vlm-evaluation, tasks/harnesses)
VLMEvalKit          a table (tab-separated, comma-separated or xlsx) with columns index and prediction
                    (github.com/open-compass/VLMEvalKit)
MME                 {category}.txt: picture, question, gold, answer between tabs, the input of calculation.py
a folder            all of its files, in natural order: chunks of one list, MME's categories, POPE's lists
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from vlmamba_eval.rows import Row, read_text, shorten
from vlmamba_eval.strict_json import NotJSON, parse_json
from vlmamba_eval.task import LETTERS
from vlmamba_eval.text import natural
from vlmamba_eval.types import DataError

EXPECTED = (
    "Expected JSON lines with `question_id` and `text`, or a layout of another harness "
    "(EVAL.md, Answers of other programs, lists them)."
)


@dataclass(frozen=True, slots=True)
class Saved:
    """One saved answer, whoever wrote it.

    `keys` are the ids that the row gives, the likeliest first; `part` is the list or category that it names. `prompt`
    is what was asked, as far as it is saved. `loose` rows have no id of the benchmark's, and may be joined by a
    question that stands only once in it. `worded` prompts are those that a model was shown, word for word.
    """

    where: str
    keys: tuple[str, ...]
    text: str
    prompt: str = ""
    part: str = ""
    source: str = ""
    model: str = ""
    loose: bool = False
    worded: bool = False


def read_saved(path: Path) -> Iterator[Saved]:
    """Every answer of a file, or of all files of a folder. Raises `DataError` that calls what is not known by name."""
    if path.is_dir():
        there = (p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
        files = sorted(there, key=lambda p: natural(p.name))
        if not files:
            folders = sorted(p.name for p in path.iterdir() if p.is_dir())
            inside = f", but with the folders {shorten(', '.join(folders))}: give one of them" if folders else ""
            raise DataError(f"{path} is a folder without files{inside}. {EXPECTED}")
        # A process that had no question of its own to answer leaves an empty chunk.
        return chain.from_iterable(_read_file(file) for file in [f for f in files if f.stat().st_size] or files[:1])
    if not path.is_file():
        what = "is no regular file: write what it gives into one" if path.exists() else "does not exist"
        raise DataError(f"{path} {what}. {EXPECTED}")
    return _read_file(path)


# =============================================================================
# By content
# =============================================================================

PICKLE = "a Python pickle, which is never opened since it can run code; VLMEvalKit's .pkl are parts of its table"
BINARY = {
    b"\x1f\x8b": "compressed with gzip; unpack it and give what was inside",
    b"BZh": "compressed with bzip2; unpack it and give what was inside",
    b"\xfd7zXZ": "compressed with xz; unpack it and give what was inside",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it and give what was inside",
    b"7z\xbc\xaf": "a 7z archive; unpack it and give what was inside",
    b"\x80\x02": PICKLE,
    b"\x80\x03": PICKLE,
    b"\x80\x04": PICKLE,
    b"\x80\x05": PICKLE,
    b"PAR1": "a Parquet file; write it as JSON lines",
    b"ARROW1": "an Arrow file; write it as JSON lines",
    b"SQLite format 3": "a SQLite database; write the answers as JSON lines",
    b"\x93NUMPY": "a NumPy array; write the answers as JSON lines",
    b"\xd0\xcf\x11\xe0": "an Excel file of the old kind (.xls); save it as .xlsx or tab-separated",
    b"%PDF": "a PDF",
    b"\x89PNG": "a picture (PNG)",
    b"\xff\xd8\xff": "a picture (JPEG)",
}  # fmt: skip


def _read_file(path: Path) -> Iterator[Saved]:
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}).") from None
    for magic, kind in BINARY.items():
        if head.startswith(magic):
            raise DataError(f"{path} is {kind}.")
    if head.startswith(b"PK\x03\x04"):
        yield from _sheet(path)
        return
    text = read_text(path)
    start = text.lstrip()
    if not start:
        raise DataError(f"{path}: holds no answers. {EXPECTED}")
    if start[0] in "{[":
        yield from _json(path, text)
        return
    first = start.partition("\n")[0].rstrip("\r")
    delimiter = "\t" if "\t" in first else ","
    header = first.split(delimiter)
    if "prediction" in (name.strip('"') for name in header):
        yield from _table(path, text, delimiter)
    elif first.count("\t") == 3:
        yield from _mme(path, text)
    elif len(header) > 1:
        raise DataError(
            f"{path} is a table whose columns are {shorten(', '.join(header))}; expected `index` and `prediction`, as "
            "VLMEvalKit's have. Rename the columns of ids and answers to these."
        )
    else:
        raise DataError(f"{path} is text that begins with {shorten(first)}. {EXPECTED}")


# =============================================================================
# JSON
# =============================================================================


def _decode(text: str) -> Any:
    """JSON as Python writes it: NaN and Infinity are numbers here, and an error only in a field that is read."""
    return parse_json(text, constants=True)


def _json(path: Path, text: str) -> Iterator[Saved]:
    try:
        value = _decode(text)
    except NotJSON as error:
        whole = error
    else:
        yield from _value(path, value)
        return
    first = text.lstrip().partition("\n")[0]
    if not whole.line and "\n" not in text.strip():
        raise DataError(f"{path}: not valid JSON ({whole}).")
    try:
        _decode(first)
    except NotJSON:
        if not whole.line or (len(text.strip().split("\n")) > 1 and first.rstrip().endswith("}")):
            yield from _lines(path, text)  # names the line
            return
        if whole.position >= len(text.rstrip()) or whole.reason.startswith("Unterminated"):
            what = f"the file ends within its JSON ({whole.reason}); it"
        else:
            what = f"not valid JSON ({whole.reason}, column {whole.column}); the file"
        raise DataError(f"{path}:{whole.line}: {what} begins with {shorten(first)}.") from None
    yield from _lines(path, text)


def _lines(path: Path, text: str) -> Iterator[Saved]:
    reader: Callable[[Row], Saved] | None = None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = _decode(line)
        except NotJSON as error:
            ends = error.position >= len(line.rstrip()) or error.reason.startswith("Unterminated")
            what = "the line ends within its JSON" if ends else f"column {error.column}"
            what = f"{error.reason}; {what}" if error.line else error.reason
            raise DataError(f"{where}: not a valid JSON line ({what}): {shorten(line)}.") from None
        if not isinstance(value, dict):
            raise DataError(f"{where}: expected one JSON object a line, found {shorten(value)}.")
        row = Row(value, where)
        reader = reader or _reader(row)
        yield reader(row)


def _value(path: Path, value: Any) -> Iterator[Saved]:
    if isinstance(value, dict):
        yield from _object(path, value)
        return
    reader: Callable[[Row], Saved] | None = None
    if not value:
        raise DataError(f"{path}: holds no answers, but an empty list. {EXPECTED}")
    for i, item in enumerate(value):
        row = Row(item, f"{path}: item {i}")
        reader = reader or _reader(row)
        yield reader(row)


def _object(path: Path, value: Mapping[str, Any]) -> Iterator[Saved]:
    """One JSON object: a single row, a list under a name, or a map from id to answer."""
    if any(name in value for name in (*IDS[:2], "text", "filtered_resps", "doc_id")):
        row = Row(value, f"{path}:1")
        yield _reader(row)(row)
        return
    if "logs" in value and isinstance(value["logs"], list):  # lmms-eval before 0.3
        yield from _value(path, value["logs"])
        return
    if "outputs" in value and isinstance(value["outputs"], dict):  # ScienceQA: results holds numbers of choices
        value = value["outputs"]
    elif {"results", "configs"} <= set(value) or "n-shot" in value:
        raise DataError(f"{path} is lmms-eval's summary of scores; give its *_samples_*.jsonl (--log_samples).")
    if not value:
        raise DataError(f"{path}: holds no answers, but an empty object. {EXPECTED}")
    for key, item in value.items():
        where = f"{path}: entry {shorten(key)}"
        if isinstance(item, str):
            yield Saved(where, (key,), item, source=str(path))
        elif isinstance(item, dict) and "yes_no_probabilities" in item:
            raise DataError(
                f"{path} is vlm-evaluation's results.json of a task of yes and no: it holds probabilities and ids that "
                "change with every run, no answers. They cannot be joined to questions."
            )
        elif isinstance(item, dict) and "model_output" in item:
            row = Row(item, where)
            yield Saved(where, (key,), row.text("model_output"), row.text("question", ""), source=str(path))
        elif isinstance(item, dict) and {"score", "content"} <= set(item):
            raise DataError(f"{path} holds the grades of MM-Vet's evaluator, no answers; give the file that it graded.")
        elif isinstance(item, list) and item and all(isinstance(one, dict) for one in item):
            raise DataError(f"{where}: a list of rows stands here under a name. Write that list alone into a file.")
        else:
            found = shorten(item)
            raise DataError(f"{where}: expected the text of an answer, found {found}. {EXPECTED}")


IDS = ("question_id", "questionId", "index", "id", "image_id", "pid")
SAID = ("prediction", "model_output", "pred", "response", "output", "model_answer", "pred_answer", "generated_text")
TEXTS = ("text", *SAID, "caption", "answer")  # beside a field of what a model said, `answer` is the gold one
CHOICES = ("choices", "choice_a", "options", "A")
PARTS = ("category", "split")
COLUMNS = ("index", "question_id", "id", "image_path")
OURS = {"id", "text", "prompt", "stop"}


def _reader(first: Row) -> Callable[[Row], Saved]:
    """How the rows of a file are read, from the names of its first row's fields."""
    names = first.values
    if "filtered_resps" in names or "resps" in names:
        return _lmms
    if names.keys() >= OURS:
        raise DataError(f"{first.where}: this is the `answers.jsonl` of a run of this tool; `report` shows its scores.")
    if {"label", "image", "text"} <= names.keys() and "answer" not in names and "prompt" not in names:
        raise DataError(f"{first.where}: these rows have a `label`: this is a list of questions, not of answers.")
    if "question" in names and "answer" in names and not any(name in names for name in IDS):
        raise DataError(
            f"{first.where}: rows of `question` and `answer` without an id are what POPE's evaluate.py reads by order. "
            "Here answers are joined by id, never by order: add `question_id`, or give the file that has it."
        )
    text = _one_of(first, TEXTS, "the text of an answer")
    if text == "answer" and (choices := next((name for name in CHOICES if name in names), "")):
        first.fail(
            f"a row with `{choices}` and `answer` is a question with its gold answer. If a model wrote it, rename "
            "`answer` to `text`."
        )
    key = _one_of(first, IDS, "the id of a question")
    model = "model_id" if isinstance(names.get("model_id"), str) else ""

    def read(row: Row) -> Saved:
        other = row.text("question", "") if "prompt" not in row and isinstance(row.values.get("question"), str) else ""
        return Saved(
            row.where,
            (_identifier(row, key),),
            row.text(text),
            row.text("prompt", "") or other,
            part=_part(row.values),
            source=_source(row),
            model=row.text("model_id", "") if model else "",
            worded=bool(row.values.get("prompt")),
        )

    return read


def _one_of(first: Row, known: Sequence[str], what: str) -> str:
    found = next((name for name in known if name in first.values), "")
    if not found:
        has = shorten(", ".join(first.values))
        first.fail(f"no field holds {what} ({', '.join(known)}); the row has {has}. Rename that field to {known[0]!r}.")
    return found


def _identifier(row: Row, name: str) -> str:
    """An id without the spaces around it; what pandas made of a number in a column with holes is a number again."""
    value = row.get(name)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return row.identifier(name).strip()


def _source(row: Row) -> str:
    return row.where.rpartition(":")[0]


def _part(values: Mapping[str, Any]) -> str:
    return next((value for name in PARTS if isinstance(value := values.get(name), str)), "")


def _lmms(row: Row) -> Saved:
    """A row of lmms-eval's samples. Newer releases drop `doc`: then ids are in the rows that its metrics wrote."""
    field = "filtered_resps" if "filtered_resps" in row else "resps"
    texts = _leaves(row.get(field))
    if not texts or not all(isinstance(text, str) for text in texts):
        row.fail(f"field {field!r} should hold the text of one answer (lmms-eval), found {shorten(row.get(field))}.")
    if len(set(texts)) > 1:
        row.fail(f"field {field!r} holds {len(texts)} different answers to one question (lmms-eval's repeats).")
    docs = [row.values.get("doc"), *row.values.values()]
    docs = [doc for doc in docs if isinstance(doc, dict)]
    keys = [str(doc[name]) for doc in docs for name in IDS if isinstance(doc.get(name), int | str)]
    asked = next((leaf for leaf in _leaves(row.values.get("arguments") or row.values.get("input"))), "")
    worded = isinstance(asked, str) and bool(asked)
    if not worded:
        asked = next((doc["question"] for doc in docs if isinstance(doc.get("question"), str)), "")
    part = next((part for doc in docs if (part := _part(doc))), "")
    return Saved(row.where, tuple(dict.fromkeys(keys)), texts[0], asked, part, _source(row), loose=True, worded=worded)


def _leaves(value: Any, depth: int = 4) -> list[Any]:
    """What nested lists and objects hold at their ends; deeper than any harness nests, the list itself is an end."""
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list) or not depth:
        return [] if value is None else [value]
    return [leaf for item in value for leaf in _leaves(item, depth - 1)]


# =============================================================================
# Tables
# =============================================================================


def _table(path: Path, text: str, delimiter: str) -> Iterator[Saved]:
    csv.field_size_limit(2**27)  # base64 images
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = next(reader)
        for cells in reader:
            if cells:
                if len(cells) != len(header):
                    raise DataError(f"{path}:{reader.line_num}: expected {len(header)} cells, found {len(cells)}.")
                yield _prediction(path, header, cells, f"{path}:{reader.line_num}")
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not a valid row of a table ({error}).") from None


def _sheet(path: Path) -> Iterator[Saved]:
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            is_sheet = "xl/workbook.xml" in archive.namelist()
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise DataError(
            f"{path} begins like a zip archive or an Excel sheet, but cannot be opened ({error})."
        ) from None
    if not is_sheet:
        raise DataError(f"{path} is a zip archive; unpack it and give what was inside.")
    try:
        from openpyxl import load_workbook
    except ImportError:
        raise DataError(
            f"{path} is an Excel sheet, and openpyxl is not installed: pip install 'vlmamba-eval[xlsx]'."
        ) from None
    try:
        book = load_workbook(path, read_only=True, data_only=True)
        rows = [list(row) for row in book.worksheets[0].iter_rows(values_only=True)]
    except Exception as error:  # noqa: BLE001 - openpyxl lets errors of zipfile, XML and its own through, of many types
        raise DataError(f"{path} is an Excel sheet that cannot be read ({type(error).__name__}: {error}).") from None
    header = ["" if cell is None else str(cell) for cell in rows[0]] if rows else []
    for number, cells in enumerate(rows[1:], 2):
        texts = ["" if cell is None else _number(cell) for cell in cells]
        if any(texts):
            yield _prediction(path, header, texts, f"{path}, row {number}")


def _number(cell: Any) -> str:
    """A cell as text; whole numbers that a sheet holds as floating point (index 3.0) are whole again."""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


def _prediction(path: Path, header: Sequence[str], cells: Sequence[str], where: str) -> Saved:
    row = Row(dict(zip(header, cells, strict=False)), where)
    asked = row.text("question", "")
    if asked:
        options = [f"{letter}. {cell}" for letter in LETTERS if (cell := row.text(letter, ""))]
        asked = "\n".join([asked, *options])
    keys = [re.sub(r"^(\d+)\.0$", r"\1", key) for name in COLUMNS if (key := row.text(name, ""))]  # 3.0: pandas, holes
    if not keys:
        row.fail(f"the columns should hold an `index`; the header has {shorten(', '.join(header))}.")
    return Saved(where, tuple(keys), row.text("prediction"), asked, _part(row.values), str(path), loose=True)


def _mme(path: Path, text: str) -> Iterator[Saved]:
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if not line.strip():
            continue
        cells = line.split("\t")
        if len(cells) != 4:
            raise DataError(
                f"{path}:{number}: expected picture, question, gold and answer between tabs, as MME's calculation.py "
                f"reads them, found {len(cells)} cells: {shorten(line)}."
            )
        picture, question, _, answer = cells
        names = dict.fromkeys((path.stem, path.stem.lower(), path.stem.upper()))  # ocr.txt holds the category OCR
        keys = tuple(f"{name}/{picture}" for name in names)
        yield Saved(f"{path}:{number}", keys, answer, question, path.stem, str(path))
