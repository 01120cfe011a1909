"""Video: steps and time for each frame, from a new start or warm, with a tolerance."""

from __future__ import annotations

import time

import numpy as np

import smm_py

from .measure import set_threads

FRAMES, MOST, TOL = 60, 30, 0.01


def frames(rng, count=1024, groups=7, dim=64):
    """Inputs around centres that drift by about a twentieth of their spread from frame to frame."""
    centres, group = rng.standard_normal((groups, dim)), rng.integers(0, groups, count)
    for _ in range(FRAMES):
        centres += 0.05 * rng.standard_normal(centres.shape)
        yield (centres[group] + 0.3 * rng.standard_normal((count, dim)))[None].astype("float32")


def state_of(out):
    """The `init` that goes on from where a call ended."""
    if out.mean is None:
        return {"slots": out.slots}
    return {"mean": out.mean, "log_std": 0.5 * np.log(out.variance)}


def frame_by_frame(threads):
    """For each module and way of starting: mean number of steps and seconds of a frame."""
    set_threads(threads)
    options = dict(dim=64, num_slots=7, num_iters=MOST, tol=TOL)
    modules = {
        "SlotMixture": smm_py.SlotMixture(
            **options, norm_kv=True, temperature=64**-0.5, prior="uniform", start="inputs"
        ),
        "GaussianMixture": smm_py.GaussianMixture(**options, temperature=64**-0.5),
        "KMeans": smm_py.KMeans(**options),
    }
    for name, module in modules.items():
        for warm in (False, True):
            state, steps, taken = None, [], []
            for i, x in enumerate(frames(np.random.default_rng(0))):
                begin = time.perf_counter()
                out = module(x, init=state if warm else None, seed=None if warm and state else i)
                taken.append(time.perf_counter() - begin)
                steps.append(int(out.iterations[0]))
                state = state_of(out)
            yield {
                "kind": name,
                "warm": warm,
                "most": MOST,
                "tol": TOL,
                "steps": float(np.mean(steps[1:])),
                "seconds": float(np.median(taken[1:])),
            }
