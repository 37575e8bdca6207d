"""`vlmamba-eval bench`: how fast reading an image once is, measured on the user's own machine.

profiles      what is asked: questions per image, tokens per question, tokens per answer
subject       what is measured: a whole model, or a Mamba language model of a published shape
contestants   who answers: the engine in its modes, and transformers
measure       one profile after another into rows
report        rows into CSV, Markdown, a console table and a figure
"""
