"""Complete pipelines on slot modules; run them from the repository's root: `python -m examples.set_prediction`."""
