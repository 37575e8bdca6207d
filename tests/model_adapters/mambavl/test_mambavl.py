"""Mamba-VL on small random checkpoints in the authors' layout, beside a computation by other people's code.

The tower is EVA-02 by its equations in float64, the language model transformers' Mamba.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import MambaConfig, MambaForCausalLM

from tests.contract import AdapterContract
from tests.model_adapters.gpt_neox_marks import gpt_neox_like
from tests.model_adapters.through_the_command import assert_sharing_changes_no_answer_file
from tests.model_adapters.towers_by_hand import eva02_by_hand, timm_like
from vlmamba_eval import registry
from vlmamba_eval.adapter import Adapter
from vlmamba_eval.model_adapters.mambavl import vision
from vlmamba_eval.model_adapters.shared.template import mambavl_text
from vlmamba_eval.model_adapters.shared.vision_tower import Tower
from vlmamba_eval.types import ImageQuestions, ModelError, Question

SIDE = 2
EVA02 = replace(
    vision.EVA02,
    image_size=SIDE * 14,
    hidden_size=16,
    layers=2,
    num_attention_heads=2,
    intermediate_size=42,
    rotary_grid=4,
)
MARKS, ROWS = 4118, 10494
VOCABULARY = 10496


@dataclass
class Written:
    folder: Path
    tokenizer: Path
    tower: dict[str, Tensor]
    connector: dict[str, Tensor]
    language_model: Any

    def load(self, **options: Any) -> Any:
        return registry.load(f"mambavl:{self.folder}", {"tokenizer": str(self.tokenizer), "device": "cpu"} | options)


def noise(shape: Any, seed: int, scale: float = 0.3) -> Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)) * scale


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Written]:
    monkeypatch.setattr(vision, "EVA02", EVA02)

    def made(*, safetensors: bool = False, tower_inside: bool = True, **changes: Any) -> Written:
        folder = tmp_path / "finetuned_mambavl_test"
        folder.mkdir(exist_ok=True)
        tokenizer = gpt_neox_like(tmp_path / "tokenizer.json")
        parameters = {
            name: noise(p.shape, i) + (1 if "norm" in name and name.endswith("weight") else 0)
            for i, (name, p) in enumerate(Tower(EVA02).state_dict().items())
        }
        tower = timm_like("eva02", parameters)
        connector = {"0.weight": noise((32, 16), 91, 1.0), "0.bias": noise((32,), 92)}
        connector |= {"2.weight": noise((32, 32), 93, 1.0), "2.bias": noise((32,), 94)}
        torch.manual_seed(0)
        mamba = MambaForCausalLM(MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=VOCABULARY)).eval()
        for i, (name, p) in enumerate(mamba.named_parameters()):
            if not name.endswith(("A_log", ".D", "dt_proj.bias", "norm.weight", "norm_f.weight")):
                p.data = noise(p.shape, 200 + i)
        mamba.tie_weights()
        stored = {name.replace("embeddings", "embedding"): p.clone() for name, p in mamba.state_dict().items()}
        stored |= {f"vision_embed_tokens.{name}": p for name, p in connector.items()}
        inside = {f"vision_encoder.{name}": p for name, p in tower.items()} if tower_inside else {}
        if safetensors:
            save_file({name: p.contiguous() for name, p in (stored | inside).items()}, folder / "model.safetensors")
        else:
            torch.save(stored | inside, folder / "pytorch_model.bin")
        config = {
            "d_model": 32,
            "hidden_size": 32,
            "n_layer": 2,
            "vocab_size": VOCABULARY,
            "ssm_cfg": {},
            "rms_norm": True,
        }
        config |= {"residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 8}
        config |= {
            "vision_encoder_name": "timm/eva02_large_patch14_clip_336",
            "select_feature": "patch",
            "image_size": 28,
        }
        (folder / "config.json").write_text(json.dumps(config | changes))
        return Written(folder, tokenizer, tower, connector, mamba)

    return made


def picture(seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (10, 17, 3), dtype=np.uint8)).resize((57, 40))


def before_the_text(written: Written, image: Image.Image) -> Tensor:
    """[7, 32]: ###, row, &&, row, ###"""
    squashed = np.asarray(image.resize((28, 28), resample=Image.Resampling.BILINEAR), dtype=np.float64) / 255
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    pixels = torch.tensor((squashed - mean) / std).permute(2, 0, 1)
    tower = {name: tensor.double() for name, tensor in written.tower.items()}
    x = eva02_by_hand(tower, pixels, EVA02)  # [4, 16]
    p = {name: tensor.double() for name, tensor in written.connector.items()}
    x = torch.nn.functional.gelu(x @ p["0.weight"].T + p["0.bias"]) @ p["2.weight"].T + p["2.bias"]
    table = written.language_model.get_input_embeddings().weight.detach().double()
    return torch.stack([table[MARKS], x[0], x[1], table[ROWS], x[2], x[3], table[MARKS]])


def answer(written: Written, prompt: str, image: Tensor, n: int) -> list[int]:
    tokenizer = Tokenizer.from_file(str(written.tokenizer))
    ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    said: list[int] = []
    table = written.language_model.get_input_embeddings()
    with torch.no_grad():
        while len(said) < n:
            x = torch.cat([image.float(), table(torch.tensor(ids + said))])[None]
            token = int(written.language_model(inputs_embeds=x).logits[0, -1, : tokenizer.get_vocab_size()].argmax())
            if token == 0:
                break
            said.append(token)
    return said


SHORT = "Answer the question using a single word or phrase."
ASKED = {
    f"is THAT a Dog \n{SHORT}": f"{SHORT}\nQuestion: Is that a dog.\nAnswer: ",
    f"{SHORT}\nQuestion: Is it?\nAnswer: ": f"{SHORT}\nQuestion: Is it?\nAnswer: ",
    "describe it": "Describe it.\n",
}


@pytest.mark.parametrize("safetensors", [False, True])
def test_answers_are_those_of_the_authors_steps(write: Callable[..., Written], safetensors: bool) -> None:
    written = write(safetensors=safetensors)
    adapter = written.load()
    tokenizer = Tokenizer.from_file(str(written.tokenizer))
    assert adapter.info.image_tokens == 7
    said = set()
    for seed in range(2):
        [answers] = adapter.generate(
            [ImageQuestions(adapter.prepare(picture(seed)), tuple(Question(text, 6) for text in ASKED))]
        )
        image = before_the_text(written, picture(seed))
        for prompt, got in zip(ASKED.values(), answers, strict=True):
            assert got.prompt == "<image>" + prompt
            expected = answer(written, prompt, image, 6)
            assert got.text == tokenizer.decode(expected).strip()
            assert got.n_tokens == len(expected)
            said.add(got.text)
    assert len(said) > 3


def test_the_published_image_takes_601_places() -> None:
    assert vision.image_tokens(replace(EVA02, image_size=336)) == 601


def test_sharing_changes_no_answer(write: Callable[..., Written]) -> None:
    written = write()
    found = []
    for sharing in (True, False):
        adapter = written.load(sharing=sharing)
        asked = ImageQuestions(adapter.prepare(picture()), tuple(Question(text, 6) for text in ASKED))
        found.append((adapter.generate([asked]), adapter.images_encoded))
    assert found[0][0] == found[1][0]
    assert (found[0][1], found[1][1]) == (1, 3)


def test_a_tower_of_its_own_file_is_read_if_the_checkpoint_has_none(
    write: Callable[..., Written], tmp_path: Path
) -> None:
    whole = write().load()
    apart = write(tower_inside=False)
    (tmp_path / "eva").mkdir()
    save_file({name: p.contiguous() for name, p in apart.tower.items()}, tmp_path / "eva" / "model.safetensors")
    adapter = apart.load(vision=str(tmp_path / "eva"))
    pixels = whole.prepare(picture())[None]
    assert torch.equal(adapter.engine.model.embed_images(pixels), whole.engine.model.embed_images(pixels))
    assert adapter.info.weights != whole.info.weights


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 224}, "image_size should be 28, found 224"),
        ({"select_feature": "cls_patch"}, "select_feature should be 'patch', found 'cls_patch'"),
        (
            {"vision_encoder_name": "openai/clip-vit-large-patch14-336"},
            "vision_encoder_name should be timm's eva02_large",
        ),
        ({"hidden_size": 64}, "hidden_size should equal d_model, found 64"),
        ({"n_layer": 3}, "10 missing: language_model.backbone.layers.2"),
        ({"d_model": None, "hidden_size": None}, "d_model must be int, found None"),
        ({"rms_norm": False}, "rms_norm = False"),
    ],
)
def test_another_version_of_a_configuration_is_refused(
    write: Callable[..., Written], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        write(**changes).load()


def test_a_tokenizer_without_the_marks_is_refused(write: Callable[..., Written]) -> None:
    tiny = Path(vision.__file__).parents[1] / "vlmamba" / "tiny" / "tokenizer.json"
    with pytest.raises(ModelError, match="expected '###' to be the one token 4118"):
        write().load(tokenizer=str(tiny))


# =============================================================================
# Texts
# =============================================================================

LETTER = "Answer with the option's letter from the given choices directly."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *ASKED.items(),
        (f"What does it SAY?\nReference OCR token: A, B\n{SHORT}",
         f"{SHORT}\nReference OCR token: A, B\nQuestion: What does it say?\nAnswer: "),
        (f"A hint.\nWhich one\nA. red\nB. LIGHT blue\n{LETTER}",
         f"{LETTER}\nA hint.\nQuestion: Which one.\nA: Red\nB: Light blue\nAnswer: "),
        ("Already so\n", "Already so\n"),
        (SHORT, f"{SHORT}\n"),
        ("", ".\n"),
    ],
)  # fmt: skip
def test_texts_take_the_form_of_training(text: str, expected: str) -> None:
    assert mambavl_text(text) == (expected if text != SHORT else SHORT.capitalize() + "\n")


@pytest.mark.slow
def test_a_whole_run_gives_the_same_answers_shared_or_not(write: Callable[..., Written], tmp_path: Path) -> None:
    written = write()
    options = {"tokenizer": written.tokenizer}
    assert_sharing_changes_no_answer_file(f"mambavl:{written.folder}", options, tmp_path)


class TestContract(AdapterContract):
    @pytest.fixture
    def adapter(self, write: Callable[..., Written]) -> Adapter:
        return write().load()
