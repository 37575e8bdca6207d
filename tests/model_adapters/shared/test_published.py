"""Files of weights in every dress that trainers give them, and files that are none."""

from __future__ import annotations

import os
import pickle
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from vlmamba_eval.model_adapters.shared.configuration import read_json
from vlmamba_eval.model_adapters.shared.published import tensors, weight_files
from vlmamba_eval.types import ModelError

BARE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}


def read(*paths: Path) -> dict[str, Tensor]:
    with ExitStack() as files:
        return {name: tensor.clone() for name, tensor in tensors(list(paths), files)}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "dress",
    [
        lambda t: t,
        lambda t: {"model": t, "epoch": 3},
        lambda t: {"state_dict": t, "optimizer": {"state": {0: {"exp_avg": torch.ones(4)}}}},
        lambda t: {"model": {"state_dict": t}},
        lambda t: {f"module.{name}": tensor for name, tensor in t.items()},
        lambda t: {"model": {f"module._orig_mod.{name}": tensor for name, tensor in t.items()}},
        lambda t: {"model_state_dict": t, "args": {"lr": 1e-3}},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_trainers_wrapper_is_taken_off(tmp_path: Path, dress: Any, zipped: bool) -> None:
    torch.save(dress(BARE), tmp_path / "w.bin", _use_new_zipfile_serialization=zipped)
    assert same(read(tmp_path / "w.bin"), BARE)


def test_nested_parts_are_named_by_their_path(tmp_path: Path) -> None:
    torch.save({"model": {"projector": {"0.weight": BARE["b"]}, "llm": {"a": {"c": BARE["b"]}}}}, tmp_path / "w.pt")
    assert list(read(tmp_path / "w.pt")) == ["projector.0.weight", "llm.a.c"]


@pytest.mark.parametrize("data", [{"epoch": 1}, [torch.ones(2)], "text", {}, {"model": {"lr": 0.1}}])
def test_what_holds_no_tensors_is_refused(tmp_path: Path, data: Any) -> None:
    torch.save(data, tmp_path / "w.bin")
    with pytest.raises(ModelError, match=r"w\.bin: expected a dictionary of tensors, bare or under 'model'"):
        read(tmp_path / "w.bin")


def test_a_dictionary_inside_a_dictionary_without_end_is_refused(tmp_path: Path) -> None:
    data: Any = torch.ones(1)
    for _ in range(30):
        data = {"x": data}
    torch.save(data, tmp_path / "w.bin")
    with pytest.raises(ModelError, match="nested too deeply"):
        read(tmp_path / "w.bin")


class _Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("write", [torch.save, lambda data, path: path.write_bytes(pickle.dumps(data, 2))])
def test_a_file_that_wants_code_is_not_opened_and_nobody_is_told_to_allow_it(tmp_path: Path, write: Any) -> None:
    write({"model": _Trap(tmp_path / "ran")}, tmp_path / "w.bin")
    with pytest.raises(ModelError, match=r"holds more than weights \(it asks for (posix|nt)\.mkdir\)") as caught:
        read(tmp_path / "w.bin")
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["w.bin", "w.safetensors"])
def test_every_cut_of_a_file_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    save_file(BARE, path) if name.endswith("safetensors") else torch.save(BARE, path)
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(ModelError, match=r"w\.\w+: expected"):
            read(path)


def test_a_git_lfs_pointer_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ModelError, match="git lfs pull"):
        read(tmp_path / "w.bin")
    (tmp_path / "config.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ModelError, match="git lfs pull"):
        read_json(tmp_path / "config.json")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.safetensors")
    (tmp_path / "gone.bin").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="found no ordinary file"):
        read(tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="found no ordinary file"):
        read_json(tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="a link to a file that is not there"):
        read(tmp_path / "gone.bin")


def test_a_parameter_that_comes_twice_is_refused(tmp_path: Path) -> None:
    for name in ("model-1.safetensors", "model-2.safetensors"):
        save_file(BARE, tmp_path / name)
    with pytest.raises(ModelError, match=r"the parameter a\.weight is here and in model-1\.safetensors twice"):
        read(*weight_files(tmp_path))


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(b"x")


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (
            ["adapter_model.safetensors", "optimizer.bin", "training_args.bin", "pytorch_model.bin"],
            ["pytorch_model.bin"],
        ),
        (["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "scheduler.pt"], None),
        (["latest-checkpoint.pt", "optimizer.pt"], ["latest-checkpoint.pt"]),
    ],
)
def test_the_weights_are_found_among_what_trainers_leave(
    tmp_path: Path, there: list[str], taken: list[str] | None
) -> None:
    put(tmp_path, *there)
    assert [path.name for path in weight_files(tmp_path)] == (taken or there[:2])


def test_an_adapter_alone_is_no_model(tmp_path: Path) -> None:
    put(tmp_path, "adapter_model.safetensors", "adapter_config.json")
    with pytest.raises(ModelError, match=r"holds a LoRA adapter .* merge it into its base"):
        weight_files(tmp_path)


def test_an_index_names_files_beside_it_alone(tmp_path: Path) -> None:
    put(tmp_path, "a.bin")
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text('{"weight_map": {"x": "a.bin", "y": "a.bin"}}')
    assert weight_files(tmp_path) == [tmp_path / "a.bin"]
    for wrong in ('{"x": "../a.bin"}', '{"x": "/etc/passwd"}', '{"x": 5}', "[]", "{}", '{"x": "b.bin"}'):
        index.write_text(f'{{"weight_map": {wrong}}}')
        with pytest.raises(ModelError, match=r"index\.json"):
            weight_files(tmp_path)


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_file_with_any_bytes_changed_is_read_or_refused_in_words(tmp_path: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["w.safetensors", "zip.bin", "old.bin"]))
    path = tmp_path / name
    if name == "w.safetensors":
        save_file(BARE, path)
    else:
        torch.save({"model": BARE}, path, _use_new_zipfile_serialization=name == "zip.bin")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    found, message = {}, str(path)
    try:
        found = read(path)
    except ModelError as error:
        message = str(error)
    assert str(path) in message
    assert all(isinstance(tensor, Tensor) for tensor in found.values())
