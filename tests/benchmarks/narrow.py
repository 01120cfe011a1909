"""Inputs in bfloat16 against inputs in float32: errors of slots and gradients, and times."""

from __future__ import annotations

import functools

import numpy as np

import smm_py

from .measure import interleave, set_threads, summary
from .problem import KINDS, SHAPES, Problem


def slots_and_dx(problem, module, x):
    out = module(x, init=problem.init)
    return out.slots, module.backward(out, problem.d_slots)["x"]


def narrow_inputs(threads, labels, seconds):
    """For each shape, kind and type of inputs: relative errors (L2 norm) of slots and dx, times."""
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
            timed = {n: functools.partial(slots_and_dx, problem, *c) for n, c in calls.items()}
            times = summary(interleave(timed, seconds))
            # Errors come after, as NumPy's threads may keep a core busy.
            found = {name: call() for name, call in timed.items()}
            for name, (_, x) in calls.items():
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
