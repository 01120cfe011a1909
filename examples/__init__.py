"""Pipelines on slot modules; run them from the root: `python -m examples.set_prediction`.

Pipelines : set_prediction, object_discovery, slate; reproduce runs them for the paper's tables and
    figures.
What they use : data (data sets) and metrics, both for other code too; shared (command line,
    training loop, plots).
"""
