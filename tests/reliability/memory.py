"""Memory of many calls, and of small saved states after a large one."""

import gc

from .outcome import Outcome

MIB = 1024  # in KiB


def numpy_calls(calls):
    import numpy as np
    from cases import build, inputs
    from test_memory import kibibytes

    outcome = Outcome()
    items = []
    for name in ("sa", "smm", "reference", "kmeans", "gmm"):
        module = build(name, dtype="float32")
        items.append((module, *inputs(module, 2, 37, masks=True)))

    def run(count):
        for i in range(count // 2):
            module, x, call = items[i % len(items)]
            out = module(x, **call)
            module.backward(out, np.ones_like(out.slots))

    run(1000)
    gc.collect()
    before = kibibytes("VmRSS")
    run(calls)
    gc.collect()
    grown = kibibytes("VmRSS") - before
    outcome.count("NumPy calls", calls)
    outcome.notes.append(f"NumPy: {grown} KiB more after {calls} calls")
    outcome.expect(grown < 4 * MIB, f"NumPy: {grown} KiB more after {calls} calls")
    return outcome


def torch_calls(calls):
    import torch
    from test_memory import kibibytes

    from smm_py import torch as twins

    outcome = Outcome()
    items = [
        twins.SlotAttention(dim=8, num_slots=3),
        twins.SlotMixture(dim=8, num_slots=3),
        twins.SlotMixture(dim=8, num_slots=3, variant="reference"),
    ]
    x = torch.randn(2, 37, 8)

    def run(count):
        for i in range(count // 2):
            module = items[i % len(items)]
            module.zero_grad()
            module(x).sum().backward()

    run(1000)
    gc.collect()
    before = kibibytes("VmRSS")
    run(calls)
    gc.collect()
    grown = kibibytes("VmRSS") - before
    outcome.count("PyTorch calls", calls)
    outcome.notes.append(f"PyTorch: {grown} KiB more after {calls} calls")
    outcome.expect(grown < 4 * MIB, f"PyTorch: {grown} KiB more after {calls} calls")
    return outcome


def small_states():
    """20 small results are held, each after a large call that left a large block to reuse."""
    import numpy as np
    from test_memory import kibibytes

    import smm_py

    outcome = Outcome()
    module = smm_py.SlotMixture(dim=64, num_slots=7, gradient="full")
    large = np.random.default_rng(0).standard_normal((8, 4096, 64)).astype("float32")
    small = large[:1, :9].copy()
    held = []
    smm_py._core.trim()
    gc.collect()
    before = kibibytes("VmRSS")
    for _ in range(20):
        module(large)  # its saved state goes back to the cache at once
        held.append(module(small))
    gc.collect()
    smm_py._core.trim()
    grown = kibibytes("VmRSS") - before
    needed = sum(out._call["saved"].nbytes for out in held) // 1024
    outcome.count("small results held", len(held))
    outcome.notes.append(f"20 small saved states ({needed} KiB) hold {grown} KiB")
    outcome.expect(grown < needed * 4 + 8 * MIB, outcome.notes[0])
    return outcome


def check(calls):
    import torch

    import smm_py

    torch.set_num_threads(1)  # a busy machine's threads wait for each other
    smm_py.set_num_threads(1)
    outcome = Outcome()
    for part in (small_states(), numpy_calls(calls // 2), torch_calls(calls // 2)):
        for what, count in part.counts.items():
            outcome.count(what, count)
        outcome.defects += part.defects
        outcome.notes += part.notes
    return outcome
