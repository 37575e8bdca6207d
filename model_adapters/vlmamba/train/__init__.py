"""Training a VL-Mamba: the paper's two stages, from LLaVA-format data to the folder that evaluation reads.

recipe    a recipe file, typed and checked
data      conversations to tokens, through the template that evaluation uses
trainer   one stage on transformers' Trainer: what learns, the loss, resuming, the log
cli       `vlmamba-train`
"""
