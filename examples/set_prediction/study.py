"""What a slot module needs to learn: settings side by side, at equal steps, over several seeds.

    python -m examples.set_prediction.study [--only NAME ...] [--steps 1500] [--seeds 3] [--out
    runs/study]

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
from torch.func import functional_call

from smm_py.torch import Formulas, SlotMixture

from ..shared import report
from ..shared.command import folder, set_threads
from ..shared.files import locked
from ..shared.pictures import open_pictures
from .config import Config
from .train import FIELDS, average_precision, build_model, train


class KMeansPlusPlus(SlotMixture):
    """Means start at inputs far from each other, as by k-means++ (Arthur, Vassilvitskii 2007)."""

    def initial_state(self, x, *, generator):
        state = super().initial_state(x, generator=generator)
        chosen = state["indices"]  # (B, K); the first of each image stays, the others are redrawn
        nearest = torch.full(x.shape[:2], torch.inf, device=x.device)
        for k in range(1, chosen.shape[1]):
            last = x.gather(1, chosen[:, k - 1 : k, None].expand(-1, -1, x.shape[2]))
            nearest = torch.minimum(nearest, (x - last).square().sum(-1).detach())
            for image, own in enumerate(generator):
                weights = nearest[image].double().to(own.device)
                chosen[image, k] = torch.multinomial(weights, 1, generator=own)
        return state


class LatePrior(SlotMixture):
    """The prior is uniform in the first half of training and learned after."""

    def __init__(self, late, **options):
        super().__init__(**options, prior="uniform")
        self.learned, self.late = SlotMixture(**options, prior="learned"), late
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))  # saved in checkpoints
        for parameter in self.learned.parameters():
            parameter.requires_grad_(False)

    def forward(self, *arguments, **options):
        self.calls += self.training and torch.is_grad_enabled()
        if self.calls < self.late:
            return super().forward(*arguments, **options)
        own = {name: p for name, p in self.named_parameters() if not name.startswith("learned.")}
        return functional_call(self.learned, own, arguments, options)


class SmoothedPrior(SlotMixture):
    """The prior is the posterior mean under a Dirichlet of N / K pseudo-counts for each slot."""

    class formulas(Formulas):
        def new_prior(self, gamma):
            share = super().new_prior(gamma)
            return (share + 1 / share.shape[1]) / 2


class LearnedTemperature(SlotMixture):
    """The temperature is a parameter, and starts at that of the options."""

    class Tempered(Formulas):
        def e_step(self, mean, log_std, prior):
            _, hidden, density = super().e_step(mean, log_std, prior)
            log_prior = prior.log()[:, None]
            logits = self.log_temperature.exp() * (density - log_prior) + log_prior
            return logits.softmax(-1), hidden, density

    def __init__(self, temperature, **options):
        super().__init__(**options, temperature=temperature)
        self.log_temperature = nn.Parameter(torch.tensor(temperature).log())

    def formulas(self, *arguments):
        tempered = self.Tempered(*arguments)
        tempered.log_temperature = self.log_temperature
        return tempered


OPTIONS = {"variant": "paper", "norm_kv": True, "temperature": 64**-0.5}
STABLE = {**OPTIONS, "prior": "uniform"}
# what all share, and the preset has no longer
COMMON = {"loss": "huber", "position_scale": 1.0, "slots": 7, "apart": 0.0}

# name -> (changes of the configuration, what makes the slot module; None: the configuration)
SETTINGS = {
    "smm": ({}, None),
    "smm, Gaussian start": ({"start": "gaussian"}, None),
    "smm, k-means++ start": ({}, partial(KMeansPlusPlus, **STABLE)),
    "smm, default weights": ({}, partial(SlotMixture, **STABLE, weight_init="default")),
    "smm, prior learned": ({}, partial(SlotMixture, **OPTIONS, prior="learned")),
    "smm, prior learned late": ({}, partial(LatePrior, **OPTIONS)),
    "smm, prior smoothed": ({}, partial(SmoothedPrior, **OPTIONS, prior="learned")),
    "smm, temperature learned": ({}, partial(LearnedTemperature, **STABLE)),
    "smm, temperature 1": ({}, partial(SlotMixture, **{**STABLE, "temperature": 1.0})),
    "smm, as printed": ({"variant": "paper", "start": "gaussian"}, None),
    "smm, all rows compared": ({"empty_rows": "all"}, None),
    "sa, Gaussian start": ({"model": "sa", "start": "gaussian"}, None),
    "sa, start at inputs": ({"model": "sa"}, None),
}


def run(name, seed, steps, out):
    """AP by threshold of one setting and seed; from its file if it has been run."""
    changes, module = SETTINGS[name]
    folder = out / f"{name.replace(', ', '-').replace(' ', '-')}-{steps}-{seed}"
    if (folder / "ap.json").exists():
        return json.loads((folder / "ap.json").read_text())
    config = Config.from_preset("tiny", seed=seed, steps=steps, **COMMON, **changes)
    folder.mkdir(parents=True, exist_ok=True)
    model = build_model(config)
    if module is not None:
        late = {"late": steps // 2} if module.func is LatePrior else {}
        torch.manual_seed(seed)
        sizes = {"dim": config.dim, "num_slots": config.slots, "hidden_dim": config.hidden}
        model.slots = module(num_iters=config.train_iters, start=config.start, **sizes, **late)
    with locked(folder):
        model = train(config, folder, torch.device("cpu"), model)
    draws = average_precision(model, open_pictures(config, "val", 500, fields=FIELDS), config, 3)
    ap = {f"{t:g}": float(np.mean([d[t] for d in draws])) for t in draws[0]}
    (folder / "ap.json").write_text(json.dumps(ap) + "\n")
    return ap


def table(results) -> str:
    """A line for each setting: mean over seeds, and each seed's value at two thresholds."""
    thresholds, rows = {"∞": "inf", **{t: t for t in ("1", "0.5", "0.25", "0.125")}}, []
    for name, runs in results.items():
        means = [f"{100 * np.mean([r[t] for r in runs]):.1f}" for t in thresholds.values()]
        each = ", ".join(f"{100 * r['inf']:.0f} ({100 * r['0.5']:.0f})" for r in runs)
        rows.append([name, len(runs), *means, each])
    head = ["setting", "seeds", *(f"AP{t}" for t in thresholds), "each seed: AP∞ (AP0.5)"]
    return report.table(head, rows)


def main():
    parser = argparse.ArgumentParser(
        prog="python -m examples.set_prediction.study",
        description=__doc__.split("\n")[0],
        epilog="example: python -m examples.set_prediction.study --seeds 1 --steps 300",
    )
    names = tuple(SETTINGS)
    what = f"settings: {'; '.join(names)}"
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, metavar="NAME", help=what
    )
    for name, default in (("steps", 1500), ("seeds", 3), ("first-seed", 0), ("threads", None)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=folder, default=Path("runs/study"))
    options = parser.parse_args()
    set_threads(options.threads)
    seeds = range(options.first_seed, options.first_seed + options.seeds)

    def runs(name):
        return [run(name, seed, options.steps, options.out) for seed in seeds]

    print(table({name: runs(name) for name in options.only}))


if __name__ == "__main__":
    main()
