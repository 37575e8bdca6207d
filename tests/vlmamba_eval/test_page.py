"""The page holds what the runs hold, and nothing that comes from files can become markup or code."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from tests.answered import answered, gold, other, samples
from vlmamba_eval.baselines import choose
from vlmamba_eval.cli import cli
from vlmamba_eval.report import html
from vlmamba_eval.report.cost import cost
from vlmamba_eval.report.questions import Answers, _alike
from vlmamba_eval.report.thumbnails import THUMBNAIL
from vlmamba_eval.report.unreadable import commonest
from vlmamba_eval.report.view import write_page
from vlmamba_eval.store import read_verdicts
from vlmamba_eval.text import natural

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>{{ 7 * 7 }}\u202egnp.exe"
POPE = len(samples("pope").samples)


class Reader(HTMLParser):
    """The elements of a page with their attributes, and the text of its scripts and styles by id."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.blocks: list[tuple[str, str]] = []
        self._open = ""
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = tag if tag in ("script", "style") else ""

    def handle_data(self, data: str) -> None:
        if self._open:
            self.blocks.append((self._open, data))

    def handle_endtag(self, tag: str) -> None:
        self._open = ""


def page(tmp_path: Path, *runs: Path, **options: Any) -> str:
    return write_page(runs, tmp_path / "report.html", **options).read_text(encoding="utf-8")


def data_of(content: str) -> Any:
    return json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', content)[0])


def pictures_of(content: str) -> Any:
    return json.loads(re.findall(r'<script type="application/json" id="pictures">(.*?)</script>', content)[0])


def hostile(i: int, sample: Any) -> str:
    return HOSTILE if i == 0 else gold(sample)


def test_every_question_is_there_with_its_verdict(tmp_path: Path) -> None:
    folder = answered(tmp_path, "ours", lambda i, sample: other(sample) if i == 2 else gold(sample))
    task = data_of(page(tmp_path, folder))["tasks"][0]
    rows = sorted(read_verdicts(folder), key=lambda row: natural(row["id"]))
    assert task["id"] == [row["id"] for row in rows]
    run = task["answers"][0]
    assert [task["strings"][i] for i in run["raw"]] == [row["answer"] for row in rows]
    assert [task["strings"][i] for i in task["prompt"]] == [row["question"] for row in rows]
    assert run["signs"].count("r") == sum(row["credit"] == 1 for row in rows)
    assert [task["id"][i] for i, sign in enumerate(run["signs"]) if sign == "w"] == [samples("pope").samples[2].id]


def test_runs_stand_side_by_side_and_are_compared(tmp_path: Path) -> None:
    a = answered(tmp_path, "first")
    b = answered(tmp_path, "second", lambda i, sample: "No" if i < 40 else gold(sample))
    content = page(tmp_path, a, b)
    data = data_of(content)
    assert data["runs"] == ["first", "second"]
    assert len(data["tasks"][0]["answers"]) == 2
    assert "Compared, question by question" in content
    assert "?better=0%3E1" in content


def test_the_first_that_is_named_is_the_first_on_the_page(tmp_path: Path) -> None:
    a, b = answered(tmp_path, "zebra"), answered(tmp_path, "ant")
    assert data_of(page(tmp_path, a, b))["runs"] == ["zebra", "ant"]


def test_a_hostile_answer_stays_text(tmp_path: Path) -> None:
    folder = answered(tmp_path, "<b>model</b>", hostile)
    content = page(tmp_path, folder)
    reader = Reader(content)
    assert [tag for tag, _ in reader.elements].count("script") == 3
    assert "img" not in [tag for tag, _ in reader.elements]
    assert not [name for _, attributes in reader.elements for name in attributes if name.startswith("on")]
    assert "<b>model" not in content
    assert "\u202e" not in content
    assert HOSTILE in data_of(content)["tasks"][0]["strings"]


def test_nothing_but_the_pages_own_script_may_run(tmp_path: Path) -> None:
    content = page(tmp_path, answered(tmp_path, "ours"))
    reader = Reader(content)
    policy = next(str(a["content"]) for tag, a in reader.elements if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert "unsafe" not in policy
    for kind, rule in (("script", "script-src"), ("style", "style-src")):
        own = [text for tag, text in reader.blocks if tag == kind][-1]
        digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"


def test_nothing_is_fetched(tmp_path: Path) -> None:
    content = page(tmp_path, answered(tmp_path, "ours"))
    for tag, attributes in Reader(content).elements:
        assert "src" not in attributes
        assert "style" not in attributes  # the policy would not let it
        if tag != "a":
            assert "href" not in attributes


def test_no_number_of_the_samples_stands_beside_a_published_one(tmp_path: Path) -> None:
    content = page(tmp_path, answered(tmp_path, "ours"), baselines=choose(["llava-1.5-7b"]))
    assert "LLaVA-1.5-7B" not in content
    assert "nothing measured here is comparable" in content
    assert "SAMPLES" in content


def test_an_interval_that_few_images_carry_is_marked_as_in_the_tables(tmp_path: Path) -> None:
    content = page(tmp_path, answered(tmp_path, "ours", lambda i, sample: gold(sample)))
    assert re.search(r"<small>\[[\d., ]+\]‡</small>", content)
    assert "‡ few images carry it" in content


def test_pictures_are_small_and_one_of_each(tmp_path: Path) -> None:
    pictures = pictures_of(page(tmp_path, answered(tmp_path, "ours")))
    keys = {sample.image.key for sample in samples("pope").samples if sample.image}
    assert len(pictures) == len(keys)
    for text in pictures:
        with Image.open(io.BytesIO(base64.b64decode(text))) as image:
            assert max(image.size) <= THUMBNAIL


def test_pictures_can_be_links_or_left_out(tmp_path: Path) -> None:
    folder = answered(tmp_path, "ours")
    links = pictures_of(page(tmp_path, folder, pictures="link"))
    assert all((tmp_path / link).is_file() for link in links)
    content = page(tmp_path, folder, pictures="none")
    assert pictures_of(content) == []
    assert "left out" in content


def test_pictures_that_do_not_fit_are_left_out_the_wrong_answers_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = POPE - 1
    folder = answered(tmp_path, "ours", lambda i, sample: other(sample) if i == last else gold(sample))
    whole = page(tmp_path, folder)
    wrong = data_of(whole)["tasks"][0]["answers"][0]["signs"].index("w")
    monkeypatch.setattr(html, "PAGE_BYTES", len(json.dumps(data_of(whole), separators=(",", ":"))) + 9_000)
    content = page(tmp_path, folder)
    shown = pictures_of(content)
    assert None in shown
    assert shown[data_of(content)["tasks"][0]["image"][wrong]] is not None
    assert "larger than 30 MB" in content


def test_without_the_annotations_the_page_has_the_rest(tmp_path: Path) -> None:
    a, b = answered(tmp_path, "first"), answered(tmp_path, "second")
    for folder in (a, b):
        (folder / "telemetry.jsonl").unlink()
    content = page(tmp_path, a, b)
    assert "does not say where its data was" in content
    assert len(data_of(content)["tasks"][0]["id"]) == POPE


def test_runs_that_were_asked_otherwise_are_not_joined(tmp_path: Path) -> None:
    rows = [{"id": "1", "question": text, "image": None} for text in ("What?", "What else?")]
    lists = _alike([(i, Answers([row])) for i, row in enumerate(rows)])
    assert [[place for place, _ in members] for members in lists] == [[0], [1]]


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    a, b = answered(tmp_path, "first"), answered(tmp_path, "second", hostile)
    assert page(tmp_path, a, b) == page(tmp_path, a, b)


def test_outcomes_and_the_share_of_yes_are_shown(tmp_path: Path) -> None:
    content = page(tmp_path, answered(tmp_path, "ours", lambda i, sample: "Yes"))
    assert "says yes 100.0 %, gold 50.0 %" in content


def test_the_commonest_unreadable_answers_are_read_another_way(tmp_path: Path) -> None:
    def said(i: int, sample: Any) -> str:
        return {0: "I think yes, there is", 1: "unsure", 2: "unsure"}.get(i, gold(sample))

    folder = answered(tmp_path, "ours", said, task="mme")
    rows, total, right = commonest(read_verdicts(folder))
    assert (rows[0].answer, rows[0].count, rows[0].reading) == ("unsure", 2, "")
    assert (rows[1].answer, rows[1].reading) == ("I think yes, there is", "yes")
    assert total == 3
    assert right == (gold(samples("mme").samples[0]).lower() == "yes")
    assert "Commonest unreadable answers" in page(tmp_path, folder)


@pytest.mark.parametrize(
    ("target", "answer", "reading"),
    [
        ("A", "The answer is (B).", "B"), ("A", "A dog", "A"), ("C", "it must be C", "C"), ("B", "I don't know", ""),
        ("red", "It is a red car", "red"), ("red", "hundred", ""), (["cat", "dog"], "a big dog.", "dog"),
    ],
)  # fmt: skip
def test_other_readings(target: Any, answer: str, reading: str) -> None:
    row = {"gold": target, "answer": answer, "state": "ok", "valid": False}
    assert commonest([row])[0][0].reading == reading


def test_time_that_tasks_share_counts_once() -> None:
    def sitting(start: float, end: float) -> list[dict[str, Any]]:
        return [{"event": "start", "time": start}, {"event": "end", "time": end, "parameters": 5}]

    found = cost([sitting(0, 10), [*sitting(1, 11), *sitting(20, 25)]])
    assert (found.seconds, found.parameters) == (16, 5)
    assert cost([[{"event": "imported"}]]).seconds is None


def test_the_command_writes_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answered(tmp_path, "ours")
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    out = tmp_path / "deep" / "page.html"
    result = CliRunner().invoke(cli, ["view", str(tmp_path / "ours"), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert opened == [out.as_uri()]
    assert out.is_file()
    result = CliRunner().invoke(cli, ["view", str(tmp_path / "nothing"), "--no-open"])
    assert result.exit_code != 0
