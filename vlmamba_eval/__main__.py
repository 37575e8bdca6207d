"""`python -m vlmamba_eval` is `vlmamba-eval`."""

from vlmamba_eval.cli import main

main()
