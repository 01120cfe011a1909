"""SIGINT in a long call: KeyboardInterrupt at once, and the next call is right."""

import json

from processes import run_python

from . import ROOT
from .outcome import Outcome

LATEST = 1.0  # seconds

# Arguments: backend, kind, pass, threads. Prints the seconds from the signal to the exception, and
# whether the next call is right.
CHILD = """
import json, os, signal, sys, threading, time
import numpy as np
from smm_py import *
import smm_py
backend, kind, passes, threads = sys.argv[1:5]
smm_py.set_num_threads(int(threads))
options = dict(dim=8, num_slots=3, gradient="full", start="inputs")
small = np.random.default_rng(0).standard_normal((2, 40, 8)).astype("float32")
large = np.random.default_rng(1).standard_normal((1, 10**6, 8)).astype("float32")
sent = []

def interrupt():
    sent.append(time.monotonic())
    os.kill(os.getpid(), signal.SIGINT)

if backend == "numpy":
    module = getattr(smm_py, kind)(**options)

    def once(x, steps, before_backward=lambda: None):
        out = module(x, num_iters=steps, seed=0)
        before_backward()
        return module.backward(out, np.ones_like(out.slots))["x"]
else:
    import torch
    import smm_py.torch
    torch.set_num_threads(1)
    module = getattr(smm_py.torch, kind)(**options)

    def once(x, steps, before_backward=lambda: None):
        x = torch.from_numpy(x).requires_grad_()
        slots = module(x, num_iters=steps, generator=torch.Generator().manual_seed(0))
        before_backward()
        slots.sum().backward()
        return x.grad.numpy()

expected = once(small, 3).tobytes()
timer = threading.Timer(DELAY, interrupt)
raised = "nothing"
try:
    if passes == "forward":
        timer.start()
        once(large, 2000)
    else:
        once(large, STEPS, timer.start)
except KeyboardInterrupt:
    raised = "KeyboardInterrupt"
except BaseException as error:
    raised = repr(error)
waited = time.monotonic() - sent[0] if sent else -1
timer.cancel()
print(json.dumps([raised, waited, once(small, 3).tobytes() == expected]))
"""


def interrupted(backend, kind, passes, threads, steps=40, delay=0.5):
    """What a call that gets SIGINT does: (what it raises, after how long, next call right)."""
    code = CHILD.replace("STEPS", str(steps)).replace("DELAY", str(delay))
    done = run_python("-c", code, backend, kind, passes, threads, cwd=ROOT)
    if done.returncode:
        return " ".join(done.stderr.splitlines()[-2:]), -1, False
    return json.loads(done.stdout.splitlines()[-1])


def check(cases):
    """At most so many of: kinds, passes, NumPy and PyTorch, one and two threads."""
    outcome = Outcome()
    every = [
        (backend, kind, passes, threads)
        for threads in (1, 2)
        for kind in ("SlotMixture", "SlotAttention", "GaussianMixture", "KMeans")
        for passes in ("forward", "backward")
        for backend in ("numpy", "torch")
    ]
    longest = 0
    for case in every[:: max(1, len(every) // cases)][:cases]:
        raised, waited, right = interrupted(*case)
        outcome.count("interrupted calls")
        outcome.expect(raised == "KeyboardInterrupt", f"{case}: {raised}")
        outcome.expect(0 <= waited < LATEST, f"{case}: {waited:.2f} s after SIGINT")
        outcome.expect(right, f"{case}: the next call has another result")
        longest = max(longest, waited)
    outcome.notes.append(f"at most {longest:.2f} s from SIGINT to KeyboardInterrupt")
    return outcome
