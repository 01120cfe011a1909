"""What the pipelines' models are made of: encoder, slot module and its initial state, weights."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import smm_py.torch as slots_torch

from .pictures import eval_seeds, to_input

# Algorithm 1 of the Slot Mixture Module as printed
PAPER = {"norm_kv": False, "temperature": 1.0, "prior": "learned"}


class PositionEmbedding(nn.Module):
    """Adds a linear map of each pixel's distances to the four borders (Locatello et al. 2020)."""

    def __init__(self, channels):
        super().__init__()
        self.linear = nn.Linear(4, channels)

    def forward(self, features):  # (B, C, H, W)
        return features + self.map(*features.shape[2:])

    def map(self, height, width) -> Tensor:
        """What is added, (C, H, W)."""
        device = self.linear.weight.device
        y = torch.linspace(0, 1, height, device=device)[:, None].expand(height, width)
        x = torch.linspace(0, 1, width, device=device).expand(height, width)
        return self.linear(torch.stack([y, x, 1 - y, 1 - x], -1)).permute(2, 0, 1)


def make_slots(config):
    """The slot module of a configuration.

    "stable" is the setting that learns (docs/training.md): normalised features, a low temperature,
    a uniform prior and means that start at inputs. The plain Gaussian mixture has the same, its
    features normalised by `last_norm`. "paper" is Algorithm 1 as printed, from the same initial
    weights.
    """
    stable = config.variant == "stable"
    mixture = {
        "temperature": config.temperature or config.dim**-0.5,
        "prior": "uniform" if stable else "learned",
    }
    common = {"dim": config.dim, "num_slots": config.slots, "num_iters": config.train_iters}
    network = {"hidden_dim": config.hidden, "start": config.start}
    if config.model == "sa":
        return slots_torch.SlotAttention(**common, **network)
    if config.model == "smm":
        options = {"norm_kv": True, **mixture} if stable else PAPER
        return slots_torch.SlotMixture(**common, **network, **options)
    if config.model == "kmeans":
        return slots_torch.KMeans(**common, gradient="implicit")
    return slots_torch.GaussianMixture(**common, **mixture, gradient="implicit")


def last_norm(config):
    """The last layer of the features, as the plain mixture has no norm of its own."""
    needed = config.model == "gmm" and config.variant == "stable"
    return nn.LayerNorm(config.dim) if needed else nn.Identity()


def draw_states(module, features, seeds):
    """Initial states, each picture's from a generator of its own.

    So they are the same in any batch and process, and on any device.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return module.initial_state(features, generator=generators)


def autocast(precision, device):
    """The context in which a model's convolutions run, as a configuration's `precision` says."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


@contextmanager
def evaluation(model):
    """The model does not learn: in evaluation, without gradients; yields its device."""
    model.eval()
    try:
        with torch.no_grad():
            yield next(model.parameters()).device
    finally:
        model.train()


def seen_by(model, pictures, config, count=None, call=None, **options):
    """The first `count` pictures (None: all), their other fields, what a model makes of them.

    call : of the model; None: itself. options : arguments beyond pictures, seeds and iterations.
    """
    count = len(pictures) if count is None else min(count, len(pictures))
    images, *rest = pictures.batch(list(range(count)))
    with evaluation(model) as device:
        inputs, seeds = to_input(images, device), eval_seeds(range(count))
        result = (call or model)(inputs, seeds, num_iters=config.eval_iters, **options)
    return images, rest, result


class SlotEncoder(nn.Module):
    """Pictures (B, 3, S, S) in [-1, 1] to slots: the paper's Table 5, then the slot module.

    `config.strides` gives the convolutions (fewer layers and larger strides in tiny presets).
    """

    def __init__(self, config):
        super().__init__()
        channels = [3, *[config.dim] * len(config.strides)]
        layers = []
        for i, stride in enumerate(config.strides):
            layers += [nn.Conv2d(channels[i], channels[i + 1], 5, stride, 2), nn.ReLU()]
        self.encoder = nn.Sequential(*layers)
        self.position = PositionEmbedding(config.dim)
        self.norm = nn.LayerNorm(config.dim)
        first, second = nn.Linear(config.dim, config.dim), nn.Linear(config.dim, config.dim)
        self.mlp = nn.Sequential(first, nn.ReLU(), second, last_norm(config))
        if config.model == "smm" and config.variant == "stable":  # it has its own norm and MLP
            self.norm = self.mlp = nn.Identity()
        self.slots = make_slots(config)
        self.encoder = self.encoder.to(memory_format=torch.channels_last)  # faster on CPUs
        self.precision = config.precision

    def features(self, image) -> Tensor:
        """(B, N, D), N = (S / all strides)^2, row by row."""
        image = image.contiguous(memory_format=torch.channels_last)
        with autocast(self.precision, image.device):
            features = self.encoder(image)
        features = self.position(features.float()).flatten(2).transpose(1, 2)
        return self.mlp(self.norm(features))

    def find(self, image, seeds=None, num_iters=None):
        """Slots (B, K, D or 2D) and attention (B, N, K).

        seeds: one for each picture, of its initial slots; a picture's slots depend on nothing else.
        """
        features = self.features(image).contiguous()
        init = None if seeds is None else draw_states(self.slots, features, seeds)
        return self.slots(features, init, num_iters=num_iters, return_attention=True)


def build(make, config, device="cpu"):
    """make(config) on a device, with weights from config.seed or the file config.weights."""
    torch.manual_seed(config.seed)
    model = make(config)
    if config.weights:
        load_weights(model, config.weights)
    return model.to(device)


def load_weights(model, path):
    """Load a `.safetensors` file; ValueError, naming it, if it is damaged or of another model."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"weights {path} are missing")
    try:
        weights = load_file(path)
    except Exception as error:
        raise ValueError(f"weights {path} cannot be read: {error}") from error
    weights = model.rename(weights) if hasattr(model, "rename") else weights
    own = model.state_dict()
    wrong = [k for k in own if k not in weights or weights[k].shape != own[k].shape]
    wrong = wrong or sorted(set(weights) - set(own))
    if wrong:
        raise ValueError(f"weights {path} are of another model; first difference: {wrong[0]}")
    model.load_state_dict(weights)
