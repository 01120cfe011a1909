"""The set prediction pipeline, small."""

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for name in ("scipy", "safetensors", "matplotlib", "tqdm", "PIL"):
    pytest.importorskip(name)

from pipelines import (  # noqa: E402
    ROOT,
    check_error,
    check_kill_and_resume,
    check_two_processes,
    result,
    run_well,
)

from examples.set_prediction.__main__ import PIPELINE  # noqa: E402
from examples.set_prediction.config import Config  # noqa: E402
from examples.set_prediction.matching import match, set_loss  # noqa: E402
from examples.set_prediction.model import SetPredictor, pairwise_huber, squash  # noqa: E402
from examples.set_prediction.train import build_model  # noqa: E402
from examples.shared import training  # noqa: E402
from examples.shared.command import configure, main, make_parser, run  # noqa: E402
from examples.shared.files import write_atomically  # noqa: E402
from examples.shared.modules import load_weights, make_slots  # noqa: E402
from examples.shared.pictures import Pictures, order  # noqa: E402
from examples.shared.training import Loop  # noqa: E402
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
    assert float(set_loss(prediction, target, "presence")) == pytest.approx(3.0 / 19)


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
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


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
    assert f"temperature={expected}," in repr(make_slots(Config.from_preset("tiny", **changes)))


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
    check_kill_and_resume(NAME, SMALL, tmp_path)


def test_two_processes_train_the_same_model(tmp_path):
    check_two_processes(NAME, SMALL, tmp_path)


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
        capsys.readouterr().err == f"error: {path} is not the configuration of a run: {message}\n"
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
        ("eval", "--weights", moved, "--slots", 4),
        "slots differs from the run of",
        tmp_path,
        capsys,
    )


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
        (("train", "--clip-norm", "-1"), "clip_norm must be more than 0, got -1.0"),
    ],
)
def test_errors_are_one_line(arguments, message, tmp_path, capsys):
    check_error(NAME, arguments, message, tmp_path, capsys)


def test_weights_of_another_model(tmp_path):
    from safetensors.torch import save_file

    model = build_model(Config.from_preset("tiny", model="sa"))
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="w.safetensors are of another model"):
        load_weights(model, tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="w.safetensors cannot be read"):
        load_weights(model, tmp_path / "w.safetensors")


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
