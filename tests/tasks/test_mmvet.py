"""MM-Vet: both layouts, the authors' file, and a judge behind a local server that answers as it is told."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.servers import Act, Asked, ChatServer, drop
from tests.servers import answer as reply
from vlmamba_eval.answer_files import read_answer_file
from vlmamba_eval.dataset import Dataset, read_folder
from vlmamba_eval.images import read_image
from vlmamba_eval.judge import Judging, judgements, parse_judging
from vlmamba_eval.manifest import DataIdentity
from vlmamba_eval.stats import summarise
from vlmamba_eval.tasks.mmvet import TASKS
from vlmamba_eval.tasks.mmvet_judge import judge_messages, read_judgement
from vlmamba_eval.types import DataError, EvalError, Graded, Sample, StoreError, UsageError, Verdict

(MMVET,) = TASKS
Put = Callable[[str, Any], Path]


def entry(**changes: Any) -> dict[str, Any]:
    row = {"imagename": "v1_0.png", "question": "What is x?", "answer": "-1<AND>-5", "capability": ["ocr", "math"]}
    return {**row, "imagesource": "", **changes}


def load(put: Put, entries: Any) -> list[Sample]:
    path = put("mm-vet/mm-vet.json", entries)
    return read_folder(MMVET, path.parents[1]).samples


class Judge(ThreadingHTTPServer):
    """Replies from a list, in turn; an integer is an HTTP status, bytes a whole body. Keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.replies: list[str | int | bytes] = []
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Judge  # type: ignore[assignment]

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(request)
        self.server.keys.append(self.headers["Authorization"])
        reply = self.server.replies.pop(0)
        status = reply if isinstance(reply, int) else 200
        message = {"role": "assistant", "content": str(reply)}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        body = json.dumps(answer if status == 200 else {"error": {"message": "no such model"}}).encode()
        body = reply if isinstance(reply, bytes) else body
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Judge]:
    judge = Judge()
    thread = threading.Thread(target=judge.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield judge
    judge.shutdown()
    judge.server_close()
    thread.join()


# =============================================================================
# Data
# =============================================================================


def test_the_prompt_is_the_question_alone_and_no_label_is_scored_here(put: Put) -> None:
    (s,) = load(put, {"v1_0": entry()})
    assert MMVET.prompt(s) == "What is x?"
    assert (s.id, s.answer_key, s.target) == ("v1_0", "0", None)
    assert s.groups == ("ability/ocr", "ability/math")
    with pytest.raises(UsageError, match="graded by a judge"):
        MMVET.grade(s, "x = 3")


def test_a_question_counts_for_each_of_the_six_abilities_that_it_needs(put: Put) -> None:
    six = ["math", "know", "rec", "spat", "ocr", "gen"]
    (s,) = load(put, {"v1_0": entry(capability=six)})
    assert s.groups == tuple(f"ability/{name}" for name in ("rec", "ocr", "know", "gen", "spat", "math"))


def test_llavas_question_file_alone_gives_the_same_prompts(put: Put) -> None:
    row = {"question_id": 0, "image": "v1_0.png", "text": "What is x?", "category": "default"}
    path = put("mm-vet/llava-mm-vet.jsonl", [row])
    (s,) = read_folder(MMVET, path.parents[1]).samples
    (official,) = load(put, {"v1_0": entry()})
    assert (s.id, s.answer_key, MMVET.prompt(s)) == (official.id, official.answer_key, MMVET.prompt(official))
    assert s.image is not None
    assert official.image is not None
    assert s.image.key == official.image.key


def test_the_bundled_samples_load_and_their_pictures_open(samples_folder: Path) -> None:
    samples = read_folder(MMVET, samples_folder).samples
    assert all(s.image and read_image(s.image).startswith(b"\x89PNG") for s in samples)
    assert any("<AND>" in s.fields["gold"] for s in samples)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"v1_0": entry(capability=["sight"])}, "field 'capability' should list some of rec, ocr"),
        ({"v1_0": entry(capability=[])}, "field 'capability' should list"),
        ({"v1_0": entry(answer=3)}, "field 'answer' should be text"),
        ({"v1_0": {"question": "?"}}, "field 'imagename' is missing"),
        ({"v1_0": entry(imagename="/etc/passwd")}, "leaves the image folder"),
        ([entry()], "expected an object from id to row"),
        (b'{"v1_0": "\xe9"}', r"mm-vet\.json:1: not UTF-8"),
        (b'{"v1_0": {}, "v1_0": {}}', "key 'v1_0' occurs twice"),
    ],
)
def test_bad_files_are_refused(put: Put, entries: Any, message: str) -> None:
    if isinstance(entries, list):
        entries = json.dumps(entries)
    with pytest.raises(DataError, match=message):
        load(put, entries)


def test_the_submission_is_the_authors_json(put: Put, tmp_path: Path) -> None:
    samples = load(put, {"v1_0": entry(), "v1_1": entry()})
    (path,) = MMVET.submit(samples, {"v1_1": 'two "lines"\nñ', "v1_0": "x = 3\ud800"}, tmp_path, None)
    assert json.loads(path.read_text(encoding="utf-8")) == {"v1_0": "x = 3\ud800", "v1_1": 'two "lines"\nñ'}


def test_llavas_answer_file_counts_from_zero(put: Put) -> None:
    samples = load(put, {"v1_0": entry(), "v1_1": entry(question="And y?")})
    rows = [{"question_id": i, "prompt": MMVET.prompt(s), "text": str(i)} for i, s in enumerate(samples)]
    answers = read_answer_file(Dataset(MMVET, samples, DataIdentity(2, "")), put("answers.jsonl", rows))
    assert {key: a.generation.text for key, a in answers.items() if a.generation} == {"v1_0": "0", "v1_1": "1"}


# =============================================================================
# The judge
# =============================================================================


def judge(
    samples: list[Sample], answers: dict[str, str], cache: Path, url: str, model: str, **more: Any
) -> dict[str, Verdict]:
    more = {"judging": Judging(concurrency=1, max_retries=0)} | more
    return judgements(MMVET, samples, answers, cache, url, model, **more)


def test_the_judge_is_shown_question_reference_and_answer(
    put: Put, server: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-0123")
    server.replies = ["0.5"]
    verdicts = judge(load(put, {"v1_0": entry()}), {"v1_0": "x = -1"}, tmp_path / "j.jsonl", server.url, "gpt-4-0613")
    assert verdicts == {"v1_0": Verdict("0.5", 0.5)}
    (request,) = server.asked
    assert (request["model"], request["temperature"]) == ("gpt-4-0613", 0)
    assert request["messages"][-1] == {
        "role": "user",
        "content": "Question: What is x?\nReference: -1 <AND> -5\nAnswer: x = -1",
    }
    assert "max_tokens" not in request
    assert server.keys == ["Bearer secret-0123"]
    assert "secret" not in (tmp_path / "j.jsonl").read_text()


def test_the_rules_and_examples_of_the_judge_are_these_to_the_byte() -> None:
    """Grades are comparable only under the same instructions: whoever changes them raises the list's `version`."""
    messages = judge_messages(Sample("v1_0", None, "What?", None, fields={"gold": "a<OR>b  <AND> c"}), "It is a.")
    assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * 6, "user"]
    assert messages[-1]["content"] == "Question: What?\nReference: a <OR> b <AND> c\nAnswer: It is a."
    spoken = json.dumps(messages[:-1], ensure_ascii=False).encode()
    assert hashlib.sha256(spoken).hexdigest() == "30849e374ba5a5215c3bb9527a7e9a6a6f56e634d20417746494736f14c34b93"
    grades = [message["content"] for message in messages if message["role"] == "assistant"]
    assert grades == ["1.0", "0.5", "0.0", "1.0", "0.4", "1.0"]


@pytest.mark.parametrize(
    ("said", "credit"),
    [("1", 1), ("0", 0), (" 0.5 because", 0.5), (".7", 0.7), ("1.0", 1), ("0.25.", 0.25), ("1.01", None), ("2", None),
     ("-1", None), ("", None), ("The grade is 0.5", None), ("5/10", None)],
)  # fmt: skip
def test_a_grade_is_the_number_that_a_reply_begins_with(said: str, credit: float | None) -> None:
    assert read_judgement(said) == credit


def test_judgements_are_kept_and_only_new_ones_are_asked(put: Put, server: Judge, tmp_path: Path) -> None:
    samples = load(put, {f"v1_{i}": entry(question=f"What is {i}?") for i in range(3)})
    answers = {s.id: "something" for s in samples}
    cache = tmp_path / "run" / "judge.jsonl"
    server.replies = ["0.1", "0.2", 404]
    with pytest.raises(EvalError, match=r"The judge m at .* gave no answer: .*no such model(.|\n)*are kept"):
        judge(samples, answers, cache, server.url, "m")
    cache.write_text(cache.read_text() + '{"key": "cut o')  # killed while it wrote
    server.replies, server.asked = ["0.3"], []
    progress: list[tuple[int, int]] = []
    verdicts = judge(samples, answers, cache, server.url, "m", judged=lambda *done: progress.append(done))
    assert [verdicts[s.id].credit for s in samples] == [0.1, 0.2, 0.3]
    assert (len(server.asked), progress) == (1, [(1, 3), (2, 3), (3, 3)])
    assert judge(samples, answers, cache, server.url, "m") == verdicts


def test_another_judge_or_another_answer_is_another_judgement(put: Put, server: Judge, tmp_path: Path) -> None:
    samples, cache = load(put, {"v1_0": entry()}), tmp_path / "j.jsonl"
    server.replies = ["0.1", "0.2", "0.3"]
    found = [
        judge(samples, {"v1_0": text}, cache, server.url, model)["v1_0"].credit
        for model, text in (("a", "x"), ("b", "x"), ("a", "y"), ("a", "x"))
    ]
    assert found == [0.1, 0.2, 0.3, 0.1]


@pytest.mark.parametrize(
    ("reply", "credit"), [("1", 1.0), ("0.7.", 0.7), (" .5 ", 0.5), ("1.0 (right)", 1.0), ("0", 0.0)]
)
def test_numbers_are_read_from_replies(put: Put, server: Judge, tmp_path: Path, reply: str, credit: float) -> None:
    server.replies = [reply]
    verdicts = judge(load(put, {"v1_0": entry()}), {"v1_0": "x"}, tmp_path / "j.jsonl", server.url, "m")
    assert verdicts["v1_0"] == Verdict(reply.strip(), credit)


def test_a_judge_without_a_number_is_asked_five_times_and_then_the_answer_is_unparsed(
    put: Put, server: Judge, tmp_path: Path
) -> None:
    server.replies = ["Good!", "7", "-1", "10.5", "well"]
    verdicts = judge(load(put, {"v1_0": entry()}), {"v1_0": "x"}, tmp_path / "j.jsonl", server.url, "m")
    assert verdicts["v1_0"] == Verdict("well", 0.0, valid=False)
    assert [request["temperature"] for request in server.asked] == [0, 0.5, 1, 1.5, 2]


@pytest.mark.parametrize(
    "reply", [b"{}", b"[]", b"{", b'{"choices": null}', b'{"choices": []}', b'{"choices": [{"message": null}]}']
)
def test_a_server_that_is_no_judge_is_named(put: Put, server: Judge, tmp_path: Path, reply: bytes) -> None:
    server.replies = [reply]
    with pytest.raises(EvalError, match=r"The judge m at http.* gave no answer: .+\nJudgements so far are kept"):
        judge(load(put, {"v1_0": entry()}), {"v1_0": "x"}, tmp_path / "j.jsonl", server.url, "m")


def test_answers_are_judged_together_and_the_number_of_calls_is_said_before(put: Put, tmp_path: Path) -> None:
    samples = load(put, {f"v1_{i}": entry(question=f"What is {i}?") for i in range(40)})
    answers = {s.id: f"answer {s.id}" for s in samples}
    said: list[str] = []

    def behave(asked: Asked) -> Act:
        number = asked.text.rpartition("_")[2]
        time.sleep(0.02)
        good = int(number) % 4 or asked.nth
        return reply(f"0.{int(number) % 10}" if good else "Well!", reasoning_content="Let me think. 0.9?")

    with ChatServer(behave) as server:
        ask = partial(judge, samples, answers, tmp_path / "j.jsonl", server.url, "m", announce=said.append)
        verdicts = ask(judging=Judging(concurrency=6))
        assert server.most_at_once == 6
        assert len(server.asked) == 50  # ten had no grade at first
        assert ask(judging=Judging(concurrency=2)) == verdicts
        assert len(server.asked) == 50
    assert [verdicts[f"v1_{i}"].credit for i in range(40)] == [i % 10 / 10 for i in range(40)]
    assert said == [
        f"40 calls to the judge m at 127.0.0.1:{server.port}, 6 at a time. A reply without a grade is asked for again, "
        "up to 5 times."
    ]


def test_a_judge_that_reasons_first_is_read_after_it(put: Put, server: Judge, tmp_path: Path) -> None:
    server.replies = ["<think>0.2 or 0.3? Part of it is right.</think>\n\n0.3"]
    verdicts = judge(load(put, {"v1_0": entry()}), {"v1_0": "x"}, tmp_path / "j.jsonl", server.url, "m")
    assert verdicts["v1_0"] == Verdict("0.3", 0.3)


def test_one_judgement_that_fails_costs_no_other(put: Put, tmp_path: Path) -> None:
    samples = load(put, {f"v1_{i}": entry(question=f"What is {i}?") for i in range(6)})
    answers = {s.id: f"answer {s.id}" for s in samples}
    cache = tmp_path / "j.jsonl"
    with ChatServer(lambda asked: drop if asked.text.endswith("_2") else reply("0.5")) as server:
        with pytest.raises(EvalError, match=r"The judge m at .* gave no answer(.|\n)*are kept"):
            judge(samples, answers, cache, server.url, "m")
        assert len(cache.read_text().splitlines()) == 5
        server.behave = lambda asked: reply("0.5")
        asked = len(server.asked)
        assert len(judge(samples, answers, cache, server.url, "m")) == 6
        assert len(server.asked) == asked + 1


def test_a_judges_options_are_checked() -> None:
    assert parse_judging({"concurrency": "3", "temperature": "null"}) == Judging(concurrency=3, temperature=None)
    with pytest.raises(UsageError, match=r"A judge has no option 'concurency'.*concurrency"):
        parse_judging({"concurency": "3"})
    with pytest.raises(UsageError, match="--judge-option: Expected `int`"):
        parse_judging({"concurrency": "many"})


def test_half_a_surrogate_pair_is_no_obstacle(put: Put, server: Judge, tmp_path: Path) -> None:
    samples, cache = load(put, {"v1_0": entry()}), tmp_path / "j.jsonl"
    server.replies = ["0.5 \ud800"]
    verdicts = judge(samples, {"v1_0": "x \ud800"}, cache, server.url, "m")
    assert verdicts["v1_0"].credit == 0.5
    assert judge(samples, {"v1_0": "x \ud800"}, cache, server.url, "m") == verdicts


def test_judged_answers_give_the_mean_and_each_ability(put: Put) -> None:
    """A question without an answer was not judged: it is worth nothing and stays in the denominator."""
    samples = load(put, {"v1_0": entry(), "v1_1": entry(capability=["ocr"]), "v1_2": entry(capability=["rec"])})
    verdicts = {"v1_0": Verdict("0.5", 0.5), "v1_1": Verdict("1.0", 1.0)}
    graded = [Graded(s, verdicts.get(s.id), "ok" if s.id in verdicts else "missing") for s in samples]
    scores = {(row.metric, row.category): row.value for row in summarise(MMVET, graded, replicates=2)}
    assert scores == {
        ("score", "all"): 50.0,
        ("score", "ability/math"): 50.0,
        ("score", "ability/ocr"): 75.0,
        ("score", "ability/rec"): 0.0,
    }


def test_without_official_answers_or_with_a_damaged_cache_nothing_is_asked(
    put: Put, server: Judge, tmp_path: Path
) -> None:
    row = {"question_id": 0, "image": "v1_0.png", "text": "What is x?", "category": "default"}
    path = put("mm-vet/llava-mm-vet.jsonl", [row])
    samples = read_folder(MMVET, path.parents[1]).samples
    with pytest.raises(DataError, match="no official answers here"):
        judge(samples, {"v1_0": "x"}, tmp_path / "j.jsonl", server.url, "m")
    (tmp_path / "j.jsonl").write_text('{"key": "k", "reply": "1", "score": 1.0}\n{"key": "k2"}\n')
    with pytest.raises(StoreError, match=r"j\.jsonl:1: this judgement is damaged"):
        judge(load(put, {"v1_0": entry()}), {"v1_0": "x"}, tmp_path / "j.jsonl", server.url, "m")
    assert server.asked == []
