"""VL-Mamba (arXiv 2403.13600): a vision encoder, a connector with a 2D selective scan, and a Mamba-1 language model.

config           every choice that decides the model, named; presets of the paper; JSON
template         conversation templates, one function for evaluation and training
vision           SigLIP and CLIP towers and their preprocessing
connector        MLP, VSS-MLP, VSS-L2 with the bidirectional and the cross scan
language_model   Mamba-1 with a state that can be saved, forked and continued
scan             the selective scan and the causal convolution, by backend
model            the three parts as one module
checkpoint       a model as a folder
assemble         a checkpoint from published parts
engine           an image is read once: prefix states forked to all questions
decoder          rows of many images take their steps together
adapter          the engine behind the harness's protocol
"""
