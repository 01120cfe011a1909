"""Modules under bfloat16 autocast beside the peers in float32 and under autocast."""

from __future__ import annotations

import numpy as np
import torch

from . import contenders, peers
from .contenders import LEAN, LEAN_COMPILED, OURS_TORCH, Contender
from .measure import ROW, interleave, measure_peak, set_threads, summary
from .narrow import share
from .problem import KINDS, Problem, Shape, flops, products

SHAPES = {
    "set": Shape(16, 1024, 10, 64, 128, 5),
    "slate": Shape(16, 576, 12, 192, 192, 7),
    "vit": Shape(32, 256, 7, 256, 1024, 3),
    "wide 384": Shape(8, 784, 11, 384, 1536, 3),
    "wide 768": Shape(4, 784, 11, 768, 3072, 3),
}
NARROW = ", bfloat16"


def under_autocast(contender, device) -> Contender:
    def narrow(call):
        def run():
            with torch.autocast(device, torch.bfloat16):
                return call()

        return run

    return Contender(narrow(contender.forward), narrow(contender.both))


def made(problem, compiled, device="cpu"):
    """Contenders by name, and each under autocast."""
    form = peers.FORMS[problem.kind][-1]  # broadcast loses by far at these widths
    ours = [OURS_TORCH] if device == "cpu" else [LEAN] + [LEAN_COMPILED] * compiled
    names = [*ours, f"PyTorch eager, {form}", *[f"PyTorch compiled, {form}"] * compiled]
    found = {}
    for name in names:
        found[name] = contenders.make(name, problem, device)
        found[name + NARROW] = under_autocast(contenders.make(name, problem, device), device)
    return found


def as_array(tensor):
    return tensor.detach().cpu().numpy()


def errors(contender, expected):
    """Relative to float64 (L2 norm): of slots, dx, and all parameters' gradients together."""
    slots, grads = contender.both()
    slots, grads = as_array(slots), {name: as_array(g) for name, g in grads.items()}
    wanted, exact = expected
    names = [name for name in exact if name != "x"]

    def joined(g):
        return np.concatenate([g[name].ravel() for name in names])

    return {
        "slots": share(slots, wanted),
        "dx": share(grads["x"], exact["x"]),
        "parameters": share(joined(grads), joined(exact)),
    }


def limit(kind, shape, part, peak, pairs, threads):
    """Seconds of the multiply-adds: in float32, and with maps of the inputs in bfloat16."""
    work = sum(flops(kind, shape, "implicit")[:part])
    maps = sum(products(kind, shape)[:part])
    if not peak:
        return None
    return [((work - maps) / peak + maps / rate) / threads for rate in (peak, pairs or peak)]


def finished(call, device):
    """The call with the work that it has queued."""
    if device == "cpu":
        return call
    accelerator = torch.get_device_module(device)
    return lambda: (call(), accelerator.synchronize())


def beside_peers(threads, seconds, labels=None, compiled=True, device="cpu"):
    """For each shape and kind, forward and a step (implicit): times and errors of everybody."""
    cpu = device == "cpu"
    peak, pairs = (measure_peak(), measure_peak("pairs")) if cpu else (None, None)
    set_threads(threads)
    for label in labels or SHAPES:
        for kind in KINDS:
            torch.compiler.reset()
            problem = Problem(kind, SHAPES[label], "implicit")
            expected, found = problem.expected(), made(problem, compiled, device)
            known = {name: errors(contender, expected) for name, contender in found.items()}
            for name, error in known.items():
                # a ReLU that switches between roundings is 1e-3 of dx
                most = 0.3 if NARROW in name else 1e-3
                if not max(error.values()) < most:
                    raise SystemExit(f"{name} on {kind} {label}: errors {error}, at most {most:g}")
            for mode, part in (("forward", 1), ("step", 2)):
                calls = {
                    n: finished(c.both if part == 2 else c.forward, device)
                    for n, c in found.items()
                }
                yield {
                    "shape": label,
                    "kind": kind,
                    "mode": mode,
                    "errors": known,
                    "limit": limit(kind, SHAPES[label], part, peak, pairs, threads),
                    "time": summary(interleave(calls, seconds, row=ROW)),
                }
