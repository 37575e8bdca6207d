"""vlmamba-eval: measures vision-language models with a Mamba language model on the LLaVA benchmark suite."""

__version__ = "0.1.0"
