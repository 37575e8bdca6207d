"""What vision-language models with Mamba-2 layers, attention layers, or both share: reading an image once.

state      recurrent states, convolution tails, keys and values of rows: forked without a copy
reading    one prefill or one decoding step under way: layers ask it for their part of the state
model      a language model made of such layers
decoder    rows that decode together while their keys and values grow
engine     the engine of `vlmamba`, with conversations and images of any length
checkpoint published safetensors folders, checked against what is expected of them
"""
