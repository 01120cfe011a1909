"""Slot Attention with several heads against one, and against the package slot-attention."""

from __future__ import annotations

import functools

import torch

from smm_py.torch import SlotAttention, compat

from .measure import interleave, set_threads, summary

B, N, K, T = 8, 1024, 7, 3
HEADS = (1, 2, 4, 8)


def forward(module, x):
    with torch.no_grad():
        module(x)


def step(module, x):
    module.zero_grad(set_to_none=True)
    module(x).square().sum().backward()


def multiplications(dim, heads):
    """Of an input, forward: the maps folded, or on the inputs (see csrc/core/sizes.c)."""
    return 2 * T * K * min(heads * dim, dim + dim * dim // (T * K))


def against_one(threads, seconds, widths=(64, 192, 512)):
    """For each width: times of each number of heads, and what it multiplies beside one head."""
    set_threads(threads)
    for dim in widths:
        x = torch.randn(B, N, dim, generator=torch.Generator().manual_seed(0))
        sizes = dict(dim=dim, num_slots=K, num_iters=T, hidden_dim=2 * dim)
        modules = {str(h): SlotAttention(**sizes, heads=h, seed=0) for h in HEADS}
        for name, call in (("forward", forward), ("step", step)):
            calls = {h: functools.partial(call, module, x) for h, module in modules.items()}
            yield {
                "name": f"D = {dim}, {name}",
                "time": summary(interleave(calls, seconds)),
                "work": [multiplications(dim, h) / multiplications(dim, 1) for h in HEADS],
            }


def beside_the_package(threads, seconds):
    """A step of its module of 4 heads of 64 at D = 512, with and without bfloat16, beside ours."""
    try:
        from slot_attention import MultiHeadSlotAttention
    except ImportError:
        return
    set_threads(threads)
    arguments = dict(num_slots=K, dim=512, heads=4, dim_head=64, iters=T, hidden_dim=1024)
    theirs, ours = MultiHeadSlotAttention(**arguments), compat.MultiHeadSlotAttention(**arguments)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(B, N, 512, generator=torch.Generator().manual_seed(0))
    found = []
    for module in (theirs, ours):
        torch.manual_seed(1)
        found.append(module(x))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)

    def narrow():
        with torch.autocast("cpu", torch.bfloat16):
            step(theirs, x)

    calls = {
        "package": functools.partial(step, theirs, x),
        "package, compiled": functools.partial(step, torch.compile(theirs), x),
        "package, bfloat16": narrow,
        "smm_py": functools.partial(step, ours, x),
    }
    yield {"name": "4 heads of 64, D = 512, step", "time": summary(interleave(calls, seconds))}


def heads(threads, seconds):
    yield from against_one(threads, seconds)
    yield from beside_the_package(threads, seconds)
