"""Tables from the scores of runs: `tables` builds and writes them, `console` shows them."""
