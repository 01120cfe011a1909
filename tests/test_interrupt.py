"""SIGINT in a long call, and `indices` that another thread changes during one."""

import pytest
from processes import ROOT, run_python

from tests.reliability.interrupts import interrupted


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("passes", ["forward", "backward"])
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_interrupt(backend, passes, threads):
    """KeyboardInterrupt long before the call would have ended; the next call is right."""
    if backend == "torch":
        pytest.importorskip("torch")
    raised, waited, whole, right = interrupted(backend, "SlotMixture", passes, threads)
    assert raised == "KeyboardInterrupt"
    assert 0 <= waited < whole / 3, f"{waited:.2f} s after the signal, of {whole:.2f} s"
    assert right


CHANGING = """
import threading
import numpy as np
import smm_py
smm_py.set_num_threads(2)
module = smm_py.KMeans(dim=8, num_slots=64, num_iters=1)
x = np.random.default_rng(0).standard_normal((64, 64, 8)).astype("float32")
indices = np.zeros((64, 64), np.int64)
done = False

def change():
    while not done:
        indices[:] = -(2**40)
        indices[:] = 2**40
        indices[:] = 0

thread = threading.Thread(target=change)
thread.start()
found = {"right": 0, "refused": 0}
for _ in range(1500):
    try:
        out = module(x, init={"indices": indices})
        module.backward(out, out.slots)
        found["right"] += 1
    except ValueError as error:
        assert "indices" in str(error), error
        found["refused"] += 1
done = True
thread.join()
print(found)
"""


def test_indices_changed_during_a_call():
    """What has been checked is what is used: no memory outside the inputs is read."""
    done = run_python("-X", "faulthandler", "-c", CHANGING, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "refused" in done.stdout
