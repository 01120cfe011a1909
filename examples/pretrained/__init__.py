"""Trained models that come with the examples: see the table in README.md.

Each is a file PIPELINE-MODEL-SIZE.safetensors: a run's weights in float16, and its configuration.
"""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent


def path_of(name) -> Path:
    """The file of "PIPELINE-MODEL-SIZE"; FileNotFoundError, naming those there are, without one."""
    path = HERE / f"{name}.safetensors"
    if not path.exists():
        there = ", ".join(sorted(file.stem for file in HERE.glob("*.safetensors")))
        raise FileNotFoundError(f"pretrained model {name} is missing; there are {there or 'none'}")
    return path
