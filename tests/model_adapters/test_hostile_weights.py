"""Whatever stands in place of a checkpoint's weights: every family says in a sentence which file, and what to do."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import vlmamba_eval.model_adapters.vlmamba
from tests.model_adapters import toy_vlms
from tests.model_adapters.cobra.test_cobra import write as write_cobra  # noqa: F401 - fixtures
from tests.model_adapters.mambavl.test_mambavl import write as write_mambavl  # noqa: F401
from tests.model_adapters.mlmamba.test_mlmamba import write as write_mlmamba  # noqa: F401
from tests.model_adapters.mmmamba import published as mmmamba
from tests.model_adapters.zamba2vl import published as zamba2vl
from tests.odd import readable
from vlmamba_eval.registry import load
from vlmamba_eval.types import ModelError

TINY = Path(vlmamba_eval.model_adapters.vlmamba.__file__).parent / "tiny"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def first_of(data: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The first tensor in nested dictionaries of tensors, and who holds it."""
    name, value = next(iter(data.items()))
    return first_of(value) if isinstance(value, dict) else (data, name)


def as_integers(path: Path) -> None:
    if path.suffix == ".safetensors":
        data = load_file(path)
        data |= {name: tensor.to(torch.int8) for name, tensor in data.items()}
        return save_file(data, path)
    data = torch.load(path, weights_only=True)
    holder, name = first_of(data.get("model", data))
    holder[name] = holder[name].to(torch.int8)
    torch.save(data, path)
    return None


def in_two_shards(path: Path) -> None:
    """The index names two files, and both hold everything."""
    weights = load_file(path)
    shards = [path.with_name(f"model-0000{i}-of-00002.safetensors") for i in (1, 2)]
    for shard in shards:
        shutil.copy(path, shard)
    path.unlink()
    index = {name: shards[i % 2].name for i, name in enumerate(weights)}
    path.with_name("model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def outside(path: Path) -> None:
    """The index names a file of another folder."""
    away = path.parent.parent / "away.safetensors"
    shutil.move(path, away)
    index = dict.fromkeys(load_file(away), "../away.safetensors")
    path.with_name("model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def replace_by_a_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


ATTACKS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut in the middle": (
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        "expected a (safetensors file|file of weights), found",
    ),
    "cut by a byte": (
        lambda path: path.write_bytes(path.read_bytes()[:-1]), "expected a (safetensors file|file of weights), found"
    ),
    "empty": (lambda path: path.write_bytes(b""), "found an empty file"),
    "git-lfs": (lambda path: path.write_bytes(LFS), "git lfs pull"),
    "integers": (as_integers, "is stored as (I8|int8), expected floating point numbers"),
    "a link to nothing": (replace_by_a_link, "a link to a file that is not there|found no file|expected .*safetensors"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "found a folder|expected .*safetensors"),
    "twice": (in_two_shards, "is here and in .* twice"),
    "outside": (outside, "names the file .* which is not in"),
}  # fmt: skip
SHARDED = ("twice", "outside")

BESIDE = ("adapter_model.safetensors", "optimizer.bin", "optimizer.pt", "scheduler.pt", "training_args.bin")
Made = tuple[Path, Callable[[], Any]]  # the file of the weights, and what loads them


def in_a_folder(family: str, write: Callable[[Path], object]) -> Callable[[Path, pytest.FixtureRequest], Made]:
    def made(folder: Path, _: pytest.FixtureRequest) -> Made:
        write(folder)
        if index := list(folder.glob("*.index.json")):
            index[0].unlink()
            shards = sorted(folder.glob("*.safetensors"))
            save_file({name: t for shard in shards for name, t in load_file(shard).items()}, folder / "all")
            for shard in shards:
                shard.unlink()
            (folder / "all").rename(folder / "model.safetensors")
        return folder / "model.safetensors", lambda: load(f"{family}:{folder}", {"device": "cpu"})

    return made


def by_its_fixture(fixture: str, weights: str, **how: Any) -> Callable[[Path, pytest.FixtureRequest], Made]:
    def made(folder: Path, request: pytest.FixtureRequest) -> Made:
        written = request.getfixturevalue(fixture)(**how)
        return written.folder / weights, written.load

    return made


FAMILIES = {
    "vlmamba": in_a_folder(
        "vlmamba", lambda folder: shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("training"))
    ),
    "zamba2vl": in_a_folder("zamba2vl", zamba2vl.write),
    "mmmamba": in_a_folder("mmmamba", lambda folder: mmmamba.write(folder, ["mha", "mamba2", "mha", "mamba2"])),
    "llava": in_a_folder("llava", lambda folder: (folder.mkdir(), toy_vlms.llava(folder))),
    "hf": in_a_folder("hf", lambda folder: (folder.mkdir(), toy_vlms.qwen2_5_vl(folder))),
    "cobra": by_its_fixture("write_cobra", "checkpoints/latest-checkpoint.pt"),
    "mlmamba": by_its_fixture("write_mlmamba", "latest-checkpoint.pt"),
    "mambavl": by_its_fixture("write_mambavl", "model.safetensors", safetensors=True),
    "mambavl, PyTorch's file": by_its_fixture("write_mambavl", "pytorch_model.bin"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_stands_in_place_of_the_weights_is_named(
    family: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    weights, load_it = FAMILIES[family](tmp_path / "made", request)
    folder, whole = weights.parent, tmp_path / "whole"
    shutil.copytree(folder, whole)
    taken = []
    for name, (attack, message) in ATTACKS.items():
        if name in SHARDED and weights.suffix != ".safetensors":
            continue
        attack(weights)
        try:
            load_it()
            taken.append(f"{name}: it was taken")
        except ModelError as error:
            readable(error)
            if not re.search(message, str(error)):
                taken.append(f"{name}: {error}")
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
    assert not taken, "\n".join(taken)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_trainers_leave_beside_the_weights_changes_nothing(
    family: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The identity of the weights is that of the files that are read."""
    weights, load_it = FAMILIES[family](tmp_path / "made", request)
    before = load_it().info.weights
    for name in BESIDE:
        (weights.parent / name).write_bytes(b"never read")
    assert load_it().info.weights == before


@pytest.mark.parametrize("family", ["cobra", "mlmamba", "mambavl, PyTorch's file"])
def test_the_file_format_before_pytorch_1_6_is_read(
    family: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    weights, load_it = FAMILIES[family](tmp_path / "made", request)
    torch.save(torch.load(weights, weights_only=True), weights, _use_new_zipfile_serialization=False)
    assert weights.read_bytes()[:2] != b"PK"
    load_it()


@pytest.mark.parametrize("family", ["llava", "hf"])
def test_an_adapter_that_transformers_would_add_is_refused(
    family: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Whether it is added depends on whether peft is installed."""
    weights, load_it = FAMILIES[family](tmp_path / "made", request)
    (weights.parent / "adapter_config.json").write_text('{"base_model_name_or_path": "another/model"}')
    with pytest.raises(ModelError, match="holds a LoRA adapter beside the model"):
        load_it()


@pytest.mark.parametrize("family", ["llava", "hf"])
@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("text_config", {"num_hidden_layers": 10**9}, "num_hidden_layers must be a whole number from 0 to 4,096"),
        ("text_config", {"intermediate_size": 10**11}, "its configuration asks for [0-9,]+ parameters, its files hold"),
        ("text_config", {"hidden_size": 0}, "transformers cannot load it|does not hold the parameters"),
        ("text_config", {"num_attention_heads": 0}, "integer.* modulo by zero"),
        ("vision_config", {"patch_size": 0}, "transformers cannot load it"),
        ("", {"text_config": [1]}, r"expected text_config to be an object, found \[1\]"),
        ("", {"model_type": ["llava"]}, "expected model_type to be the name of a model"),
    ],
)
def test_a_configuration_of_transformers_is_not_believed(
    family: str, part: str, changes: dict[str, Any], message: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    weights, load_it = FAMILIES[family](tmp_path / "made", request)
    path = weights.with_name("config.json")
    config = json.loads(path.read_text())
    (config[part] if part else config).update(changes)
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        load_it()
