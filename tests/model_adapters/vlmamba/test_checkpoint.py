from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from vlmamba_eval.model_adapters.shared import fingerprint
from vlmamba_eval.model_adapters.vlmamba import checkpoint
from vlmamba_eval.model_adapters.vlmamba.assemble import draw
from vlmamba_eval.model_adapters.vlmamba.config import ModelConfig
from vlmamba_eval.model_adapters.vlmamba.model import random_model
from vlmamba_eval.types import ModelError


@pytest.fixture
def folder(tmp_path: Path, micro: ModelConfig, tokenizer: Tokenizer) -> Path:
    return draw(micro, tokenizer, tmp_path / "model", seed=3)


def test_a_checkpoint_comes_back_as_it_was(folder: Path, micro: ModelConfig) -> None:
    model, config, _ = checkpoint.load(folder)
    expected = random_model(micro, 3).state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert config.provenance.untrained == ("vision", "connector", "language_model")
    assert not [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(model.embed_images(pixels), random_model(micro, 3).embed_images(pixels))


def test_a_large_checkpoint_is_split_and_read_alike(
    tmp_path: Path, micro: ModelConfig, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_SHARD", "100KB")
    folder = draw(micro, tokenizer, tmp_path / "model", seed=3)
    assert len(checkpoint.weight_files(folder)) > 2
    assert not (folder / "model.safetensors").exists()
    model, _, _ = checkpoint.load(folder)
    expected = random_model(micro, 3).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    checkpoint.weight_files(folder)[1].unlink()
    with pytest.raises(ModelError, match="which is not in"):
        checkpoint.load(folder)


def test_saving_over_a_split_checkpoint_leaves_no_old_file(
    tmp_path: Path, micro: ModelConfig, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_SHARD", "100KB")
        draw(micro, tokenizer, tmp_path, seed=3)
    draw(micro, tokenizer, tmp_path, seed=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_precision_is_converted_but_not_where_the_recurrence_needs_it(folder: Path) -> None:
    model, _, _ = checkpoint.load(folder, dtype=torch.bfloat16)
    kept = {name for name, tensor in model.named_parameters() if tensor.dtype == torch.float32}
    assert kept
    assert all(name.endswith((".A_log", ".D", ".dt_proj.bias")) for name in kept)


def test_storage_may_be_of_lower_precision(tmp_path: Path, micro: ModelConfig, tokenizer: Tokenizer) -> None:
    draw(micro, tokenizer, tmp_path, dtype=torch.float16)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}
    model, _, _ = checkpoint.load(tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_differences_from_the_configuration_are_listed(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["connector.extra"] = torch.zeros(1)
    del tensors["connector.linear_in.bias"]
    tensors["connector.linear_out.bias"] = torch.zeros(5)
    save_file(tensors, path)
    with pytest.raises(ModelError) as caught:
        checkpoint.load(folder)
    message = str(caught.value)
    assert "1 missing: connector.linear_in.bias" in message
    assert "1 unexpected: connector.extra" in message
    assert "1 of another shape: connector.linear_out.bias: expected [48], found [5]" in message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", b"\x80\x04no weights", "expected a safetensors file"),
        ("model.safetensors.index.json", b"[]", "expected a JSON object"),
        ("model.safetensors.index.json", b"{}", "expected an index with a weight_map"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        ("model.safetensors", b"", "found an empty file"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "../../etc/passwd"}}', "which is not in"),
        ("tokenizer.json", b"{}", "expected a tokenizer"),
        ("config.json", b"nonsense", "expected JSON"),
        ("config.json", b"[" * 100_000, "nested too deeply"),
        ("config.json", b'{"a": ' + b"9" * 5000 + b"}", "expected JSON"),
    ],
)
def test_a_damaged_file_is_named(folder: Path, name: str, content: bytes, message: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        checkpoint.load(folder)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelError, match=name):
        checkpoint.load(folder)


def test_whole_numbers_are_no_parameters(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["connector.linear_in.bias"] = tensors["connector.linear_in.bias"].to(torch.int8)
    save_file(tensors, path)
    with pytest.raises(ModelError, match=r"connector\.linear_in\.bias is stored as I8, expected floating point"):
        checkpoint.load(folder)


def test_a_file_that_is_cut_short_is_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for size in (4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ModelError, match=r"model\.safetensors: expected a safetensors file"):
            checkpoint.load(folder)


def test_a_kept_fingerprint_is_never_written_through_a_link(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "_CACHE_FROM", 1)
    (tmp_path / "precious").write_text("mine")
    (folder / "fingerprint.json").symlink_to(tmp_path / "precious")
    found = checkpoint.fingerprint(folder)
    assert (tmp_path / "precious").read_text() == "mine"
    assert json.loads((folder / "fingerprint.json").read_text())["fingerprint"] == found


def test_a_tokenizer_of_another_model_is_refused(folder: Path, tokenizer: Tokenizer) -> None:
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["id"] != 0]
    data["model"]["vocab"]["<|end|>"] = data["model"]["vocab"].pop("<|endoftext|>")
    (folder / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(ModelError, match="to have the id 0"):
        checkpoint.load(folder)


def test_the_fingerprint_follows_the_content(
    folder: Path, tmp_path: Path, micro: ModelConfig, tokenizer: Tokenizer
) -> None:
    same = draw(micro, tokenizer, tmp_path / "same", seed=3)
    other = draw(micro, tokenizer, tmp_path / "other", seed=4)
    assert checkpoint.fingerprint(folder) == checkpoint.fingerprint(same)
    assert checkpoint.fingerprint(folder) != checkpoint.fingerprint(other)
    assert not (folder / "fingerprint.json").exists()


def test_the_fingerprint_of_large_files_is_kept_until_they_change(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "_CACHE_FROM", 1)
    first = checkpoint.fingerprint(folder)
    assert (folder / "fingerprint.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr(fingerprint, "_sha256", lambda path: pytest.fail("was hashed again"))
        assert checkpoint.fingerprint(folder) == first
    tensors = load_file(folder / "model.safetensors")
    tensors["connector.linear_in.bias"] += 1
    save_file(tensors, folder / "model.safetensors")
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert checkpoint.fingerprint(folder) != first


def test_a_checkpoint_without_a_writable_folder_still_has_a_fingerprint(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "_CACHE_FROM", 1)
    expected = checkpoint.fingerprint(folder)
    (folder / "fingerprint.json").unlink()
    (folder / "fingerprint.json").mkdir()
    assert checkpoint.fingerprint(folder) == expected


def test_transformers_reads_the_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    text = "Is it red?<|endoftext|>"
    assert theirs(text)["input_ids"] == tokenizer.encode(text).ids
    assert (theirs.eos_token_id, theirs.pad_token_id) == (0, 1)
