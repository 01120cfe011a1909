"""Inputs in bfloat16: how far slots and gradients are from float64, beside float32 inputs, and how long a call takes."""

from __future__ import annotations

import numpy as np

import smm_py

from .measure import interleave, set_threads, summary
from .problem import KINDS, SHAPES, Problem


def narrow_inputs(threads, labels, seconds):
    """For each shape, kind and type of inputs: relative error (L2 norm) of slots and of dx, and times."""
    set_threads(threads)
    for label in labels:
        for kind in KINDS:
            problem = Problem(kind, SHAPES[label], "implicit")
            slots, grads = problem.expected()
            narrow = getattr(smm_py, kind)(**problem.options, bfloat16_inputs=True)
            calls = {
                "float32": (problem.module, problem.x),
                "bfloat16": (narrow, smm_py.to_bfloat16(problem.x)),
            }
            found = {}

            def call(name):
                module, x = calls[name]
                out = module(x, init=problem.init)
                found[name] = out.slots, module.backward(out, problem.d_slots)["x"]

            times = summary(
                interleave({name: lambda name=name: call(name) for name in calls}, seconds)
            )
            for name, (
                _,
                x,
            ) in calls.items():  # afterwards: what NumPy's library has begun may keep a core busy
                yield {
                    "shape": label,
                    "kind": kind,
                    "inputs": name,
                    "time": times[name],
                    "mib": x.nbytes / 2**20,
                    "errors": {
                        "slots": share(found[name][0], slots),
                        "dx": share(found[name][1], grads["x"]),
                    },
                }


def share(found, expected):
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
