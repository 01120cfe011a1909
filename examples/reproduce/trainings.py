"""The trainings that the paper's tables and figures are made from, and their results on disk."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

import torch

from smm_py._config import processor

from ..data import find_reader
from ..data.fields import parse_json
from ..shared.command import configure, make_parser, run, spread
from ..shared.config import Config
from ..shared.files import write_atomically
from ..shared.training import read_checkpoint
from .probes import of_discovery, of_set_prediction

RESULT = "result.json"


@dataclass(frozen=True)
class Training:
    """`label` is its row in tables, `options` are settings in place of the preset's.

    `tiny` and `paper` are options of that preset alone. `probe` gives further figures of a run's
    folder.
    """

    label: str
    pipeline: str
    options: tuple[str, ...] = ()
    tiny: tuple[str, ...] = ()
    paper: tuple[str, ...] = ()
    probe: Callable[[Path], dict] | None = None


SA, AT_INPUTS, GAUSSIAN = ("--model", "sa"), ("--start", "inputs"), ("--start", "gaussian")
KMEANS, GMM, SHORTER = ("--model", "kmeans"), ("--model", "gmm"), ("--steps", "100000")
# the mixture's settings did not help it (docs/training.md)
SA_USUAL = ("--position-scale", "1", "--least-iters", "3")
# the paper's loss, and its measure of all slots, in `tiny` too
LOSS = ("--loss", "huber", "--position-scale", "1", "--apart", "0", "--slots", "7")
SHORT = ("--steps", "1500")  # how early a model learns shows after a third of the steps
SETS, DISCOVERY = "set_prediction", "object_discovery"
TRAININGS = {
    "sets-sa": Training("Slot Attention", SETS, SA + GAUSSIAN, LOSS),
    "sets-smm": Training("SMM", SETS, tiny=LOSS),
    "sets-kmeans": Training("K-Means", SETS, KMEANS, LOSS, SHORTER),
    "sets-gmm": Training("GMM", SETS, GMM, LOSS, SHORTER),
    "discovery-sa": Training("Slot Attention, Gaussian start", DISCOVERY, SA + GAUSSIAN, SA_USUAL),
    "discovery-sa-inputs": Training(
        "Slot Attention, start at inputs", DISCOVERY, SA + AT_INPUTS, SA_USUAL
    ),
    "discovery-smm": Training("SMM", DISCOVERY),
    "slate-sa": Training("Slot Attention", "slate", SA, AT_INPUTS),
    "slate-smm": Training("SMM", "slate"),
    "ablation-smm": Training("SMM", SETS, tiny=SHORT),
    "ablation-spread": Training(
        "SMM without (1): all variances 1", SETS, ("--without", "spread"), SHORT
    ),
    "ablation-density": Training(
        "SMM without (2): dot product", SETS, ("--without", "density"), SHORT
    ),
    "ablation-variance": Training(
        "SMM without (3): slots are means", SETS, ("--without", "variance"), SHORT
    ),
    "ablation-sa": Training("Slot Attention", SETS, SA + GAUSSIAN, SHORT),
    "ablation-sa-wide": Training(
        "Slot Attention, slots of 2D", SETS, (*SA, *GAUSSIAN, "--slot-dim", "128"), SHORT
    ),
    "trained-smm": Training("SMM", SETS, probe=of_set_prediction),
    "trained-sa": Training(
        "Slot Attention, Gaussian start", SETS, SA + GAUSSIAN, probe=of_set_prediction
    ),
    "trained-sa-inputs": Training(
        "Slot Attention, start at inputs", SETS, SA + AT_INPUTS, probe=of_set_prediction
    ),
    "trained-discovery": Training(
        "SMM, object discovery", DISCOVERY, tiny=("--steps", "2500"), probe=of_discovery
    ),
}
# of `tiny`: what two cores do in about 5, 15 and 10 minutes, as equal steps are what compares; of
# `paper` the preset says it
STEPS = {"set_prediction": 4600, "object_discovery": 7000, "slate": 4500}
SEEDS = {"tiny": 3, "paper": 4}
OF_THE_MACHINE = (*Config.PLACES, "precision")  # where results of the same training may differ
OWN_SETTINGS = {("slate", "clevr_mirror"): ("--image-size", "64")}  # of `paper`, beyond the preset


@dataclass
class Result:
    """What a training, of several seeds, came to.

    settings : of its first run. metrics : for each run, the lines of its log that have an
        evaluation.
    folder : holds a run in seed-0, seed-1, ...; none where the result was kept without its weights.
    """

    training: str
    preset: str
    data: str
    command: str
    figures: dict
    hardware: str
    seconds: list[float]
    settings: dict
    metrics: list[list[dict]]
    folder: Path

    @property
    def label(self):
        return TRAININGS[self.training].label

    @property
    def runs(self):
        return sorted(self.folder.glob("seed-*"))

    @property
    def config(self):
        return pipeline_of(self.training).config.from_json(self.settings)

    def curves(self, key):
        """For each run: the steps at which `key` was measured, and its values."""
        for lines in self.metrics:
            yield [x["step"] for x in lines if key in x], [x[key] for x in lines if key in x]

    def save(self, folder):
        """Write it into a folder, without its runs."""
        kept = {key: value for key, value in asdict(self).items() if key != "folder"}
        text = json.dumps(kept) + "\n"
        write_atomically(Path(folder) / RESULT, lambda path: Path(path).write_text(text))


def pipeline_of(training):
    return import_module(f"examples.{TRAININGS[training].pipeline}.__main__").PIPELINE


def obtain(name, out, preset, data, seeds, options=()) -> Result:
    """The result of a training: as it is on disk, or after training what is missing.

    data : folder of a data set, or None for built-in scenes. options : further ones for the command
    line of the pipeline.

    Raises ValueError if the folder holds the result of another command, or of other settings of the
    preset.
    """
    training, pipeline = TRAININGS[name], pipeline_of(name)
    of = "scenes" if data is None else find_reader(data).name
    folder = Path(out) / preset / of / name
    arguments = [*training.options, *getattr(training, preset)]
    arguments += ["--preset", preset, "--seeds", str(seeds)]
    own_steps = preset == "paper" or "--steps" in training.tiny
    arguments += [] if own_steps else ["--steps", str(STEPS[training.pipeline])]
    arguments += OWN_SETTINGS.get((training.pipeline, of), ()) if preset == "paper" else ()
    arguments += options
    # without places, so that it reads and compares the same wherever the data lie and the run is
    # put
    command = f"python -m examples.{training.pipeline} {shlex.join(arguments)}"
    arguments += ["--out", str(folder)]
    if data is not None:
        command += f" --data {of.upper()}"
        arguments += ["--data", str(data)]
    if (folder / RESULT).exists():
        result = load(folder)
        if result.command != command:
            raise ValueError(
                f"{folder} holds the result of another command:\n{result.command}\n"
                f"instead of\n{command}"
            )
        now = configure(pipeline, make_parser(pipeline).parse_args(arguments))
        if other := differences(result.config, now):
            raise ValueError(f"{folder} holds the result of other settings: {other}")
        return result
    figures = run(pipeline, [*arguments, "--resume"] if folder.exists() else arguments)
    runs = sorted(folder.glob("seed-*"))
    if training.probe:
        mean, deviation = spread([training.probe(run) for run in runs])
        figures |= {**mean, "std": {**figures["std"], **deviation}}
    seconds = [read_checkpoint(out)["seconds"] for out in runs]
    settings = json.loads((runs[0] / "config.json").read_text())
    metrics = [evaluations(out) for out in runs]
    about = name, preset, of, command
    result = Result(*about, figures, hardware(), seconds, settings, metrics, folder)
    result.save(folder)
    return result


def differences(then, now) -> str:
    """Settings that differ between two configurations, such as after a change of the preset."""
    then, now = asdict(then), asdict(now)
    # without steps a run sets them from its minutes
    free = OF_THE_MACHINE if now["steps"] else (*OF_THE_MACHINE, "steps")
    other = [key for key in now if key not in free and then[key] != now[key]]
    return ", ".join(f"{key} {then[key]} instead of {now[key]}" for key in other)


def evaluations(run):
    """The lines of a run's log that have more than the loss."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if set(line) > {"step", "loss", "lr"}]


def load(folder) -> Result:
    """The result in a folder; ValueError, naming its file, if that is damaged."""
    path = Path(folder) / RESULT
    try:
        result = Result(**parse_json(path.read_text()), folder=Path(folder))
        result.config.check()
        if not isinstance(result.figures, dict) or "std" not in result.figures:
            raise ValueError("it has no figures")
        return result
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is not a training's result: {error}") from error


def hardware() -> str:
    """Processor or accelerator, threads, PyTorch."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    return f"{name}, threads: {torch.get_num_threads()}, PyTorch {torch.__version__}"
