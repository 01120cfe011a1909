"""How a model uses its slots, and whether it has collapsed."""

from __future__ import annotations

import sys

import torch
from tqdm import tqdm

from .modules import FLOOR, draw_states, evaluation
from .pictures import eval_seeds, to_input

CLOSE = 0.01  # two slots closer than this share of the spread over all slots are duplicates


@torch.no_grad()
def diagnose(module, features, init, num_iters) -> dict:
    """How a slot module's slots are used on inputs (B, N, D) from an initial state.

    Returns a dict: slots, their number; used, how many hold an input more than any other does;
    duplicates, how many repeat another; entropy of an input's responsibilities, 0 (sure) to 1 (all
    equal). Of mixtures also: prior, the largest one; floor, the share of variances at their floor;
    log_likelihood of an input, a list, at each iteration. All are means over pictures.
    """
    runs = [
        module.run(features, init, num_iters=t, return_attention=t == num_iters)
        for t in range(1, num_iters + 1)
    ]
    last = runs[-1]
    share = last.attention.double()
    slots = share.shape[2]
    used = torch.nn.functional.one_hot(share.argmax(2), slots).any(1).sum(1)
    distance = torch.cdist(last.slots.double(), last.slots.double()).square()
    spread = last.slots.double().flatten(0, 1).var(0).sum()
    earlier = torch.ones(slots, slots, device=share.device).tril(-1).bool()
    duplicates = ((distance <= CLOSE * spread) & earlier).any(2).sum(1)
    largest = torch.log(torch.tensor(max(slots, 2), dtype=torch.float64))
    entropy = -torch.special.xlogy(share, share).sum(2) / largest
    means = {"used": used, "duplicates": duplicates, "entropy": entropy}
    if last.variance is not None:
        means |= {"prior": last.prior.amax(1), "floor": last.variance <= 2 * FLOOR}
    result = {"slots": slots, **{name: _mean(values) for name, values in means.items()}}
    if last.log_likelihood is not None:
        result["log_likelihood"] = [_mean(run.log_likelihood) / features.shape[1] for run in runs]
    return result


def _mean(values):
    return float(values.double().mean())


def collapse(diagnosis) -> str | None:
    """What is wrong, in words, or None."""
    slots = diagnosis["slots"]
    if diagnosis["used"] < 1.5 and slots > 1:
        return f"one slot of {slots} holds nearly everything"
    if diagnosis["duplicates"] > slots - 1.5 and slots > 1:
        return f"nearly all of the {slots} slots are the same"
    if diagnosis["entropy"] > 0.98:
        return "every input belongs to all slots alike"
    if diagnosis.get("floor", 0) > 0.9:
        return "nearly all variances are at their floor"
    return None


def watch(model, pictures, config, count=100) -> dict:
    """`diagnose` on the first pictures of a `SlotEncoder`'s data; a collapse is told on stderr."""
    images = pictures.batch(list(range(min(count, len(pictures)))))[0]
    with evaluation(model) as device:
        features = model.features(to_input(images, device)).contiguous()
        init = draw_states(model.slots, features, eval_seeds(range(len(images))))
        diagnosis = diagnose(model.slots, features, init, config.eval_iters)
    if problem := collapse(diagnosis):
        tqdm.write(f"warning: the slots have collapsed: {problem}", file=sys.stderr)
    return diagnosis


def describe(diagnosis) -> str:
    """One line for people."""
    words = [
        f"slots used: {diagnosis['used']:.1f} of {diagnosis['slots']}",
        f"duplicates {diagnosis['duplicates']:.1f}",
        f"attention entropy {diagnosis['entropy']:.2f} (0: one slot per place, 1: all slots alike)",
    ]
    for name, label in (("prior", "largest prior"), ("floor", "variances at their floor")):
        if name in diagnosis:
            words.append(f"{label} {diagnosis[name]:.2f}")
    if "log_likelihood" in diagnosis:
        values = " ".join(f"{v:.1f}" for v in diagnosis["log_likelihood"])
        words.append(f"log-likelihood of an input after each iteration {values}")
    return ", ".join(words)
