"""The object discovery pipeline, small; and what the pipelines share and set prediction's tests do
not reach."""

import importlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for name in ("scipy", "safetensors", "matplotlib", "tqdm", "PIL"):
    pytest.importorskip(name)

import miniature  # noqa: E402
from pipelines import (  # noqa: E402
    check_error,
    check_kill_and_resume,
    check_two_processes,
    reached,
    result,
    run_well,
)

import examples  # noqa: E402
from examples import data as data_sets  # noqa: E402
from examples.object_discovery.__main__ import PIPELINE  # noqa: E402
from examples.object_discovery.config import Config  # noqa: E402
from examples.object_discovery.model import (  # noqa: E402
    ObjectDiscovery,
    Scene,
    count_objects,
    merged,
    slot_of_each_pixel,
)
from examples.object_discovery.plots import exchanged  # noqa: E402
from examples.object_discovery.train import agreement, build_model, figures, iterations, label_cost  # noqa: E402
from examples.shared import plots  # noqa: E402
from examples.shared.command import run  # noqa: E402
from examples.shared.diagnostics import collapse, diagnose  # noqa: E402
from examples.shared.pictures import Pictures, open_pictures, order  # noqa: E402
from examples.shared.schedules import warm_up_and_decay  # noqa: E402
from examples.shared.training import Loop, slots_of  # noqa: E402
from smm_py.torch import GaussianMixture, Output  # noqa: E402

NAME = "object_discovery"
SMALL = [
    "--pictures",
    "40",
    "--batch-size",
    "8",
    "--max-objects",
    "3",
    "--threads",
    "1",
    "--evaluate-every",
    "1000",
    "--precision",
    "float32",
]


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("model", ["smm", "sa"])
def test_the_papers_preset(model):
    """Layers and numbers of parameters of Tables 5 and 6, on a picture of 128 x 128; and a step."""
    config = Config.from_preset("paper", model=model)
    assert (config.steps, config.batch_size, config.image_size, config.slots, config.lr) == (
        300_000,
        64,
        128,
        11,
        4e-4,
    )
    assert (config.train_iters, config.clip, Config.from_preset("paper", max_objects=6).slots) == (
        3,
        None,
        7,
    )
    assert (
        Config.from_preset("tiny").temperature,
        Config.from_preset("tiny", variant="paper").temperature,
    ) == (0.7, None)
    net = build_model(config)
    convolution = 64 * 64 * 25 + 64
    assert [count(m) for m in net.encoder if count(m)] == [3 * 64 * 25 + 64, *[convolution] * 3]
    assert [m.stride[0] for m in net.encoder if count(m)] == [1] * 4
    assert [count(m) for m in (net.position, net.norm, net.mlp)] == [
        5 * 64,
        2 * 64,
        2 * (64 * 64 + 64),
    ]
    assert count(net.decoder.position) == 5 * 64
    layers = [m for m in net.decoder.layers if count(m)]
    assert [count(m) for m in layers] == [*[convolution] * 5, 64 * 4 * 9 + 4]
    sizes = []
    for layer in layers:
        layer.register_forward_hook(
            lambda module, inputs, output: sizes.append(tuple(output.shape[1:]))
        )
    image = torch.rand(1, 3, 128, 128)
    assert net.features(image).shape == (1, 128 * 128, 64)
    scene = net(image, [0])
    assert net.decoder.grid == 8 and sizes == [
        *((64, s, s) for s in (16, 32, 64, 128, 128)),
        (4, 128, 128),
    ]
    assert scene.pictures.shape == (1, 11, 3, 128, 128)
    (scene.reconstruction - image).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in reached(net).values())


@pytest.mark.parametrize("model", ["smm", "sa", "kmeans", "gmm"])
def test_a_scene_is_a_mixture_and_depends_on_its_seed_alone(model):
    net = build_model(Config.from_preset("tiny", model=model, precision="float32"))
    x = torch.rand(3, 3, 32, 32)
    whole = net(x, [5, 6, 7])
    assert torch.allclose(whole.masks.sum(1), torch.ones(3, 1, 32, 32))
    assert torch.allclose(whole.reconstruction, (whole.masks * whole.pictures).sum(1))
    assert torch.allclose(net(x[1:2], [6]).reconstruction, whole.reconstruction[1:2], atol=1e-5)
    assert not torch.equal(net(x[1:2], [7]).reconstruction, whole.reconstruction[1:2])


def test_iterations_of_a_step():
    """Every number from the fewest to the most, by seed and step; always the most in `paper`."""
    config = Config.from_preset("tiny", seed=1)
    drawn = [iterations(config, step) for step in range(60)]
    assert set(drawn) == {1, 2, 3} and drawn == [iterations(config, step) for step in range(60)]
    assert drawn != [iterations(Config.from_preset("tiny", seed=2), step) for step in range(60)]
    assert {iterations(Config.from_preset("paper"), step) for step in range(60)} == {3}


def test_the_position_embedding_starts_larger():
    usual, larger = (
        build_model(Config.from_preset("tiny", position_scale=scale)).state_dict()
        for scale in (1.0, 4.0)
    )
    key = "position.linear.weight"
    assert torch.equal(larger.pop(key), 4 * usual.pop(key)) and all(
        torch.equal(larger[name], usual[name]) for name in usual
    )


def test_configuration():
    assert (
        Config.from_preset("tiny", max_objects=6).slots == 7
        and Config.from_preset("tiny", max_objects=6, slots=4).slots == 4
    )
    assert Config.from_preset("tiny", data="somewhere").slots == 11  # CLEVR's ten objects
    with pytest.raises(ValueError, match="image_size must be a multiple of 4, got 30"):
        Config.from_preset("tiny", image_size=30)


def test_data_with_few_objects(tmp_path):
    """CLEVR6 and the like: pictures with more objects than said are left out, where the data set
    can tell."""
    miniature.clevr_mirror(tmp_path / "mirror")  # pictures with 0 to 5 objects
    for most, pictures in ((10, 6), (3, 4)):
        config = Config.from_preset("tiny", data=str(tmp_path / "mirror"), max_objects=most)
        assert config.slots == most + 1 and len(open_pictures(config, "all")) == pictures
    assert open_pictures(config, "all", optional=("mask",)).fields == ("image",)
    miniature.shapestacks(tmp_path / "stacks")
    config = Config.from_preset("tiny", data=str(tmp_path / "stacks"), max_objects=3)
    with pytest.raises(ValueError, match="has no properties of objects to predict"):
        open_pictures(
            Config.from_preset("tiny", data=config.data), "train", fields=("image", "target")
        )
    with pytest.raises(
        ValueError, match="max_objects must be 10 with the data set shapestacks, .* got 3"
    ):
        open_pictures(config, "train")


def test_learning_rate_of_the_papers_preset():
    config = Config.from_preset("paper")
    rate = {s: warm_up_and_decay(config, s) for s in (0, 5_000, 10_000, 100_000, 300_000)}
    assert (
        rate[0] == 0
        and rate[5_000] == pytest.approx(2e-4 * 0.5**0.05)
        and rate[10_000] == pytest.approx(4e-4 * 0.5**0.1)
    )
    assert rate[100_000] == pytest.approx(2e-4) and rate[300_000] == pytest.approx(5e-5)


def test_groups_have_rates_and_clipping_of_their_own():
    """A group's steps are those of a run without the other group."""

    def trained(which, folder="."):
        torch.manual_seed(0)
        net = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 1), "b": torch.nn.Linear(2, 1)})
        config = Config.from_preset("tiny", steps=4, clip=0.1)
        rates = {"a": lambda config, step: 0.1, "b": lambda config, step: 0.01 * (step + 1)}
        x = torch.ones(3, 2)
        loop = Loop(
            net,
            config,
            folder,
            lambda model, step, indices: sum(
                50.0 ** (n == "b") * net[n](x).square().mean() for n in which
            ),
            None,
            [(list(net[n].parameters()), rates[n]) for n in which],
        )
        for _ in range(4):
            loop.one_step()
        return {n: net[n].weight.detach() for n in which}

    both = trained("ab")
    assert torch.equal(both["a"], trained("a")["a"]) and torch.equal(both["b"], trained("b")["b"])


class Drawn:
    """A data set of two pictures, and a model that knows their masks."""

    truth = np.array([[[0, 0, 1, 1]] * 4, [[0, 0, 1, 2]] * 4])

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return {"image": np.full((4, 4, 3), 255, np.uint8), "mask": self.truth[index]}

    def model(self, found):
        net = torch.nn.Linear(1, 1)
        masks = (
            torch.nn.functional.one_hot(torch.from_numpy(found), 3)
            .permute(0, 3, 1, 2)[:, :, None]
            .float()
        )
        net.forward = lambda images, seeds, iters: Scene(
            images * 0 + 0.5, torch.zeros(2, 3, 3, 4, 4), masks, None, torch.arange(3).expand(2, 3)
        )
        return net


def test_figures_of_known_masks():
    data = Drawn()
    pictures = Pictures(data, ("image", "mask"))
    config = SimpleNamespace(eval_iters=3)
    right = figures(
        data.model((data.truth + 1) % 3), pictures, config
    )  # which slot has which object is free
    agree = dict.fromkeys(("ari", "fg_ari", "mbo", "miou", "count_accuracy"), 1.0)
    assert right == {"mse": 0.25, **agree, "count_error": 0.0}
    merged = figures(
        data.model(np.minimum(data.truth, 1)), pictures, config
    )  # the second picture's objects are one
    assert merged["fg_ari"] == 0.5 and 0 < merged["ari"] < 1
    assert merged["count_accuracy"] == 0.5 and merged["count_error"] == 0.5
    assert merged["mbo"] == pytest.approx((1 + 0.5) / 2) and merged["miou"] == pytest.approx(
        (1 + 0.25) / 2
    )
    assert figures(data.model(data.truth), Pictures(data, ("image",)), config) == {
        "mse": 0.25
    }  # without true masks


@pytest.mark.parametrize("own", [False, True])
def test_merged_slots_are_one_object(own):
    """The first object is in slots 0 and 2; slot 1 has another, slot 3 (or none) the background."""
    rng = np.random.default_rng(0)
    parts = rng.uniform(0.4, 0.6, (4, 4)) * (np.arange(4) < 2)
    right = (np.arange(4) == 3) * np.ones((4, 4))
    masks = np.stack([parts, right, (np.arange(4) < 2) - parts, np.zeros((4, 4))])
    masks[3] = 1 - masks.sum(0)
    masks = torch.from_numpy(masks)[None, :, None]
    pictures = torch.from_numpy(rng.standard_normal((1, 4, 3, 4, 4)))
    group = torch.arange(4 - own)[None]
    scene = Scene((masks * pictures).sum(1), pictures, masks, None, group)
    one = merged(scene)
    stands, joins = (0, 2) if parts.sum() > masks[0, 2].sum() else (2, 0)
    assert one.group[0, [0, 2]].tolist() == [stands, stands] and one.group[0, 1] == 1
    assert torch.allclose(one.masks[0, stands], masks[0, 0] + masks[0, 2])
    assert (one.masks[0, joins] == 0).all() and torch.equal(one.masks[0, [1, 3]], masks[0, [1, 3]])
    assert torch.allclose((one.masks * one.pictures).sum(1), scene.reconstruction)
    image = scene.reconstruction.clone()
    assert count_objects(scene, masks[:, :, 0].argmax(1)).item() == 3
    assert count_objects(one, slot_of_each_pixel(one, image)).item() == 2


def test_the_slot_of_a_pixel():
    """That of the larger mask; beside a background of its own the likelier one."""
    masks = torch.tensor([0.4, 0.6]).view(1, 2, 1, 1, 1).expand(-1, -1, -1, 1, 2)
    pictures = torch.tensor([0.9, -0.1]).view(1, 2, 1, 1, 1).expand(-1, -1, 3, 1, 2)
    image = torch.tensor([0.8, 0.0]).expand(1, 3, 1, 2)
    scene = Scene(None, pictures, masks, None, torch.arange(2)[None])
    assert slot_of_each_pixel(scene, image).tolist() == [[[1, 1]]]
    own = scene._replace(group=torch.zeros(1, 1, dtype=torch.int64))
    assert slot_of_each_pixel(own, image).tolist() == [[[0, 1]]]
    far = torch.full_like(image, 9.0)  # as neither has drawn: in doubt, not the background's
    assert slot_of_each_pixel(own, far).tolist() == [[[0, 0]]]


def test_a_background_of_its_own():
    """It is the same in all pictures, beside the slots, and learns; its price is of the masks."""
    config = Config.from_preset("tiny", precision="float32", steps=100)
    net = build_model(config)
    scene = net(torch.rand(2, 3, 32, 32), [1, 2])
    assert scene.masks.shape[1] == config.slots + 1 and scene.attention.shape[2] == config.slots
    assert torch.equal(scene.pictures[0, -1], scene.pictures[1, -1])
    scene.reconstruction.square().mean().backward()
    assert net.background.grad.abs().sum() > 0
    costs = [label_cost(config, step) / config.label_cost for step in (0, 20, 35, 50, 99)]
    assert costs == pytest.approx([0, 0, 0.5, 1, 1])
    assert build_model(Config.from_preset("paper", image_size=32)).background is None


def test_exchanged_slots_carry_their_objects(monkeypatch):
    """Of one slot and a background, all of a picture but the background goes over."""
    config = Config.from_preset("tiny", slots=1, image_size=16, dim=16, background="own")
    torch.manual_seed(3)
    rows, model = [], build_model(config)
    torch.nn.init.normal_(model.background)
    monkeypatch.setattr(plots, "sheet", lambda drawn, path, names: rows.extend(drawn))
    exchanged(model, open_pictures(config, "val", 4), config, "unused")
    assert len(rows) == 2
    for _, _, first, second, first_edited, second_edited in rows:
        assert abs(first - second).max() > 1e-4
        np.testing.assert_allclose(first_edited, second, atol=1e-6)
        np.testing.assert_allclose(second_edited, first, atol=1e-6)


def test_pictures_without_masks(tmp_path, capsys):
    """A folder of one's own: trained on, and measured by the error alone."""
    for i in range(3):
        miniature.save(miniature.picture(i, 20, 30), tmp_path / "data" / f"{i}.png")
    short = [
        "--steps",
        "2",
        "--batch-size",
        "2",
        "--image-size",
        "16",
        "--evaluate-every",
        "1",
        "--draws",
        "1",
        "--precision",
        "float32",
    ]
    found = run(
        PIPELINE, ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"), *short]
    )
    assert (
        found["images"] == 3
        and found["mse"] > 0
        and not {"ari", "fg_ari", "mbo", "miou"} & set(found)
    )
    assert (tmp_path / "run" / "discovery.png").stat().st_size > 1000
    note = "has no folder val/, so training pictures are evaluated"
    assert capsys.readouterr().err.count(note) == 1
    evaluate = ["eval", "--out", str(tmp_path / "run"), "--draws", "1"]
    run(PIPELINE, evaluate)
    assert capsys.readouterr().err.count(note) == 1
    miniature.save(miniature.picture(9, 20, 30), tmp_path / "data/val/only.png")
    run(PIPELINE, evaluate)
    assert "note:" not in capsys.readouterr().err
    # what was trained on scenes of four objects reads all pictures of other data
    run(PIPELINE, ["train", "--out", str(tmp_path / "scenes"), "--pictures", "4", *short])
    miniature.clevr_mirror(tmp_path / "mirror")
    assert (
        run(
            PIPELINE,
            [
                "eval",
                "--out",
                str(tmp_path / "scenes"),
                "--data",
                str(tmp_path / "mirror"),
                "--split",
                "all",
            ],
        )["images"]
        == 6
    )


def test_a_process_reads_its_own_next_batch_ahead(monkeypatch):
    monkeypatch.setattr(Pictures, "MOST_BYTES", 0)
    read = []

    class Numbers:
        def __len__(self):
            return 40

        def __getitem__(self, index):
            read.append(index)
            return {"image": np.array(index)}

    pictures = Pictures(Numbers())
    read.clear()
    for step in range(
        3
    ):  # the second of two processes, which take two pictures of a batch of four each
        pictures.train_batch(0, range(4 * step + 2, 4 * step + 4), 4)
    next(iter(pictures.ahead.values())).result()
    assert len(read) == 8  # those of three steps, and of the fourth


def test_pictures_are_kept_and_each_is_read_once():
    read = []

    class Numbers:
        def __len__(self):
            return 6

        def __getitem__(self, index):
            read.append(index)
            return {"image": np.array(index)}

    pictures = Pictures(Numbers())
    read.clear()
    seen = [
        int(n)
        for step in range(6)
        for n in pictures.train_batch(3, range(4 * step, 4 * step + 4), 4)[0]
    ]
    assert sorted(read) == list(range(6))
    assert seen == order(range(6), 3, range(24))


@pytest.mark.parametrize("name", examples.PIPELINES)
def test_slots_of_a_step(name):
    """Every number from the fewest to the most, by seed and step; all of them by default."""
    make = importlib.import_module(f"examples.{name}.config").Config.from_preset
    config = make("tiny", slots=6, least_slots=4)
    drawn = [slots_of(config, step) for step in range(60)]
    assert set(drawn) == {4, 5, 6} and drawn == [slots_of(config, step) for step in range(60)]
    assert drawn != [slots_of(make("tiny", slots=6, least_slots=4, seed=2), s) for s in range(60)]
    assert slots_of(make("tiny"), 0) is None
    with pytest.raises(ValueError, match="least_slots must be at most slots=6, got 7"):
        make("tiny", slots=6, least_slots=7)


def test_scenes_without_end(monkeypatch):
    """Every sample is a new scene of the seed, drawn by other processes or here."""
    config = Config.from_preset("tiny", pictures=0, seed=5)
    expected = data_sets.open_dataset(size=32, max_objects=4, seed=5)
    for begin, here in ((0, False), (40, True)):  # the latter as after a resume
        monkeypatch.setattr(Pictures, "FEW", sys.maxsize if here else 1000)
        pictures = open_pictures(config, "train", fields=("image", "mask"))
        for first in (begin, begin + 4):
            batch = pictures.train_batch(5, range(first, first + 4), 4)
            for field, values in zip(("image", "mask"), batch):
                assert np.array_equal(values, [expected[first + i][field] for i in range(4)])
        assert ("readers" in vars(pictures)) == (not here)
    assert len(open_pictures(config, "val", 7)) == 7


def test_a_picture_without_objects_has_no_say_in_their_figures():
    true = np.array([[0, 0, 0, 0], [0, 1, 1, 2]])
    values = agreement(true, np.array([[0, 0, 0, 0], [0, 1, 1, 1]]))
    assert values["ari"][0] == 1 and np.isfinite(values["ari"]).all()
    for name in ("fg_ari", "mbo", "miou"):
        assert np.isnan(values[name]).tolist() == [True, False], name


def test_diagnosis_by_hand():
    """Four slots on three inputs: one holds two inputs, one holds one, the others repeat it and
    hold nothing."""
    slots = torch.tensor([[[0.0, 0.0], [4.0, 0.0], [4.0, 0.0], [4.0, 0.001]]])
    share = torch.tensor([[[1.0, 0, 0, 0], [1.0, 0, 0, 0], [0, 0.5, 0.25, 0.25]]])
    variance = torch.tensor([[[1e-4, 1.0]] * 4])
    prior = torch.tensor([[0.625, 0.125, 0.125, 0.125]])
    module = SimpleNamespace(
        run=lambda x, init, num_iters, return_attention: Output(
            slots,
            slots,
            variance,
            prior,
            torch.tensor([3.0 * num_iters]),
            share if return_attention else None,
        )
    )
    found = diagnose(module, torch.zeros(1, 3, 2), None, 2)
    assert found == {
        "slots": 4,
        "used": 2.0,
        "duplicates": 2.0,
        "entropy": pytest.approx(0.25),
        "prior": 0.625,
        "floor": 0.5,
        "log_likelihood": [1.0, 2.0],
    }
    assert collapse(found) is None
    for change, words in (
        ({"used": 1.0}, "one slot of 4 holds nearly everything"),
        ({"duplicates": 3.0}, "slots are the same"),
        ({"entropy": 0.99}, "belongs to all slots alike"),
        ({"floor": 0.95}, "variances are at their floor"),
    ):
        assert words in collapse({**found, **change})


def test_log_likelihood_rises_as_em_must():
    torch.manual_seed(0)
    x = torch.randn(4, 50, 3) * torch.tensor([1.0, 2.0, 0.5]) + (torch.arange(50) % 3)[:, None]
    module = GaussianMixture(dim=3, num_slots=3)
    found = diagnose(
        module, x, module.initial_state(x, generator=torch.Generator().manual_seed(0)), 8
    )["log_likelihood"]
    assert len(found) == 8 and all(b > a for a, b in zip(found, found[1:]))


def test_train_then_eval(tmp_path):
    """The whole path over two seeds: the files that are promised, and one JSON object at the end;
    then eval on its own."""
    out = tmp_path / "run"
    options = ("--seeds", 2, "--out", out, "--images", 20, "--draws", 2)
    first = result(run_well(NAME, "--steps", 3, *options, *SMALL))
    assert first["images"] == 20 and set(first["seeds"]) == {"0", "1"}
    for key in ("mse", "ari", "fg_ari", "mbo", "miou"):
        values = [run[key] for run in first["seeds"].values()]
        assert first[key] == pytest.approx(np.mean(values)) and first["std"][key] == pytest.approx(
            np.std(values)
        )
    assert first["seeds"]["0"]["mse"] != first["seeds"]["1"]["mse"]
    for name in (
        "config.json",
        "metrics.jsonl",
        "model.safetensors",
        "checkpoint.pt",
        "curves.png",
        "discovery.png",
        "attention.png",
    ):
        assert (out / "seed-1" / name).stat().st_size > 0, name
    again = result(run_well(NAME, "eval", *options, "--threads", 1))
    assert again["seeds"] == first["seeds"]
    assert isinstance(examples.load(out / "seed-1"), ObjectDiscovery)
    more = ["eval", "--out", str(out / "seed-1"), "--slots", "7", "--images", "4", "--no-merge"]
    protocol = run(PIPELINE, more)["protocol"]
    assert (protocol["slots"], protocol["merge"]) == (7, False)
    assert first["seeds"]["0"].keys() >= {"count_accuracy", "count_error"}
    assert first["protocol"]["merge"]


def test_kill_and_resume(tmp_path):
    check_kill_and_resume(NAME, SMALL, tmp_path)


def test_two_processes_train_the_same_model(tmp_path):
    check_two_processes(
        NAME, [*SMALL, "--temperature", "0.5"], tmp_path
    )  # where rounding grows less than at 0.7


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("train", "--image-size", "30"), "image_size must be a multiple of 4, got 30"),
        (
            ("train", "--max-objects", "101"),
            "max_objects must be in order and from 1 to 100, got 2 and 101",
        ),
        (("train", "--least-iters", "4"), "least_iters must be from 1 to train_iters=3, got 4"),
        (("train", "--position-scale", "0"), "position_scale must be more than 0, got 0.0"),
        (("train", "--seeds", "0"), "seeds must be from 1 to 2147483647, got 0"),
        (("eval",), "eval needs --weights or a trained run"),
    ],
)
def test_errors_are_one_line(arguments, message, tmp_path, capsys):
    check_error(NAME, arguments, message, tmp_path, capsys)
