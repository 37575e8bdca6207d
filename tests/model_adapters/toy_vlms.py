"""Random vision-language models of a few thousand parameters, saved as checkpoints of transformers.

Every one has the shape of a real family, its own small tokenizer and its family's processor; nothing is fetched. Output
layers are scaled up, so that the likeliest token leads by more than rounding.
"""

# transformers does not type what its configurations take.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from vlmamba_eval.model_adapters.shared.pretrained import output_head

WORDS = [
    "A chat between a curious user and an artificial intelligence assistant.",
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    "USER: What colour is the shape? ASSISTANT: red",
    "Answer the question using a single word or phrase.",
    "Answer with the option's letter from the given choices directly. A. one B. two C. three",
    "Is there a circle left of the square? yes no blue green",
]
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{% if c.type == 'image' %}IMAGE_MARK{% else %}{{ c.text }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}


def picture(seed: int = 0, size: tuple[int, int] = (60, 40)) -> Image.Image:
    """Noise in blocks."""
    noise = torch.randint(0, 256, (5, 7, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(noise.numpy()).resize(size, Image.Resampling.NEAREST)


def llama_like_tokenizer(extra: list[str]) -> PreTrainedTokenizerFast:
    """A tokenizer built like LLaMA's: `<s>` in front, `▁` for spaces and before the first word, bytes for the rest."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>"]
    special += [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special)
    tokenizer.train_from_iterator(WORDS, trainer)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )
    made.add_special_tokens({"additional_special_tokens": extra})
    return made


def gpt_like_tokenizer(extra: list[str], **marks: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE, as Qwen's and SmolLM's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *extra]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", extra_special_tokens=marks
    )


def _sharpen(model: Any) -> Any:
    """Weights large enough that attention and the image matter, and a clear likeliest token."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.6 / parameter[0].numel() ** 0.5 * (4 if "embed_tokens" in name else 2))
        output_head(model).weight.mul_(3)
    return model.float().eval()


def _save(folder: Path, model: Any, processor: Any) -> Path:
    model = _sharpen(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


# =============================================================================
# Families
# =============================================================================


def llava(folder: Path, *, image_size: int = 28, head_rows: int = 64, language: str = "llama", **settings: Any) -> Path:
    """LLaVA-1.5: CLIP and LLaMA, or another language model with `settings` of its own.

    The head has `head_rows` more rows than the tokenizer has tokens, as the converters leave.
    """
    tokenizer = llama_like_tokenizer(["<image>"])
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION, image_size=image_size, patch_size=7, projection_dim=16),
        text_config={**TEXT, "model_type": language, "vocab_size": len(tokenizer) + head_rows, **settings},
        image_token_id=image,
        image_token_index=image,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(image_size // 7) ** 2,
    )
    processor = transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessorPil(
            size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
        ),
        tokenizer=tokenizer,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=(
            "{% for m in messages %}{% if m.role == 'user' %}USER: {% for c in m.content %}{% if c.type == 'image' %}"
            "<image>\n{% else %}{{ c.text }}{% endif %}{% endfor %} {% else %}ASSISTANT: {{ m.content[0].text }}"
            "{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
        ),
    )
    return _save(folder, transformers.LlavaForConditionalGeneration(config), processor)


def llava_next(folder: Path, *, image_size: int = 28) -> Path:
    """LLaVA-1.6: tiles; a picture's size decides how many tokens it takes."""
    tokenizer = llama_like_tokenizer(["<image>"])
    image = tokenizer.convert_tokens_to_ids("<image>")
    points = [[image_size, 2 * image_size], [2 * image_size, image_size], [2 * image_size, 2 * image_size]]
    config = transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION, image_size=image_size, patch_size=7, projection_dim=16),
        text_config={**TEXT, "model_type": "llama", "vocab_size": len(tokenizer) + 8},
        image_token_id=image,
        image_token_index=image,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_grid_pinpoints=points,
        image_seq_length=(image_size // 7) ** 2,
    )
    processor = transformers.LlavaNextProcessor(
        image_processor=transformers.LlavaNextImageProcessorPil(
            size={"shortest_edge": image_size},
            crop_size={"height": image_size, "width": image_size},
            image_grid_pinpoints=points,
        ),
        tokenizer=tokenizer,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=(
            "{% for m in messages %}[INST] {% for c in m.content %}{% if c.type == 'image' %}<image>\n{% else %}"
            "{{ c.text }}{% endif %}{% endfor %} [/INST]{% endfor %}"
        ),
    )
    return _save(folder, transformers.LlavaNextForConditionalGeneration(config), processor)


def _hub_layout(
    folder: Path, model: Any, tokenizer: Any, image_processor: Any, processor: dict[str, Any], chat: str
) -> Path:
    """A folder as it lies on the hub, for processors that can't be made without torchvision's video processor."""
    folder.mkdir(parents=True, exist_ok=True)
    _sharpen(model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor.save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    if chat:
        (folder / "chat_template.jinja").write_text(chat, encoding="utf-8")
    return folder


def qwen2_5_vl(folder: Path) -> Path:
    """Qwen2.5-VL: positions in three dimensions, pictures of any size."""
    marks = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = gpt_like_tokenizer(marks)
    ids = dict(zip(("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id"),
                   tokenizer.convert_tokens_to_ids(marks), strict=True))  # fmt: skip
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            **TEXT,
            "vocab_size": len(tokenizer) + 8,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
        },
        vision_config={
            "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32,
            "patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1],
        },
        **ids,
    )  # fmt: skip
    image_processor = transformers.Qwen2VLImageProcessorPil(
        size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 12},
        patch_size=14,
        merge_size=2,
        temporal_patch_size=2,
    )
    chat = CHATML.replace("IMAGE_MARK", "<|vision_start|><|image_pad|><|vision_end|>")
    model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    return _hub_layout(folder, model, tokenizer, image_processor, {"processor_class": "Qwen2_5_VLProcessor"}, chat)


def qwen3_vl(folder: Path) -> Path:
    """Qwen3-VL: features of several layers of the tower enter several layers of the language model."""
    marks = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = gpt_like_tokenizer(marks)
    ids = dict(zip(("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id"),
                   tokenizer.convert_tokens_to_ids(marks), strict=True))  # fmt: skip
    config = transformers.Qwen3VLConfig(
        text_config={
            **TEXT,
            "vocab_size": len(tokenizer) + 8,
            "head_dim": 8,
            "rope_parameters": {
                "rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True, "rope_theta": 10000.0,
            },
        },
        vision_config={
            "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32,
            "patch_size": 16, "deepstack_visual_indexes": [0], "num_position_embeddings": 16,
        },
        **ids,
    )  # fmt: skip
    image_processor = transformers.Qwen2VLImageProcessorPil(
        size={"shortest_edge": 32 * 32, "longest_edge": 32 * 32 * 8}, patch_size=16, merge_size=2, temporal_patch_size=2
    )
    chat = CHATML.replace("IMAGE_MARK", "<|vision_start|><|image_pad|><|vision_end|>")
    model = transformers.Qwen3VLForConditionalGeneration(config)
    return _hub_layout(folder, model, tokenizer, image_processor, {"processor_class": "Qwen3VLProcessor"}, chat)


def internvl(folder: Path) -> Path:
    """InternVL: tiles, pixel shuffle."""
    marks = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }  # fmt: skip
    tokenizer = gpt_like_tokenizer(list(marks.values()), **marks)
    config = transformers.InternVLConfig(
        text_config={**TEXT, "model_type": "qwen2", "vocab_size": len(tokenizer) + 8},
        vision_config={**VISION, "image_size": [28, 28], "patch_size": [7, 7]},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    image_processor = transformers.GotOcr2ImageProcessorPil(
        size={"height": 28, "width": 28}, crop_to_patches=True, min_patches=1, max_patches=4
    )
    settings = {"processor_class": "InternVLProcessor", "image_seq_length": 4}
    chat = CHATML.replace("IMAGE_MARK", "<IMG_CONTEXT>\n")
    model = transformers.InternVLForConditionalGeneration(config)
    return _hub_layout(folder, model, tokenizer, image_processor, settings, chat)


def paligemma(folder: Path) -> Path:
    """PaliGemma: the image sees the question, so that nothing can be shared; no chat template."""
    tokenizer = llama_like_tokenizer(["<image>"])
    config = transformers.PaliGemmaConfig(
        text_config={**TEXT, "model_type": "gemma", "head_dim": 8, "vocab_size": len(tokenizer) + 1200},
        vision_config={**VISION, "model_type": "siglip_vision_model", "image_size": 28, "patch_size": 7},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=32,
        hidden_size=32,
    )
    image_processor = transformers.SiglipImageProcessorPil(size={"height": 28, "width": 28})
    image_processor.image_seq_length = 16
    model = transformers.PaliGemmaForConditionalGeneration(config)
    return _hub_layout(folder, model, tokenizer, image_processor, {"processor_class": "PaliGemmaProcessor"}, "")


def idefics3(folder: Path) -> Path:
    """Idefics3: a grid of tiles with marks between them."""
    marks = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
    rows = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokenizer = gpt_like_tokenizer(marks + rows)
    config = transformers.Idefics3Config(
        text_config={**TEXT, "model_type": "llama", "vocab_size": len(tokenizer) + 8, "pad_token_id": 0},
        vision_config={**VISION, "image_size": 32, "patch_size": 8},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    image_processor = transformers.Idefics3ImageProcessorPil(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 32}, do_image_splitting=True
    )
    processor = transformers.Idefics3Processor(
        image_processor, tokenizer, image_seq_len=4, chat_template=CHATML.replace("IMAGE_MARK", "<image>")
    )
    return _save(folder, transformers.Idefics3ForConditionalGeneration(config), processor)


def nemotron_h_omni() -> tuple[Any, Any]:
    """Nemotron-H Omni, model and processor: RADIO, then Mamba-2 with attention between.

    Not a folder: transformers has its image processor for torchvision alone. Here Pillow makes the same inputs.
    """
    from transformers.models.nemotron_h_omni.processing_nemotron_h_omni import NemotronH_Omni_Reasoning_V3Processor

    marks = ["<img>", "</img>", "<image>", "<video>", "<so_embedding>"]
    tokenizer = gpt_like_tokenizer(marks)
    config = transformers.NemotronH_Omni_Reasoning_V3_Config(
        vision_config={
            "model_type": "radio", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 7,
            "image_size": 28, "max_img_size": 56, "num_cls_tokens": 1, "num_registers": 1,
            "video_temporal_patch_size": 2,
        },
        text_config={
            "model_type": "nemotron_h", "vocab_size": len(tokenizer) + 8, "hidden_size": 32, "intermediate_size": 48,
            "layers_block_type": ["mamba", "mlp", "attention", "mamba", "mlp"], "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 8, "ssm_state_size": 8, "mamba_num_heads": 4, "mamba_head_dim": 16,
            "n_groups": 1, "chunk_size": 8, "eos_token_id": tokenizer.eos_token_id,
        },
        vision_hidden_size=16,
        projector_hidden_size=24,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        audio_token_id=tokenizer.convert_tokens_to_ids("<so_embedding>"),
    )  # fmt: skip

    class Patches:
        """Pictures of 28 x 28 as 4 x 4 patches."""

        downsample_ratio = 0.5

        def __call__(self, images: list[Image.Image], **_: Any) -> dict[str, torch.Tensor]:
            made = [torch.tensor(list(image.resize((28, 28)).tobytes())).view(4, 7, 4, 7, 3) / 255 for image in images]
            rows = [each.permute(0, 2, 4, 1, 3).reshape(16, 147) for each in made]
            return {"pixel_values": torch.cat(rows), "image_grid_hw": torch.tensor([[4, 4]] * len(images))}

        def to_dict(self) -> dict[str, Any]:
            return {"image_processor_type": "Patches"}

    class Pictures(NemotronH_Omni_Reasoning_V3Processor):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return None

    processor = Pictures(Patches(), None, tokenizer, None, chat_template=CHATML.replace("IMAGE_MARK", "<image>\n"))
    return _sharpen(transformers.NemotronH_Omni_Reasoning_V3(config)), processor
