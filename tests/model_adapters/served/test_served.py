"""Served models: what a server is asked, what becomes of its answers, and where the key is not."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.contract import AdapterContract
from tests.servers import ChatServer, answer, drop, free_port, status
from vlmamba_eval.adapter import Adapter, Deferred, ReportsTelemetry
from vlmamba_eval.images import open_image
from vlmamba_eval.model_adapters.served import FAMILY, Options
from vlmamba_eval.model_adapters.served.adapter import Served, data_url, load
from vlmamba_eval.registry import parse_options
from vlmamba_eval.types import Failure, Generation, ImageQuestions, ImageRef, ModelError, Question, UsageError

SECRET = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


class TestContract(AdapterContract):
    @pytest.fixture
    def adapter(self) -> Iterator[Adapter]:
        with ChatServer() as server:
            adapter = served(server)
            yield adapter
            adapter.close()


def served(server: ChatServer, **options: Any) -> Served:
    adapter = load("toy", parse_options(FAMILY, {"base_url": server.url, **options})).load()
    assert isinstance(adapter, Served)
    return adapter


def noise(seed: int, size: tuple[int, int] = (9, 7)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def picture_in(body: dict[str, Any]) -> tuple[str, Image.Image]:
    """(MIME type, image) of the only picture of a request."""
    [part] = [part for part in body["messages"][-1]["content"] if part["type"] == "image_url"]
    head, _, data = part["image_url"]["url"].partition(";base64,")
    return head.removeprefix("data:"), Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


def batch(adapter: Adapter, images: int, questions: int) -> list[ImageQuestions]:
    return [
        ImageQuestions(
            adapter.prepare(noise(i)), tuple(Question(f"image {i}, question {q}", 5 + q) for q in range(questions))
        )
        for i in range(images)
    ]


def test_each_question_is_asked_once_with_its_own_image_and_limit() -> None:
    with ChatServer() as server:
        adapter = served(server, concurrency="4")
        outcomes = adapter.generate(batch(adapter, 5, 3))
        adapter.close()
    expected = [[f"image {i}, question {q}" for q in range(3)] for i in range(5)]
    assert [[one.text for one in group if isinstance(one, Generation)] for group in outcomes] == expected
    assert len(server.asked) == 15
    for asked in server.asked:
        i, q = (int(part.split()[1]) for part in asked.text.split(", "))
        kind, image = picture_in(asked.body)
        assert kind == "image/png"
        assert np.array_equal(np.asarray(image), np.asarray(noise(i)))
        assert asked.body["max_tokens"] == 5 + q
        assert [part["type"] for part in asked.body["messages"][0]["content"]] == ["image_url", "text"]


def test_questions_of_one_image_are_sent_next_to_each_other() -> None:
    with ChatServer() as server:
        adapter = served(server, concurrency="1")
        adapter.generate(batch(adapter, 3, 4))
    assert [asked.text.split(",")[0] for asked in server.asked] == [f"image {i}" for i in range(3) for _ in range(4)]


def test_everything_that_decides_an_answer_is_sent_and_stands_in_the_info() -> None:
    with ChatServer() as server:
        options = {"system": "Be brief.", "temperature": "0.5", "top_p": "null", "thinking": "on"}
        adapter = served(server, **options)
        [[found]] = adapter.generate([ImageQuestions(None, (Question("2 + 2?", 7),))])
    assert server.asked[0].body == {
        "model": "toy",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}],
        "max_tokens": 7,
        "stream": False,
        **adapter.info.settings["request"],
    }
    assert adapter.info.settings["request"] == {
        "temperature": 0.5, "seed": 0, "top_k": -1, "repetition_penalty": 1.0,
        "chat_template_kwargs": {"enable_thinking": True},
    }  # fmt: skip
    assert adapter.info.settings["server"] == server.url
    assert found == Generation("2 + 2?", "Be brief.\n2 + 2?", 3, "eos")


def test_a_served_model_says_what_it_is() -> None:
    deferred = load("org/model-7b", Options(base_url="http://gpu7.example:8000/v1/"))
    assert isinstance(deferred, Deferred)  # described without a server
    info = deferred.info
    assert (info.name, info.weights, info.deterministic) == ("org/model-7b", "served:org/model-7b", False)
    assert info.settings["server"] == "http://gpu7.example:8000/v1"
    json.dumps(info.settings)


def test_the_prompt_shows_where_the_image_stood() -> None:
    with ChatServer() as server:
        adapter = served(server)
        [[found]] = adapter.generate([ImageQuestions(adapter.prepare(noise(0)), (Question("What is it?", 7),))])
    assert isinstance(found, Generation)
    assert found.prompt == "<image>\nWhat is it?"


def test_a_question_that_fails_leaves_the_others_alone() -> None:
    with ChatServer(lambda asked: drop if asked.text.endswith("1") else answer(asked.text)) as server:
        adapter = served(server, max_retries="0")
        [outcomes] = adapter.generate(batch(adapter, 1, 3))
    assert [type(one) for one in outcomes] == [Generation, Failure, Generation]


def test_an_answer_cut_inside_its_reasoning_is_truncated_and_not_empty() -> None:
    with ChatServer(lambda asked: answer("", "length", reasoning_content="let me think")) as server:
        adapter = served(server, thinking_tokens="100")
        [[found]] = adapter.generate([ImageQuestions(None, (Question("2 + 2?", 7),))])
    assert found == Generation("", "2 + 2?", 3, "length")
    assert server.asked[0].body["max_tokens"] == 107
    assert adapter.telemetry()["reasoned"] == 1


def test_telemetry_is_an_ability_of_the_adapter() -> None:
    with ChatServer() as server:
        adapter = served(server)
        adapter.generate(batch(adapter, 2, 2))
    assert isinstance(adapter, ReportsTelemetry)
    assert adapter.telemetry()["prompt_tokens"] == 40


def test_a_picture_as_jpeg_is_smaller_and_says_what_it_is() -> None:
    smooth = Image.linear_gradient("L").convert("RGB")  # from no file
    png, jpeg = data_url(smooth), data_url(smooth, "jpeg")
    assert png.startswith("data:image/png;base64,iVBOR")
    assert jpeg.startswith("data:image/jpeg;base64,/9j/")
    noisy = noise(0, (300, 300))
    assert len(data_url(noisy, "jpeg")) < len(data_url(noisy)) / 1.3


def saved(folder: Path, image: Image.Image, name: str, **settings: Any) -> Image.Image:
    """The picture as the harness opens it from a file."""
    image.save(folder / name, **settings)
    return open_image(ImageRef(name, name, path=str(folder / name), folder=str(folder)))


@pytest.mark.parametrize(("name", "mode", "mime"), [("a.jpg", "RGB", "image/jpeg"), ("a.png", "L", "image/png")])
def test_a_file_that_every_server_reads_is_sent_as_it_is(tmp_path: Path, name: str, mode: str, mime: str) -> None:
    with ChatServer() as server:
        adapter = served(server)
        prepared = adapter.prepare(saved(tmp_path, noise(3, (40, 30)).convert(mode), name))
        adapter.generate([ImageQuestions(prepared, (Question("What is it?", 7),))])
    [part] = [part for part in server.asked[0].body["messages"][0]["content"] if part["type"] == "image_url"]
    head, _, data = part["image_url"]["url"].partition(";base64,")
    assert head == f"data:{mime}"
    assert base64.b64decode(data) == (tmp_path / name).read_bytes()
    assert adapter.info.settings["image_format"] == "original"


def turned() -> dict[str, Any]:
    exif = Image.Exif()
    exif[0x0112] = 6
    return {"exif": exif}


@pytest.mark.parametrize(
    ("name", "mode", "settings"),
    [
        ("palette.png", "P", {}),
        ("alpha.png", "RGBA", {}),
        ("print.jpg", "CMYK", {}),
        ("turned.jpg", "RGB", turned()),
        ("see-through.png", "RGB", {"transparency": (1, 2, 3)}),
        ("a.webp", "RGB", {}),
        ("a.gif", "P", {}),
        ("large.png", "RGB", {}),
    ],
)
def test_a_file_that_servers_read_differently_is_sent_as_the_pixels_we_decode(
    tmp_path: Path, name: str, mode: str, settings: dict[str, Any]
) -> None:
    size = (1300, 1300) if name == "large.png" else (30, 20)
    opened = saved(tmp_path, noise(1, size).convert(mode), name, **settings)
    head, _, data = data_url(opened).partition(";base64,")
    assert head == "data:image/png"
    sent = base64.b64decode(data)
    assert sent != (tmp_path / name).read_bytes()
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(sent))), np.asarray(opened))


def test_a_server_that_is_not_there_is_said_at_loading() -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(ModelError, match=f"No server answers at {url}"):
        load("toy", Options(base_url=url)).load()


def test_a_server_that_goes_away_fails_the_questions_and_not_the_run() -> None:
    server = ChatServer()
    with server:
        adapter = served(server, max_retries="2")
        assert isinstance(adapter.generate(batch(adapter, 1, 1))[0][0], Generation)
        adapter.close()  # a kept connection would live on with the test's server
    began = time.monotonic()
    outcomes = adapter.generate(batch(adapter, 30, 3))
    assert time.monotonic() - began < 20
    assert {type(one) for group in outcomes for one in group} == {Failure}
    assert [len(group) for group in outcomes] == [3] * 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "localhost:8000"}, "base_url should be an address"),
        ({"temperature": "hot"}, "Expected `float | null`"),
        ({"thinking": "maybe"}, "thinking"),
        ({"concurrency": "0"}, ">= 1"),
        ({"base_ulr": "http://localhost:8000/v1"}, "base_url"),
        ({"base_url": f"http://me:{SECRET}@localhost/v1"}, "without a user"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load("toy", parse_options(FAMILY, options))
    assert message in str(caught.value)
    assert SECRET not in str(caught.value)


def test_the_key_is_nowhere_but_in_the_request(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    acts = [answer(f"your key is {SECRET}"), status(400, SECRET.encode()), status(500, SECRET.encode())]
    with ChatServer(lambda asked: acts[int(asked.text[-1])]) as server:
        adapter = served(server, api_key_env="MY_KEY", max_retries="0")
        outcomes = adapter.generate(batch(adapter, 1, 3))
        adapter.close()
    assert all(asked.headers["Authorization"] == f"Bearer {SECRET}" for asked in server.asked)
    shown = repr((outcomes, adapter.info, adapter.telemetry(), adapter, vars(adapter), FAMILY))
    assert SECRET not in shown
    assert "[key]" in shown
    assert SECRET not in "".join(capfd.readouterr())
