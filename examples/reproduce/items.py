"""What is made of the trainings: the paper's tables, with its figures beside ours, and its figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile

import numpy as np
import torch

from .. import plots
from ..markdown import table
from ..modules import SlotEncoder
from ..object_discovery.config import Config as DiscoveryConfig
from ..object_discovery.model import BroadcastDecoder, ObjectDiscovery
from ..pictures import open_pictures
from ..set_prediction.config import Config as SetConfig
from ..slate.config import Config as SlateConfig
from ..slate.dvae import PATCH
from ..slate.model import Slate
from ..slate.plots import write, written_figure
from ..slate.train import COLD, HOT, build_model
from .trainings import Result


@dataclass(frozen=True)
class Item:
    """A table or figure.

    make : (results, folder) -> Markdown; pictures go to the folder, and a link has their name alone.
    trainings : whose results it is made of, by name. data_sets : the paper's, by their readers' names.
    """

    title: str
    make: Callable[[Sequence[Result], Path], str]
    trainings: tuple[str, ...] = ()
    data_sets: tuple[str, ...] = ()


def spread(result, key, scale=1.0, digits=1) -> str:
    """Mean and deviation over the seeds of a figure; "a.b" is figure b of a."""
    mean, deviation = result.figures, result.figures["std"]
    for part in key.split(".", 1):  # thresholds have points too
        if part not in mean:
            return "-"
        mean, deviation = mean[part], deviation[part]
    return f"{scale * mean:.{digits}f} ± {scale * deviation:.{digits}f}"


def ours(result) -> str:
    return f"{result.label}, `{result.preset}`, {result.data}"


def drawn(results, folder, name, what, draw, trained=False) -> str:
    """A link to a picture for each data set, which draw(results of the data set, path) makes.

    trained : it is drawn by the trained models. Where these are not at hand, the picture stays as it was drawn before.
    """
    lines = []
    for data in dict.fromkeys(r.data for r in results):
        of = [r for r in results if r.data == data]
        path = folder / f"{name}_{data}.png"
        if not trained or all(r.runs for r in of):
            draw(of, path)
        if path.exists():
            lines.append(f"![{what}, {data}]({path.name})")
    return "\n\n".join(lines)


# -- set prediction ----------------------------------------------------------------------------

THRESHOLDS = ("inf", "1", "0.5", "0.25", "0.125", "0.0625")
AP_HEAD = ["AP (%)", "∞", "1", "0.5", "0.25", "0.125", "0.0625"]
TABLE_1 = [
    ["paper: SA", "94.3 ± 1.1", "86.7 ± 1.4", "56.0 ± 3.6", "10.8 ± 1.7", "0.9 ± 0.2", "-"],
    [
        "paper: SA*",
        "97.1 ± 0.7",
        "94.5 ± 0.7",
        "88.3 ± 3.2",
        "62.5 ± 5.4",
        "23.6 ± 1.4",
        "4.6 ± 0.3",
    ],
    [
        "paper: iDSPN",
        "98.8 ± 0.5",
        "98.5 ± 0.6",
        "98.2 ± 0.6",
        "95.8 ± 0.7",
        "76.9 ± 2.5",
        "32.3 ± 3.9",
    ],
    [
        "paper: SMM",
        "99.4 ± 0.2",
        "99.3 ± 0.2",
        "98.8 ± 0.4",
        "98.4 ± 0.7",
        "92.1 ± 1.2",
        "47.3 ± 2.5",
    ],
]
TABLE_4 = [
    ["paper: K-Means", "81.7", "49.1", "7.2", "1.4", "0.2", "-"],
    ["paper: GMM", "88.6", "53.3", "9.2", "2.3", "0.5", "-"],
]


def average_precision(paper):
    def make(results, folder):
        return table(
            AP_HEAD,
            paper + [[ours(r), *(spread(r, f"ap.{t}") for t in THRESHOLDS)] for r in results],
        )

    return make


def set_pictures(results, folder):
    """The scheme at work: pictures, what is listed of them, what each slot attends to."""

    def copy(name):
        return lambda of, path: copyfile(of[0].runs[0] / f"{name}.png", path)

    return "\n\n".join(
        (
            drawn(
                results,
                folder,
                "figure1_predictions",
                "pictures and what is listed of them",
                copy("predictions"),
                trained=True,
            ),
            drawn(
                results,
                folder,
                "figure1_attention",
                "what every slot attends to",
                copy("attention"),
                trained=True,
            ),
        )
    )


# -- SLATE -------------------------------------------------------------------------------------

TABLE_2 = {
    "clevr_mirror": ("35.4", "34.8", "4.5", "4.3", "0.82", "0.20"),
    "shapestacks": ("56.6", "50.4", "102.2", "67.3", "88.3", "66"),
    "clevrtex": ("116", "113", "358", "344", "566", "517"),
    "coco": ("129", "122", "1354", "938", "540", "479"),
}


def reconstruction(results, folder):
    rows = [[f"paper: {name}", *values, "-", "-"] for name, values in TABLE_2.items()]
    for data in dict.fromkeys(r.data for r in results):
        pair = {r.training: r for r in results if r.data == data}
        cells = [
            spread(pair[name], key, digits=2) if name in pair else "-"
            for key in ("fid", "mse", "cross_entropy", "frechet_dvae")
            for name in SLATE
        ]
        rows.append([f"`{next(iter(pair.values())).preset}`, {data}", *cells])
    measures = ("FID", "MSE", "cross-entropy", "Fréchet distance in the dVAE's features")
    return (
        table(["", *(f"{m}, {model}" for m in measures for model in ("SA", "SMM"))], rows)
        + "\n\nIn `tiny` the slots of both start at inputs, and both have the same dVAE."
    )


def curves(results, folder, key, ylabel, name, yscale="linear"):
    """A picture for each data set: the mean of `key` over the seeds along training, and all seeds as a band."""

    def draw(of, path):
        figure, axes = plots.plt.subplots(figsize=(5.5, 3.4), layout="constrained")
        for result in of:
            steps, values = zip(*result.curves(key))
            values = np.array(values)
            axes.plot(steps[0], values.mean(0), label=result.label)
            axes.fill_between(steps[0], values.min(0), values.max(0), alpha=0.2)
        axes.set(xlabel="step", ylabel=ylabel, yscale=yscale, title=of[0].data)
        axes.legend(frameon=False)
        plots.save(figure, path)

    return (
        drawn(results, folder, name, f"{ylabel} along training", draw)
        + "\n\nLines are means over the seeds, bands reach from the lowest seed to the highest."
    )


def cross_entropy_curves(results, folder):
    return curves(results, folder, "cross_entropy", "cross-entropy of a picture", "figure2")


def written_by(result, count):
    """What a result's first run writes of the first pictures."""
    config = result.config
    config.weights = str(result.runs[0] / "model.safetensors")
    return write(build_model(config, "cpu"), open_pictures(config, "val", count), config)


def beside(results, folder, name, count, choose):
    """A picture for each data set: rows that `choose` takes of `count` pictures as each model writes them."""

    def draw(of, path):
        written = {r.label: written_by(r, count) for r in of}
        rows = choose(list(written.values()))
        first = next(iter(written.values()))
        columns = {
            "input": first.input[rows],
            "dVAE": first.reconstruction[rows],
            **{label: w.generated[rows] for label, w in written.items()},
        }
        plots.sheet(list(zip(*columns.values())), path, columns)

    return drawn(results, folder, name, "pictures written from slots", draw, trained=True)


def generated(results, folder):
    return beside(results, folder, "figure3", 8, lambda written: list(range(len(written[0].input))))


WORST, OF = 8, 64


def worst_generated(results, folder):
    """The paper's authors chose the wrong ones by eye; here it is the distance from the dVAE's own picture."""

    def choose(written):
        errors = [
            np.square(w.generated.astype(float) - w.reconstruction).mean((1, 2, 3)) for w in written
        ]
        return np.argsort(-np.maximum.reduce(errors))[:WORST]

    return (
        beside(results, folder, "figure4", OF, choose)
        + f"\n\nOf {OF} pictures the {WORST} that either model writes farthest from the dVAE's picture (squared error)."
    )


def attention(results, folder):
    return drawn(
        results,
        folder,
        "figure5",
        "input, dVAE, picture written from the slots, attention of every slot",
        lambda of, path: written_figure(written_by(of[0], 8), path),
        trained=True,
    )


def hyperparameters(results, folder):
    config = SlateConfig.from_preset("paper")
    rows = [
        ("image size", "96", config.image_size),
        ("encoded tokens", "576", (config.image_size // PATCH) ** 2),
        ("dVAE: vocabulary", "4096", config.vocabulary),
        ("dVAE: temperature", "1.0 to 0.1", f"{HOT} to {COLD}"),
        ("dVAE: steps of cooling", "30000", config.cooldown),
        ("dVAE: learning rate, no warm-up", "0.0003", config.dvae_lr),
        ("transformer: layers", "8", config.blocks),
        ("transformer: heads", "8", config.heads),
        ("transformer: width", "192", config.dim),
        ("slots", "12", config.slots),
        ("iterations", "7", config.train_iters),
        ("slots: width", "192", config.dim),
    ]
    with torch.device("meta"):
        model = Slate(config)
    return table(["", "paper", "preset `paper`"], rows) + (
        f"\n\nParameters: {count(model.dvae):,} of the dVAE, {count(model.slots):,} of the slot mixture, {count(model.writer):,} of the transformer."
    )


# -- object discovery --------------------------------------------------------------------------

TABLE_5 = [
    "Conv2D 5x5, 64, ReLU, stride 1",
    *["Conv2D 5x5, 64, ReLU, stride 1 (set prediction: 2)"] * 2,
    "Conv2D 5x5, 64, ReLU, stride 1",
    "position embedding, absolute",
    "flatten",
    "LayerNorm",
    "Linear, 64, ReLU",
    "Linear, 64",
]
TABLE_6 = [
    "broadcast, 8x8",
    "position embedding, absolute",
    *["ConvTranspose2D 5x5, 64, ReLU, stride 2"] * 4,
    "ConvTranspose2D 5x5, 64, ReLU, stride 1",
    "ConvTranspose2D 3x3, 4, stride 1",
    "split channels, softmax of masks over slots",
    "combine",
]


def discovered(results, folder):
    keys = ("fg_ari", "ari", "mbo", "miou")
    return table(
        ["", "FG-ARI (%)", "ARI (%)", "mBO (%)", "mIoU (%)", "MSE"],
        [
            [ours(r), *(spread(r, key, 100) for key in keys), spread(r, "mse", digits=4)]
            for r in results
        ],
    )


def error_curves(results, folder):
    return curves(results, folder, "mse", "MSE", "figure6", "log")


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())


def shapes(module, call, batch) -> dict:
    """What every innermost layer of a module has given in call(): name -> shape, without the axis of a batch of this size."""
    seen = {}
    hooks = [
        layer.register_forward_hook(
            lambda _, __, out, name=name: seen.update({name: out.shape[int(len(out) == batch) :]})
        )
        for name, layer in module.named_modules()
        if not list(layer.children())
    ]
    with torch.no_grad():
        call()
    for hook in hooks:
        hook.remove()
    return seen


def describe(layer) -> str:
    kind = type(layer).__name__
    if hasattr(layer, "kernel_size"):
        return f"{kind} {'x'.join(map(str, layer.kernel_size))}, {layer.out_channels}, stride {layer.stride[0]}"
    return f"{kind}, {layer.out_features}" if hasattr(layer, "out_features") else kind


def layers(module, call, batch=1):
    """Rows of a table: every layer with parameters as it is, the shape that it gives, its parameters."""
    seen = shapes(module, call, batch)
    return [
        [f"`{name}`", describe(layer), "x".join(map(str, seen[name])), f"{count(layer):,}"]
        for name, layer in module.named_modules()
        if name in seen and count(layer)
    ]


HEAD = ["layer", "what", "gives", "parameters"]


def encoder_layers(results, folder):
    parts = ["As printed:\n\n" + "\n".join(f"{i}. {line}" for i, line in enumerate(TABLE_5, 1))]
    for what, make in (("object discovery", DiscoveryConfig), ("set prediction", SetConfig)):
        config = make.from_preset("paper", model="sa", precision="float32")
        model = SlotEncoder(config)
        rows = layers(
            model, lambda: model.features(torch.zeros(1, 3, config.image_size, config.image_size))
        )
        parts.append(f"Preset `paper` of {what}:\n\n" + table(HEAD, rows))
    return "\n\n".join(parts)


def decoder_layers(results, folder):
    config = DiscoveryConfig.from_preset("paper", precision="float32")
    model = ObjectDiscovery(config)
    decoder: BroadcastDecoder = model.decoder
    rows = layers(decoder, lambda: decoder(torch.zeros(1, config.slots, config.dim)), config.slots)
    return (
        "As printed:\n\n"
        + "\n".join(f"{i}. {line}" for i, line in enumerate(TABLE_6, 1))
        + "\n\nPreset `paper`:\n\n"
        + table(HEAD, rows)
        + f"\n\n{count(decoder):,} parameters in the decoder, {count(model):,} in the whole model."
    )


# ----------------------------------------------------------------------------------------------

CLEVR, MASKS, SLATE_SETS = ("clevr",), ("clevr_with_masks",), tuple(TABLE_2)
SLATE, DISCOVERY = (
    ("slate-sa", "slate-smm"),
    ("discovery-sa", "discovery-sa-inputs", "discovery-smm"),
)
ITEMS = {
    "table1": Item(
        "Set prediction on CLEVR", average_precision(TABLE_1), ("sets-sa", "sets-smm"), CLEVR
    ),
    "table2": Item("Reconstruction with an Image GPT decoder", reconstruction, SLATE, SLATE_SETS),
    "table3": Item("Object discovery", discovered, DISCOVERY, MASKS),
    "table4": Item(
        "Vanilla clustering in set prediction",
        average_precision(TABLE_4),
        ("sets-kmeans", "sets-gmm"),
        CLEVR,
    ),
    "table5": Item("Encoder", encoder_layers),
    "table6": Item("Spatial broadcast decoder", decoder_layers),
    "table7": Item("Settings of SLATE", hyperparameters),
    "figure1": Item("Set prediction at work", set_pictures, ("sets-smm",), CLEVR),
    "figure2": Item("Cross-entropy along training", cross_entropy_curves, SLATE, SLATE_SETS),
    "figure3": Item("Pictures written from slots", generated, SLATE, SLATE_SETS),
    "figure4": Item("Pictures that are written wrongly", worst_generated, SLATE, SLATE_SETS),
    "figure5": Item("Attention of the slots", attention, ("slate-smm",), SLATE_SETS),
    "figure6": Item(
        "Squared error of object discovery along training", error_curves, DISCOVERY, MASKS
    ),
}
