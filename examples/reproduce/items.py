"""What is made of the trainings: the paper's tables, its results beside ours, and figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import copyfile

import numpy as np
import torch

from .. import load
from ..object_discovery.config import Config as DiscoveryConfig
from ..object_discovery.model import ObjectDiscovery
from ..object_discovery.plots import exchanged
from ..set_prediction.config import Config as SetConfig
from ..shared import plots
from ..shared.modules import SlotEncoder
from ..shared.pictures import open_pictures
from ..shared.report import table
from ..slate.config import Config as SlateConfig
from ..slate.dvae import PATCH
from ..slate.model import Slate
from ..slate.plots import write, written_figure
from ..slate.train import COLD, HOT, build_model
from .trainings import Result


@dataclass(frozen=True)
class Item:
    """A table or figure.

    make : (results, folder) -> Markdown; pictures go to the folder, and a link has their name
        alone.
    trainings : whose results it is made of, by name. data_sets : the paper's, by their readers'
        names.
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

    trained : it is drawn by the trained models. Where these are not at hand, the picture stays as
        it was drawn before.
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
TABLE_1 = """
SA     94.3 ± 1.1, 86.7 ± 1.4, 56.0 ± 3.6, 10.8 ± 1.7,  0.9 ± 0.2, -
SA*    97.1 ± 0.7, 94.5 ± 0.7, 88.3 ± 3.2, 62.5 ± 5.4, 23.6 ± 1.4, 4.6 ± 0.3
iDSPN  98.8 ± 0.5, 98.5 ± 0.6, 98.2 ± 0.6, 95.8 ± 0.7, 76.9 ± 2.5, 32.3 ± 3.9
SMM    99.4 ± 0.2, 99.3 ± 0.2, 98.8 ± 0.4, 98.4 ± 0.7, 92.1 ± 1.2, 47.3 ± 2.5
"""
TABLE_4 = """
K-Means  81.7, 49.1, 7.2, 1.4, 0.2, -
GMM      88.6, 53.3, 9.2, 2.3, 0.5, -
"""


def printed(text):
    """Rows of a table of the paper."""
    for name, cells in (line.split(maxsplit=1) for line in text.strip().splitlines()):
        yield [f"paper: {name}", *(cell.strip() for cell in cells.split(","))]


def average_precision(paper):
    def make(results, folder):
        own = [[ours(r), *(spread(r, f"ap.{t}") for t in THRESHOLDS)] for r in results]
        return table(AP_HEAD, [*printed(paper), *own])

    return make


def set_pictures(results, folder):
    """The scheme at work: pictures, what is listed of them, what each slot attends to."""

    def copied(name, what):
        def copy(of, path):
            copyfile(of[0].runs[0] / f"{name}.png", path)

        return drawn(results, folder, f"figure1_{name}", what, copy, trained=True)

    first = copied("predictions", "pictures and what is listed of them")
    return f"{first}\n\n{copied('attention', 'what every slot attends to')}"


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
    """A picture for each data set: mean and range of `key` over the seeds along training."""

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

    picture = drawn(results, folder, name, f"{ylabel} along training", draw)
    about = "Lines are means over the seeds, bands reach from the lowest seed to the highest."
    return f"{picture}\n\n{about}"


def cross_entropy_curves(results, folder):
    return curves(results, folder, "cross_entropy", "cross-entropy of a picture", "figure2")


def written_by(result, count):
    """What a result's first run writes of the first pictures."""
    config = result.config
    config.weights = str(result.runs[0] / "model.safetensors")
    return write(build_model(config, "cpu"), open_pictures(config, "val", count), config)


def beside(results, folder, name, count, choose):
    """A picture for each data set: rows that `choose` takes of what each model writes."""

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
    """The authors chose them by eye; here it is the distance from the dVAE's own picture."""

    def choose(written):
        gaps = [w.generated.astype(float) - w.reconstruction for w in written]
        errors = [np.square(gap).mean((1, 2, 3)) for gap in gaps]
        return np.argsort(-np.maximum.reduce(errors))[:WORST]

    return (
        f"{beside(results, folder, 'figure4', OF, choose)}\n\nOf {OF} pictures the {WORST} that "
        "either model writes farthest from the dVAE's picture (squared error)."
    )


def attention(results, folder):
    def draw(of, path):
        written_figure(written_by(of[0], 8), path)

    what = "input, dVAE, picture written from the slots, attention of every slot"
    return drawn(results, folder, "figure5", what, draw, trained=True)


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
    parts = {"dVAE": model.dvae, "slot mixture": model.slots, "transformer": model.writer}
    sizes = ", ".join(f"{count(part):,} of the {name}" for name, part in parts.items())
    return f"{table(['', 'paper', 'preset `paper`'], rows)}\n\nParameters: {sizes}."


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
    shares = {"fg_ari": "FG-ARI", "ari": "ARI", "mbo": "mBO", "miou": "mIoU"}
    rows = []
    for r in results:
        rows.append([ours(r), *(spread(r, k, 100) for k in shares), spread(r, "mse", digits=4)])
    return table(["", *(f"{name} (%)" for name in shares.values()), "MSE"], rows)


def error_curves(results, folder):
    return curves(results, folder, "mse", "MSE", "figure6", "log")


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())


def shapes(module, call, batch) -> dict:
    """The shape that each innermost layer of a module gives in call(), without the batch's axis."""
    seen = {}

    def look(name):
        def hook(layer, given, out):
            seen[name] = out.shape[int(len(out) == batch) :]

        return hook

    innermost = [(n, layer) for n, layer in module.named_modules() if not list(layer.children())]
    hooks = [layer.register_forward_hook(look(name)) for name, layer in innermost]
    with torch.no_grad():
        call()
    for hook in hooks:
        hook.remove()
    return seen


def describe(layer) -> str:
    kind = type(layer).__name__
    if hasattr(layer, "kernel_size"):
        size = "x".join(map(str, layer.kernel_size))
        return f"{kind} {size}, {layer.out_channels}, stride {layer.stride[0]}"
    return f"{kind}, {layer.out_features}" if hasattr(layer, "out_features") else kind


def layers(module, call, batch=1):
    """Rows of a table: every layer with parameters, the shape that it gives, its parameters."""
    seen = shapes(module, call, batch)
    return [
        [f"`{name}`", describe(layer), "x".join(map(str, seen[name])), f"{count(layer):,}"]
        for name, layer in module.named_modules()
        if name in seen and count(layer)
    ]


HEAD = ["layer", "what", "gives", "parameters"]


def as_printed(lines):
    return "As printed:\n\n" + "\n".join(f"{i}. {line}" for i, line in enumerate(lines, 1))


def encoder_layers(results, folder):
    parts = [as_printed(TABLE_5)]
    for what, make in (("object discovery", DiscoveryConfig), ("set prediction", SetConfig)):
        config = make.from_preset("paper", model="sa", precision="float32")
        model, images = SlotEncoder(config), torch.zeros(1, 3, *2 * [config.image_size])
        rows = layers(model, partial(model.features, images))
        parts.append(f"Preset `paper` of {what}:\n\n" + table(HEAD, rows))
    return "\n\n".join(parts)


def decoder_layers(results, folder):
    config = DiscoveryConfig.from_preset("paper", precision="float32")
    model = ObjectDiscovery(config)
    decoder, slots = model.decoder, torch.zeros(1, config.slots, config.dim)
    rows = layers(decoder, partial(decoder, slots), config.slots)
    sizes = f"{count(decoder):,} parameters in the decoder, {count(model):,} in the whole model."
    own = f"Preset `paper`:\n\n{table(HEAD, rows)}"
    return f"{as_printed(TABLE_6)}\n\n{own}\n\n{sizes}"


# -- ablations ---------------------------------------------------------------------------------


def over_seeds(result, key, scale=1.0, digits=1) -> str:
    """As `spread`; of one seed, the figure alone."""
    text = spread(result, key, scale, digits)
    return text if len(result.seconds) > 1 else text.split(" ±")[0]


def titled(result) -> str:
    return f"{result.label} ({len(result.seconds)})"


def by_number(results, first, keys, digits=1):
    """A row for each result and (label, key) of its figures by number."""
    numbers = results[0].figures[next(iter(keys.values()))] if results else ()
    rows = [
        [f"{titled(r)}: {label}", *(over_seeds(r, f"{key}.{n}", digits=digits) for n in numbers)]
        for r in results
        for label, key in keys.items()
    ]
    return table([first, *numbers], rows)


def differences_taken_away(results):
    if not results:
        return "Not run yet."
    rows = [
        [titled(r), f"{r.config.steps:,}", *(over_seeds(r, f"ap.{t}") for t in THRESHOLDS)]
        for r in results
    ]
    return table(["AP (%)", "steps", *AP_HEAD[1:]], rows)


COUNTED = {"every slot": "", "merged": "_merged", "each place once": "_once"}


def counted(results):
    """Rows for SMM and Slot Attention: with more objects than they were trained on."""
    rows = []
    for r in results:
        for label, suffix in COUNTED.items():
            cells = [
                f"{over_seeds(r, f'{name}{suffix}.far')} / {over_seeds(r, f'{name}{suffix}.near')}"
                for name in ("many", "full")
            ]
            exact = over_seeds(r, f"many{suffix}.count_accuracy", digits=2)
            error = over_seeds(r, f"many{suffix}.count_error", digits=2)
            rows.append([f"{titled(r)}, {label}", cells[0], exact, error, cells[1]])
    head = ["", "1 to 10 objects, 16 slots: AP∞ / AP0.5", "exact", "mean error"]
    return table([*head, "7 to 10 objects, 14 slots: AP∞ / AP0.5"], rows)


def repeats(results):
    names = {"used": "slots used", "duplicates": "duplicate slots", "repeated": "listed again"}
    rows = [[titled(r), *(over_seeds(r, key, digits=2) for key in names)] for r in results]
    return table(["of a picture", *names.values()], rows)


def number_curves(results, path):
    """AP by number of iterations, and by number of slots that are left out."""
    figure, axes = plots.plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained", sharey=True)
    for i, r in enumerate(results):
        for axis, what in zip(axes, ("iterations", "dropped")):
            for (name, label), line in zip({"far": "∞", "near": "0.5"}.items(), ("-", "--")):
                values = r.figures[f"{name}_{what}"]
                numbers = [int(n) for n in values]
                text = f"{r.label}, AP{label}"
                axis.plot(numbers, values.values(), line, color=f"C{i}", label=text)
    axes[0].set(xlabel="iterations in evaluation", ylabel="AP (%)", ylim=(0, 100))
    axes[1].set(xlabel="slots left out, those of least mass first")
    axes[0].legend(frameon=False, fontsize=7)
    plots.save(figure, path)


def exchange(results, path):
    (result,) = results
    model = load(result.runs[0])
    exchanged(model, open_pictures(model.config, "val", 12), model.config, path)


ABLATION = "smm", "spread", "density", "variance", "sa", "sa-wide"
ABLATIONS = tuple(f"ablation-{name}" for name in ABLATION)
TRAINED, DRAWN = ("trained-smm", "trained-sa", "trained-sa-inputs"), ("trained-discovery",)
CURVES = "AP by the number of iterations, and of slots left out"
EDITED = "objects exchanged between scenes"
ABOUT_ABLATIONS = {
    "SMM without its differences": """\
The paper names three differences between the modules: (1) variances and priors are updated beside
the means, (2) the Gaussian density stands in place of the dot product, (3) a slot is mean and
variance. Each is taken away alone (`--without`; priors are uniform throughout, as in `stable`).
Without (1) and (2) variances are still found for the slots. "Slots of 2D" are twice as wide as
features (`--slot-dim`). So few steps show how early a model learns.""",
    "Iterations": "AP by the number of iterations in evaluation, after training with five.",
    "Duplicate slots": """\
Slots used hold an input more than others do; duplicate slots are as another slot of the picture
(nearer than a hundredth of the spread of slots). Listed again: predictions with a presence above
one half that are nearer than 0.8 to a surer one.""",
    "Counting, beside Slot Attention": """\
Trained on 2 to 6 objects with nine slots. "Merged": by overlap of attention (`--merge`).
"Each place once": the default, without a second object nearer than 0.8 (`--apart`).""",
    "Slots left out": """\
A slot's mass is its mean responsibility, which is the prior that an M step would give it. AP
(squared error in object discovery, where the background's slot stays) by the number of slots that
are left out, those of least mass first, or drawn at random.""",
    "Scenes that are edited": """\
The largest object's slot is exchanged between two scenes, and both are decoded. SLATE's pictures
of mixed slots are `mixed.png` of `python -m examples.slate sample`.""",
}


def ablations(results, folder):
    named = {r.training: r for r in results}
    short, trained, discovery = (
        [named[name] for name in names if name in named] for names in (ABLATIONS, TRAINED, DRAWN)
    )
    iterations = {"AP∞": "far_iterations", "AP0.5": "near_iterations"}
    mass = {"AP∞": "far_dropped", "AP∞, at random": "far_random", "AP0.5": "near_dropped"}
    error = {"squared error": "mse_dropped", "at random": "mse_random"}
    curves = drawn(trained, folder, "ablations_curves", CURVES, number_curves)
    pictures = drawn(discovery, folder, "ablations_exchange", EDITED, exchange, trained=True)
    parts = [
        [differences_taken_away(short)],
        [by_number(trained, "iterations", iterations), curves],
        [repeats([*trained, *discovery])],
        [counted(trained)],
        [
            by_number(trained, "slots left out", mass),
            by_number(discovery, "slots left out", error, digits=4),
        ],
        [pictures],
    ]
    sections = [
        "\n\n".join([f"### {title}", about, *own])
        for (title, about), own in zip(ABOUT_ABLATIONS.items(), parts)
    ]
    return "\n\n".join(["In brackets: the number of seeds.", *sections])


# ----------------------------------------------------------------------------------------------

CLEVR, MASKS, SLATE_SETS = ("clevr",), ("clevr_with_masks",), tuple(TABLE_2)
SLATE = "slate-sa", "slate-smm"
DISCOVERY = "discovery-sa", "discovery-sa-inputs", "discovery-smm"
SETS, CLUSTERING = ("sets-sa", "sets-smm"), ("sets-kmeans", "sets-gmm")
ITEMS = {
    "table1": Item("Set prediction on CLEVR", average_precision(TABLE_1), SETS, CLEVR),
    "table2": Item("Reconstruction with an Image GPT decoder", reconstruction, SLATE, SLATE_SETS),
    "table3": Item("Object discovery", discovered, DISCOVERY, MASKS),
    "table4": Item(
        "Vanilla clustering in set prediction", average_precision(TABLE_4), CLUSTERING, CLEVR
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
    "ablations": Item("What each part does", ablations, (*ABLATIONS, *TRAINED, *DRAWN)),
}
