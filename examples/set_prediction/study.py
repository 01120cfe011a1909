"""What a slot module needs to learn: settings side by side, at equal steps, over several seeds.

    python -m examples.set_prediction.study [--only NAME ...] [--steps 1500] [--seeds 3] [--out runs/study]

Every setting trains on the same pictures in the same order from the same seeds; AP is of 500 fresh
pictures. A run that is there already is not repeated, so the table can be made bit by bit.
The results and what follows from them are in docs/training.md.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

import smm_py
from smm_py.torch import SlotMixture, _lean

from .. import markdown
from ..command import folder
from .config import Config
from .train import average_precision, build_model, open_pictures, train


class KMeansPlusPlus(SlotMixture):
    """Means start at inputs drawn as k-means++ does (Arthur and Vassilvitskii 2007): far from each other."""

    def initial_state(self, x, *, generator):
        state = super().initial_state(x, generator=generator)
        chosen = state[
            "indices"
        ]  # (B, K); the first of each image stays, the others are drawn again
        nearest = torch.full(x.shape[:2], torch.inf, device=x.device)
        for k in range(1, chosen.shape[1]):
            last = x.gather(1, chosen[:, k - 1 : k, None].expand(-1, -1, x.shape[2]))
            nearest = torch.minimum(nearest, (x - last).square().sum(-1).detach())
            for image, own in enumerate(generator):
                chosen[image, k] = torch.multinomial(
                    nearest[image].double().to(own.device), 1, generator=own
                )
        return state


class LatePrior(SlotMixture):
    """The prior is uniform in the first half of training and learned after."""

    def __init__(self, late, **options):
        super().__init__(**options, prior="uniform")
        self.learned, self.late = SlotMixture(**options, prior="learned"), late
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))  # kept in checkpoints
        for parameter in self.learned.parameters():
            parameter.requires_grad_(False)

    def forward(self, *arguments, **options):
        self.calls += self.training and torch.is_grad_enabled()
        if self.calls >= self.late:
            for name in ("_spec", "_specs", "_configs"):
                setattr(self, name, getattr(self.learned, name))
        return super().forward(*arguments, **options)


class _OtherForm(SlotMixture):
    """A mixture whose formulas differ: in PyTorch operations, by a subclass of the lean form."""

    def forward(self, x, init=None, num_iters=None, return_attention=False):
        parameters = dict(self.named_parameters())
        result = self.form(self._spec, x, parameters, None).go(
            init.get("mean"),
            init["log_std"],
            init.get("indices"),
            None,
            num_iters or self._spec.num_iters,
            return_attention,
        )
        return (result.slots, result.attention) if return_attention else result.slots


class SmoothedPrior(_OtherForm):
    """The prior is the posterior mean under a Dirichlet of N / K pseudo-counts for each slot."""

    class form(_lean._Run):
        def new_prior(self, gamma):
            share = super().new_prior(gamma)
            return (share + 1 / share.shape[1]) / 2


class LearnedTemperature(_OtherForm):
    """The temperature is a parameter, and starts at D^-1/2."""

    class form(_lean._Run):
        def e_step(self, mean, log_std, prior):
            _, hidden, density = super().e_step(mean, log_std, prior)
            log_prior = prior.log()[:, None]
            return (
                (self.p["log_temperature"].exp() * (density - log_prior) + log_prior).softmax(-1),
                hidden,
                density,
            )

    def __init__(self, **options):
        super().__init__(**options)
        self.log_temperature = nn.Parameter(torch.tensor(self._spec.temperature).log())


STABLE = dict(norm_kv=True, temperature=64**-0.5, prior="uniform")
WITHOUT_PRIOR = {k: v for k, v in STABLE.items() if k != "prior"}

# name -> (changes of the configuration, the slot module's class and options or None: as the configuration says)
SETTINGS = {
    "smm": ({}, None),
    "smm, Gaussian start": (dict(start="gaussian"), None),
    "smm, k-means++ start": ({}, partial(KMeansPlusPlus, **STABLE)),
    "smm, default weights": ({}, partial(SlotMixture, **STABLE, weight_init="default")),
    "smm, prior learned": ({}, partial(SlotMixture, **WITHOUT_PRIOR, prior="learned")),
    "smm, prior learned late": ({}, partial(LatePrior, **WITHOUT_PRIOR)),
    "smm, prior smoothed": ({}, partial(SmoothedPrior, **WITHOUT_PRIOR, prior="learned")),
    "smm, temperature learned": ({}, partial(LearnedTemperature, **STABLE)),
    "smm, temperature 1": ({}, partial(SlotMixture, **{**STABLE, "temperature": 1.0})),
    "smm, as printed": (dict(variant="paper", start="gaussian"), None),
    "smm, all rows compared": (dict(empty_rows="all"), None),
    "sa, Gaussian start": (dict(model="sa", start="gaussian"), None),
    "sa, start at inputs": (dict(model="sa"), None),
}


def run(name, seed, steps, out):
    """AP by threshold of one setting and seed; from its file if it has been run."""
    changes, module = SETTINGS[name]
    folder = out / f"{name.replace(', ', '-').replace(' ', '-')}-{steps}-{seed}"
    if (folder / "ap.json").exists():
        return json.loads((folder / "ap.json").read_text())
    config = Config.from_preset("tiny", seed=seed, steps=steps, **changes)
    folder.mkdir(parents=True, exist_ok=True)
    model = build_model(config)
    if module is not None:
        late = {"late": steps // 2} if module.func is LatePrior else {}
        torch.manual_seed(seed)
        model.slots = module(
            dim=config.dim,
            num_slots=config.slots,
            num_iters=config.train_iters,
            hidden_dim=config.hidden,
            start=config.start,
            **late,
        )
    model = train(config, folder, torch.device("cpu"), model)
    draws = average_precision(model, open_pictures(config, "val", 500), config, 3)
    ap = {f"{t:g}": float(np.mean([d[t] for d in draws])) for t in draws[0]}
    (folder / "ap.json").write_text(json.dumps(ap) + "\n")
    return ap


def table(results) -> str:
    """A line for each setting: mean over seeds, and each seed's value at the first and third threshold."""
    rows = []
    for name, runs in results.items():
        means = [
            f"{100 * np.mean([r[t] for r in runs]):.1f}"
            for t in ("inf", "1", "0.5", "0.25", "0.125")
        ]
        each = ", ".join(f"{100 * r['inf']:.0f} ({100 * r['0.5']:.0f})" for r in runs)
        rows.append([name, len(runs), *means, each])
    return markdown.table(
        ["setting", "seeds", "AP∞", "AP1", "AP0.5", "AP0.25", "AP0.125", "each seed: AP∞ (AP0.5)"],
        rows,
    )


def main():
    options = argparse.ArgumentParser(
        prog="python -m examples.set_prediction.study", description=__doc__.split("\n")[0]
    )
    options.add_argument(
        "--only",
        nargs="+",
        choices=tuple(SETTINGS),
        default=tuple(SETTINGS),
        metavar="NAME",
        help=f"settings: {'; '.join(SETTINGS)}",
    )
    options.add_argument("--steps", type=int, default=1500)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--first-seed", type=int, default=0)
    options.add_argument("--out", type=folder, default=Path("runs/study"))
    options.add_argument("--threads", type=int)
    options = options.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
        smm_py.set_num_threads(options.threads)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    print(
        table(
            {
                name: [run(name, seed, options.steps, options.out) for seed in seeds]
                for name in options.only
            }
        )
    )


if __name__ == "__main__":
    main()
