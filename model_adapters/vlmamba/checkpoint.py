"""A VL-Mamba as a folder: everything that is needed, nothing pickled.

    config.json                     every choice (`config.ModelConfig`), with the provenance of the parameters
    model.safetensors               the parameters; sharded, with an index, if large
    tokenizer.json                  the tokenizer, as the `tokenizers` library keeps it
    tokenizer_config.json           for transformers' AutoTokenizer
    fingerprint.json                a cache of the parameters' hash; may be deleted

`config.json` is written last: a folder that has it is complete.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlmamba_eval.model_adapters.shared.fingerprint import of_files
from vlmamba_eval.model_adapters.shared.published import check_file, check_floats, open_tensors, shards
from vlmamba_eval.types import ModelError

from .config import MODEL_TYPE, ModelConfig, load_config, to_dict
from .making import filled
from .model import VLMamba, empty_model

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from .engine import Configured

_SHARD = "2GB"


# =============================================================================
# Writing
# =============================================================================


def save(folder: Path, parameters: Mapping[str, Tensor], config: ModelConfig, tokenizer: Tokenizer) -> None:
    """Write a checkpoint, in place of one that is already there.

    `parameters` are those of `VLMamba`, in any precision; they are stored as they are. `ModelError` if they do not
    fit `config`.
    """
    from huggingface_hub import save_torch_state_dict

    check_parameters({name: tuple(tensor.shape) for name, tensor in parameters.items()}, config, "the parameters")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as name:
        new = Path(name)
        save_torch_state_dict(dict(parameters), new, max_shard_size=_SHARD)
        tokenizer.save(str(new / "tokenizer.json"))
        (new / "tokenizer_config.json").write_text(_tokenizer_config(tokenizer, config), encoding="utf-8")
        (folder / "config.json").unlink(missing_ok=True)
        for old in [*folder.glob("model*.safetensors"), *folder.glob("model*.index.json")]:
            old.unlink()
        mode = (new / "tokenizer_config.json").stat().st_mode
        for path in sorted(new.iterdir()):
            path.chmod(mode)  # the safetensors library writes files that their owner alone can read
            os.replace(path, folder / path.name)
        data = {"model_type": MODEL_TYPE, "architectures": ["VLMambaForConditionalGeneration"], **to_dict(config)}
        (new / "config.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        os.replace(new / "config.json", folder / "config.json")


def _tokenizer_config(tokenizer: Tokenizer, config: ModelConfig) -> str:
    data = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": tokenizer.id_to_token(config.tokenizer.eos_token_id),
        "pad_token": tokenizer.id_to_token(config.tokenizer.pad_token_id),
        "clean_up_tokenization_spaces": False,
    }
    return json.dumps(data, indent=2) + "\n"


# =============================================================================
# Reading
# =============================================================================


def load(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[VLMamba, ModelConfig, Tokenizer]:
    """Read a checkpoint onto a device, in a given precision.

    The files are mapped, not read: one tensor at a time is converted, so that two whole copies never exist.
    `ModelError` names what is missing, unexpected or of another shape.
    """
    config = load_config(folder)
    tokenizer = load_tokenizer(folder / "tokenizer.json", config)
    model = empty_model(config, dtype)
    with contextlib.ExitStack() as files:
        tensors = open_tensors(weight_files(folder), files)
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name, file in tensors.items()}
        check_parameters(shapes, config, str(folder), model)
        check_floats(tensors, str(folder))
        filled(model, ((name, file.get_tensor(name)) for name, file in tensors.items()), torch.device(device), dtype)
    return model, config, tokenizer


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, in order."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        single = folder / "model.safetensors"
        if not single.is_file():
            raise ModelError(f"{folder}: expected model.safetensors or model.safetensors.index.json, found neither")
        return [single]
    return shards(index)


def check_parameters(
    shapes: Mapping[str, tuple[int, ...]], config: ModelConfig, where: str, model: VLMamba | None = None
) -> None:
    """`ModelError` unless names and shapes are exactly those of the configured model."""
    expected = {name: tuple(tensor.shape) for name, tensor in (model or empty_model(config)).state_dict().items()}
    check_shapes(shapes, expected, where)


def check_shapes(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], where: str) -> None:
    """`ModelError` unless two sets of named shapes are equal; it lists the differences."""
    wrong = [
        f"{name}: expected {list(expected[name])}, found {list(found[name])}"
        for name in sorted(set(expected) & set(found))
        if expected[name] != found[name]
    ]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        for what, names in (
            ("missing", sorted(set(expected) - set(found))),
            ("unexpected", sorted(set(found) - set(expected))),
            ("of another shape", wrong),
        )
        if names
    ]
    if problems:
        raise ModelError(f"{where} does not hold the parameters of its configuration; " + "; ".join(problems))


def load_tokenizer(path: Path, config: Configured) -> Tokenizer:
    """Read a tokenizer.json and check it against the configuration."""
    from tokenizers import Tokenizer

    if not path.is_file():
        raise ModelError(f"{path} is missing: a checkpoint holds its tokenizer")
    check_file(path)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise ModelError(f"{path}: expected a tokenizer of the `tokenizers` library, found: {error}") from error
    check_tokenizer(tokenizer, config, str(path))
    return tokenizer


def check_tokenizer(tokenizer: Tokenizer, config: Configured, where: str) -> None:
    """`ModelError` unless the end mark has its id and every id has an embedding."""
    from vlmamba_eval.model_adapters.shared.template import END

    eos, rows = config.tokenizer.eos_token_id, config.language_model.padded_vocab_size
    if tokenizer.token_to_id(END) != eos:
        raise ModelError(f"{where}: expected {END} to have the id {eos}, found {tokenizer.token_to_id(END)}")
    if tokenizer.get_vocab_size() > rows:
        raise ModelError(f"{where}: has {tokenizer.get_vocab_size()} tokens, but the model embeds {rows}")


# =============================================================================
# Identity
# =============================================================================


def fingerprint(folder: Path) -> str:
    """`sha256:...` of the parameters' files."""
    files = weight_files(folder)
    for path in files:
        check_file(path)
    return of_files(files, folder / "fingerprint.json")
