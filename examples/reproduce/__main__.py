"""Command line of the reproduction; `python -m examples.reproduce --help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..data import find_reader
from ..shared.command import folder, tell
from .items import ITEMS, Item
from .trainings import RESULT, SEEDS, Result, load, obtain

ABOUT = """Train what a table or figure of the paper needs and is not in --out yet, and make it.
Other options go to the pipelines' command lines (--threads, --device, --cache, ...)."""
EXAMPLES = """\
examples, from the repository's root:
  # Table 1 at small scale, on built-in scenes: trains three runs of each model
  python -m examples.reproduce table1
  # a figure from one run of each model, of 500 steps
  python -m examples.reproduce figure6 --seeds 1 --steps 500 --out runs/quick
  # Table 3 with the paper's data and settings
  python -m examples.reproduce table3 --preset paper --data CLEVR_WITH_MASKS --device cuda
  # what each part of the module does: one seed of each training, of 1,500 and 4,600 steps
  python -m examples.reproduce ablations --seeds 1
  # all, and the page docs/results.md from what is there
  python -m examples.reproduce all --page docs/results.md
"""


def data_sets_of(item: Item, name, preset, folders):
    """The folders that an item is made from; [None], the built-in scenes, where none are given."""
    if not item.trainings or not folders and preset == "tiny":
        return [None]
    if not item.data_sets:
        raise ValueError(f"{name} is of the preset tiny and of built-in scenes alone")
    of = {find_reader(folder).name: folder for folder in folders}
    chosen = [of[data] for data in item.data_sets if data in of]
    if not chosen:
        needed, got = " or ".join(item.data_sets), ", ".join(of) or "none"
        raise ValueError(f"{name} needs --data with the folder of {needed}, got {got}")
    return chosen


def make(name, options, rest) -> str:
    """The item's Markdown, also written beside its pictures in --out."""
    item = ITEMS[name]
    seeds = SEEDS[options.preset] if options.seeds is None else options.seeds
    results = [
        obtain(training, options.out, options.preset, data, seeds, rest)
        for data in data_sets_of(item, name, options.preset, options.data)
        for training in item.trainings
    ]
    folder = options.out / options.preset
    folder.mkdir(parents=True, exist_ok=True)
    text = f"## {heading(name)}\n\n{item.make(results, folder)}\n"
    (folder / f"{name}.md").write_text(text)
    return text


def heading(name):
    kind = name.rstrip("0123456789")
    number = f"{kind.capitalize()} {name[len(kind) :]}".strip()
    return f"{number}. {ITEMS[name].title}"


def page(out, path, preset="tiny") -> str:
    """The page of all items from the results in `out` and from those of earlier pages.

    Beside it, images/results/ holds the pictures and a folder of the page's name the results,
    without weights: the next page is made from these too, so not all has to be trained at one time
    and place.
    """
    path = Path(path)
    images, kept = path.parent / "images" / "results", path.with_suffix("")
    images.mkdir(parents=True, exist_ok=True)

    def places(root):
        files = sorted(Path(root, preset).glob(f"*/*/{RESULT}"))
        return [file.parent.relative_to(root) for file in files]

    at_hand = {place: load(out / place) for place in places(out)}
    for place, result in at_hand.items():
        (kept / place).mkdir(parents=True, exist_ok=True)
        result.save(kept / place)
    found = [at_hand.get(place) or load(kept / place) for place in places(kept)]
    parts = ["# Results: the paper's tables and figures", f"{ABOUT_PAGE[preset]}\n{FIGURES}"]
    for name, item in ITEMS.items():
        results = [r for training in item.trainings for r in found if r.training == training]
        parts.append(f"## {heading(name)}")
        if item.trainings and not results:
            parts.append("Not run yet.")
        else:
            parts.append(item.make(results, images).replace("](", "](images/results/"))
        parts.append(commands(name, item, preset))
    parts += ["## Trainings", *map(facts, found)]
    text = "\n\n".join(parts) + "\n"
    path.write_text(text)
    return text


def commands(name, item, preset):
    """How an item of the page is made."""
    plain = f"python -m examples.reproduce {name}"
    folders = (f"--data {data.upper()}" for data in item.data_sets)
    paper = " ".join([plain, "--preset paper", *folders])
    if preset == "paper":
        return f"`{paper}`"
    about = "with the paper's data and settings, which has not been run here"
    return f"`{plain}`; {about}: `{paper}`" if item.data_sets else f"`{plain}`"


ABOUT_PAGE = {
    "tiny": """\
Made by `python -m examples.reproduce --page docs/results.md` from trainings on a small machine.
Unless stated otherwise, they use the preset `tiny` and built-in scenes, with equal steps for the
models of a table. The paper's figures are shown for orientation, not as competitors: its models are
larger, its data sets differ, and its trainings are a hundred times as long. What `tiny` can show is
whether the models rank in the same order. In commands, a name in capitals stands for the folder of
that data set. All trainings of `tiny` together take about nine hours of one CPU core.""",
    "paper": """\
Made by `python -m examples.reproduce --preset paper --page FILE` from trainings with the paper's
data and settings.""",
}
FIGURES = """
Figures are mean ± standard deviation over the seeds. For the figures of the paper's Table 3, see
the paper."""


def facts(result: Result):
    minutes = ", ".join(f"{s / 60:.0f}" for s in result.seconds)
    config, size = result.config, result.config.image_size
    return (
        f"**{result.label}, {result.data}**: `{result.command}`; {len(result.seconds)} runs of "
        f"{config.steps:,} steps at batch {config.batch_size}, {size} x {size}; "
        f"{minutes} minutes of training; {result.hardware}."
    )


def make_parser():
    parser = argparse.ArgumentParser(
        prog="python -m examples.reproduce",
        description=ABOUT,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    usual = ", ".join(f"{name} {n}" for name, n in SEEDS.items())
    add("items", nargs="*", metavar="ITEM", help=f"{', '.join(ITEMS)}, or all")
    add("--preset", choices=tuple(SEEDS), default="tiny")
    add(
        "--data",
        type=Path,
        action="append",
        default=[],
        help="folder of a data set in its official layout, again for each; default of tiny: "
        "built-in scenes",
    )
    add("--seeds", type=int, help=f"runs of each training (default: {usual})")
    what = "folder of the trainings and what is made of them"
    add("--out", type=folder, default=Path("runs", "reproduce"), help=what)
    add("--page", type=Path, help="write this Markdown page of the results that are there")
    return parser


def work(arguments=None):
    options, rest = make_parser().parse_known_args(arguments)
    names = list(ITEMS) if options.items == ["all"] else options.items
    for name in names:
        if name not in ITEMS:
            raise ValueError(f"ITEM must be one of {', '.join(ITEMS)} or all, got {name!r}")
    if not names and options.page is None:
        raise ValueError("name a table or figure, or all, or give --page")
    if rest and not any(ITEMS[name].trainings for name in names):
        raise ValueError(f"nothing is trained that these options could be for: {' '.join(rest)}")
    for name in names:
        print(make(name, options, rest), flush=True)
    if options.page:
        page(options.out, options.page, options.preset)
        print(f"page: {options.page}")


if __name__ == "__main__":
    sys.exit(tell(work))
