"""Cobra on small random checkpoints in the authors' file layout, beside a computation by other people's code.

The towers here are transformers' own, the language model is transformers' Mamba, projectors are a few lines of float64:
what the adapter answers must be what they answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    MambaConfig,
    MambaForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from tests.contract import AdapterContract
from tests.model_adapters.through_the_command import assert_sharing_changes_no_answer_file
from vlmamba_eval import registry
from vlmamba_eval.adapter import Adapter
from vlmamba_eval.model_adapters.cobra import model as cobra
from vlmamba_eval.model_adapters.vlmamba.config import LanguageModelConfig
from vlmamba_eval.types import ImageQuestions, ModelError, Question

TOKENIZER = Path(cobra.__file__).parents[1] / "vlmamba" / "tiny" / "tokenizer.json"
SIDE = 3
DINO = replace(
    cobra.DINO, image_size=SIDE * 14, hidden_size=24, layers=2, num_attention_heads=2, intermediate_size=48, registers=4
)
SIGLIP = replace(
    cobra.SIGLIP, image_size=SIDE * 14, hidden_size=16, layers=2, num_attention_heads=2, intermediate_size=40
)
LANGUAGE_MODEL = LanguageModelConfig(d_model=32, n_layer=2, vocab_size=1024)
GELU = torch.nn.functional.gelu


@dataclass
class Written:
    """A checkpoint on disk, and the parts that it was written from."""

    folder: Path
    dino: Any
    siglip: Any
    language_model: Any
    projector: dict[str, Tensor]

    @property
    def options(self) -> dict[str, Any]:
        root = self.folder.parent
        towers = {"dino": str(root / "dino"), "siglip": str(root / "siglip"), "tokenizer": str(TOKENIZER)}
        return towers | {"device": "cpu"}

    def load(self, **options: Any) -> Any:
        return registry.load(f"cobra:{self.folder}", self.options | options)


def noisy(module: Any, seed: int, scale: float = 0.3) -> Any:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if not name.endswith(("A_log", ".D", "dt_proj.bias")):
            parameter.data = torch.randn(parameter.shape, generator=generator) * scale
        if "norm" in name and name.endswith("weight"):
            parameter.data += 1
    return module.eval()


def projector(kind: str, features: int, d_model: int) -> dict[str, Tensor]:
    """A projector's state dict as the authors' modules name it."""
    wide = 4 * features if kind.startswith("fused") else d_model
    shapes: dict[str, tuple[int, ...]] = {"projector.0": (wide, features), "projector.2": (d_model, wide)}
    if kind == "linear":
        shapes = {"projector": (d_model, features)}
    if kind == "fused-gelu-mlp":
        shapes["projector.4"] = (d_model, d_model)
    if kind == "fused-ldpnet":
        shapes["projector.4.peg.0"] = (d_model, 1, 3, 3)
    generator = torch.Generator().manual_seed(5)
    found = {}
    for name, shape in shapes.items():
        found[name + ".weight"] = torch.randn(shape, generator=generator) * 0.3
        found[name + ".bias"] = torch.randn(shape[0], generator=generator) * 0.1
    return found


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Written]:
    monkeypatch.setitem(cobra.TOWERS, "dinosiglip-test", {"dino": DINO, "siglip": SIGLIP})
    monkeypatch.setitem(cobra.TOWERS, "siglip-test", {"siglip": SIGLIP})
    monkeypatch.setitem(cobra.LANGUAGE_MODELS, "mamba-test-zephyr", LANGUAGE_MODEL)
    monkeypatch.setitem(cobra.LANGUAGE_MODELS, "mamba-test", LANGUAGE_MODEL)

    def made(
        kind: str = "fused-gelu-mlp", *, two: bool = True, llm: str = "mamba-test-zephyr", **changes: Any
    ) -> Written:
        sizes: dict[str, Any] = {
            "patch_size": 14,
            "num_attention_heads": 2,
            "num_hidden_layers": 3,
            "layer_norm_eps": 1e-6,
        }
        torch.manual_seed(0)
        dino = Dinov2WithRegistersModel(
            # Trained on another grid, as the published one: its positions are resampled.
            Dinov2WithRegistersConfig(**sizes, hidden_size=24, mlp_ratio=2, image_size=70, num_register_tokens=4)
        )
        siglip = SiglipVisionModel(
            SiglipVisionConfig(**sizes, hidden_size=16, intermediate_size=40, image_size=42, hidden_act="gelu")
        )
        noisy(dino, 1).save_pretrained(tmp_path / "dino")
        noisy(siglip, 2).save_pretrained(tmp_path / "siglip")
        mamba = MambaForCausalLM(MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=1024))
        noisy(mamba, 3).tie_weights()
        projection = projector(kind, 40 if two else 16, 32)
        llm_backbone = {
            "llm." + name.replace("backbone.embeddings.", "backbone.embedding."): tensor.clone()
            for name, tensor in mamba.state_dict().items()
        }
        folder = tmp_path / "cobra+test"
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        stored = {"model": {"projector": projection, "llm_backbone": llm_backbone}, "optimizer": {"lr": 1}}
        torch.save(stored, folder / "checkpoints" / "latest-checkpoint.pt")
        model = {
            "model_id": "cobra+test",
            "arch_specifier": f"no-align+{kind}" if kind != "linear" else "linear",
            "vision_backbone_id": "dinosiglip-test" if two else "siglip-test",
            "llm_backbone_id": llm,
            "image_resize_strategy": "resize-naive",
            "llm_max_length": 2048,
        }
        (folder / "config.json").write_text(json.dumps({"model": model | changes, "dataset": {}}))
        return Written(folder, dino, siglip, mamba, projection)

    return made


# =============================================================================
# The same, by other people's code
# =============================================================================


def picture(seed: int = 0, size: tuple[int, int] = (61, 37)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)).resize(size)


def embeddings(written: Written, image: Image.Image, kind: str, *, two: bool = True) -> Tensor:
    """What stands before the text, [t, 32], in the steps of the authors' code."""
    squashed = np.asarray(image.resize((42, 42), resample=Image.Resampling.BICUBIC), dtype=np.float64) / 255
    features = []
    for tower, mean, std, leading in (
        (written.dino, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 5),
        (written.siglip, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 0),
    )[0 if two else 1 :]:
        pixels = torch.tensor((squashed - mean) / std, dtype=torch.float32).permute(2, 0, 1)[None]
        with torch.no_grad():
            features.append(tower(pixel_values=pixels, output_hidden_states=True).hidden_states[2][0, leading:])
    x = torch.cat(features, dim=-1).double()
    p = {name.removeprefix("projector").lstrip("."): tensor.double() for name, tensor in written.projector.items()}
    if kind == "linear":
        return x @ p["weight"].T + p["bias"]
    x = GELU(x @ p["0.weight"].T + p["0.bias"]) @ p["2.weight"].T + p["2.bias"]
    if kind == "fused-gelu-mlp":
        x = GELU(x) @ p["4.weight"].T + p["4.bias"]
    if kind == "fused-ldpnet":
        grid = x.T.reshape(32, SIDE, SIDE)
        pooled = torch.stack(
            [grid[:, _cell(i, SIDE), :][:, :, _cell(j, SIDE)].mean((1, 2)) for i in range(14) for j in range(14)], dim=1
        ).reshape(32, 14, 14)
        padded = torch.zeros(32, 16, 16, dtype=torch.float64)
        padded[:, 1:15, 1:15] = pooled
        weight, bias = p["4.peg.0.weight"][:, 0], p["4.peg.0.bias"]
        around = sum(
            weight[:, a, b, None, None] * padded[:, a : a + 14, b : b + 14] for a in range(3) for b in range(3)
        )
        x = (around + bias[:, None, None] + pooled).reshape(32, 196).T
    return x


def _cell(index: int, side: int) -> slice:
    """The rows that adaptive pooling to 14 averages."""
    return slice(index * side // 14, -(-(index + 1) * side // 14))


def answer(written: Written, tokenizer: Tokenizer, prompt: str, image: Tensor, n: int) -> list[int]:
    """Greedy decoding by transformers' Mamba, everything read anew for each token."""
    ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    said: list[int] = []
    table = written.language_model.get_input_embeddings()
    with torch.no_grad():
        while len(said) < n:
            text = table(torch.tensor(ids + said))
            logits = written.language_model(inputs_embeds=torch.cat([image.float(), text])[None]).logits[0, -1]
            token = int(logits[: tokenizer.get_vocab_size()].argmax())
            if token == 0:
                break
            said.append(token)
    return said


QUESTIONS = ("What is it?", "  Is there a red dog?\nAnswer the question using a single word or phrase. ", "Why\n\nnot?")


@pytest.mark.parametrize(
    ("kind", "two"),
    [("fused-gelu-mlp", True), ("fused-ldpnet", True), ("gelu-mlp", False), ("linear", False), ("linear", True)],
)
def test_answers_are_those_of_the_authors_steps(
    write: Callable[..., Written], tokenizer: Tokenizer, kind: str, two: bool
) -> None:
    written = write(kind, two=two)
    adapter = written.load()
    images = [picture(seed) for seed in range(2)]
    found = adapter.generate(
        [ImageQuestions(adapter.prepare(image), tuple(Question(text, 6) for text in QUESTIONS)) for image in images]
    )
    for image, answers in zip(images, found, strict=True):
        before = embeddings(written, image, kind, two=two)
        assert adapter.info.image_tokens == len(before)
        for text, got in zip(QUESTIONS, answers, strict=True):
            prompt = f"<|user|>\n{text.strip()}<|endoftext|>\n<|assistant|>\n"
            assert got.prompt == "<image>" + prompt
            expected = answer(written, tokenizer, prompt, before, 6)
            assert got.text == tokenizer.decode(expected).strip()
            assert got.n_tokens == len(expected)
    assert len({got.text for answers in found for got in answers}) > 3  # neither image nor question may be idle


def test_the_image_stands_before_everything_and_there_is_no_other_token(
    write: Callable[..., Written], tokenizer: Tokenizer
) -> None:
    adapter = write().load()
    assert adapter.engine._opening_ids() == []
    [row] = adapter.engine._rows([ImageQuestions(adapter.prepare(picture()), (Question("Hi?", 1),))])
    assert row.ids == tokenizer.encode("<|user|>\nHi?<|endoftext|>\n<|assistant|>\n", add_special_tokens=False).ids
    assert row.ids.count(0) == 1


def test_a_base_language_model_is_asked_in_and_out(write: Callable[..., Written]) -> None:
    adapter = write(llm="mamba-test").load()
    [[got]] = adapter.generate([ImageQuestions(adapter.prepare(picture()), (Question(" Hi? ", 2),))])
    assert got.prompt == "<image>In: Hi?\nOut: "


def test_sharing_changes_no_answer_and_no_likelihood(write: Callable[..., Written]) -> None:
    written = write()
    batch = [tuple(Question(text, 5, ("Yes", "No")) for text in QUESTIONS) for _ in range(2)]
    results = []
    for sharing in (True, False):
        adapter = written.load(sharing=sharing)
        asked = [ImageQuestions(adapter.prepare(picture(i)), questions) for i, questions in enumerate(batch)]
        results.append((adapter.generate(asked), adapter.rank(asked), adapter.images_encoded))
    assert results[0][0] == results[1][0]
    assert results[0][2] < results[1][2]
    for mine, alone in zip(chain(*results[0][1]), chain(*results[1][1]), strict=True):
        for a, b in zip(mine.likelihoods, alone.likelihoods, strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=1e-4)


def test_yes_and_no_are_scored_as_the_first_token_after_the_template(
    write: Callable[..., Written], tokenizer: Tokenizer
) -> None:
    written = write()
    adapter = written.load()
    [[got]] = adapter.rank([ImageQuestions(adapter.prepare(picture()), (Question("Is it?", 1, ("Yes", "No")),))])
    ids = tokenizer.encode("<|user|>\nIs it?<|endoftext|>\n<|assistant|>\n", add_special_tokens=False).ids
    text = written.language_model.get_input_embeddings()(torch.tensor(ids))
    before = embeddings(written, picture(), "fused-gelu-mlp").float()
    with torch.no_grad():
        logits = written.language_model(inputs_embeds=torch.cat([before, text])[None]).logits[0, -1]
    logprobs = logits[: tokenizer.get_vocab_size()].log_softmax(-1)
    for word, likelihood in zip(("Yes", "No"), got.likelihoods, strict=True):
        first = tokenizer.encode(word, add_special_tokens=False).ids[0]
        if likelihood.n_tokens == 1:
            assert likelihood.logprob == pytest.approx(float(logprobs[first]), abs=1e-4)


def test_a_description_needs_no_parameters(write: Callable[..., Written]) -> None:
    written = write()
    found = registry.defer(f"cobra:{written.folder}", written.options)
    assert found.info.name == "cobra+test"
    assert found.info.weights.startswith("sha256:")
    assert found.info.image_tokens == 9
    assert found.info.settings["template"] == {"name": "cobra_zephyr", "image_first": True}
    assert registry.find_family(str(written.folder))[0].name == "cobra"


# =============================================================================
# Files that do not fit
# =============================================================================


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"vision_backbone_id": "clip-vit-l"},
            "model.vision_backbone_id should be one of dinosiglip-vit-so-384px.*found 'cl",
        ),
        ({"llm_backbone_id": "llama2-7b-pure"}, "model.llm_backbone_id should be one of mamba-2.8b-zephyr"),
        (
            {"arch_specifier": "no-align+vss"},
            "arch_specifier should end with one of fused-gelu-mlp.* found 'no-align\\+vss'",
        ),
        ({"arch_specifier": None}, "arch_specifier should end with"),
        ({"image_resize_strategy": "letterbox"}, "image_resize_strategy should be 'resize-naive'.* found 'letterbox'"),
    ],
)
def test_another_version_of_a_configuration_is_refused(
    write: Callable[..., Written], changes: dict[str, Any], message: str
) -> None:
    written = write(**changes)
    with pytest.raises(ModelError, match=message) as caught:
        written.load()
    assert str(written.folder / "config.json") in str(caught.value)


def stored(written: Written) -> dict[str, Any]:
    return torch.load(written.folder / "checkpoints" / "latest-checkpoint.pt", weights_only=True)


def store(written: Written, data: dict[str, Any]) -> None:
    torch.save(data, written.folder / "checkpoints" / "latest-checkpoint.pt")


def test_what_the_checkpoint_should_hold_is_said(write: Callable[..., Written]) -> None:
    written = write()
    whole = stored(written)
    store(written, {"model": {"llm_backbone": whole["model"]["llm_backbone"]}})
    with pytest.raises(ModelError, match='expected exactly "projector" and "llm_backbone" under "model", found llm_b'):
        written.load()
    store(written, {"model": whole["model"] | {"vision_backbone": {"a": torch.ones(1)}}})
    with pytest.raises(ModelError, match="found llm_backbone, projector, vision_backbone"):
        written.load()
    changed = {name: tensor for name, tensor in whole["model"]["projector"].items() if name != "projector.4.bias"}
    store(written, {"model": whole["model"] | {"projector": changed}})
    with pytest.raises(ModelError, match=r"1 missing: projector\.projector\.4\.bias"):
        written.load()
    changed = whole["model"]["llm_backbone"] | {"llm.lm_head.weight": torch.zeros(1024, 32)}
    store(written, {"model": whole["model"] | {"llm_backbone": changed}})
    with pytest.raises(ModelError, match="expected the output head to be the embedding matrix"):
        written.load()


def test_a_projector_of_another_kind_is_told_by_its_shapes(write: Callable[..., Written]) -> None:
    written = write("fused-ldpnet", arch_specifier="no-align+fused-gelu-mlp")
    with pytest.raises(
        ModelError, match=r"missing: projector\.projector\.4\.bias.*unexpected: projector\.projector\.4\.peg"
    ):
        written.load()


def test_missing_and_wrong_towers_are_named(write: Callable[..., Written], tmp_path: Path) -> None:
    written = write()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"empty: expected \*\.safetensors"):
        written.load(siglip=str(tmp_path / "empty"))
    with pytest.raises(ModelError, match="expected the parameters of a siglip vision tower"):
        written.load(siglip=str(tmp_path / "dino"))
    data = json.loads((tmp_path / "dino" / "config.json").read_text())
    (tmp_path / "dino" / "config.json").write_text(json.dumps(data | {"num_attention_heads": 4}))
    with pytest.raises(ModelError, match="Cobra's tower 'dino' has 2 attention heads, found 4"):
        written.load()
    (written.folder / "checkpoints" / "latest-checkpoint.pt").unlink()
    with pytest.raises(ModelError, match=r"latest-checkpoint\.pt: expected a file of weights, found no file"):
        written.load()


def test_timms_siglip_is_read_as_well(write: Callable[..., Written], tmp_path: Path) -> None:
    written = write()
    adapter = written.load()
    state = written.siglip.state_dict()
    fused: dict[str, Tensor] = {}
    for name, tensor in state.items():
        name = name.removeprefix("vision_model.").replace("encoder.layers.", "blocks.").replace("layer_norm", "norm")
        name = name.replace("self_attn.out_proj", "attn.proj").replace("embeddings.patch_embedding", "patch_embed.proj")
        if "position_embedding" in name:
            name, tensor = "pos_embed", tensor[None]
        fused["visual.trunk." + name] = tensor
    for name in [name for name in fused if "q_proj" in name]:
        parts = [fused.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        fused[name.replace("self_attn.q_proj", "attn.qkv")] = torch.cat(parts)
    (tmp_path / "timm").mkdir()
    save_file({name: tensor.contiguous() for name, tensor in fused.items()}, tmp_path / "timm" / "model.safetensors")
    again = written.load(siglip=str(tmp_path / "timm"))
    pixels = adapter.prepare(picture())[None]
    assert torch.equal(again.engine.model.embed_images(pixels), adapter.engine.model.embed_images(pixels))


def test_random_weights_say_so(write: Callable[..., Written]) -> None:
    written = write()
    adapter = written.load(random_init=True, seed=3)
    assert adapter.info.untrained
    assert adapter.info.weights == "random:3"
    [[got]] = adapter.generate([ImageQuestions(adapter.prepare(picture()), (Question("Hi?", 2),))])
    assert got.n_tokens <= 2


@pytest.mark.slow
def test_cobra_runs_through_the_command(write: Callable[..., Written], tmp_path: Path) -> None:
    written = write()
    options = {name: value for name, value in written.options.items() if name != "device"}
    assert_sharing_changes_no_answer_file(f"cobra:{written.folder}", options, tmp_path)


class TestContract(AdapterContract):
    @pytest.fixture
    def adapter(self, write: Callable[..., Written]) -> Adapter:
        return write().load()
