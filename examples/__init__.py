"""Pipelines on slot modules; run them from the root: `python -m examples.set_prediction`.

Pipelines : set_prediction, object_discovery, slate; reproduce runs them for the paper's tables and
    figures.
What they use : data (data sets) and metrics, both for other code too; shared (command line,
    training loop, plots).
"""

from __future__ import annotations

from pathlib import Path

PIPELINES = "set_prediction", "object_discovery", "slate"


def load(path, device="cpu"):
    """The trained model of a run's folder, in evaluation mode.

    Parameters
    ----------
    path : the folder, as given to --out, or its `model.safetensors`.
    device : of PyTorch.

    Returns
    -------
    torch.nn.Module
        A `SetPredictor`, `ObjectDiscovery` or `Slate`, with its run's `config`; pictures
        (B, 3, S, S) in [-1, 1] are its input.

    Raises
    ------
    FileNotFoundError, ValueError
        Naming the file that is missing or that is none of a run.
    """
    from importlib import import_module

    from .data.fields import load_json

    weights = Path(path)
    if not weights.exists():
        raise FileNotFoundError(f"run {path} is missing: give its folder, or its model.safetensors")
    weights = weights / "model.safetensors" if weights.is_dir() else weights
    stored = weights.parent / "config.json"
    settings = load_json(stored, "configuration")
    for name in PIPELINES:
        pipeline = import_module(f"{__name__}.{name}.__main__").PIPELINE
        # each pipeline has settings that the others lack
        if isinstance(settings, dict) and set(pipeline.config.settings()) >= set(settings):
            config = pipeline.config.load(stored)
            config.weights = str(weights)
            model = pipeline.build(config, device).eval()
            model.config = config
            return model
    raise ValueError(f"{stored} is not the configuration of a run of {', '.join(PIPELINES)}")
