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
    path : the folder, as given to --out, or its `model.safetensors`; or "pretrained/NAME" of a
        model in `examples/pretrained`.
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
    from .pretrained import path_of

    weights = Path(path)
    if weights.parent.name == "pretrained" and not weights.exists():
        weights = path_of(weights.name)
    if not weights.exists():
        raise FileNotFoundError(f"run {path} is missing: give its folder, or its model.safetensors")
    weights = weights / "model.safetensors" if weights.is_dir() else weights
    stored = weights.parent / "config.json"
    settings = load_json(stored, "configuration") if stored.exists() else None
    for name in PIPELINES:
        pipeline = import_module(f"{__name__}.{name}.__main__").PIPELINE
        config = None
        if settings is None:
            config, stored = pipeline.config.of_weights(weights), weights
        # each pipeline has settings that the others lack
        elif isinstance(settings, dict) and set(pipeline.config.settings()) >= set(settings):
            config = pipeline.config.load(stored)
        if config is not None:
            config.weights = str(weights)
            model = pipeline.build(config, device).eval()
            model.config = config
            return model
    what = "of" if stored == weights else "the configuration of"
    raise ValueError(f"{stored} is not {what} a run of {', '.join(PIPELINES)}")
