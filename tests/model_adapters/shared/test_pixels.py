"""Pictures become the pixels of LLaVA's own padding, by a shorter way."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlmamba_eval.images import open_image
from vlmamba_eval.model_adapters.shared.pixels import PreprocessingConfig, prepare
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
