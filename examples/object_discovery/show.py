"""What a trained model makes of a user's picture: regions, one for each slot."""

from __future__ import annotations

import numpy as np

from ..shared import plots
from ..shared.modules import draw_states, evaluation
from ..shared.pictures import eval_seeds, to_input
from ..shared.show import Shown
from .model import count_objects, slot_of_each_pixel
from .plots import coloured, names_of, two_rows

HEAD = (
    "{name}. Above: what the model reads, what it draws, and what each slot draws. Below: the "
    "regions on the picture and alone (a colour for each slot), and each slot's mask."
)


def show(model, given, config, seed) -> Shown:
    """The slots of a picture.

    figures : mse, of values in [-1, 1]; objects, their number; slots, for each of them `share` of
        the pixels (see `slot_of_each_pixel`), `box` of these (left, top, right,
        bottom in the user's pixels; None without any), `prior` of the mixture (None without one)
        and `object`, the slot that stands for it (itself, unless slots are merged); background, its
        share (None where it has no slot of its own).
    """
    with evaluation(model) as device:
        inputs, seeds = to_input(given.image[None], device), eval_seeds([0], seed)
        scene = model(inputs, seeds, config.eval_iters)
        features = model.features(inputs).contiguous()
        state = draw_states(model.slots, features, seeds)
        prior = model.slots.run(features, state, num_iters=config.eval_iters).prior
    every, slots = slot_of_each_pixel(scene, inputs), []
    objects, found = int(count_objects(scene, every)), every[0].cpu().numpy()
    for k, stands in enumerate(scene.group[0].tolist()):
        slots.append({"slot": k + 1, "share": round(float((found == k).mean()), 4)})
        slots[k]["box"] = box(given, found == k)
        slots[k]["prior"] = None if prior is None else round(float(prior[0, k]), 4)
        slots[k]["object"] = stands + 1
    error = float((scene.reconstruction - inputs).square().mean())
    lines = [f"{objects} objects, mean squared error {error:.4f}", *map(in_words, slots)]
    shares = [float((found == k).mean()) for k in range(scene.masks.shape[1])]
    behind = round(shares[-1], 4) if len(shares) > len(slots) else None
    lines += [] if behind is None else [f"background: {behind:.1%} of the picture"]
    names = [f"{name}\n{share:.0%}" for name, share in zip(names_of(scene), shares)]

    def draw(path):
        over = 0.5 * given.image / 255 + 0.5 * coloured(found)
        rows = two_rows(given.image, scene, 0, over, coloured(found))
        head = HEAD.format(name=given.path.name)
        plots.sheet(rows, path, ("input", "drawn", *names), head=head)

    figures = {"mse": error, "objects": objects, "background": behind, "slots": slots}
    return Shown(figures, lines, draw)


def box(given, mask):
    """Left, top, right, bottom of a mask (S, S), in the user's pixels."""
    if not mask.any():
        return None
    (top, bottom), (left, right) = (np.flatnonzero(mask.any(axis))[[0, -1]] for axis in (1, 0))
    return [*given.place(left, top), *given.place(right + 1, bottom + 1)]


def in_words(slot):
    text = f"slot {slot['slot']}: {slot['share']:.1%} of the picture"
    if slot["object"] != slot["slot"]:
        text = f"slot {slot['slot']}: of the object of slot {slot['object']}"
    if slot["box"]:
        left, top, right, bottom = (f"{x:.0f}" for x in slot["box"])
        text += f", from ({left}, {top}) to ({right}, {bottom})"
    return text + ("" if slot["prior"] is None else f", prior {slot['prior']:.2f}")
