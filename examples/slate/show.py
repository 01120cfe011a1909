"""What a trained model makes of a user's picture: tokens, and the picture written from slots."""

from __future__ import annotations

from ..shared.modules import evaluation
from ..shared.pictures import eval_seeds, to_input
from ..shared.show import Shown
from .dvae import PATCH, squared_error
from .plots import Written, written_figure
from .train import to_pixels


def show(model, given, config, seed) -> Shown:
    """Tokens and slots of a picture.

    figures : mse of the picture written from the slots, dvae_mse of the dVAE's, cross_entropy, all
        as of `train.figures`; tokens, row by row; slots, for each its `share` of the attention.
    """
    config.check_slots("show")
    with evaluation(model) as device:
        inputs = to_input(given.image[None], device)
        encoded = model.encode(inputs, eval_seeds([0], seed), config.eval_iters)
        tokens, slots, attention = encoded
        again, drawn = model.dvae.picture(tokens), model.generate(slots)
        figures = {
            "mse": float(squared_error(drawn, inputs)),
            "dvae_mse": float(squared_error(again, inputs)),
            "cross_entropy": float(model.cross_entropy(tokens, slots)),
        }
    lines = [f"{name} {value:.2f}" for name, value in figures.items()]
    side = config.image_size // PATCH
    figures["tokens"] = tokens.reshape(side, side).tolist()
    shares = attention[0].double().mean(0).tolist()
    figures["slots"] = [{"slot": k, "share": round(share, 4)} for k, share in enumerate(shares, 1)]
    lines += [
        f"slot {one['slot']}: {one['share']:.1%} of the attention" for one in figures["slots"]
    ]
    pictures = given.image[None], to_pixels(again), to_pixels(drawn)
    written = Written(*pictures, slots, attention)
    return Shown(figures, lines, lambda path: written_figure(written, path, given.path.name))
