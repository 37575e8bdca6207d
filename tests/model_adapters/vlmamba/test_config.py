from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmamba_eval.model_adapters.vlmamba.config import PRESETS, ModelConfig, from_dict, load_config, to_dict
from vlmamba_eval.types import ModelError


@pytest.mark.parametrize("config", PRESETS.values(), ids=list(PRESETS))
def test_a_configuration_survives_json(config: ModelConfig) -> None:
    assert from_dict(json.loads(json.dumps(to_dict(config))), "config.json") == config


def test_the_paper_models_have_the_published_numbers_of_tokens() -> None:
    assert PRESETS["vlmamba-2.8b"].vision.image_tokens == 729
    assert PRESETS["vlmamba-2.8b-clip-mlp"].vision.image_tokens == 576


def test_the_scan_runs_at_the_width_that_the_equations_force() -> None:
    assert PRESETS["vlmamba-2.8b"].scan_width == 2560
    assert PRESETS["vlmamba-2.8b-vss-mlp"].scan_width == 1152
    assert PRESETS["vlmamba-2.8b-mlp"].scan_width is None


def _with(path: str, value: Any) -> dict[str, Any]:
    data = to_dict(PRESETS["vlmamba-tiny"])
    *parents, last = path.split(".")
    at = data
    for parent in parents:
        at = at[parent]
    at[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("vision.width", 5, "unknown: width"),
        ("vision.kind", "dino", "vision.kind must be one of 'siglip', 'clip', found 'dino'"),
        ("vision.image_size", "96", "vision.image_size must be int, found '96'"),
        ("vision.image_size", 4, "must hold a patch"),
        ("vision.feature_layer", -9, "feature_layer must lie between -7 and 6, found -9"),
        ("vision.patch_size", 0, "config.json: vision.patch_size must be at least 1, found 0"),
        ("vision.num_attention_heads", 0, "config.json: vision.num_attention_heads must be at least 1, found 0"),
        ("vision.num_hidden_layers", 10**9, "config.json: vision.num_hidden_layers must be at most 1,024, found 1000"),
        ("language_model.n_layer", 10**9, "language_model.n_layer must be at most 1,024"),
        pytest.param("language_model.d_model", 10**5000, "d_model must be at most 65,536, found int", id="digits"),
        ("language_model.norm_eps", 0.0, "language_model.norm_eps must be more than 0"),
        ("vision.kind", [["siglip"]], "vision.kind must be one of"),
        ("preprocessing.mean", [0.5, 0.5], "preprocessing.mean must be"),
        ("connector.norm_eps", True, "connector.norm_eps must be float"),
        ("language_model", None, "language_model must be an object"),
        ("format", "llava", "expected a VL-Mamba configuration"),
    ],
)
def test_a_wrong_field_is_named(path: str, value: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        from_dict(_with(path, value), "config.json")


def test_a_missing_field_is_named_with_its_file() -> None:
    data = to_dict(PRESETS["vlmamba-tiny"])
    del data["connector"]["merge"]
    with pytest.raises(ModelError, match=r"some/config\.json.* of connector differ.*missing: merge"):
        from_dict(data, "some/config.json")


def test_a_folder_without_a_readable_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="expected JSON"):
        load_config(tmp_path)


def test_configurations_and_templates_need_no_torch() -> None:
    code = (
        "import sys, vlmamba_eval.registry, vlmamba_eval.model_adapters.vlmamba.config;"
        "import vlmamba_eval.model_adapters.shared.template;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'pandas')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def leaves(data: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(data, dict):
        return [path]
    return [path, *(leaf for key, value in data.items() for leaf in leaves(value, (*path, key)))]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.data(), JSON)
def test_any_value_anywhere_is_read_or_named(data: st.DataObject, value: Any) -> None:
    """An odd configuration is never another error, and what is read can be built without memory or much time."""
    config = to_dict(PRESETS["vlmamba-tiny"])
    path = data.draw(st.sampled_from([leaf for leaf in leaves(config) if leaf]))
    at = config
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    read, message = PRESETS["vlmamba-tiny"], "config.json"
    try:
        read = from_dict(config, "config.json")
    except ModelError as error:
        message = str(error)
    assert "config.json" in message
    assert read.language_model.n_layer <= 1024
    assert read.vision.image_tokens > 0
