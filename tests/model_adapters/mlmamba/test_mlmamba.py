"""ML-Mamba on a small random checkpoint in the authors' layout, beside a computation by other people's code.

Towers and language model are transformers' own; the bidirectional blocks and the projector are float64, token by token.
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
import torch.nn.functional as F
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    Mamba2Config,
    Mamba2ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tests.contract import AdapterContract
from tests.model_adapters.through_the_command import assert_sharing_changes_no_answer_file
from vlmamba_eval import registry
from vlmamba_eval.adapter import Adapter
from vlmamba_eval.model_adapters.cobra import model as cobra
from vlmamba_eval.model_adapters.mlmamba import loading
from vlmamba_eval.model_adapters.mlmamba import model as mlmamba
from vlmamba_eval.model_adapters.vlmamba.config import Mamba2LanguageModelConfig
from vlmamba_eval.types import ImageQuestions, ModelError, Question, UsageError

TOKENIZER = Path(cobra.__file__).parents[1] / "vlmamba" / "tiny" / "tokenizer.json"
LANGUAGE_MODEL = Mamba2LanguageModelConfig(d_model=32, n_layer=2, vocab_size=1024, d_state=16, headdim=8)
DINO = replace(cobra.DINO, image_size=42, hidden_size=24, layers=2, num_attention_heads=2, intermediate_size=48)
SIGLIP = replace(cobra.SIGLIP, image_size=42, hidden_size=16, layers=2, num_attention_heads=2, intermediate_size=40)
QUESTIONS = ("What is it?", "  Is there a red dog?\nAnswer the question using a single word or phrase. ", "Why\n\nnot?")


@dataclass
class Written:
    folder: Path
    dino: Any
    siglip: Any
    language_model: Any
    parts: dict[str, dict[str, Tensor]]

    def load(self, **options: Any) -> Any:
        root = self.folder.parent
        sources = {"dino": str(root / "dino"), "siglip": str(root / "siglip"), "tokenizer": str(TOKENIZER)}
        return registry.load(f"mlmamba:{self.folder}", sources | {"device": "cpu"} | options)


def noisy(module: Any, seed: int, scale: float = 0.3) -> Any:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if not name.endswith(("A_log", ".D", "dt_bias")):
            parameter.data = torch.randn(parameter.shape, generator=generator) * scale
        if "norm" in name and name.endswith("weight"):
            parameter.data += 1
    return module.eval()


def connector_parts() -> dict[str, dict[str, Tensor]]:
    """`mlp`, `bidirectional_mamba` and `projector` as the authors' modules name their parameters."""
    g = torch.Generator().manual_seed(5)
    d, inner, state, heads = 32, 64, 16, 8
    conv = inner + 2 * state

    def linear(name: str, out: int, width: int, bias: bool = True) -> dict[str, Tensor]:
        found = {f"{name}.weight": torch.randn(out, width, generator=g) * width**-0.5}
        return found | ({f"{name}.bias": torch.randn(out, generator=g) * 0.2} if bias else {})

    blocks: dict[str, Tensor] = {}
    for i in range(2):
        at = f"layers.{i}."
        blocks |= linear(f"{at}mixer.in_proj", inner + conv + heads, d, bias=False)
        blocks |= linear(f"{at}mixer.out_proj", d, inner, bias=False)
        for side in ("", "_b"):
            blocks[f"{at}mixer.conv1d{side}.weight"] = torch.randn(conv, 1, 4, generator=g) * 0.5
            blocks[f"{at}mixer.conv1d{side}.bias"] = torch.randn(conv, generator=g) * 0.2
            blocks[f"{at}mixer.dt_bias{side}"] = torch.randn(heads, generator=g) - 1
            blocks[f"{at}mixer.A_log{side}"] = torch.rand(heads, generator=g)
            blocks[f"{at}mixer.D{side}"] = torch.randn(heads, generator=g)
        blocks[f"{at}mixer.norm.weight"] = 1 + 0.2 * torch.randn(inner, generator=g)
        for name in ("w1", "w2", "w3"):
            blocks |= linear(f"{at}mlp.{name}", d, d)
        blocks |= {f"{at}norm.weight": 1 + 0.2 * torch.randn(d, generator=g), f"{at}norm.bias": torch.zeros(d) + 0.1}
    blocks |= {"norm_f.weight": 1 + 0.2 * torch.randn(d, generator=g), "norm_f.bias": torch.zeros(d) - 0.1}
    projector = linear("projector.0", 4 * d, d) | linear("projector.2", d, 4 * d) | linear("projector.4", d, d)
    return {"mlp": linear("0", d, 40), "bidirectional_mamba": blocks, "projector": projector}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Written]:
    monkeypatch.setitem(cobra.TOWERS, "dinosiglip-test", {"dino": DINO, "siglip": SIGLIP})
    monkeypatch.setitem(mlmamba.LANGUAGE_MODELS, "mamba2-test", LANGUAGE_MODEL)

    def made(prefix: str = "", drop: str = "", **changes: Any) -> Written:
        sizes = {"patch_size": 14, "num_attention_heads": 2, "num_hidden_layers": 3, "layer_norm_eps": 1e-6}
        torch.manual_seed(0)
        dino = Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(**sizes, hidden_size=24, mlp_ratio=2, image_size=70, num_register_tokens=4)
        )
        siglip = SiglipVisionModel(
            SiglipVisionConfig(**sizes, hidden_size=16, intermediate_size=40, image_size=42, hidden_act="gelu")
        )
        noisy(dino, 1).save_pretrained(tmp_path / "dino")
        noisy(siglip, 2).save_pretrained(tmp_path / "siglip")
        mamba = Mamba2ForCausalLM(
            Mamba2Config(
                hidden_size=32, num_hidden_layers=2, vocab_size=1024, state_size=16, head_dim=8, num_heads=8,
                n_groups=1, chunk_size=16, tie_word_embeddings=True,
            )
        )  # fmt: skip
        noisy(mamba, 3).tie_weights()
        parts = connector_parts()
        stored = {name: dict(part) for name, part in parts.items() if name != drop}
        stored["llm_backbone"] = {
            prefix + name.replace("backbone.embeddings.", "backbone.embedding."): tensor.clone()
            for name, tensor in mamba.state_dict().items()
        }
        folder = tmp_path / "mlmamba+test"
        folder.mkdir(exist_ok=True)
        torch.save({"model": stored, "optimizer": {"lr": 1}}, folder / "latest-checkpoint.pt")
        model = {
            "model_id": "mlmamba+test",
            "arch_specifier": "no-align+fused-gelu-mlp",
            "vision_backbone_id": "dinosiglip-test",
            "llm_backbone_id": "mamba2-test",
            "image_resize_strategy": "resize-naive",
        }
        (folder / "config.json").write_text(json.dumps({"model": model | changes}), encoding="utf-8")
        return Written(folder, dino, siglip, mamba, parts)

    return made


# =============================================================================
# The same, by other people's code
# =============================================================================


def picture(seed: int = 0, size: tuple[int, int] = (61, 37)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)).resize(size)


def scanned(line: Tensor, p: dict[str, Tensor], side: str) -> Tensor:
    """One direction of a mixer, [t, 64], from its input projection [t, ...] of one image, token by token."""
    z, xBC, dt = line.split([64, 96, 8], dim=-1)
    padded = torch.cat([torch.zeros(3, 96, dtype=line.dtype), xBC])
    weight = p[f"conv1d{side}.weight"][:, 0]
    xBC = F.silu(sum(weight[:, k] * padded[k : k + len(xBC)] for k in range(4)) + p[f"conv1d{side}.bias"])
    state, outputs = torch.zeros(8, 8, 16, dtype=line.dtype), []
    for t in range(len(line)):
        x, B, C = xBC[t, :64].view(8, 8), xBC[t, 64:80], xBC[t, 80:]
        step = F.softplus(dt[t] + p[f"dt_bias{side}"])
        decay = torch.exp(-torch.exp(p[f"A_log{side}"]) * step)
        state = decay[:, None, None] * state + step[:, None, None] * x[:, :, None] * B
        y = (state @ C + p[f"D{side}"][:, None] * x).flatten() * F.silu(z[t])
        outputs.append(y / (y.pow(2).mean() + 1e-5).sqrt() * p["norm.weight"])
    return torch.stack(outputs)


def embeddings(written: Written, image: Image.Image) -> Tensor:
    """What stands before the text, [9, 32], in the steps of the authors' code."""
    squashed = np.asarray(image.resize((42, 42), resample=Image.Resampling.BICUBIC), dtype=np.float64) / 255
    features = []
    for tower, mean, std, leading in (
        (written.dino, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 5),
        (written.siglip, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 0),
    ):
        pixels = torch.tensor((squashed - mean) / std, dtype=torch.float32).permute(2, 0, 1)[None]
        with torch.no_grad():
            features.append(tower(pixel_values=pixels, output_hidden_states=True).hidden_states[2][0, leading:])
    p = {part: {n: t.double() for n, t in tensors.items()} for part, tensors in written.parts.items()}

    def linear(x: Tensor, tensors: dict[str, Tensor], name: str) -> Tensor:
        return x @ tensors[f"{name}.weight"].T + tensors.get(f"{name}.bias", 0)

    def normed(x: Tensor, tensors: dict[str, Tensor], name: str) -> Tensor:
        scaled = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    x = F.gelu(linear(torch.cat(features, dim=-1).double(), p["mlp"], "0"))
    blocks = p["bidirectional_mamba"]
    for i in range(2):
        mixer = {n.removeprefix(f"layers.{i}.mixer."): t for n, t in blocks.items() if f"layers.{i}.mixer." in n}
        line = linear(x, mixer, "in_proj")
        both = scanned(line, mixer, "") + scanned(line.flip(0), mixer, "_b").flip(0)
        x = x + linear(both / 2, mixer, "out_proj")
        u = normed(x, blocks, f"layers.{i}.norm")
        at = f"layers.{i}.mlp."
        x = x + linear(F.silu(linear(u, blocks, at + "w1")) * linear(u, blocks, at + "w2"), blocks, at + "w3")
    x = normed(x, blocks, "norm_f")
    projector = p["projector"]
    x = F.gelu(linear(F.gelu(linear(x, projector, "projector.0")), projector, "projector.2"))
    return linear(x, projector, "projector.4")


def answer(written: Written, tokenizer: Tokenizer, prompt: str, image: Tensor, n: int) -> list[int]:
    """Greedy decoding by transformers' Mamba-2, everything read anew for each token."""
    ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    said: list[int] = []
    table = written.language_model.get_input_embeddings()
    with torch.no_grad():
        while len(said) < n:
            whole = torch.cat([image.float(), table(torch.tensor(ids + said))])[None]
            logits = written.language_model(inputs_embeds=whole).logits[0, -1]
            token = int(logits[: tokenizer.get_vocab_size()].argmax())
            if token == 0:
                break
            said.append(token)
    return said


@pytest.mark.parametrize("prefix", ["", "llm."])
def test_answers_are_those_of_the_authors_steps(write: Callable[..., Written], prefix: str):
    written, tokenizer = write(prefix), Tokenizer.from_file(str(TOKENIZER))
    adapter = written.load()
    images = [picture(seed) for seed in range(2)]
    batch = [ImageQuestions(adapter.prepare(image), tuple(Question(q, 6) for q in QUESTIONS)) for image in images]
    found = adapter.generate(batch)
    for image, answers in zip(images, found, strict=True):
        before = embeddings(written, image)
        [ours] = adapter.engine.model.embed_images(adapter.prepare(image)[None])
        assert float((ours - before).abs().max() / before.abs().max()) < 1e-4
        for text, got in zip(QUESTIONS, answers, strict=True):
            prompt = f"<|user|>\n{text.strip()}<|endoftext|>\n<|assistant|>\n"
            assert got.prompt == "<image>" + prompt
            said = answer(written, tokenizer, prompt, before, 6)
            assert got.text == tokenizer.decode(said, skip_special_tokens=True).strip()
    assert written.load(sharing=False).generate(batch) == found


def test_half_precision_keeps_both_directions_of_the_recurrence_in_float32(write: Callable[..., Written]):
    model = write().load(dtype="bfloat16").engine.model
    mixer = model.bidirectional_mamba.layers[0].mixer
    assert mixer.conv1d_b.weight.dtype == torch.bfloat16
    assert {getattr(mixer, name).dtype for name in ("A_log", "A_log_b", "D_b", "dt_bias_b")} == {torch.float32}


# =============================================================================
# What is not as it should be
# =============================================================================


def test_a_missing_part_is_named(write: Callable[..., Written]):
    with pytest.raises(
        ModelError, match=r"expected exactly bidirectional_mamba, .* found llm_backbone, mlp, projector"
    ):
        write(drop="bidirectional_mamba").load()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llm_backbone_id": "mamba-2.8b"}, "model.llm_backbone_id should be one of mamba2-2.7b"),
        ({"vision_backbone_id": "clip"}, "model.vision_backbone_id should be one of"),
        ({"image_resize_strategy": "letterbox"}, "model.image_resize_strategy should be one of resize-naive"),
        ({"arch_specifier": "no-align+qformer"}, "model.arch_specifier should end with"),
        ({"arch_specifier": "gelu-mlp"}, "of another shape"),
    ],
)
def test_another_version_is_refused_with_a_sentence(write: Callable[..., Written], changes: dict, message: str):
    with pytest.raises(ModelError, match=message):
        write(**changes).load()


def test_a_folder_without_a_configuration_must_hold_the_published_model(write: Callable[..., Written]):
    written = write()
    (written.folder / "config.json").unlink()
    config = loading.read_config(written.folder, loading.Options())
    assert config.language_model == mlmamba.LANGUAGE_MODELS["mamba2-2.7b"]
    assert (config.projector, config.image_tokens, config.features) == ("fused-gelu-mlp", 729, 2176)
    with pytest.raises(ModelError, match="of another shape"):
        written.load()


def test_a_folder_that_is_not_there_says_where_to_get_one():
    with pytest.raises(UsageError, match=r"no such folder\. Download a published checkpoint .*huangwenjun1994"):
        registry.load("mlmamba:/nowhere", {})


@pytest.mark.slow
def test_a_whole_run_gives_the_same_answers_shared_or_not(write: Callable[..., Written], tmp_path: Path):
    folder = write().folder
    sources = {"dino": folder.parent / "dino", "siglip": folder.parent / "siglip", "tokenizer": TOKENIZER}
    assert_sharing_changes_no_answer_file(f"mlmamba:{folder}", sources, tmp_path)


class TestContract(AdapterContract):
    @pytest.fixture
    def adapter(self, write: Callable[..., Written]) -> Adapter:
        return write().load()
