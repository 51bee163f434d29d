"""Random FastVLMs, computed here and by transformers: what ``python -m tests.whole.differential`` is made of."""
