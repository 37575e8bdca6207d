"""Pythia-VL on small random checkpoints in the authors' layout, beside transformers' GPT-NeoX over whole prompts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from tests.contract import AdapterContract
from tests.model_adapters.gpt_neox_marks import gpt_neox_like
from tests.model_adapters.through_the_command import assert_sharing_changes_no_answer_file
from tests.model_adapters.towers_by_hand import eva02_by_hand, timm_like
from vlmamba_eval import registry
from vlmamba_eval.adapter import Adapter
from vlmamba_eval.model_adapters.mambavl import vision
from vlmamba_eval.model_adapters.shared.vision_tower import Tower
from vlmamba_eval.types import ImageQuestions, ModelError, Question

EVA02 = replace(
    vision.EVA02, image_size=28, hidden_size=16, layers=1, num_attention_heads=2, intermediate_size=42, rotary_grid=4
)
SHORT = "Answer the question using a single word or phrase."
ASKED = {
    f"is THAT a Dog?\n{SHORT}": f"{SHORT}\nQuestion: Is that a dog?\nAnswer: ",
    "describe it": "Describe it.\n",
    f"{SHORT}\nIs there a cat?\n": f"{SHORT}\nIs there a cat?\n",
}


@dataclass
class Written:
    folder: Path
    tokenizer: Path
    stored: dict[str, Tensor]
    language_model: Any

    def load(self, **options: Any) -> Any:
        return registry.load(f"pythiavl:{self.folder}", {"tokenizer": str(self.tokenizer), "device": "cpu"} | options)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Written]:
    monkeypatch.setattr(vision, "EVA02", EVA02)

    def made(**changes: Any) -> Written:
        torch.manual_seed(0)
        folder = tmp_path / "finetuned_pythiavl_test"
        folder.mkdir(exist_ok=True)
        # The names of Pythia's own config.json.
        published = {
            "model_type": "gpt_neox", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "intermediate_size": 64, "vocab_size": 10496, "rotary_pct": 0.5, "rotary_emb_base": 20000,
            "initializer_range": 0.5, "layer_norm_eps": 1e-5, "use_parallel_residual": True, "hidden_act": "gelu",
        }  # fmt: skip
        config = GPTNeoXConfig.from_dict(published)
        rope: Any = config.rope_parameters
        assert (rope["partial_rotary_factor"], rope["rope_theta"]) == (0.5, 20000)
        model = GPTNeoXForCausalLM(config).eval()
        tower = {name: torch.randn(p.shape) * 0.3 for name, p in Tower(EVA02).state_dict().items()}
        stored = {f"vision_encoder.{name}": tensor for name, tensor in timm_like("eva02", tower).items()}
        for name, shape in (("0", (32, 16)), ("2", (32, 32))):
            stored[f"vision_embed_tokens.{name}.weight"] = torch.randn(shape)
            stored[f"vision_embed_tokens.{name}.bias"] = torch.randn(32)
        stored |= model.state_dict()
        old = {f"gpt_neox.layers.{i}.attention.masked_bias": torch.tensor(-1e9) for i in range(2)}
        old |= {"gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(2)}
        torch.save(stored | old, folder / "pytorch_model.bin")
        data = {**published, "vision_encoder_name": "timm/eva02_large_patch14_clip_336", "image_size": 28}
        (folder / "config.json").write_text(json.dumps(data | {"select_feature": "patch"} | changes))
        return Written(folder, gpt_neox_like(tmp_path / "tokenizer.json"), stored, model)

    return made


def picture(seed: int) -> Image.Image:
    return Image.effect_mandelbrot((40, 60), (-2, -1, 1, 1), 20 + seed).convert("RGB")


def whole_prompt(written: Written, pixels: Tensor, ids: list[int]) -> Tensor:
    """Marks, patches and text as one row of embeddings [1, l, 32]."""
    tower = {
        name.removeprefix("vision_encoder."): p.double() for name, p in written.stored.items() if "encoder" in name
    }
    mean, std = torch.tensor(vision.PIXELS.mean)[:, None, None], torch.tensor(vision.PIXELS.std)[:, None, None]
    x = eva02_by_hand(tower, (pixels / 255 - mean).double() / std, EVA02)
    p = {name: tensor.double() for name, tensor in written.stored.items() if "embed_tokens" in name}
    x = x @ p["vision_embed_tokens.0.weight"].T + p["vision_embed_tokens.0.bias"]
    x = torch.nn.functional.gelu(x) @ p["vision_embed_tokens.2.weight"].T + p["vision_embed_tokens.2.bias"]
    table = written.language_model.get_input_embeddings().weight.detach()
    seen = torch.stack([table[4118], *x.float()[:2], table[10494], *x.float()[2:], table[4118]])
    return torch.cat([seen, table[torch.tensor(ids, dtype=torch.long)]])[None]


def test_answers_are_those_of_whole_prompts(write: Callable[..., Written]) -> None:
    written = write()
    adapter = written.load()
    tokenizer = Tokenizer.from_file(str(written.tokenizer))
    said = set()
    for seed in range(2):
        pixels = adapter.prepare(picture(seed))
        [answers] = adapter.generate([ImageQuestions(pixels, tuple(Question(text, 5) for text in ASKED))])
        for prompt, got in zip(ASKED.values(), answers, strict=True):
            assert got.prompt == "<image>" + prompt
            ids = tokenizer.encode(prompt, add_special_tokens=False).ids
            expected: list[int] = []
            with torch.no_grad():
                while len(expected) < 5:
                    embeds = whole_prompt(written, pixels, ids + expected)
                    token = int(written.language_model(inputs_embeds=embeds).logits[0, -1, :261].argmax())
                    if token == 0:
                        break
                    expected.append(token)
            assert got.text == tokenizer.decode(expected).strip()
            assert got.n_tokens == len(expected)
            said.add(got.text)
    assert adapter.images_encoded == 2
    assert len(said) > 2


def test_sharing_changes_no_answer_and_no_likelihood(write: Callable[..., Written]) -> None:
    written = write()
    found = []
    for sharing in (True, False):
        adapter = written.load(sharing=sharing)
        questions = tuple(Question(text, 5, ("Yes", "No.")) for text in ASKED)
        asked = [ImageQuestions(adapter.prepare(picture(1)), questions), ImageQuestions(None, questions)]
        found.append((adapter.generate(asked), adapter.rank(asked), adapter.images_encoded))
    assert found[0][0] == found[1][0]
    assert found[0][1] == found[1][1]
    assert (found[0][2], found[1][2]) == (2, 6)


def test_a_continuations_likelihood_is_that_of_its_tokens(write: Callable[..., Written]) -> None:
    written = write()
    adapter = written.load()
    tokenizer = Tokenizer.from_file(str(written.tokenizer))
    pixels = adapter.prepare(picture(1))
    text, prompt = next(iter(ASKED.items()))
    [[got]] = adapter.rank([ImageQuestions(pixels, (Question(text, 1, ("Yes", "N")),))])
    for said, likelihood in zip(("Yes", "N"), got.likelihoods, strict=True):
        ids, more = (tokenizer.encode(part, add_special_tokens=False).ids for part in (prompt, said))
        with torch.no_grad():
            logits = written.language_model(inputs_embeds=whole_prompt(written, pixels, ids + more)).logits
        logprobs = logits[0, :, :261].log_softmax(-1)
        expected = sum(float(logprobs[len(logprobs) - len(more) - 1 + i, token]) for i, token in enumerate(more))
        assert likelihood.logprob == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type should be 'gpt_neox', found 'llama'"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be a whole number from 1 to 1,024, found 1000000000"),
        ({"hidden_size": "32"}, "hidden_size must be a whole number"),
        ({"num_attention_heads": 5}, "hidden_size should be a multiple of num_attention_heads"),
        ({"num_hidden_layers": 3}, "missing: language_model.gpt_neox.layers.2"),
        ({"vision_encoder_name": "openai/clip"}, "vision_encoder_name should be"),
    ],
)
def test_another_version_of_a_configuration_is_refused(
    write: Callable[..., Written], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        write(**changes).load()


def test_the_folder_alone_tells_the_family(write: Callable[..., Written]) -> None:
    assert registry.find_family(str(write().folder))[0].name == "pythiavl"


@pytest.mark.slow
def test_a_whole_run_gives_the_same_answers_shared_or_not(write: Callable[..., Written], tmp_path: Path) -> None:
    written = write()
    options = {"tokenizer": written.tokenizer}
    assert_sharing_changes_no_answer_file(f"pythiavl:{written.folder}", options, tmp_path)


class TestContract(AdapterContract):
    @pytest.fixture
    def adapter(self, write: Callable[..., Written]) -> Adapter:
        return write().load()
