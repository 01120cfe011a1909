"""SIGINT in a long call: KeyboardInterrupt at once, and the next call is right."""

import json

from processes import run_python

from . import ROOT
from .outcome import Outcome

LATEST = 1.0  # seconds

# Arguments: backend, kind, pass, threads. Prints what is raised; the seconds from the signal to it,
# and those of a call of 200 (backward: 60) steps without a signal; whether the next call is right.
CHILD = """
import json, os, signal, sys, threading, time
import numpy as np
import smm_py
backend, kind, passes, threads = sys.argv[1:5]
# a process in the background may have inherited that it is ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
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

    def forward(x, steps):
        return module(x, num_iters=steps, seed=0)

    def backward(out):
        return module.backward(out, np.ones_like(out.slots))["x"]
else:
    import torch
    import smm_py.torch
    torch.set_num_threads(1)
    module = getattr(smm_py.torch, kind)(**options)

    def forward(x, steps):
        x = torch.from_numpy(x).requires_grad_()
        return x, module(x, num_iters=steps, generator=torch.Generator().manual_seed(0))

    def backward(out):
        x, slots = out
        return torch.autograd.grad(slots.sum(), x, retain_graph=True)[0].numpy()

expected = backward(forward(small, 3)).tobytes()
out = forward(large, 60)
begin = time.monotonic()
if passes == "forward":
    forward(large, 200)
    whole, call = time.monotonic() - begin, lambda: forward(large, 2000)
else:
    backward(out)
    whole, call = time.monotonic() - begin, lambda: backward(out)
timer = threading.Timer(min(0.5, 0.2 * whole), interrupt)
raised = "nothing"
try:
    timer.start()
    call()
except KeyboardInterrupt:
    raised = "KeyboardInterrupt"
except BaseException as error:
    raised = repr(error)
waited = time.monotonic() - sent[0] if sent else -1
timer.cancel()
print(json.dumps([raised, waited, whole, backward(forward(small, 3)).tobytes() == expected]))
"""


def interrupted(backend, kind, passes, threads):
    """(what the call raises, seconds after SIGINT, seconds of a call, next call right)."""
    done = run_python("-c", CHILD, backend, kind, passes, threads, cwd=ROOT)
    if done.returncode:
        return " ".join(done.stderr.splitlines()[-2:]), -1, 0, False
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
        raised, waited, _, right = interrupted(*case)
        outcome.count("interrupted calls")
        outcome.expect(raised == "KeyboardInterrupt", f"{case}: {raised}")
        outcome.expect(0 <= waited < LATEST, f"{case}: {waited:.2f} s after SIGINT")
        outcome.expect(right, f"{case}: the next call has another result")
        longest = max(longest, waited)
    outcome.notes.append(f"at most {longest:.2f} s from SIGINT to KeyboardInterrupt")
    return outcome
