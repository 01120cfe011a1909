"""Speed of the modules beside their peers, in one run: `python -m tests.benchmarks [--quick] [--json FILE]`.

Agreement is checked before anything is timed; rounds of all contenders are interleaved; medians and
quartiles are quoted. "limit" is the time that the multiply-adds which the mathematics needs would
take at the machine's measured peak (docs/benchmarks.md says how they are counted).
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import smm_py
import smm_py.torch as twins
from smm_py.torch import _lean

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import plain_torch  # noqa: E402

SHAPES = {  # B, N, K, D, H, T
    "reference": (16, 1024, 10, 64, 128, 5),
    "large": (2, 16384, 11, 64, 128, 3),
    "wide": (8, 576, 12, 192, 192, 7),
    "single": (1, 1024, 10, 64, 128, 7),
    "odd": (16, 1001, 13, 33, 50, 5),
}


def measure_peak():
    """FLOP/s of one thread, or None without a C compiler."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "peak")
        source = Path(__file__).with_name("peak.c")
        try:
            subprocess.run(["cc", "-O2", str(source), "-o", str(program)], check=True, capture_output=True)
            return float(subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout)
        except (OSError, subprocess.CalledProcessError):
            return None


def flops(kind, shape, gradient, backward):
    """FLOPs that the mathematics needs: projections, and a few multiply-adds for each input, slot and channel."""
    b, n, k, d, h, t = shape
    nkd, last = n * k * d, 1 if gradient == "implicit" else t
    if kind == "SlotMixture":
        projections = n * (2 * d * h + d * d)
        total = projections + 4 * nkd * t + (2 * projections + 11 * nkd * last if backward else 0)
    else:
        total = 2 * n * d * d + 2 * nkd * t + (4 * n * d * d + 5 * nkd * last if backward else 0)
    return 2 * b * total


class Case:
    """One module, shape and gradient mode, with every contender's forward function."""

    def __init__(self, kind, shape, gradient, compiled):
        b, n, k, d, h, t = shape
        torch.manual_seed(0)
        self.module = getattr(twins, kind)(dim=d, num_slots=k, num_iters=t, hidden_dim=h, gradient=gradient)
        self.x = torch.randn(b, n, d)
        names = self.module._spec.state_names
        self.init = {name: torch.randn(b, k, d) * (0.1 if name == "log_std" else 1) for name in names}
        params = dict(self.module.named_parameters())
        options = {**{o: getattr(self.module._spec, o) for o in self.module._OPTIONS}, "kind": kind}
        state = tuple(self.init.values())

        def broadcast(x):
            return plain_torch.run(options, params, x, state)["slots"]

        def expanded(x):
            return _lean.run(self.module._spec, x, params, state[0], state[1] if len(state) > 1 else None, None, None, None,
                             t, False).slots

        self.contenders = {"smm_py": lambda x: self.module(x, self.init), "eager expanded": expanded,
                           "eager broadcast": broadcast}
        if compiled:
            self.contenders["compile expanded"] = torch.compile(expanded)
            self.contenders["compile broadcast"] = torch.compile(broadcast)

    def call(self, name, backward):
        if not backward:
            with torch.no_grad():
                return self.contenders[name](self.x)
        x = self.x.detach().requires_grad_()
        for p in self.module.parameters():
            p.grad = None
        slots = self.contenders[name](x)
        slots.backward(torch.ones_like(slots))
        return x.grad

    def check(self, backward):
        """Largest difference to smm_py, relative to the largest value."""
        ours = self.call("smm_py", backward)
        worst = max(float((self.call(n, backward) - ours).abs().max() / ours.abs().max()) for n in self.contenders)
        if not worst < 0.05:  # the steps amplify float32's rounding; a wrong formula is far beyond
            raise SystemExit(f"contenders disagree by {worst:.2g}")
        return worst

    def times(self, backward, rounds, seconds=20):
        taken = {name: [] for name in self.contenders}
        begin = time.perf_counter()
        for i in range(rounds):
            for name in self.contenders:
                start = time.perf_counter()
                self.call(name, backward)
                taken[name].append(time.perf_counter() - start)
            if time.perf_counter() - begin > seconds and i >= 2:
                break
        return {name: np.percentile(values, [50, 25, 75]) for name, values in taken.items()}


def sweep(threads):
    """Forward times of the NumPy module along each axis, others as in the reference shape."""
    base = dict(B=16, N=1024, K=10, D=64)
    rows = []
    for axis, values in (("B", (1, 2, 4, 16, 64)), ("N", (64, 256, 1024, 4096, 16384)), ("K", (1, 2, 5, 10, 13, 24, 48)),
                         ("D", (8, 16, 33, 64, 128, 256))):
        for value in values:
            s = {**base, axis: value}
            shape = (s["B"], s["N"], s["K"], s["D"], 2 * s["D"], 5)
            module = smm_py.SlotMixture(dim=s["D"], num_slots=s["K"], num_iters=5, hidden_dim=2 * s["D"])
            x = np.random.default_rng(0).standard_normal((s["B"], s["N"], s["D"]), dtype="float32")
            taken = []
            for _ in range(5):
                start = time.perf_counter()
                module(x, seed=0)
                taken.append(time.perf_counter() - start)
            rows.append({"axis": axis, "value": value, "ms": 1e3 * float(np.median(taken)),
                         "gflops": flops("SlotMixture", shape, "full", False) / min(taken) / 1e9})
    return rows


def main():
    options = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    options.add_argument("--quick", action="store_true", help="the reference shape alone, without torch.compile")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--json", type=Path)
    options = options.parse_args()
    torch.set_num_threads(options.threads)
    smm_py.set_num_threads(options.threads)
    peak = measure_peak()
    smm_py.show_config()
    print(f"peak of one thread: {'unknown' if peak is None else f'{peak / 1e9:.0f} GFLOP/s'}; torch {torch.__version__}")
    shapes = {"reference": SHAPES["reference"]} if options.quick else SHAPES
    report = {"machine": platform.processor() or platform.machine(), "peak": peak, "threads": options.threads,
              "cases": [], "sweep": []}
    for label, shape in shapes.items():
        for kind in ("SlotMixture", "SlotAttention"):
            for gradient, backward in (("full", False), ("full", True), ("implicit", True)):
                case = Case(kind, shape, gradient, not options.quick and label == "reference")
                error = case.check(backward)
                times = case.times(backward, options.rounds)
                limit = flops(kind, shape, gradient, backward) / (peak * options.threads) if peak else float("nan")
                ours = times["smm_py"][0]
                peers = {n: t[0] for n, t in times.items() if n != "smm_py"}
                fastest = min(peers, key=peers.get)
                what = f"{kind} {'forward + backward, ' + gradient if backward else 'forward'}"
                print(f"{label:10} {what:42} {1e3 * ours:8.2f} ms, {limit / ours:4.2f} of the limit; "
                      f"{peers[fastest] / ours:5.1f}x {fastest}, {peers['eager broadcast'] / ours:6.1f}x eager broadcast", flush=True)
                report["cases"].append({"shape": label, "what": what, "limit": limit, "difference": error,
                                        "times": {n: list(map(float, t)) for n, t in times.items()}})
    if not options.quick:
        report["sweep"] = sweep(options.threads)
        for row in report["sweep"]:
            print(f"{row['axis']}={row['value']:<6} {row['ms']:9.3f} ms  {row['gflops']:6.1f} GFLOP/s")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
