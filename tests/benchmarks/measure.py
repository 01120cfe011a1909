"""The sections of the benchmark: plain numbers (seconds, FLOP/s, bytes) for the JSON file."""

from __future__ import annotations

import functools
import math
import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import smm_py
from smm_py._config import processor

from . import contenders
from .problem import KINDS, SHAPES, Problem, Shape, flops

MODES = (
    ("forward", "full", False),
    ("forward + backward, full", "full", True),
    ("forward + backward, implicit", "implicit", True),
)
ROW = 0.02  # least seconds of a turn: in training, the calls of a module follow each other
REST = (
    0.002  # seconds before each timing: OpenMP's threads spin after work, on the next one's cores
)


def set_threads(count):
    torch.set_num_threads(count)
    smm_py.set_num_threads(count)


def measure_peak(*arguments):
    """FLOP/s of independent fused multiply-adds on one thread, or None without a C compiler.

    With an argument, those of bfloat16 pairs, or 0 where there is no instruction for them.
    """
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "peak")
        source = Path(__file__).with_name("peak.c")
        try:
            subprocess.run(
                ["cc", "-O2", str(source), "-o", str(program)], check=True, capture_output=True
            )
            return float(
                subprocess.run(
                    [str(program), *arguments], check=True, capture_output=True, text=True
                ).stdout
            )
        except (OSError, subprocess.CalledProcessError):
            return None


def machine(device="cpu"):
    """What the figures depend on."""
    card = {} if device == "cpu" else {"card": torch.get_device_module(device).get_device_name()}
    return card | {
        "processor": processor(),
        "cores": os.cpu_count(),
        "instruction set": smm_py._core.simd()[0],
        "system": platform.system(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "smm_py": smm_py._core.__version__,
    }


def interleave(calls, seconds, least=3, most=40, row=0.0, clock=time.perf_counter):
    """Seconds of each call, in rounds of one turn for each: a slow phase of the machine meets all.

    A call leaves the rounds when it has had its share of `seconds` (after `least` rounds) or `most`
    rounds. A turn is as many calls in a row as take `row` seconds: the first one pays for what the
    others have put into the caches.
    """
    taken, share = {name: [] for name in calls}, seconds / len(calls)
    repeats = {name: _in_a_row(call, row) for name, call in calls.items()}
    for _ in range(most):
        running = [
            name
            for name, past in taken.items()
            if len(past) < least or sum(past) * repeats[name] < share
        ]
        for name in running:
            time.sleep(REST)
            begin = clock()
            for _ in range(repeats[name]):
                calls[name]()
            taken[name].append((clock() - begin) / repeats[name])
        if not running:
            break
    return taken


def _in_a_row(call, seconds):
    """How many calls take that long."""
    if not seconds:
        return 1
    call()
    begin = time.perf_counter()
    call()
    return max(1, math.ceil(seconds / (time.perf_counter() - begin)))


def summary(taken):
    """Median and quartiles."""
    return {
        name: dict(zip(("median", "low", "high"), map(float, np.percentile(past, [50, 25, 75]))))
        | {"rounds": len(past)}
        for name, past in taken.items()
    }


def limit(shapes, threads, seconds):
    """Our passes by NumPy, on one thread and on `threads`; in rows, as the peak is measured."""
    rows = []
    for label in shapes:
        for kind in KINDS:
            problems = {
                gradient: Problem(kind, SHAPES[label], gradient)
                for gradient in ("full", "implicit")
            }
            outs = {gradient: p.module(p.x, init=p.init) for gradient, p in problems.items()}
            calls = {
                ("forward", "full"): (
                    lambda p=problems["full"]: p.module(p.x, init=p.init, grad=False)
                )
            }
            for gradient, p in problems.items():
                calls["backward", gradient] = lambda p=p, out=outs[gradient]: p.module.backward(
                    out, p.d_slots
                )
            for count in sorted({1, threads}):
                set_threads(count)
                for (way, gradient), times in summary(interleave(calls, seconds, row=ROW)).items():
                    work = flops(kind, SHAPES[label], gradient)[way == "backward"]
                    rows.append(
                        {
                            "shape": label,
                            "kind": kind,
                            "way": way,
                            "gradient": gradient,
                            "threads": count,
                            "flops": work,
                            "time": times,
                        }
                    )
    return rows


def against_peers(shapes, threads, seconds, compiled):
    """Every contender, agreement first."""
    set_threads(threads)
    rows = []
    for label in shapes:
        for kind in KINDS:
            for mode, gradient, backward in MODES:
                torch.compiler.reset()
                problem = Problem(kind, SHAPES[label], gradient)
                found, errors, absent = contenders.checked(
                    problem, contenders.names(kind, compiled), backward
                )
                calls = {name: c.both if backward else c.forward for name, c in found.items()}
                rows.append(
                    {
                        "shape": label,
                        "kind": kind,
                        "mode": mode,
                        "threads": threads,
                        "errors": errors,
                        "absent": absent,
                        "flops": sum(flops(kind, SHAPES[label], gradient)[: 1 + backward]),
                        "time": summary(interleave(calls, seconds, row=ROW)),
                    }
                )
                yield rows[-1]


BASE = SHAPES["batch"]
AXES = {
    "B": (1, 2, 4, 8, 16, 32, 64, 128),
    "K": (1, 2, 3, 5, 7, 8, 10, 11, 13, 16, 24, 32, 48, 64, 96, 128, 192, 256),
    "D": (8, 16, 24, 32, 33, 48, 64, 96, 100, 128, 192, 256, 384, 512),
    "N": (1_000, 2_000, 4_000, 10_000, 20_000, 40_000, 100_000, 200_000, 400_000, 1_000_000),
}
QUICK_AXES = {
    "B": (1, 4, 16),
    "K": (1, 5, 10, 24),
    "D": (16, 33, 64, 128),
    "N": (1_000, 10_000, 100_000),
}
PEER = "PyTorch eager, expanded"


def along(axis, value):
    """The base shape with one size changed; H goes with D, and N is swept with one image."""
    shape = BASE._replace(**{axis: value})
    return (
        shape._replace(H=2 * value)
        if axis == "D"
        else shape._replace(B=1)
        if axis == "N"
        else shape
    )


def sweep(axes, threads, seconds):
    """The mixture's forward, and forward + backward (full): ours, and a peer's up to a gigabyte."""
    set_threads(threads)
    for axis, values in axes.items():
        for value in values:
            shape = along(axis, value)
            problem = Problem("SlotMixture", shape)
            names = (
                [contenders.OURS]
                + [contenders.RECOMPUTE] * (axis == "N")
                + [PEER] * (shape.B * shape.N * (shape.K + shape.D) <= 2**24)
            )
            made = {name: contenders.make(name, problem) for name in names}
            for backward in (False, True):
                calls = {name: c.both if backward else c.forward for name, c in made.items()}
                for call in calls.values():
                    call()
                yield {
                    "axis": axis,
                    "value": value,
                    "backward": backward,
                    "threads": threads,
                    "flops": sum(flops("SlotMixture", shape, "full")[: 1 + backward]),
                    "time": summary(interleave(calls, seconds)),
                }


THREAD_SHAPES = {
    "batch": SHAPES["batch"],
    "B=1 N=4096": Shape(1, 4096, 10, 64, 128, 5),
    "large": SHAPES["large"],
}


def thread_counts(most):
    return sorted({*(2**i for i in range(most.bit_length())), most})


def threads_sweep(most, seconds):
    """Ours on 1, 2, 4, ... threads."""
    for label, shape in THREAD_SHAPES.items():
        for kind in KINDS:
            contender = contenders.make(contenders.OURS, Problem(kind, shape))

            def on(count, call):
                set_threads(count)
                call()

            for way, call in (
                ("forward", contender.forward),
                ("forward + backward, full", contender.both),
            ):
                calls = {count: (lambda n=count, c=call: on(n, c)) for count in thread_counts(most)}
                interleave(calls, 0, least=1)  # the threads are started
                for count, times in summary(interleave(calls, seconds)).items():
                    yield {
                        "shape": label,
                        "kind": kind,
                        "mode": way,
                        "threads": count,
                        "time": times,
                    }


def small_calls(seconds):
    """Calls whose cost is the overhead: a 1 x 1 x 1 problem, and one image of few inputs."""
    for kind in KINDS:
        for shape in (
            Shape(1, 1, 1, 1, 1, 1),
            Shape(1, 64, 7, 64, 128, 3),
            Shape(1, 256, 7, 64, 128, 3),
            Shape(1, 1024, 7, 64, 128, 3),
        ):
            problem = Problem(kind, shape)
            names = [
                n
                for n in contenders.names(kind, compiled=False)
                if not n.startswith("smm_py, lean")
            ]
            made = {name: contenders.make(name, problem) for name in names}
            mean, log_std = (*problem.init.values(), None)[:2]
            bare = functools.partial(
                smm_py._core.forward,
                problem.module._spec.config,
                problem.x,
                tuple(problem.params.values()),
                shape.T,
                mean=mean,
                log_std=log_std,
            )
            calls = {"the extension's forward alone": bare}
            calls.update((name, c.forward) for name, c in made.items())
            for count in (1, 2):
                set_threads(count)
                times = summary(interleave(calls, seconds * len(calls), row=0.004))
                yield {"kind": kind, "shape": list(shape), "threads": count, "time": times}
