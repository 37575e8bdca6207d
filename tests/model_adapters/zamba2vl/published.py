"""A small random Zamba2-VL folder in the published layout; its weights are those of transformers' own parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing

import vlmamba_eval.model_adapters.vlmamba

TINY = Path(vlmamba_eval.model_adapters.vlmamba.__file__).parent / "tiny"
SPECIAL = ["<s>", "</s>", "<image>", "<|vision_start|>", "<|vision_end|>"]
TEMPLATE = (
    "{% for message in messages %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><image><|vision_end|>\n{% endif %}{% endfor %}"
    "<s>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "</s>\n{% endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def text_config(vocab_size: int) -> dict[str, Any]:
    """Five layers, shared blocks before the second, third and fifth: two blocks, so that one stands twice."""
    return {
        "model_type": "zamba2",
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "num_hidden_layers": 5,
        "layers_block_type": ["mamba", "hybrid", "hybrid", "mamba", "hybrid"],
        "mamba_d_state": 16,
        "mamba_ngroups": 2,
        "n_mamba_heads": 8,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_mem_blocks": 2,
        "use_shared_attention_adapter": True,
        "adapter_rank": 4,
        "use_mem_rope": True,
        "rope_theta": 10000,
        "chunk_size": 16,
        "pad_token_id": 0,
        "bos_token_id": vocab_size - 5,
        "eos_token_id": vocab_size - 4,
    }


VISION = {
    "depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 32, "patch_size": 14,
    "in_chans": 3, "spatial_merge_size": 2, "temporal_patch_size": 1, "window_size": 56, "fullatt_block_indexes": [1],
}  # fmt: skip


def parts(vocab_size: int) -> tuple[Any, Any]:
    """transformers' language model and vision tower with random weights, nothing at its initial constant."""
    from transformers import Zamba2Config, Zamba2ForCausalLM
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

    torch.manual_seed(0)
    settings = {key: value for key, value in text_config(vocab_size).items() if key != "model_type"}
    language_model = Zamba2ForCausalLM(Zamba2Config(**settings)).eval()
    tower = Qwen2_5_VisionTransformerPretrainedModel(Qwen2_5_VLVisionConfig(**VISION)).eval()
    with torch.no_grad():
        for module in (language_model, tower):
            for name, parameter in module.named_parameters():
                if parameter.ndim > 1:
                    parameter.mul_(8 if "embed_tokens" in name else 30 if "mamba.out_proj" in name else 10)
                elif not name.endswith(("A_log", "dt_bias")):
                    parameter.add_(0.2 * torch.randn_like(parameter))
    layers: Any = language_model.model.layers
    for layer in layers:
        mixer = layer.mamba if hasattr(layer, "mamba") else layer.mamba_decoder.mamba
        mixer.time_step_limit = (0.0, float("inf"))  # as the published models' own code
    return language_model.requires_grad_(False), tower.requires_grad_(False)


def tokenizer() -> Tokenizer:
    made = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    made.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    start = made.token_to_id("<s>")
    made.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)])
    return made


def write(folder: Path) -> tuple[Any, Any]:
    """The folder; returns transformers' parts, whose weights it holds."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = tokenizer()
    vocab_size = texts.get_vocab_size()
    language_model, tower = parts(vocab_size)
    texts.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    config = {
        "model_type": "zamba2_vl",
        "architectures": ["Zamba2_VLForConditionalGeneration"],
        "image_token_index": texts.token_to_id("<image>"),
        "projector_hidden_act": "gelu",
        "text_config": text_config(vocab_size),
        "vision_config": {**VISION, "model_type": "qwen2_5_vl"},
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors, seen = {}, set()
    for name, tensor in language_model.state_dict().items():  # tied tensors are stored once
        if tensor.data_ptr() not in seen and name != "lm_head.weight":
            tensors[f"language_model.{name}"] = tensor.clone()
        seen.add(tensor.data_ptr())
    tensors |= {f"vision_tower.{name}": tensor for name, tensor in tower.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    return language_model, tower
