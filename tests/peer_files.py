"""Compare modules of `compat.from_peer` with what other implementations' own code computed.

    python -m tests.peer_files FOLDER [--lean]

FOLDER holds .npz files of one slot module each: "meta" (JSON: peer, options, num_slots, num_iters,
initial), its parameters p/NAME, inputs in/x, in/slots, in/d_slots, in/d_attention, outputs
out/slots, out/attention, and gradients g/NAME of sum(slots d_slots) + sum(attention d_attention).
Prints the largest relative error of each file; the exit status tells whether all are below 1e-9.
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path

import numpy as np
import torch

import smm_py.torch
from smm_py.torch import compat
from smm_py.torch._peers import PEERS, STANDARD_DEVIATION

MOST = 1e-9


def initial_state(module, noise):
    """From what the peer draws: noise of [mean, log std] in a mixture."""
    drawn = module._spec.drawn_from
    return {
        name: getattr(module, mu) + getattr(module, logsigma).exp() * part
        for (name, (mu, logsigma)), part in zip(drawn.items(), noise.chunk(len(drawn), -1))
    }


def gradients(peer, module):
    """Gradients of a module's parameters, by the peer's names and in its shapes."""
    named, found = module._named(), {}
    for name, (own, form) in PEERS[peer].entries().items():
        if own[0] not in named:
            continue
        grads = [
            torch.zeros_like(named[o]) if named[o].grad is None else named[o].grad for o in own
        ]
        if form is STANDARD_DEVIATION:  # of a logarithm
            found[name] = (grads[0] / named[own[0]].detach().exp())[None, None]
        else:
            found[name] = form.there(*grads)
    return found


def errors(path):
    """The relative error of every output and gradient, and whether the weights come back."""
    file = np.load(path)
    meta = json.loads(str(file["meta"]))
    arrays = {name: torch.from_numpy(file[name]) for name in file.files if name != "meta"}
    weights = {n[2:]: t for n, t in arrays.items() if n.startswith("p/")}
    module = compat.from_peer(
        meta["peer"],
        weights,
        num_slots=meta["num_slots"],
        num_iters=meta["num_iters"],
        **meta["options"],
    )
    back = compat.to_peer(meta["peer"], module)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[n], t) and back[n].dtype == t.dtype for n, t in weights.items())
    x = arrays["in/x"].clone().requires_grad_()
    given = arrays["in/slots"].clone().requires_grad_()
    drawn = "noise" in meta["initial"]
    init = initial_state(module, given) if drawn else {"slots": given}
    slots, attention = module(x, init, return_attention=True)
    loss = (slots * arrays["in/d_slots"]).sum()
    got = {"out/slots": slots}
    if "out/attention" in arrays:
        got["out/attention"] = attention
        loss = loss + (attention * arrays["in/d_attention"]).sum()
    loss.backward()
    none = torch.zeros_like(given)
    got |= {"g/x": x.grad, "g/slots": none if given.grad is None else given.grad}
    got |= {f"g/{n}": g for n, g in gradients(meta["peer"], module).items()}
    for name in [name for name in got if name not in arrays]:  # what has no gradient there
        assert not got.pop(name).any(), name
    # some gradients are 0 but for rounding: they are measured by the largest of all
    least = 1e-4 * max(t.abs().max() for n, t in arrays.items() if n.startswith("g/"))
    found = {}
    for name, value in arrays.items():
        if name[0] in "og":
            scale = value.abs().max()
            scale = scale.clamp_min(least) if name[0] == "g" else scale
            found[name] = float((got.pop(name).detach() - value).abs().max() / scale)
    assert not got, got.keys()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--lean", action="store_true", help="in PyTorch operations")
    options = parser.parse_args()
    worst = 0.0
    for path in sorted(options.folder.glob("*.npz")):
        with smm_py.torch.force_lean() if options.lean else contextlib.nullcontext():
            found = errors(path)
        name = max(found, key=found.get)
        print(f"{path.stem:45} {found[name]:.1e} {name}")
        worst = max(worst, found[name])
    return int(worst > MOST)


if __name__ == "__main__":
    sys.exit(main())
