"""The set prediction pipeline, small."""

import dataclasses
import errno
import functools
import itertools
import json
import math
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for name in ("scipy", "safetensors", "matplotlib", "tqdm", "PIL"):
    pytest.importorskip(name)

import processes  # noqa: E402
from pipelines import (  # noqa: E402
    ROOT,
    check_error,
    check_kill_and_resume,
    check_two_processes,
    reached,
    result,
    run_well,
)
from processes import TORCHRUN  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

import examples  # noqa: E402
from examples import pretrained  # noqa: E402
from examples.pretrained.__main__ import ship  # noqa: E402
from examples.set_prediction.__main__ import PIPELINE  # noqa: E402
from examples.set_prediction.config import Config  # noqa: E402
from examples.set_prediction.listing import by_certainty, without_repeats  # noqa: E402
from examples.set_prediction.matching import match, set_loss  # noqa: E402
from examples.set_prediction.model import (  # noqa: E402
    SetPredictor,
    merged,
    pairwise_huber,
    pairwise_likelihood,
    squash,
)
from examples.set_prediction.train import build_model, count_figures, scale  # noqa: E402
from examples.shared import training  # noqa: E402
from examples.shared.command import configure, main, make_parser, run  # noqa: E402
from examples.shared.files import append_line, locked, write_atomically  # noqa: E402
from examples.shared.modules import load_weights, make_slots  # noqa: E402
from examples.shared.pictures import Pictures, order  # noqa: E402
from examples.shared.plan import Plan  # noqa: E402
from examples.shared.training import Loop  # noqa: E402
from examples.slate.config import Config as SlateConfig  # noqa: E402
from examples.slate.train import build_model as build_slate  # noqa: E402
from smm_py.torch import SlotMixture  # noqa: E402

SHARED = ROOT.parent / "shared"
NAME = "set_prediction"
SMALL = [
    "--image-size",
    "32",
    "--pictures",
    "40",
    "--batch-size",
    "8",
    "--max-objects",
    "3",
    "--slots",
    "4",
    "--threads",
    "1",
    "--evaluate-every",
    "1000",
    "--precision",
    "float32",
]
# scenes without end, a number of slots drawn for each step
DRAWN = ["--pictures", "0", "--least-slots", "3"]


def targets(batch, objects, rows=4):
    t = torch.zeros(batch, rows, 19)
    t[:, :objects] = torch.rand(batch, objects, 19)
    t[:, :objects, 18] = 1
    return t


def test_matching_is_the_best_of_all():
    torch.manual_seed(0)
    cost = torch.rand(20, 4, 4)
    columns = match(cost)
    for c, chosen in zip(cost, columns):
        best = min(sum(c[i, p[i]] for i in range(4)) for p in itertools.permutations(range(4)))
        assert abs(sum(c[i, chosen[i]] for i in range(4)) - best) < 1e-6


def test_loss_by_hand():
    prediction, target = torch.zeros(1, 2, 19), torch.zeros(1, 2, 19)
    target[0, 0, 18], target[0, 0, 0] = 1, 3.0
    # row 0 with either slot: |3| > 1 -> 2.5, |1| -> 0.5, mean over 19; row 1: nothing to pay
    assert float(set_loss(prediction, target)) == pytest.approx(3.0 / 19)
    prediction[0, 1, 5] = 1.0  # a property of the slot that stands for nothing
    # best: slot 1 takes the object (its property differs: 0.5) or stands for nothing (0.5): the
    # same
    assert float(set_loss(prediction, target)) == pytest.approx(3.5 / 19)
    presence = functools.partial(pairwise_huber, empty_rows="presence")
    assert float(set_loss(prediction, target, presence)) == pytest.approx(3.0 / 19)


def test_likelihood_by_hand():
    """One of two slots gets the object; the other pays for its presence alone."""
    prediction, target = torch.zeros(1, 2, 19), torch.zeros(1, 2, 19)
    target[0, 0, [0, 3, 6, 9, 10, 18]] = torch.tensor([0.4, 1, 1, 1, 1, 1])
    prediction[0, :, [3, 6, 9, 10]] = torch.tensor([0.5, 0.25, 1, 1])
    prediction[0, :, 0], prediction[0, :, 18] = torch.tensor([0.3, 0.8]), torch.tensor([0.5, 0.25])
    pairs = pairwise_likelihood(prediction, target, scale=0.2)[0] * 19
    properties = math.log(2) + math.log(4)
    places, there, empty = (0.125, 1.5), (math.log(2), math.log(4)), (math.log(2), math.log(4 / 3))
    expected = [[place + properties + p, e] for place, p, e in zip(places, there, empty)]
    assert torch.allclose(pairs, torch.tensor(expected), atol=1e-5)
    loss = set_loss(prediction, target, functools.partial(pairwise_likelihood, scale=0.2))
    assert float(loss) * 19 == pytest.approx(0.125 + properties + math.log(2) + math.log(4 / 3))
    # no infinite gradient where a property is excluded
    raw = torch.linspace(-900, 900, 19).expand(1, 2, 19).clone().requires_grad_()
    pairwise_likelihood(squash(raw), target, 0.2).sum().backward()
    assert raw.grad.isfinite().all()


def test_each_object_is_listed_once():
    found = np.zeros((2, 4, 19), np.float32)
    found[..., 18] = [[0.4, 0.9, 0.8, 0.7], [0.3, 0.2, 0.1, 0.0]]
    found[0, :, 0] = np.array([0.0, 0.7, 1.4, 2.1]) / 3  # each 0.7 from the next
    found[1, :, 0] = np.arange(4)
    kept = without_repeats(found, 0.8)
    # the second repeats neither: the surest takes its neighbours alone
    assert np.allclose(kept[0, :, 18], [0, 0.9, 0, 0.7]) and np.array_equal(kept[1], found[1])
    assert np.array_equal(kept[..., :18], found[..., :18]) and found[0, 0, 18] > 0
    found[0, 0, 3:18] = [0.5, 0.5, 1, 0, 0.2, 0.4, 0.4, 1, *[0] * 7]
    certain = by_certainty(found)
    assert certain[0, 0, 18] == pytest.approx(0.4 * 0.5 * 0.4)
    assert np.array_equal(certain[..., :18], found[..., :18])


def test_scale_of_the_coordinates():
    config = Config.from_preset("tiny", steps=100)
    scales = [scale(config, step) for step in range(101)]
    assert scales[20] == 2.0 and scales[60] == pytest.approx(0.1) == scales[100]
    assert scales[40] == pytest.approx((2 * 0.1) ** 0.5)
    assert scales == sorted(scales, reverse=True)


def test_loss_does_not_depend_on_order():
    torch.manual_seed(0)
    prediction, target = torch.rand(3, 4, 19), targets(3, 2)
    swapped = prediction[:, [2, 0, 3, 1]]
    assert torch.allclose(set_loss(prediction, target), set_loss(swapped, target))
    assert pairwise_huber(prediction, target).shape == (3, 4, 4)
    with pytest.raises(ValueError, match="slots must be at least as many as the objects"):
        set_loss(prediction[:, :1], target)
    # more slots than rows: the rest stand for nothing
    assert set_loss(torch.rand(3, 6, 19), target).isfinite()


def test_squash():
    out = squash(torch.randn(2, 3, 19) * 4)
    assert out[..., :3].abs().max() <= 1 and 0 <= out[..., 18].min() <= out[..., 18].max() <= 1
    for a, b in ((3, 5), (5, 7), (7, 10), (10, 18)):
        assert torch.allclose(out[..., a:b].sum(-1), torch.ones(2, 3))


def test_merged_predictions_and_their_number():
    """Slots 0 and 1 see one object, 2 another, 3 is not sure of what it sees."""
    attention = torch.tensor([[[0.6, 0.4, 0, 0]] * 3 + [[0, 0, 0.9, 0.1]] * 2])
    prediction = torch.rand(1, 4, 19)
    prediction[..., 18] = torch.tensor([0.9, 0.95, 0.8, 0.3])
    one = merged(prediction, attention)
    assert torch.equal(one[..., :18], prediction[..., :18])
    assert torch.allclose(one[..., 18], torch.tensor([[0.9, 0, 0.8, 0.3]]))
    targets = np.zeros((2, 3, 19))
    targets[:, :2, 18] = 1
    found = count_figures(np.concatenate([one, prediction]), targets, Config(apart=0.0))
    assert found == {"count_accuracy": 0.5, "count_error": 0.5}


@pytest.mark.parametrize("model", ["smm", "sa", "kmeans", "gmm"])
def test_a_pictures_slots_depend_on_its_seed_alone(model):
    """In any batch: what makes several processes train the same model."""
    net = SetPredictor(
        Config.from_preset("tiny", model=model, image_size=32, slots=3, precision="float32")
    )
    x = torch.rand(4, 3, 32, 32)
    whole = net(x, [5, 6, 7, 8])
    assert torch.allclose(net(x[1:3], [6, 7]), whole[1:3], atol=1e-5)
    assert not torch.equal(net(x[1:2], [7]), whole[1:2])
    whole.square().sum().backward()
    assert all(p.grad is not None for p in reached(net).values())


@pytest.mark.parametrize("model", ["smm", "sa"])
def test_the_papers_preset(model):
    """Table 1's settings, and the encoder of Table 5 at 128 x 128: 1024 vectors of 64."""
    config = Config.from_preset("paper", model=model)
    assert (config.steps, config.batch_size, config.image_size, config.slots, config.lr) == (
        150_000,
        512,
        128,
        10,
        4e-4,
    )
    net = build_model(config)
    x = torch.rand(2, 3, 128, 128)
    assert net.features(x).shape == (2, 1024, 64)
    assert [m.stride[0] for m in net.encoder if isinstance(m, torch.nn.Conv2d)] == [1, 2, 2, 1]
    set_loss(net(x, [1, 2]), targets(2, 5, 10)).backward()


def test_order_is_a_permutation_of_each_epoch():
    assert sorted(order(range(10), 0, range(10, 20))) == list(range(10))
    assert order(range(10), 0, range(20)) == order(range(10), 0, range(7)) + order(
        range(10), 0, range(7, 20)
    )
    assert order(range(10), 0, range(10)) != order(range(10), 1, range(10))


@pytest.mark.parametrize(
    "changes, expected", [({}, 0.125), ({"temperature": 0.5}, 0.5), ({"variant": "paper"}, 1.0)]
)
def test_temperature(changes, expected):
    assert make_slots(Config.from_preset("tiny", **changes)).temperature == expected


def test_configuration(tmp_path):
    config = Config.from_preset("tiny", lr=0.5, steps=3)
    config.save(tmp_path / "c.json")
    assert Config.load(tmp_path / "c.json") == config
    (tmp_path / "c.json").write_text('{"speed": 1}')
    with pytest.raises(ValueError, match="unknown settings speed"):
        Config.load(tmp_path / "c.json")
    for bad, match_ in (
        ({"model": "rnn"}, "model must be one of"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"minutes": -1.0}, "minutes must be more than 0"),
        ({"temperature": 0.0}, "temperature must be more than 0"),
        (
            {"temperature": 0.5, "variant": "paper"},
            "temperature must be left out with variant 'paper', where it is 1, got 0.5",
        ),
        ({"lr": 0.0}, "lr must be more than 0"),
        ({"clip": 0.0}, "clip must be more than 0"),
        ({"warmup": 1.0}, "warmup must be from 0 to less than 1, got 1.0"),
        ({"seed": -1}, "seed must be from 0"),
        ({"min_objects": 5, "max_objects": 3}, "min_objects and max_objects must be in order"),
    ):
        with pytest.raises(ValueError, match=match_):
            Config.from_preset("tiny", **bad)


def test_learning_rate_is_one_cycle():
    config = Config.from_preset("tiny", steps=1000, lr=1.0)
    loop = Loop(torch.nn.Linear(1, 1), config, ".", None, None)
    rates = [loop.learning_rate(s) for s in range(1001)]
    assert (
        rates[0] == pytest.approx(0.04)
        and max(rates) == pytest.approx(1, abs=1e-3)
        and rates[1000] < 1e-9
    )
    top = int(np.argmax(rates))
    assert (
        45 <= top <= 55
        and np.all(np.diff(rates[:top]) > 0)
        and np.all(np.diff(rates[top + 1 :]) < 0)
    )


def test_atomic_writes(tmp_path):
    path = tmp_path / "a"
    write_atomically(path, lambda p: Path(p).write_text("old"))

    def failing(error):
        def write(p):
            Path(p).write_text("half")
            raise error

        return write

    with pytest.raises(
        OSError, match="a cannot be written: disk is full$"
    ):  # whatever the writer raises
        write_atomically(path, failing(RuntimeError("disk is full\nframe 0: ...")))
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, failing(KeyboardInterrupt()))
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a"]
    (tmp_path / "link").symlink_to(path)
    write_atomically(tmp_path / "link", lambda p: Path(p).write_text("new"))
    assert (tmp_path / "link").is_symlink() and path.read_text() == "new"


def test_others_may_read_what_is_written(tmp_path):
    (tmp_path / "plain").touch()

    def private(p):
        Path(p).unlink()
        os.close(os.open(p, os.O_CREAT | os.O_WRONLY, 0o600))

    write_atomically(tmp_path / "written", private)
    assert (tmp_path / "written").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_train_then_eval(tmp_path, capsys):
    """The whole path: the files that are promised, and one JSON object at the end; then eval on its
    own."""
    out = tmp_path / "run"
    first = result(run_well(NAME, "--steps", 3, "--out", out, "--images", 20, "--draws", 2, *SMALL))
    assert (
        set(first["ap"]) == {"inf", "1", "0.5", "0.25", "0.125", "0.0625"} and first["images"] == 20
    )
    for name in (
        "config.json",
        "metrics.jsonl",
        "model.safetensors",
        "checkpoint.pt",
        "curves.png",
        "predictions.png",
        "attention.png",
    ):
        assert (out / name).stat().st_size > 0, name
    again = result(
        run_well(NAME, "eval", "--out", out, "--images", 20, "--draws", 2, "--threads", 1)
    )
    assert again["ap"] == first["ap"]
    check_error(
        NAME, ("train", "--steps", 3, "--out", out, *SMALL), "holds a run already", tmp_path, capsys
    )
    check_error(
        NAME,
        ("eval", "--model", "sa", "--out", out),
        "model differs from the run in",
        tmp_path,
        capsys,
    )


def test_kill_and_resume(tmp_path):
    check_kill_and_resume(NAME, [*SMALL, *DRAWN], tmp_path)


def test_two_processes_train_the_same_model(tmp_path):
    check_two_processes(NAME, [*SMALL, *DRAWN], tmp_path)


def train(out, *more):
    """A few steps in this process; its status."""
    return main(
        PIPELINE,
        list(
            map(
                str,
                (
                    "train",
                    "--out",
                    out,
                    "--pictures",
                    12,
                    "--batch-size",
                    4,
                    "--image-size",
                    32,
                    "--slots",
                    3,
                    "--max-objects",
                    3,
                    "--log-every",
                    1,
                    "--precision",
                    "float32",
                    *more,
                ),
            )
        ),
    )


def test_a_run_is_not_mixed_with_an_earlier_one(tmp_path, capsys):
    """Killed before its first line of the log, it has a checkpoint alone."""
    assert train(tmp_path / "run", "--steps", 2) == 0
    (tmp_path / "run" / "metrics.jsonl").unlink()
    assert train(tmp_path / "run", "--steps", 2, "--seed", 7) == 2
    assert "holds a run already" in capsys.readouterr().err


@pytest.mark.parametrize("log_every", [1, 100])
def test_weights_that_are_not_finite_are_never_kept(log_every, tmp_path, capsys):
    assert (
        train(
            tmp_path, "--steps", 20, "--lr", 1e9, "--checkpoint-every", 5, "--log-every", log_every
        )
        == 2
    )
    error = capsys.readouterr().err
    assert (
        "the loss is nan at step" if log_every == 1 else "is not finite after step 5"
    ) in error and "has no checkpoint" in error
    assert (
        not (tmp_path / "checkpoint.pt").exists() and not (tmp_path / "model.safetensors").exists()
    )


def test_killed_between_weights_and_checkpoint(tmp_path, monkeypatch):
    """At the end, where no later step would write the weights again."""
    options = ("--steps", 4, "--checkpoint-every", 3)
    assert train(tmp_path / "whole", *options) == 0
    write, left = training.write_atomically, [3]

    def killed(path, how):
        if Path(path).suffix in (".pt", ".safetensors"):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
        write(path, how)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(training, "write_atomically", killed)
        train(tmp_path / "run", *options)
    assert train(tmp_path / "run", "--resume") == 0
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_finished_run_draws_no_picture_to_train_on(tmp_path, monkeypatch):
    assert train(tmp_path, "--steps", 2) == 0
    first = run(PIPELINE, ["eval", "--out", str(tmp_path), "--images", "4"])
    drawn, read = [], Pictures.read
    monkeypatch.setattr(
        Pictures, "read", lambda self, indices: drawn.append(len(self)) or read(self, indices)
    )
    assert run(PIPELINE, ["--resume", "--out", str(tmp_path), "--images", "4"]) == first
    assert drawn and set(drawn) == {4}


def test_resuming_needs_the_checkpoint_alone(tmp_path, capsys):
    assert train(tmp_path / "first", "--steps", 1) == 0
    weights = tmp_path / "first" / "model.safetensors"
    assert train(tmp_path / "run", "--steps", 1, "--weights", weights) == 0
    weights.unlink()
    resume = ["train", "--resume", "--out", str(tmp_path / "run")]
    assert main(PIPELINE, resume) == 0
    assert (
        configure(
            PIPELINE, make_parser(PIPELINE).parse_args([*resume, "--cache", "elsewhere"])
        ).cache
        == "elsewhere"
    )
    metrics, checkpoint = tmp_path / "run" / "metrics.jsonl", tmp_path / "run" / "checkpoint.pt"
    line = metrics.read_text()
    for path, content, message in (
        (metrics, "{}\n", f"{metrics} has a damaged line"),
        (checkpoint, "cut", f"checkpoint {checkpoint} cannot be read"),
    ):
        path.write_text(content)
        assert main(PIPELINE, resume) == 2
        assert message in capsys.readouterr().err
        metrics.write_text(line)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("seed", 1.5, "seed must be of type int, got 1.5"),
        ("threads", "x", "threads must be of type int, got 'x'"),
        ("steps", 2.5, "steps must be of type int, got 2.5"),
        ("data", 5, "data must be of type str, got 5"),
        ("strides", "abc", "strides must be a list of int, got 'abc'"),
        ("strides", [0], "strides must be at least 1, got 0"),
        ("lr", "fast", "lr must be of type float, got 'fast'"),
    ],
)
def test_an_edited_configuration(name, value, message, tmp_path, capsys):
    path = tmp_path / "config.json"
    Config.from_preset("tiny").save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    assert main(PIPELINE, ["train", "--resume", "--out", str(tmp_path)]) == 2
    assert (
        capsys.readouterr().err
        == f"error: {path} is not the configuration of a run of this pipeline: {message}\n"
    )


@pytest.mark.parametrize(
    "state, message",
    [
        ([1], "checkpoint.pt is not the checkpoint of a run"),
        ({"model": {}, "optimizer": {}, "step": 1, "seconds": 1.0}, "is of another model"),
    ],
)
def test_another_checkpoint(state, message, tmp_path, capsys):
    assert train(tmp_path, "--steps", 1) == 0
    torch.save(state, tmp_path / "checkpoint.pt")
    assert main(PIPELINE, ["train", "--resume", "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_an_empty_name_is_no_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(PIPELINE, ["train", "--steps", "1", "--out", ""])
    assert "argument --out: the folder's name is empty" in capsys.readouterr().err and not list(
        tmp_path.iterdir()
    )


def test_weights_bring_their_settings(tmp_path, capsys):
    """All but the places of the user's files."""
    assert train(tmp_path, "--steps", 1, "--temperature", 0.3, "--eval-iters", 2) == 0
    config = Config.of_weights(tmp_path / "model.safetensors")
    assert (config.temperature, config.slots, config.image_size, config.steps) == (0.3, 3, 32, 1)
    moved = (tmp_path / "model.safetensors").rename(tmp_path / "moved.safetensors")
    figures = run(PIPELINE, ["eval", "--weights", str(moved), "--images", "5", "--draws", "1"])
    assert figures["protocol"]["image_size"] == 32 and figures["protocol"]["iterations"] == 2
    capsys.readouterr()
    check_error(
        NAME,
        ("eval", "--weights", moved, "--dim", 32),
        "dim differs from the run of",
        tmp_path,
        capsys,
    )


@pytest.mark.parametrize("options", [(), ("--model", "sa", "--start", "gaussian")])
def test_more_or_fewer_slots_than_in_training(options, tmp_path, capsys):
    """Where the initial slots come from one distribution; not where each has a row of its own."""
    assert train(tmp_path / "run", "--steps", 1, *options) == 0
    whole = ["eval", "--out", str(tmp_path / "run"), "--images", "5", "--draws", "1"]
    for slots in (2, 6):
        figures = run(PIPELINE, [*whole, "--slots", str(slots)])
        assert figures["protocol"]["slots"] == slots
    assert run(PIPELINE, whole)["protocol"]["slots"] == 3
    file = tmp_path / "run" / "model.safetensors"
    config, weights = Config.of_weights(file), load_file(file)
    name = "slots.slots_mu" if options else "slots.logstd_mu"
    weights[name] = weights[name].repeat(3, 1)
    save_file(weights, tmp_path / "rows.safetensors", {"config": config.without_places()})
    rows = ["eval", "--weights", str(tmp_path / "rows.safetensors"), *whole[3:]]
    assert run(PIPELINE, rows)["protocol"]["slots"] == 3
    message = f"slots must be 3, as {name} has a row for each slot, got 4"
    check_error(NAME, (*rows, "--slots", 4), message, tmp_path, capsys)


def test_models_that_ship(tmp_path, monkeypatch, capsys):
    """Of a run: by pipeline, model and size, with its configuration, in half the bytes."""
    assert train(tmp_path / "run", "--steps", 1, "--least-slots", 2, "--max-objects", 2) == 0
    monkeypatch.setattr(pretrained, "HERE", tmp_path)
    path = ship(tmp_path / "run", tmp_path)
    assert path == tmp_path / "set_prediction-smm-32.safetensors"
    model = examples.load("pretrained/set_prediction-smm-32")
    whole = load_file(tmp_path / "run" / "model.safetensors")
    for name, own in model.state_dict().items():
        assert own.dtype == torch.float32 and torch.equal(own, whole[name].half().float())
    stored = Config.load(tmp_path / "run" / "config.json")
    assert dataclasses.replace(model.config, weights=None, least_slots=2) == stored
    assert examples.load(ship(tmp_path / "run", tmp_path, 5)).config.slots == 5
    arguments = ["eval", "--weights", "pretrained", "--images", "4", "--draws", "1"]
    figures = run(PIPELINE, [*arguments, "--image-size", "32", "--slots", "6"])
    assert figures["protocol"]["slots"] == 6
    assert "more than --slots" not in capsys.readouterr().out
    run(PIPELINE, [*arguments, "--image-size", "32", "--slots", "1"])
    assert "a picture has 2 objects, more than --slots 1" in capsys.readouterr().out
    message = "pretrained model set_prediction-smm-64 is missing; there are set_prediction-smm-32"
    check_error(NAME, arguments, message, tmp_path, capsys)
    with pytest.raises(FileNotFoundError, match="pretrained model slate-sa-64 is missing"):
        examples.load("pretrained/slate-sa-64")
    save_file(whole, tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match="bare.safetensors is not of a run of set_prediction"):
        examples.load(tmp_path / "bare.safetensors")


def test_those_that_are_there():
    """Their names say what they are, they are small together, and this one finds objects."""
    files = list(pretrained.HERE.glob("*.safetensors"))
    slate = SlateConfig.from_preset("tiny", dvae="pretrained")
    assert build_slate(slate).fixed and slate.vocabulary > 64
    for file in files:
        if file == slate.dvae_file():  # a part of a model
            continue
        config = examples.load(f"pretrained/{file.stem}").config
        assert file.stem.endswith(f"-{config.model}-{config.image_size}")
    assert sum(file.stat().st_size for file in files) <= 4e6
    arguments = ["eval", "--weights", "pretrained", "--images", "60", "--draws", "1"]
    assert run(PIPELINE, arguments)["ap"]["0.5"] > 80  # 91 on 500 scenes


def test_load(tmp_path):
    """The trained model of a run's folder, in one line."""
    assert train(tmp_path / "run", "--steps", 2, "--temperature", 0.3) == 0
    weights = load_file(tmp_path / "run" / "model.safetensors")
    for path in (tmp_path / "run", str(tmp_path / "run" / "model.safetensors")):
        model = examples.load(path)
        assert isinstance(model, SetPredictor) and not model.training
        assert model.config.temperature == 0.3
        assert all(torch.equal(weights[name], own) for name, own in model.state_dict().items())
    assert model(torch.zeros(1, 3, 32, 32), [0]).shape == (1, 3, 19)
    with pytest.raises(FileNotFoundError, match="run .*nowhere/x is missing: give its folder"):
        examples.load(tmp_path / "nowhere" / "x")
    (tmp_path / "run" / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="config.json is not the configuration of a run of set_p"):
        examples.load(tmp_path / "run")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("eval",), "eval needs --weights or a trained run"),
        (("train", "--resume", "--out", "nowhere"), "there is no run to resume in nowhere"),
        (("train", "--data", "nowhere"), "folder nowhere is missing"),
        (("eval", "--weights", "nothing.safetensors"), "weights nothing.safetensors are missing"),
        (("train", "--steps", "0"), "steps must be at least 1, got 0"),
        (("eval", "--draws", "0"), "draws must be from 1 to 2147483647, got 0"),
        (("--split", "valid"), "split must be one of train, val, test, got 'valid'"),
        (("train", "--device", "abacus"), "device abacus cannot be used"),
        (("train", "--device", "meta"), "device meta cannot be used"),
        (("train", "--minutes", "inf"), "minutes must be a number of at most 1e+09, got inf"),
        (("train", "--lr", "1e308"), "lr must be a number of at most 1e+09, got 1e+308"),
        (("train", "--lr", "nan"), "lr must be a number of at most 1e+09, got nan"),
        (
            ("train", "--pictures", "99999999999999999999"),
            "pictures must be at most 2147483647, got 99999999999999999999",
        ),
        (("train", "--eval-iters", "1048576"), "eval_iters must be from 1 to 1048575, got 1048576"),
        (("train", "--threads", "5000"), "threads must be from 1 to 4096, got 5000"),
        (
            ("--images", "99999999999999999999"),
            "images must be from 1 to 2147483647, got 99999999999999999999",
        ),
        (
            ("train", "--seeds", "2", "--seed", "2147483647"),
            "seeds must leave every seed at most 2147483647, got 2 from 2147483647 on",
        ),
        (
            ("eval", "--model", "reference", "--slots", "4"),
            "slots must be 10 with the model 'reference', got 4",
        ),
        (("train", "--clip-norm", "-1"), "clip_norm must be more than 0, got -1.0"),
        (("train", "--max-objects", "10"), "slots must be at least max_objects=10, got 9"),
        (("train", "--least-slots", "5"), "least_slots must be at least max_objects=6, got 5"),
    ],
)
def test_errors_are_one_line(arguments, message, tmp_path, capsys):
    check_error(NAME, arguments, message, tmp_path, capsys)


def test_weights_of_another_model(tmp_path):
    model = build_model(Config.from_preset("tiny", model="sa"))
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="w.safetensors are of another model"):
        load_weights(model, tmp_path / "w.safetensors")
    save_file({"slot_attention.mu_init.0.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="authors released; give --model reference"):
        load_weights(model, tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="w.safetensors cannot be read"):
        load_weights(model, tmp_path / "w.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(ValueError, match="folder.safetensors cannot be read: it is a folder"):
        load_weights(model, tmp_path / "folder.safetensors")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: w.fill_(torch.nan), "head.0.weight must be finite"),
        (lambda w: w[3].fill_(torch.inf), "head.0.weight must be finite"),
        (lambda w: w.long(), "head.0.weight must hold torch.float32, got torch.int64"),
        (lambda w: w.double(), "head.0.weight must hold torch.float32, got torch.float64"),
        (lambda w: w.bfloat16(), "head.0.weight must hold torch.float32, got torch.bfloat16"),
    ],
)
def test_weights_that_are_no_weights(change, message, tmp_path, capsys):
    """Of a file, of a checkpoint, of the optimizer in it: the parameter is named."""
    assert train(tmp_path / "run", "--steps", 2) == 0
    file, checkpoint = (tmp_path / "run" / n for n in ("model.safetensors", "checkpoint.pt"))
    before, weights = file.read_bytes(), load_file(file)
    settings = {"config": Config.of_weights(file).without_places()}

    def changed(weights, name):
        new = weights[name].clone()
        return {**weights, name: new if (other := change(new)).shape != new.shape else other}

    save_file(changed(weights, "head.0.weight"), tmp_path / "w.safetensors", settings)
    arguments = ("eval", "--weights", tmp_path / "w.safetensors")
    check_error(NAME, arguments, f"w.safetensors are not usable: {message}", tmp_path, capsys)
    state = torch.load(checkpoint, weights_only=True)
    resume = ("train", "--resume", "--out", tmp_path / "run")
    torch.save({**state, "model": changed(state["model"], "head.0.weight")}, checkpoint)
    check_error(NAME, resume, f"run is not usable: {message}", tmp_path, capsys)
    moments = state["optimizer"]["state"]
    moments[0] = changed(moments[0], "exp_avg_sq")
    torch.save(state, checkpoint)
    first = message.replace("head.0.weight", "exp_avg_sq of encoder.0.weight")
    check_error(NAME, resume, f"run is not usable: {first}", tmp_path, capsys)
    assert file.read_bytes() == before


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    run_well(NAME, *SIGNALLED, "--out", out)
    return out


SIGNALLED = ("train", "--steps", 60, "--log-every", 1, "--checkpoint-every", 10_000, *SMALL)


@pytest.mark.parametrize(
    "number, launcher", [("SIGTERM", ()), ("SIGINT", ()), ("SIGTERM", TORCHRUN)]
)
def test_a_signal_saves_the_state(number, launcher, undisturbed, tmp_path, capsys):
    """And the resumed run ends as one that was not disturbed; a second run is refused meanwhile."""
    out, metrics = tmp_path / "run", tmp_path / "run" / "metrics.jsonl"
    command = (sys.executable, *launcher, "-m", f"examples.{NAME}", *SIGNALLED, "--out", out)
    pipe = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with processes.started(*command, cwd=ROOT, **pipe) as process:
        processes.wait_until(lambda: metrics.exists() and metrics.stat().st_size, process)
        if not launcher:
            for more in ((), ("--resume",)):
                again = (*SIGNALLED, "--out", out) if not more else ("train", "--out", out, *more)
                check_error(NAME, again, f"another process is training in {out}", tmp_path, capsys)
        process.send_signal(getattr(signal, number))
        told = process.communicate(timeout=processes.HANG)[1]
    if not launcher:
        assert process.returncode == -getattr(signal, number), told
    assert f"{number}: saved after step" in told and f"--resume --out {out}" in told
    step = torch.load(out / "checkpoint.pt", weights_only=True)["step"]
    assert 0 < step < 60 and metrics.read_text().count("\n") == step
    run_well(NAME, "train", "--resume", "--out", out)
    if not launcher:
        for name in ("model.safetensors", "metrics.jsonl"):
            assert (out / name).read_bytes() == (undisturbed / name).read_bytes()


def test_an_interrupt_ends_a_command_as_ctrl_c_does():
    """Also where something is executed on the way out, upon which Python gives status 1."""
    program = """
import atexit
from examples.shared.command import tell
atexit.register(exec, "")
def work():
    raise KeyboardInterrupt
tell(work)
"""
    done = processes.run_python("-c", program, cwd=ROOT)
    assert done.returncode == -signal.SIGINT and done.stderr == "KeyboardInterrupt\n"


def test_a_lock_does_not_outlive_its_process(tmp_path):
    hold = "import pathlib, sys, time; from examples.shared.files import locked\n"
    hold += "with locked(pathlib.Path(sys.argv[1])): print(flush=True); time.sleep(3600)"
    with processes.started(
        sys.executable, "-c", hold, tmp_path, cwd=ROOT, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        with pytest.raises(ValueError, match="another process is training in"), locked(tmp_path):
            pass
        process.kill()
        process.wait()
    with locked(tmp_path), pytest.raises(ValueError, match="another"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_a_full_disk(tmp_path, monkeypatch, capsys):
    """It is said, and what is there is complete: the run goes on where there is room again."""
    options = ("--steps", 4, "--checkpoint-every", 2)
    assert train(tmp_path / "whole", *options) == 0
    write, left, out = Path.write_bytes, [3], tmp_path / "run"

    def full(path, content):
        left[0] -= 1
        if left[0] < 0:
            write(path, bytes(content)[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    capsys.readouterr()
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        assert train(out, *options) == 2
    end = f"{out / 'checkpoint.pt'} cannot be written: No space left on device\n"
    assert capsys.readouterr().err.endswith(f"error: [Errno {errno.ENOSPC}] {end}")
    assert torch.load(out / "checkpoint.pt", weights_only=True)["step"] == 2
    assert not [path for path in out.iterdir() if path.name.startswith(".c")]
    assert train(out, "--resume") == 0
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_line_is_appended_whole_or_not(tmp_path):
    path = tmp_path / "log"
    append_line(path, "one")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (7, limits[1]))  # room for half of a line
        with pytest.raises(OSError, match="log cannot be written: File too large"):
            append_line(path, "second")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "one\n"
    append_line(path, "two")
    assert path.read_text() == "one\ntwo\n"
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(OSError, match="full cannot be written: No space left") as found:
        append_line(tmp_path / "full", "x")
    assert found.value.errno == errno.ENOSPC


def test_files_that_are_folders_and_nested_json(tmp_path, capsys):
    assert train(tmp_path / "run", "--steps", 1) == 0
    resume = ("train", "--resume", "--out", tmp_path / "run")
    for name, message in (
        ("config.json", "config.json is not the configuration of a run of this pipeline: "),
        ("metrics.jsonl", "metrics.jsonl "),
        ("checkpoint.pt", "checkpoint.pt cannot be read: "),
    ):
        path = tmp_path / "run" / name
        content = path.read_bytes()
        path.write_text("[" * 100_000 + "\n")
        check_error(NAME, resume, message, tmp_path, capsys)
        path.unlink()
        path.mkdir()
        check_error(NAME, resume, message, tmp_path, capsys)
        path.rmdir()
        path.write_bytes(content)
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below"):
        arguments = ("train", "--steps", 1, *SMALL, "--out", tmp_path / place)
        check_error(NAME, arguments, f"{place} must be a folder", tmp_path, capsys)
    (tmp_path / "run" / "model.safetensors").unlink()
    (tmp_path / "run" / "model.safetensors").mkdir()
    arguments = ("eval", "--out", tmp_path / "run")
    check_error(
        NAME, arguments, "model.safetensors cannot be read: it is a folder", tmp_path, capsys
    )


def test_a_plan_tells_when_the_end_moves_by_a_quarter():
    plan = Plan(1000, 100.0, step=0, spent=0.0, now=50.0)  # a tenth of a second for each step
    assert plan.look(10, 50.0 + 9.9) is None  # too short a time to judge by
    assert plan.look(100, 50.0 + 12) is None
    text = plan.look(130, 50.0 + 24)  # 0.4 seconds: 24 + 870 * 0.4 = 372
    assert "about 6.2 minutes in all, not 1.7 as planned: a step takes more time" in text
    assert plan.look(155, 50.0 + 34) is None  # as told
    assert "about 2 minutes in all" in plan.look(255, 50.0 + 44)
    resumed = Plan(1000, 100.0, step=500, spent=50.0, now=0.0)
    assert resumed.look(600, 10.0) is None


def test_a_run_that_takes_longer_than_planned_says_so(tmp_path, monkeypatch, capsys):
    def measure(loop):
        loop.config.steps, loop.planned = 6, 1e-3

    monkeypatch.setattr(Loop, "measure_steps", measure)
    assert train(tmp_path, "--minutes", 1) == 0
    assert "note: training will take about" in capsys.readouterr().err
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["planned"] == 1e-3


def test_what_ap_means_stands_below_it(tmp_path, capsys):
    assert train(tmp_path, "--steps", 1) == 0
    assert main(PIPELINE, ["eval", "--out", str(tmp_path), "--images", "4", "--draws", "1"]) == 0
    told = " ".join(capsys.readouterr().out.split("AP (%) at")[1].split())
    assert "AP at t: precision" in told and "100 is perfect" in told and "93 at ∞" in told
    assert (
        "this run has 1, too few to learn" in told
        and f"pictures: {tmp_path / 'predictions.png'}" in told
    )


def test_a_setting_is_declared_once():
    """A pipeline's own default keeps the type, bounds and help that the shared setting has."""
    from examples.object_discovery.config import Config as Discovery

    own, shared = Discovery.settings()["image_size"], Config.settings()["image_size"]
    assert own == shared and (own.kind, own.least, bool(own.help)) == (int, 1, True)
    assert (Discovery().image_size, Config().image_size) == (32, 64)
    assert all(s.help and s.kind in (int, float, str) for s in Discovery.options().values())
    options = {a.dest: a for a in make_parser(PIPELINE)._actions}
    for name, setting in Config.options().items():
        assert options[name].choices == setting.choices and options[name].help == setting.help


@pytest.mark.skipif(
    not (SHARED / "released").is_dir(), reason="needs ../shared/released beside the checkout"
)
def test_released_weights():
    """The authors' weights through the core, on pictures whose results their own code gave."""
    from examples.set_prediction.reference import ReleasedPredictor

    model = ReleasedPredictor()
    load_weights(model, SHARED / "released" / "set_prediction.safetensors")
    z = np.load(SHARED / "released" / "expected.npz")
    with torch.no_grad():
        mean, log_std = (p.contiguous() for p in torch.tensor(z["slots_init"]).chunk(2, -1))
        slots = model.slot_attention.mixture(
            torch.tensor(z["module_input"]), {"mean": mean, "log_std": log_std}
        )
        assert (slots - torch.tensor(z["slots"])).abs().max() < 1e-3
        images = torch.tensor(z["images"]).permute(0, 3, 1, 2).float() / 127.5 - 1
        prediction = model(images, noise=torch.tensor(z["noise"]))
    assert (prediction - torch.tensor(z["prediction"])).abs().max() < 1e-3


def study_module(make, **options):
    torch.manual_seed(0)
    return make(dim=8, num_slots=3, num_iters=3, hidden_dim=8, start="inputs", **options)


def test_modules_of_the_study():
    """Each is the slot mixture, but for what it is there to change."""
    from examples.set_prediction import study

    x, indices = torch.randn(2, 20, 8), torch.tensor([[0, 5, 9]] * 2)
    init = {"indices": indices, "log_std": torch.zeros(2, 3, 8)}
    usual = study_module(SlotMixture, **study.STABLE)

    learned = study_module(SlotMixture, **study.OPTIONS, prior="learned")
    late = study_module(study.LatePrior, late=2, **study.OPTIONS)
    for expected in (usual, learned, learned):  # its third call in training is past the change
        assert torch.equal(late(x, init), expected(x, init))
    late(x, init).sum().backward()
    assert late.to_k.weight.grad.any() and late.learned.to_k.weight.grad is None

    tempered = study_module(study.LearnedTemperature, **study.STABLE)
    slots = tempered(x, init)
    assert torch.allclose(slots, usual(x, init), atol=1e-5)
    slots.square().sum().backward()
    assert tempered.log_temperature.grad != 0
    tempered.log_temperature.data += 1
    assert not torch.allclose(tempered(x, init), slots, atol=1e-3)

    smoothed = study_module(study.SmoothedPrior, **study.OPTIONS, prior="learned")
    one = {"num_iters": 1, "return_attention": True}  # from the same state: the same attention
    result, plain = smoothed.run(x, init, **one), learned.run(x, init, **one)
    assert torch.allclose(result.attention, plain.attention, atol=1e-6)
    assert torch.allclose(result.prior, (plain.prior + 1 / 3) / 2, atol=1e-6)
    assert not torch.allclose(smoothed(x, init), learned(x, init), atol=1e-4)

    chosen = study_module(study.KMeansPlusPlus, **study.STABLE).initial_state(
        torch.tensor([[[0.0] * 8] * 18 + [[9.0] * 8, [-9.0] * 8]]),
        generator=[torch.Generator().manual_seed(0)],
    )["indices"]
    assert {18, 19} <= set(chosen[0].tolist())
