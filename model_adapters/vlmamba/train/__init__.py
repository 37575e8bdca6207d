"""Training a VL-Mamba: the paper's two stages, from LLaVA-format data to the folder that evaluation reads.

cli        `vlmamba-train`
check      what can be wrong with a command's files, found at once
reader     YAML to typed values, mistakes to sentences
recipe     a recipe: the language, and its files
run        the stages of a recipe, one after another
data       conversations to tokens, through the template that evaluation uses; order, batches, packing
trained    the model with its loss; low-rank updates; parameters gathered from several devices
trainer    one stage on transformers' Trainer: what learns, FSDP, resuming
measure    held-out loss and benchmarks on the way
speed      the share of a device's matrix rate
log        what is written and said on the way
card       the README.md of a finished stage
curve      the loss as a picture
timing     time and memory of a stage on this machine
scale      the same on several numbers of devices (`scale_run`: one of them)
"""
