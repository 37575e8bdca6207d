"""A benchmark and a model for vlmamba-eval, in a package of their own."""
