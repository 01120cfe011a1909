"""What the pipelines' models are made of: encoder, slot module and its initial state, weights."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import smm_py.torch as slots_torch

from .ablations import MIXTURES
from .files import first_line
from .pictures import eval_seeds, to_input

FLOOR = 1e-4  # of the variances; docs/math.md
# parameters that the initial slots are drawn from: a vector for all, or a row for each
INITIAL = "slots_mu", "slots_logsigma", "mean_mu", "mean_logsigma", "logstd_mu", "logstd_logsigma"


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
    low = config.temperature or config.dim**-0.5
    common = {"dim": config.dim, "num_slots": config.slots, "num_iters": config.train_iters}
    common |= {"gradient": "implicit", "eps": 1e-8, "dtype": "float32"}
    # in float32 under autocast too: `config.precision` is of the convolutions
    network = {"hidden_dim": config.hidden, "start": config.start, "precision": "float32"}
    mixture = {"temperature": low, "prior": "uniform" if stable else "learned", "var_floor": FLOOR}
    if config.model == "sa":
        common |= {"dim": config.slot_dim or config.dim, "input_dim": config.dim}
        return slots_torch.SlotAttention(**common, **network)
    if config.model == "smm":
        mixture["temperature"] = low if stable else 1.0
        algorithm = {"variant": "paper", "norm_kv": stable, "slot_norm": False}
        return MIXTURES[config.without](**common, **network, **mixture, **algorithm)
    if config.model == "kmeans":
        return slots_torch.KMeans(**common)
    return slots_torch.GaussianMixture(**common, **mixture)


def last_norm(config):
    """The last layer of the features, as the plain mixture has no norm of its own."""
    needed = config.model == "gmm" and config.variant == "stable"
    return nn.LayerNorm(config.dim) if needed else nn.Identity()


def draw_states(module, features, seeds, num_slots=None):
    """Initial states, each picture's from a generator of its own.

    So they are the same in any batch and process, and on any device.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return module.initial_state(features, num_slots=num_slots, generator=generators)


def find_slots(module, features, seeds, num_iters, num_slots):
    """Slots and attention of features; None: as the module has it."""
    options = {"num_iters": num_iters, "num_slots": num_slots, "return_attention": True}
    init = None if seeds is None else draw_states(module, features, seeds, num_slots)
    return module(features, init, **options)


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
        with torch.no_grad():
            self.position.linear.weight *= config.position_scale
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

    def find(self, image, seeds=None, num_iters=None, num_slots=None):
        """Slots (B, K, D or 2D) and attention (B, N, K).

        seeds: one for each picture, of its initial slots; a picture's slots depend on nothing else.
        """
        return find_slots(
            self.slots, self.features(image).contiguous(), seeds, num_iters, num_slots
        )


def build(make, config, device="cpu"):
    """make(config) on a device, with weights from config.seed or the file config.weights."""
    torch.manual_seed(config.seed)
    model = make(config)
    if config.weights:
        load_weights(model, config.weights, config.slots)
    return model.to(device)


def load_weights(model, path, slots=None):
    """Load a `.safetensors` file; ValueError, naming it, if it is damaged or of another model.

    Weights in float16, as those that ship, become float32.

    slots : their number, for weights whose initial slots have one row for each.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"weights {path} are missing")
    try:
        weights = load_file(path)
    except Exception as error:
        reason = "it is a folder" if Path(path).is_dir() else first_line(error)
        raise ValueError(f"weights {path} cannot be read: {reason}") from error
    try:
        weights = model.rename(weights) if hasattr(model, "rename") else weights
    except ValueError as error:  # of a model that it knows
        raise ValueError(f"weights {path} are {error}") from None
    weights = {k: w.float() if w.dtype == torch.float16 else w for k, w in weights.items()}
    check_weights(weights, model.state_dict(), f"weights {path} are", slots)
    model.load_state_dict(weights)


def check_weights(weights, own, what, slots=None):
    """ValueError, naming the parameter, where tensors by name cannot stand in for `own` ones.

    They are of other names, shapes or dtypes, or not finite; or of another number of `slots`.
    what : the beginning of the message, such as "weights FILE are".
    """

    def differs(name):
        new, old = weights.get(name), own.get(name)
        if not isinstance(new, Tensor) or old is None:
            return True
        return new.shape != old.shape and not (of_each_slot(name) and new.shape[1:] == old.shape)

    def of_each_slot(name):
        return name.rpartition(".")[2] in INITIAL and weights[name].dim() == 2

    if not isinstance(weights, dict):
        raise ValueError(f"{what} not weights by name")
    if wrong := [name for name in (*own, *sorted(set(weights) - set(own))) if differs(name)]:
        raise ValueError(f"{what} of another model; first difference: {wrong[0]}")
    for name, values in weights.items():
        if values.dtype != own[name].dtype:
            kinds = f"{own[name].dtype}, got {values.dtype}"
            raise ValueError(f"{what} not usable: {name} must hold {kinds}")
        if not torch.isfinite(values).all():
            raise ValueError(f"{what} not usable: {name} must be finite")
        if slots is not None and of_each_slot(name) and len(values) != slots:
            raise ValueError(
                f"slots must be {len(values)}, as {name} has a row for each slot, got {slots}: "
                f"{what} of as many"
            )
