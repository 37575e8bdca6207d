"""The tokenizer of small models: byte-level BPE, made from texts by one function.

Large models take the tokenizer that their language model was trained with (`EleutherAI/gpt-neox-20b`).
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from vlmamba_eval.model_adapters.shared.template import END

PAD = "<|padding|>"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of at most `vocab_size` tokens for the language of `texts`.

    The end mark has id 0 and the padding id 1, as in GPT-NeoX; every byte is a token, so that any text can be read.
    Equal texts in equal order give an equal tokenizer.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
