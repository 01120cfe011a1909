"""Learning rates: functions of (config, step)."""

from __future__ import annotations

import torch

UNKNOWN = 10_000  # steps, until the length of a run has been measured


def one_cycle(config, step):
    """Up by a cosine to config.lr in the first `warmup` of the steps, down to 0 after."""
    steps = config.steps or UNKNOWN
    peak = max(1, int(config.warmup * steps))
    done = step / peak if step < peak else 1 + (step - peak) / max(1, steps - peak)
    position = torch.tensor(done)
    wave = float(0.5 - 0.5 * torch.cos(torch.pi * position))
    return config.lr * (0.04 + 0.96 * wave) if step < peak else config.lr * wave


def warm_up_and_decay(config, step):
    """Linear up to config.lr in the first `warmup` of the steps, times `halved` from the first on.

    As in Locatello et al. 2020.
    """
    rise = config.warmup * (config.steps or UNKNOWN)
    return config.lr * min(1.0, step / max(1.0, rise)) * halved(step, config.half_life)


def halved(step, half_life):
    """1, halved every `half_life` steps; None: never."""
    return 0.5 ** (step / half_life) if half_life else 1.0


RATES = {"cycle": one_cycle, "decay": warm_up_and_decay}
