"""Random vision-language models of a few thousand parameters, saved as checkpoints of transformers.

Every one has the shape of a real family, its own small tokenizer and its family's processor; nothing is fetched. Output
layers are scaled up, so that the likeliest token leads by more than rounding.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

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
    "{% for c in m.content %}{% if c.type == 'image' %}IMAGE_MARK{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
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
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))])
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
        head = model.get_output_embeddings()
        head.weight.mul_(3)
    return model.float().eval()


def _save(folder: Path, model: Any, processor: Any) -> Path:
    model = _sharpen(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


# =============================================================================
# Families
# =============================================================================


def llava(folder: Path, *, image_size: int = 28, head_rows: int = 64) -> Path:
    """LLaVA-1.5: CLIP and LLaMA. `head_rows` more rows than the tokenizer has tokens, as the converters leave."""
    tokenizer = llama_like_tokenizer(["<image>"])
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION, image_size=image_size, patch_size=7, projection_dim=16),
        text_config=transformers.LlamaConfig(**TEXT, vocab_size=len(tokenizer) + head_rows, bos_token_id=1, eos_token_id=2),
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
        text_config=transformers.LlamaConfig(**TEXT, vocab_size=len(tokenizer) + 8, bos_token_id=1, eos_token_id=2),
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
