"""JSON that is not quite JSON is refused with a reason, by the one reader that everything uses."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmamba_eval import journal
from vlmamba_eval.answers.layouts import read_saved
from vlmamba_eval.chat.wire import Passing, completion_of
from vlmamba_eval.files import read_typed
from vlmamba_eval.model_adapters.shared.configuration import read_json as read_configuration
from vlmamba_eval.rows import read_json, read_jsonl
from vlmamba_eval.store import Seal
from vlmamba_eval.strict_json import NotJSON, parse_json
from vlmamba_eval.types import DataError, ModelError, StoreError

REFUSED = {
    '{"a": ' + "9" * 5000 + "}": "a whole number in it has thousands of digits",
    '{"a": ' + "[" * 100_000: "its lists or objects are nested too deeply",
    '{"a": NaN}': "NaN is not a JSON number",
    '{"a": -Infinity}': "-Infinity is not a JSON number",
    '{"a": 1e999}': "the number 1e999 is too large",
    '{"a": 1, "a": 2}': "key 'a' occurs twice in one object",
    '{"a": 1': "Expecting ',' delimiter, line 1, column 8",
    "": "Expecting value, line 1, column 1",
}


@pytest.mark.parametrize(("text", "why"), REFUSED.items(), ids=lambda value: value[:24])
def test_what_is_no_json_is_refused_with_a_reason(text: str, why: str) -> None:
    for content in (text, text.encode()):
        with pytest.raises(NotJSON) as refused:
            parse_json(content)
        assert str(refused.value) == why


def test_bytes_that_are_not_utf8_are_refused_with_their_place() -> None:
    with pytest.raises(NotJSON, match="not UTF-8: byte 1 is 0xff"):
        parse_json(b'"\xff"')
    assert parse_json(b"\xef\xbb\xbf[1]") == [1]


def test_pythons_constants_are_let_in_on_request() -> None:
    assert parse_json("[Infinity, 1e999]", constants=True) == [math.inf, math.inf]
    with pytest.raises(NotJSON, match="occurs twice"):
        parse_json('{"a": NaN, "a": 1}', constants=True)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@settings(max_examples=50)
@given(PLAIN)
def test_everything_else_is_read_as_python_reads_it(value: object) -> None:
    text = json.dumps(value)
    assert parse_json(text) == parse_json(text.encode()) == json.loads(text)


@settings(max_examples=50)
@given(st.text() | st.binary())
def test_any_other_text_is_read_or_refused_by_the_one_error(content: str | bytes) -> None:
    reason = "read"
    try:
        parse_json(content)
    except NotJSON as error:
        reason = str(error)
    assert 3 < len(reason) < 200


def answers(path: Path) -> None:
    list(read_saved(path))


def annotation(path: Path) -> None:
    read_json(path)


def annotation_lines(path: Path) -> None:
    list(read_jsonl(path))


def own_file(path: Path) -> None:
    read_typed(path, Seal, format=1, missing="", remedy="Make it again.")


def own_journal(path: Path) -> None:
    body = path.read_bytes().removesuffix(b"}")
    path.write_bytes(body + b', "crc": "%08x"}\n' % journal.zlib.crc32(body))
    list(journal.read(path))


def configuration(path: Path) -> None:
    read_configuration(path)


READERS: tuple[Callable[[Path], None], ...] = (
    answers,
    annotation,
    annotation_lines,
    own_file,
    own_journal,
    configuration,
)


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
@pytest.mark.parametrize("text", [text for text in REFUSED if text.startswith('{"a": 9')], ids=["5,000 digits"])
def test_every_reader_says_it_in_our_words(read: Callable[[Path], None], text: str, tmp_path: Path) -> None:
    """Python's own sentence tells to call a function of its `sys`, which is no help to somebody with a bad file."""
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises((DataError, StoreError, ModelError)) as refused:
        read(path)
    assert "a whole number in it has thousands of digits" in str(refused.value)
    assert str(path) in str(refused.value)
    assert len(str(refused.value)) < 600


def test_a_server_that_sends_odd_json_is_refused_too() -> None:
    for text in REFUSED:
        with pytest.raises(Passing):
            completion_of(text.encode())
