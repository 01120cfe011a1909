"""Modules under bfloat16 autocast beside the peers in float32 and under autocast."""

from __future__ import annotations

import torch

from . import contenders, peers
from .contenders import OURS_TORCH, Contender
from .measure import ROW, interleave, set_threads, summary
from .problem import KINDS, Problem, Shape, flops

SHAPES = {
    "set": Shape(16, 1024, 10, 64, 128, 5),
    "slate": Shape(16, 576, 12, 192, 192, 7),
    "vit": Shape(32, 256, 7, 256, 1024, 3),
    "wide 384": Shape(8, 784, 11, 384, 1536, 3),
    "wide 768": Shape(4, 784, 11, 768, 3072, 3),
}
NARROW = ", bfloat16"
# Of an array's largest number: what eight bits of mantissa leave after every step.
TOLERANCE = 0.2


def under_autocast(contender) -> Contender:
    def narrow(call):
        def run():
            with torch.autocast("cpu", torch.bfloat16):
                return call()

        return run

    return Contender(narrow(contender.forward), narrow(contender.both))


def made(problem, compiled):
    """Contenders by name, a name's autocast form beside it."""
    form = peers.FORMS[problem.kind][-1]  # broadcast loses by far at these widths
    names = [OURS_TORCH, f"PyTorch eager, {form}"]
    names += [f"PyTorch compiled, {form}"] * compiled
    found = {}
    for name in names:
        found[name] = contenders.make(name, problem)
        found[name + NARROW] = under_autocast(contenders.make(name, problem))
    return found


def beside_peers(threads, seconds, labels=None, compiled=True):
    set_threads(threads)
    for label in labels or SHAPES:
        for kind in KINDS:
            torch.compiler.reset()
            problem = Problem(kind, SHAPES[label], "implicit")
            expected, found = problem.expected(), made(problem, compiled)
            errors = {
                name: contenders.error(contender, expected, True)
                for name, contender in found.items()
            }
            for name, error in errors.items():
                if not error <= (TOLERANCE if NARROW in name else contenders.TOLERANCE):
                    print(f"{name} on {kind} {label}: error {error:.2g}")
            for mode, part in (("forward", 1), ("step", 2)):
                calls = {n: c.both if part == 2 else c.forward for n, c in found.items()}
                yield {
                    "shape": label,
                    "kind": kind,
                    "mode": mode,
                    "errors": errors,
                    "flops": sum(flops(kind, SHAPES[label], "implicit")[:part]),
                    "time": summary(interleave(calls, seconds, row=ROW)),
                }
