"""A small tokenizer in which the marks of Mamba-VL have the ids that GPT-NeoX's gives them."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers


def gpt_neox_like(path: Path) -> Path:
    """Bytes, `###` as 4118 and `&&` as 10494; `<|endoftext|>` is 0."""
    vocabulary = {"<|endoftext|>": 0, "<|padding|>": 1}
    vocabulary |= {letter: 2 + i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= {"##": 300, "###": 4118, "&&": 10494}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("#", "#"), ("##", "#"), ("&", "&")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|padding|>"])
    tokenizer.save(str(path))
    return path
