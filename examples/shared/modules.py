"""What the pipelines' models are made of: encoder, position embedding, slot module and its initial state."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import smm_py.torch as slots_torch


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
    a uniform prior and means that start at inputs. The plain Gaussian mixture has the same, its features normalised
    by `last_norm`. "paper" is Algorithm 1 as printed, from the same initial weights.
    """
    temperature = config.temperature or config.dim**-0.5
    common = dict(dim=config.dim, num_slots=config.slots, num_iters=config.train_iters)
    if config.model == "sa":
        return slots_torch.SlotAttention(**common, hidden_dim=config.hidden, start=config.start)
    if config.model == "smm":
        stable = dict(norm_kv=True, temperature=temperature, prior="uniform")
        return slots_torch.SlotMixture(
            **common,
            hidden_dim=config.hidden,
            start=config.start,
            **(stable if config.variant == "stable" else {}),
        )
    if config.model == "kmeans":
        return slots_torch.KMeans(**common, gradient="implicit")
    prior = "uniform" if config.variant == "stable" else "learned"
    return slots_torch.GaussianMixture(
        **common, temperature=temperature, prior=prior, gradient="implicit"
    )


def last_norm(config):
    """The last layer of the features: the plain mixture has no norm of its own and needs them at unit scale."""
    return (
        nn.LayerNorm(config.dim)
        if config.model == "gmm" and config.variant == "stable"
        else nn.Identity()
    )


def draw_states(module, features, seeds):
    """Initial states, each picture's from a generator of its own: the same in any batch and process, and on any device."""
    return module.initial_state(
        features, generator=[torch.Generator().manual_seed(s) for s in seeds]
    )


def autocast(precision, device):
    """The context in which a model's convolutions run, as a configuration's `precision` says."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


class SlotEncoder(nn.Module):
    """Pictures (B, 3, S, S) in [-1, 1] to slots: the paper's Table 5, then the slot module.

    `config.strides` gives the convolutions (fewer layers and larger strides in tiny presets).
    """

    def __init__(self, config):
        super().__init__()
        channels = [3, *[config.dim] * len(config.strides)]
        self.encoder = nn.Sequential(
            *(
                layer
                for i, stride in enumerate(config.strides)
                for layer in (nn.Conv2d(channels[i], channels[i + 1], 5, stride, 2), nn.ReLU())
            )
        )
        self.position = PositionEmbedding(config.dim)
        self.norm = nn.LayerNorm(config.dim)
        self.mlp = nn.Sequential(
            nn.Linear(config.dim, config.dim),
            nn.ReLU(),
            nn.Linear(config.dim, config.dim),
            last_norm(config),
        )
        if (
            config.model == "smm" and config.variant == "stable"
        ):  # the module has its own norm and MLP
            self.norm = self.mlp = nn.Identity()
        self.slots = make_slots(config)
        self.encoder = self.encoder.to(
            memory_format=torch.channels_last
        )  # faster convolutions on CPUs
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
    """make(config) on a device, with initial weights that config.seed fixes, or those of the file config.weights."""
    torch.manual_seed(config.seed)
    model = make(config)
    if config.weights:
        load_weights(model, config.weights)
    return model.to(device)


def load_weights(model, path):
    """Weights of a `.safetensors` file; ValueError, naming the file, if it is damaged or of another model."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"weights {path} are missing")
    try:
        weights = load_file(path)
    except Exception as error:
        raise ValueError(f"weights {path} cannot be read: {error}") from error
    weights = model.rename(weights) if hasattr(model, "rename") else weights
    own = model.state_dict()
    wrong = [k for k in own if k not in weights or weights[k].shape != own[k].shape]
    if wrong or set(weights) - set(own):
        raise ValueError(
            f"weights {path} are of another model; first difference: "
            f"{(wrong or sorted(set(weights) - set(own)))[0]}"
        )
    model.load_state_dict(weights)
