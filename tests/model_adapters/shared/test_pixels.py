"""Pictures become the pixels of LLaVA's own padding, by a shorter way."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlmamba_eval.images import open_image
from vlmamba_eval.model_adapters.mmmamba import tiles
from vlmamba_eval.model_adapters.shared.pixels import PreprocessingConfig, prepare
from vlmamba_eval.model_adapters.zamba2vl import images as zamba2vl
from vlmamba_eval.types import ImageRef

CLIP = PreprocessingConfig((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 50), st.sampled_from(("bicubic", "bilinear")))
def test_padding_is_a_square_of_the_mean_colour_resized(width: int, height: int, size: int, resample: str) -> None:
    if max(width, height) >= 16 * size:
        return  # a strip is halved first
    picture = noise(width, height)
    side = max(width, height)
    square = Image.new("RGB", (side, side), tuple(int(x * 255) for x in CLIP.mean))
    square.paste(picture, ((side - width) // 2, (side - height) // 2))
    expected = np.array(square.resize((size, size), Image.Resampling[resample.upper()])).transpose(2, 0, 1)
    found = prepare(picture, size, CLIP, resample)  # type: ignore[arg-type] - one of the two
    assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_is_rgb_and_stays_when_its_file_is_closed(mode: str, tmp_path) -> None:
    picture = noise(40, 30).convert(mode)
    raw = io.BytesIO()
    picture.save(raw, "JPEG")
    (tmp_path / "x.jpg").write_bytes(raw.getvalue())
    found = open_image(ImageRef("x.jpg", "x.jpg", path=str(tmp_path / "x.jpg"), folder=str(tmp_path)))
    assert found.mode == "RGB"
    assert np.array_equal(np.array(found), np.array(Image.open(raw).convert("RGB")))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
@pytest.mark.parametrize(
    "prepare_one",
    [
        lambda image: prepare(image, 384, CLIP),
        lambda image: zamba2vl.prepare(image, 28, 4, 400),
        lambda image: tiles.cut(image, 224, 6),
    ],
)
def test_a_thread_that_prepares_pictures_begins_no_others(prepare_one: Callable[[Image.Image], torch.Tensor]) -> None:
    """PyTorch's copy began a team for each of 16 threads: 7 ms of processor time per picture in place of 0.3."""
    before, found = torch.get_num_threads(), list[int]()

    def work() -> None:
        picture = Image.new("RGB", (640, 480), "red")
        there = len(list(Path("/proc/self/task").iterdir()))
        prepare_one(picture)
        found.append(len(list(Path("/proc/self/task").iterdir())) - there)

    torch.set_num_threads(4)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        torch.set_num_threads(before)
    assert found == [0]
