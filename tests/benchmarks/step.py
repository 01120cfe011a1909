"""A whole training step of set prediction, with our module and with two others in the same place.

"released": the set predictor that the paper's authors published, in plain PyTorch: convolutions, a
transformer of two blocks, and the reference variant in its published broadcast form (without
dropout, which would only add time). "plain": our example's model as someone would write it first:
the mixture in expanded form, float32, no memory format.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from examples import data
from examples.set_prediction.config import Config
from examples.set_prediction.matching import set_loss
from examples.set_prediction.model import SetPredictor
from examples.set_prediction.reference import ReleasedPredictor
from examples.shared.pictures import seed_of, to_input
from tests import plain_torch

from . import measure, peers

BATCH = 32


class Plain(nn.Module):
    """A twin's parameters, with a function (parameters, x, init) -> slots in plain PyTorch."""

    def __init__(self, twin, function):
        super().__init__()
        self.twin, self.function, self._spec = twin, function, twin._spec

    def initial_state(self, *arguments, **options):
        return self.twin.initial_state(*arguments, **options)

    def forward(self, x, init, num_iters=None, return_attention=False):
        slots = self.function(dict(self.twin.named_parameters()), x, init)
        return (
            (slots, slots.new_zeros(len(x), x.shape[1], slots.shape[1]))
            if return_attention
            else slots
        )


def written_out(attention, x):
    """Self-attention with its N x N weights, as released."""
    q, k, v = (
        m(x).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        for m in (attention.to_q, attention.to_k, attention.to_v)
    )
    weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
    return attention.to_out[0]((weights @ v).transpose(1, 2).flatten(-2))


def released(iters):
    model = ReleasedPredictor()
    for block in model.slot_attention.transf.transformer_blocks:
        for attention in (block.attn1, block.attn2):
            attention.forward = lambda x, a=attention: written_out(a, x)
    mixture = model.slot_attention.mixture
    options = {**mixture.options, "kind": "SlotMixture", "num_iters": iters}

    def function(params, x, init):
        return plain_torch.run(options, params, x, (init["mean"], init["log_std"]))["slots"]

    model.slot_attention.mixture = Plain(mixture, function)
    return model


class Untuned(SetPredictor):
    """Without the memory format that the example chooses."""

    def features(self, image):
        features = self.position(self.encoder(image)).flatten(2).transpose(1, 2)
        return self.mlp(self.norm(features))


def plain(config):
    model = Untuned(config)
    model.encoder = model.encoder.to(memory_format=torch.contiguous_format)
    spec = model.slots._spec
    form = peers.make(
        peers.Torch(), "SlotMixture", "expanded", spec.num_iters, spec.gradient, spec.temperature
    )
    model.slots = Plain(
        model.slots, lambda params, x, init: form(params, x, init["mean"], init["log_std"])
    )
    return model


def configuration():
    """Table 1's model, as the example trains it on this machine."""
    return Config.from_preset("paper", batch_size=BATCH)


def models():
    config = configuration()
    return {
        "smm_py": SetPredictor(config),
        "plain": plain(config),
        "released": released(config.train_iters),
    }


def make_step(model, images, targets):
    """One step of training: pictures to loss, gradients, clipping, Adam."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=4e-4)
    seeds = [seed_of(0, i) for i in range(len(images))]

    def step():
        optimizer.zero_grad(set_to_none=True)
        prediction = model(to_input(images, "cpu"), seeds)
        with torch.profiler.record_function("matching"):
            loss = set_loss(prediction, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def check():
    """Errors of both other modules, our weights, relative to what other initial slots change."""
    torch.manual_seed(0)
    config = configuration()
    x, noise = 2 * torch.randn(1, 256, config.dim), torch.randn(2, 1, config.slots, 2 * config.dim)

    def mixture(model, noise):
        mean, log_std = noise.chunk(2, -1)
        return model.slots(x, {"mean": mean.contiguous(), "log_std": 0.1 * log_std})

    def whole(model, noise):
        return model.slot_attention(x, noise, config.train_iters)[0]

    errors = []
    for call, ours, other in (
        (mixture, SetPredictor(config), plain(config)),
        (whole, ReleasedPredictor(), released(config.train_iters)),
    ):
        other.load_state_dict(dict(zip(other.state_dict(), ours.state_dict().values())))
        with torch.no_grad():
            one, two = (call(ours, n) for n in noise)
            errors.append(
                float((call(other, noise[0]) - one).abs().max() / (two - one).abs().max())
            )
    if not max(errors) <= 1e-2:
        raise SystemExit(
            f"the modules of the whole step do not agree: {errors} of the difference "
            "that other initial slots make"
        )
    return errors


PARTS = {
    "slot module, forward": ("smm_py::forward",),
    "slot module, backward": ("smm_py::backward",),
    "convolutions": ("convolution",),
    "ReLU, bias, activations": ("relu", "threshold", "clamp", "aten::add", "sigmoid", "softmax"),
    "copies, other layouts and types": ("copy", "contiguous", "aten::to", "fill", "zero"),
    "matching": ("matching",),
    "Adam and clipping": ("Optimizer", "norm", "foreach", "addcdiv", "addcmul", "lerp", "sqrt"),
}


def by_part(step, count=5):
    """Share of a step's time by part, by PyTorch's profiler; what has no part is "the rest"."""
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(count):
            step()
    taken = {}
    for event in profile.key_averages():
        part = next(
            (part for part, words in PARTS.items() if any(word in event.key for word in words)),
            "the rest",
        )
        taken[part] = taken.get(part, 0) + event.self_cpu_time_total
    total = sum(taken.values())
    return {part: time / total for part, time in sorted(taken.items(), key=lambda item: -item[1])}


def whole_step(threads, seconds):
    measure.set_threads(threads)
    errors = check()
    torch.manual_seed(0)
    scenes = data.open_dataset(
        None, None, "train", 128, min_objects=3, max_objects=10, seed=0, count=BATCH
    )
    images = np.stack([scene["image"] for scene in scenes])
    targets = torch.from_numpy(np.stack([scene["target"] for scene in scenes]))
    calls = {name: make_step(model, images, targets) for name, model in models().items()}
    for call in calls.values():
        call()
    return {
        "threads": threads,
        "batch": BATCH,
        "precision": configuration().precision,
        "differences": errors,
        "time": measure.summary(measure.interleave(calls, seconds)),
        "parts": by_part(calls["smm_py"]),
    }
