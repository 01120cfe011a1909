"""The SLATE pipeline, small."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for name in ("scipy", "safetensors", "matplotlib", "tqdm", "PIL"):
    pytest.importorskip(name)

from pipelines import (  # noqa: E402
    check_error,
    check_kill_and_resume,
    check_two_processes,
    reached,
    result,
    run_well,
)
from safetensors.torch import load_file, save_file  # noqa: E402

import examples  # noqa: E402
from examples.object_discovery.train import number_of_objects  # noqa: E402
from examples.pretrained.__main__ import ship  # noqa: E402
from examples.shared.command import run  # noqa: E402
from examples.shared.pictures import Pictures  # noqa: E402
from examples.shared.schedules import halved, one_cycle, warm_up_and_decay  # noqa: E402
from examples.shared.training import Loop  # noqa: E402
from examples.slate.__main__ import PIPELINE  # noqa: E402
from examples.slate.config import Config  # noqa: E402
from examples.slate.dvae import (  # noqa: E402
    DVAE,
    Centres,
    gumbel_noise,
    patches_of,
    squared_error,
    temperature_at,
)
from examples.slate.model import Slate  # noqa: E402
from examples.slate.plots import mix  # noqa: E402
from examples.slate.train import (  # noqa: E402
    agreement,
    build_model,
    counted,
    dvae_rate,
    figures,
    frechet,
    slots_rate,
    to_pixels,
    train,
)
from examples.slate.transformer import ImageGPT, sinusoids  # noqa: E402

NAME = "slate"
MINIATURE = {
    "image_size": 16,
    "pictures": 40,
    "batch_size": 8,
    "max_objects": 3,
    "slots": 3,
    "dim": 16,
    "hidden": 16,
    "heads": 2,
    "blocks": 2,
    "vocabulary": 12,
    "channels": 8,
}
SMALL = [
    part
    for name, value in MINIATURE.items()
    for part in (f"--{name.replace('_', '-')}", str(value))
]
SMALL += ["--threads", "1", "--evaluate-every", "1000"]


def small(**changes):
    return Config.from_preset("tiny", **{**MINIATURE, "steps": 3, **changes})


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("model", ["smm", "sa"])
def test_the_papers_preset(model):
    """Table 7, and the layers of SLATE's code, on pictures of 96 x 96; and three steps at full
    size."""
    config = Config.from_preset("paper", model=model)
    assert (config.image_size, config.vocabulary, config.cooldown, config.dvae_lr) == (
        96,
        4096,
        30_000,
        3e-4,
    )
    assert (config.blocks, config.heads, config.dim, config.slots, config.train_iters) == (
        8,
        8,
        192,
        12,
        7,
    )
    assert (config.batch_size, config.steps, config.warmup * config.steps, config.lr) == (
        64,
        250_000,
        30_000,
        1e-4,
    )
    net = build_model(config)
    v, c, d = 4096, 64, 192
    up = (
        9 * c * c + 2 * c * c + 4 * c * c + 2 * (3 * c + 4 * c)
    )  # 3 x 3, two of 1 x 1, one to 4 c channels; norms
    assert count(net.dvae.encoder) == (48 * c + 2 * c) + 6 * (c * c + 2 * c) + (c * v + v)
    assert count(net.dvae.decoder) == (v * c + 2 * c) + 2 * up + (3 * c + 3)
    block = 8 * d * d + 8 * d * d + 5 * d + 3 * 2 * d  # two attentions, MLP with biases, norms
    assert [count(b) for b in net.writer.blocks] == [block - 2 * d, *[block] * 7]
    assert (
        count(net.writer) == 8 * block - 2 * d + (v + 1) * d + 577 * d + 2 * 2 * d + d * d + v * d
    )
    assert count(net.slots) == {"smm": 14 * d * d + 19 * d, "sa": 11 * d * d + 16 * d}[model]
    assert count(net.before_slots) == {"smm": 0, "sa": 2 * d * d + 4 * d}[model]
    optimizer = torch.optim.Adam(net.parameters(), config.lr)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for step in range(3):
        error, cross_entropy = net(
            torch.rand(1, 3, 96, 96), [step], [step], temperature_at(step, 1, 0.1, config.cooldown)
        )
        optimizer.zero_grad()
        (error + cross_entropy).backward()
        optimizer.step()
    assert cross_entropy.isfinite() and 0 < cross_entropy < 2 * 576 * np.log(v)
    assert all(p.isfinite().all() for p in net.parameters())
    still = {name for name, p in net.named_parameters() if torch.equal(p, before[name])}
    drawn = {name for name, _ in net.named_parameters() if name.endswith(("_mu", "_logsigma"))}
    assert drawn and still == drawn  # the implicit gradient ends before these


def test_schedules_of_the_papers_preset():
    config = Config.from_preset("paper")
    temperature = [
        temperature_at(s, 1.0, 0.1, config.cooldown) for s in (0, 15_000, 30_000, 100_000)
    ]
    assert temperature == pytest.approx([1.0, 0.55, 0.1, 0.1])
    assert [dvae_rate(config, s) for s in (0, 200_000)] == [3e-4, 3e-4]
    assert [warm_up_and_decay(config, s) for s in (0, 15_000, 30_000, 200_000)] == pytest.approx(
        [0, 5e-5, 1e-4, 1e-4]
    )
    assert halved(30, 10) == 0.125 and halved(30, None) == 1


def test_sinusoids_tell_places_apart_and_near_ones_are_alike():
    """Against a formula of their own, one number at a time; also where a quarter of the channels is
    no whole number."""
    side, dim = 4, 10
    waves = sinusoids(side, dim).numpy()
    assert waves.shape == (side * side, dim)
    for place in range(side * side):
        for channel in range(dim):
            at, axis = channel // 4, channel // 2 % 2
            wavelength = 2 * side * (2 / (2 * side)) ** (at / 2)
            angle = 2 * np.pi * (place // side, place % side)[axis] / wavelength
            assert waves[place, channel] == pytest.approx(
                (np.sin, np.cos)[channel % 2](angle), abs=1e-5
            )
    alike = sinusoids(16, 64) @ sinusoids(16, 64).T
    assert alike[0, 0] > alike[0, 1] > alike[0, 2] and alike[0, 0] > alike[0, 16] > alike[0, 17]
    net = build_model(small())
    assert torch.equal(net.writer.positions[1:], sinusoids(4, 16))
    assert not torch.equal(
        build_model(small(positions="normal")).writer.positions[1:], sinusoids(4, 16)
    )
    # the tokens' vectors are the same ones at the size that is asked for
    half, whole = (
        build_model(small(token_std=std)).writer.embedding.weight.detach() for std in (0.5, 1.0)
    )
    assert torch.equal(2 * half, whole) and abs(float(whole.std()) - 1) < 0.1


def test_dvae():
    torch.manual_seed(0)
    dvae, image = DVAE(6, channels=8), torch.rand(3, 3, 16, 16) * 2 - 1
    tokens = dvae.tokens(image)
    assert (
        tokens.shape == (3, 16)
        and dvae.picture(tokens).shape == image.shape
        and dvae.summary(image).shape == (3, 8)
    )
    error, drawn, likeliest = dvae(image, [1, 2, 3], 0.5)
    alone, drawn_alone, _ = dvae(image[1:2], [2], 0.5)  # a picture's noise is its own
    assert (
        torch.equal(likeliest, tokens)
        and not torch.equal(drawn, tokens)
        and torch.allclose(error[1:2], alone)
        and torch.equal(drawn[1:2], drawn_alone)
        and drawn.max() < 6
    )
    assert (
        squared_error(torch.ones(1, 3, 2, 2), -torch.ones(1, 3, 2, 2)) == 12
    )  # 1 apart in [0, 1], 12 numbers
    scores = torch.tensor([2.0, 0.0, 1.0]).log_softmax(0)
    noisy = scores + gumbel_noise(torch.empty(1, 20_000, 3), [0])
    share = torch.bincount(noisy.argmax(2)[0], minlength=3) / 20_000
    assert torch.allclose(share, scores.exp(), atol=0.015)  # four standard deviations


def test_centres_of_patches():
    """A token's centre is the nearest one; how it differs from plain ground, by hand."""
    torch.manual_seed(0)
    images, encoder = torch.rand(3, 3, 16, 16) * 2 - 1, Centres(6)
    encoder.find(images, seed=1)
    patches = patches_of(images)
    assert torch.equal(patches[5], images[0, :, 4:8, 4:8].flatten())
    distance = torch.cdist(patches.double(), encoder.weight.flatten(1).double())
    found = encoder(images).argmax(1).flatten()
    assert torch.equal(found, distance.argmin(1)) and len(found.unique()) == 6
    # 3 of 4 patches lie within 0.1 of ground, half a unit below 0
    images = torch.full((1, 3, 8, 8), -0.5)
    images[..., 4:, 4:] = 0.5
    images[0, 0, 0, 0], images[0, 1, 4, 0] = -0.4, -0.6
    with torch.no_grad():
        encoder.weight[0], encoder.weight[1] = 0.5, -0.5
    unlike = encoder.unlike_ground(images)
    far = 48**0.5  # of white from ground; the usual patch is 0.1 away
    assert torch.allclose(unlike[0], torch.full((48,), 1 / (far + 0.1)))
    assert not unlike[1].any()


def test_like_tokens_start_alike():
    writer, vectors = ImageGPT(5, 16, 64, 2, 1, 8, token_std=0.25), torch.randn(5, 48)
    before = {k: w.clone() for k, w in writer.state_dict().items()}
    writer.start_at(vectors)
    after = writer.state_dict()
    changed = {k for k, w in after.items() if not torch.equal(w, before[k])}
    assert changed == {"embedding.weight", "to_scores.weight"}
    alike, start = after["embedding.weight"].split([5, 1])
    assert torch.equal(start, before["embedding.weight"][5:])
    assert alike.square().mean().sqrt().item() == pytest.approx(0.25)
    assert torch.allclose(torch.corrcoef(alike @ alike.mT), torch.corrcoef(vectors @ vectors.mT))
    scores = after["to_scores.weight"] * 2**0.5 - before["to_scores.weight"]
    size = before["to_scores.weight"].square().mean().sqrt()
    assert torch.allclose(scores, alike / 0.25 * size, atol=1e-6)


def test_a_run_of_centres_goes_on_as_it_was(tmp_path):
    """They are found, and tokens start at them, once."""
    models = []
    for name, stops in (("whole", (4,)), ("halves", (2, 4))):
        (tmp_path / name).mkdir()
        for steps in stops:
            config = small(dvae_encoder="centres", steps=steps, schedule="decay", dvae_alone=0.0)
            models.append(train(config, tmp_path / name, "cpu"))
    whole, _, halves = (model.state_dict() for model in models)
    assert all(torch.equal(w, halves[k]) for k, w in whole.items())


def test_kept_keys_and_values_change_nothing():
    """What is written token by token is what the whole pass, without anything kept, says of it."""
    torch.manual_seed(0)
    writer, slots = ImageGPT(30, 16, 16, 2, 3, 8).double().eval(), torch.randn(4, 5, 8).double()
    with torch.no_grad():
        writer.to_scores.weight *= 20  # far from ties
        tokens = torch.zeros(4, 16, dtype=torch.long)
        for place in range(16):
            tokens[:, place] = writer(tokens, slots)[:, place].argmax(-1)
        assert torch.equal(writer.generate(slots), tokens)
    assert len(tokens.unique()) > 5 and not torch.equal(tokens[0], tokens[1])


def test_a_token_knows_those_before_it_alone():
    torch.manual_seed(0)
    writer, slots, tokens = (
        ImageGPT(9, 16, 16, 2, 2, 8),
        torch.randn(1, 3, 8),
        torch.randint(9, (1, 16)),
    )
    other = tokens.clone()
    other[0, 7] = (other[0, 7] + 1) % 9
    same = torch.isclose(writer(tokens, slots), writer(other, slots), atol=1e-6).all(2)[0]
    assert same[:8].all() and not same[8:].any()


def test_gradients_are_blocked():
    """The dVAE learns from its error alone, all the rest from the cross-entropy alone."""
    net = build_model(small())
    error, cross_entropy = net(torch.rand(2, 3, 16, 16), [1, 2], [3, 4], 1.0)
    cross_entropy.backward(retain_graph=True)
    inside = {name for name, p in net.named_parameters() if name.startswith("dvae.")}
    learned = {name for name, p in net.named_parameters() if p.grad is not None}
    assert not learned & inside
    assert learned | inside == set(reached(net))
    net.zero_grad(set_to_none=True)
    error.backward()
    assert {name for name, p in net.named_parameters() if p.grad is not None} == inside


@pytest.mark.parametrize("model", ["smm", "sa", "kmeans", "gmm"])
def test_a_pictures_slots_and_tokens_depend_on_its_seeds_alone(model):
    net, x = build_model(small(model=model)), torch.rand(3, 3, 16, 16)
    tokens, slots, attention = net.encode(x, [1, 2, 3])
    assert attention.shape == (3, 16, 3) and torch.allclose(
        net.encode(x[1:2], [2])[1], slots[1:2], atol=1e-5
    )
    assert net.generate(slots).shape == x.shape
    assert torch.allclose(net.features(x), net.before_slots(net.writer.embed(tokens)))


def test_the_dvae_is_the_same_beside_any_slot_module(tmp_path):
    """Bit for bit, at the same step, of runs of other lengths too; and the transformer starts
    alike."""
    trained = {}
    for model, steps in (("smm", 6), ("sa", 6), ("smm", 12)):
        out = tmp_path / f"{model}{steps}"
        out.mkdir()
        config = small(model=model, steps=steps, checkpoint_every=6, log_every=6, evaluate_every=6)
        train(config, out, "cpu")
        trained[model, steps] = load_file(out / "model.safetensors")
    first = {k: v for k, v in trained["smm", 6].items() if k.startswith("dvae.")}
    assert len(first) > 50 and all(torch.equal(v, trained["sa", 6][k]) for k, v in first.items())
    assert not torch.equal(
        trained["smm", 6]["writer.positions"], trained["sa", 6]["writer.positions"]
    )
    errors = [
        [
            json.loads(line)["dvae_mse"]
            for line in (tmp_path / d / "metrics.jsonl").read_text().splitlines()
        ]
        for d in ("smm6", "sa6", "smm12")
    ]
    assert errors[0] == errors[1] == errors[2][:1] and errors[2][1] != errors[2][0]
    start = [build_model(small(model=model)) for model in ("smm", "sa")]
    assert all(
        torch.equal(a, b)
        for a, b in zip(start[0].writer.parameters(), start[1].writer.parameters())
    )


def test_the_dvae_learns_alone_at_first(tmp_path):
    """In the share of the steps that is asked for, all else stands still; the dVAE is the same with
    and without."""
    trained = {}
    for name, training, share in (
        ("first half", train_and_stop, 0.5),
        ("whole", train, 0.5),
        ("together", train, 0.0),
    ):
        out = tmp_path / name
        out.mkdir()
        training(
            small(steps=6, dvae_alone=share, checkpoint_every=1, log_every=1, evaluate_every=1),
            out,
            "cpu",
        )
        trained[name] = load_file(out / "model.safetensors")
    start = build_model(small()).state_dict()
    learned = {
        name: [k for k, v in weights.items() if not torch.equal(v, start[k])]
        for name, weights in trained.items()
    }
    assert learned["first half"] and all(k.startswith("dvae.") for k in learned["first half"])
    assert any(k.startswith("writer.") for k in learned["whole"]) and any(
        k.startswith("slots.") for k in learned["whole"]
    )
    assert all(
        torch.equal(v, trained["together"][k])
        for k, v in trained["whole"].items()
        if k.startswith("dvae.")
    )
    logged = [
        json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in logged if "dvae_mse" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in logged if "cross_entropy" in line and "slots" in line] == [
        4,
        5,
        6,
    ]
    config = Config.from_preset("tiny", steps=1000, dvae_alone=0.4)
    assert [slots_rate(config, s) for s in (0, 399)] == [0, 0] and slots_rate(
        config, 430
    ) == config.lr
    assert slots_rate(config, 400) == one_cycle(Config.from_preset("tiny", steps=600), 0) > 0


def train_and_stop(config, out, device, steps=3):
    """Train, and stop as a user would after so many steps."""
    step = Loop.one_step

    def stop(loop):
        if loop.step == steps:
            raise KeyboardInterrupt
        return step(loop)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Loop, "one_step", stop)
        train(config, out, device)


def test_a_trained_dvae_stays_as_it_is(tmp_path):
    """It is trained alone, shipped without the rest, and read by a run of other settings."""
    config = small(dvae_alone=1.0, steps=2)
    for name in ("alone", "fixed"):
        (tmp_path / name).mkdir()
    train(config, tmp_path / "alone", "cpu")
    config.save(tmp_path / "alone/config.json")
    path = ship(tmp_path / "alone", tmp_path)
    assert path.name == "slate-dvae-16.safetensors"
    for command in ("show", "sample"):
        with pytest.raises(ValueError, match=f"{command} needs a run whose slots were trained"):
            run(PIPELINE, [command, "--out", str(tmp_path / "alone"), "--images", "2"])
    own = load_file(path)
    assert own and all(name.startswith("dvae.") for name in own)
    other = {**MINIATURE, "vocabulary": None, "channels": None, "steps": 2, "dvae": str(path)}
    config = Config.from_preset("tiny", **other)
    assert (config.vocabulary, config.channels, config.dvae_alone) == (12, 8, 0)
    before = build_model(config)
    after = train(config, tmp_path / "fixed", "cpu")
    assert all(torch.equal(after.state_dict()[k], w.float()) for k, w in own.items())
    assert not torch.equal(after.slots.to_q.weight, before.slots.to_q.weight)
    lines = [json.loads(x) for x in (tmp_path / "fixed/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["cross_entropy"] > 0
    with pytest.raises(ValueError, match=f"weights {path} are of another model"):
        build_model(small(dvae=str(path), channels=4))
    weights = {"slots.to_q.weight": torch.zeros(1)}
    save_file(weights, tmp_path / "slots.safetensors")
    with pytest.raises(ValueError, match="of another model; first difference: encoder.0"):
        build_model(small(dvae=str(tmp_path / "slots.safetensors")))


def test_objects_of_attention_and_of_written_pictures():
    """By hand: four tokens, the two upper ones of one object, one below of another."""
    attention = torch.eye(4)[[0, 0, 1, 2]][None]
    masks = np.repeat(np.repeat([[[1, 1], [2, 0]]], 4, 1), 4, 2)
    assert agreement(masks, attention).tolist() == [1.0]
    assert agreement(masks, torch.eye(4)[[0, 1, 1, 1]][None]) < 1
    assert agreement(0 * masks, attention).isnan().all()
    assert number_of_objects(np.concatenate([masks, 0 * masks])).tolist() == [2, 0]
    found = torch.zeros(1, 3, 19)
    found[0, :2, -1], found[0, 1, 0] = 0.9, 1.0
    config = SimpleNamespace(eval_iters=1, least_distance=0.5)
    listed = type("Counter", (), {"config": config, "__call__": lambda self, *given: found})()

    def right(*masks):
        return [counted(listed, torch.zeros(1, 3, 8, 8), mask).item() for mask in masks]

    assert right(masks, masks == 1, 0 * masks) == [True, False, False]
    config.least_distance = 4.0
    assert right(masks, masks == 1, 0 * masks) == [False, True, False]


def test_a_run_is_measured_by_its_late_steps(tmp_path, monkeypatch):
    """Those with slots and transformer, not the fast ones of the dVAE alone."""
    asked = []
    forward = Slate.forward

    def watch(self, *arguments, alone, **options):
        asked.append(alone)
        return forward(self, *arguments, alone=alone, **options)

    monkeypatch.setattr(Slate, "forward", watch)
    config = small(steps=None, minutes=1e-5, dvae_alone=0.9)
    train(config, tmp_path, "cpu")
    assert asked[:16] == [False] * 16 and config.steps == len(asked) - 16 == 1
    (tmp_path / "four").mkdir()
    train(small(steps=4, dvae_alone=0.5), tmp_path / "four", "cpu")
    assert asked[-4:] == [True, True, False, False]


class Drawn:
    """A data set of grey pictures, and a model that sees and writes them one shade off."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return {"image": np.full((8, 8, 3), 50 * index, np.uint8)}


def test_figures_by_hand(monkeypatch):
    net = build_model(small(image_size=8))
    monkeypatch.setattr(
        net.dvae, "picture", lambda tokens: torch.full((len(tokens), 3, 8, 8), 50 / 127.5 - 1)
    )
    found = figures(net, Pictures(Drawn()), SimpleNamespace(eval_iters=2), generate=True)
    expected = 192 * (50 / 255) ** 2 * 2 / 3  # two of three are 50 of 255 off
    assert found["mse"] == pytest.approx(expected, rel=1e-5) and found["dvae_mse"] == found["mse"]
    assert set(found) == {"mse", "dvae_mse", "cross_entropy", "frechet_dvae"}
    images = to_pixels(torch.linspace(-1, 1, 256).reshape(1, 1, 16, 16).expand(1, 3, 16, 16))
    assert np.array_equal(images[0, :, :, 0].ravel(), np.arange(256)) and images.dtype == np.uint8


def test_frechet_distance_of_pictures():
    """Of features in one dimension, by hand: squared difference of means and of standard
    deviations."""
    first, second = (
        np.zeros((4, 1, 1, 1), np.uint8),
        np.array([1, 5, 1, 5], np.uint8).reshape(4, 1, 1, 1),
    )
    assert frechet(lambda images: images.reshape(4, 1), first, second) == pytest.approx(9 + 16 / 3)


def test_fid_is_of_the_users_file(monkeypatch):
    def features(path, images, device):
        assert path == "file.pt" and images.shape == (3, 8, 8, 3) and images.dtype == np.uint8
        return images[:, 0, 0, :2].astype(float)

    net, pictures = build_model(small(image_size=8)), Pictures(Drawn())
    monkeypatch.setattr("examples.slate.train.inception_features", features)
    assert (
        figures(net, pictures, SimpleNamespace(eval_iters=2), generate=True, inception="file.pt")[
            "fid"
        ]
        > 0
    )
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match="Inception file nowhere is missing"):
        figures(net, pictures, SimpleNamespace(eval_iters=2), generate=True, inception="nowhere")


def test_slots_of_two_pictures():
    slots = torch.tensor([[[1.0], [2.0], [3.0]], [[10.0], [20.0], [30.0]]])
    attention = torch.tensor([[[0.5, 0.2, 0.3]], [[0.1, 0.3, 0.6]]])  # by size: 1 3 2 and 30 20 10
    first, second, other = (sets[0, :, 0].tolist() for sets in mix(slots, attention).values())
    assert (first, second, other) == ([1, 20, 2], [30, 3, 10], [1, 20, 2])


def test_a_resumed_run_drops_the_same_numbers(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    config = small(dropout=0.5, steps=6, checkpoint_every=3)
    for out in (whole, stopped):
        out.mkdir()
    train(config, whole, "cpu")
    train_and_stop(config, stopped, "cpu", 4)
    train(config, stopped, "cpu")
    assert (whole / "model.safetensors").read_bytes() == (
        stopped / "model.safetensors"
    ).read_bytes()
    assert build_model(config).train().writer.drop.p == 0.5


def test_train_eval_sample(tmp_path):
    """The whole path: the files that are promised, and one JSON object at the end; then eval and
    sample on their own."""
    out = tmp_path / "run"
    first = result(run_well(NAME, "--steps", 3, "--out", out, "--images", 20, "--draws", 2, *SMALL))
    assert isinstance(examples.load(out), Slate)
    assert (
        first["images"] == 20
        and {"mse", "cross_entropy", "dvae_mse", "frechet_dvae"} <= set(first)
        and "fid" not in first
    )
    again = result(
        run_well(NAME, "eval", "--out", out, "--images", 20, "--draws", 2, "--threads", 1)
    )
    assert again == first
    assert (
        result(run_well(NAME, "sample", "--out", out, "--images", 5, "--threads", 1))["images"] == 5
    )
    for name in (
        "config.json",
        "metrics.jsonl",
        "model.safetensors",
        "checkpoint.pt",
        "curves.png",
        "samples.png",
        "mixed.png",
    ):
        assert (out / name).stat().st_size > 0, name


def test_kill_and_resume(tmp_path):
    check_kill_and_resume(NAME, SMALL, tmp_path)


def test_two_processes_train_the_same_model(tmp_path):
    check_two_processes(NAME, SMALL, tmp_path)


def test_an_inception_file_is_looked_at_before_all(tmp_path, capsys):
    (tmp_path / "file.pt").write_bytes(b"nonsense")
    for name, message in (("file.pt", "is no TorchScript"), ("nothing.pt", "is missing")):
        with pytest.raises(SystemExit):
            run(PIPELINE, ["--inception", str(tmp_path / name), "--out", str(tmp_path / "run")])
        assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("train", "--image-size", "30"), "image_size must be a multiple of 4, got 30"),
        (("train", "--heads", "5"), "heads must divide dim=64, got 5"),
        (("train", "--dvae-alone", "1.5"), "dvae_alone must be from 0 to 1, got 1.5"),
        (("train", "--dvae", "no.safetensors"), "dvae: weights no.safetensors are missing"),
        (
            ("train", "--dvae", "no.safetensors", "--dvae-alone", "0.5"),
            "dvae must be left out with dvae_alone and with tokens 'sampled', as a trained one",
        ),
        (("train", "--token-std", "0"), "token_std must be more than 0, got 0.0"),
        (("train", "--dropout", "1"), "dropout must be from 0 to less than 1, got 1.0"),
        (("train", "--vocabulary", "0"), "vocabulary must be at least 1, got 0"),
        (("eval",), "eval needs --weights or a trained run"),
        (("sample",), "sample needs --weights or a trained run"),
    ],
)
def test_errors_are_one_line(arguments, message, tmp_path, capsys):
    check_error(NAME, arguments, message, tmp_path, capsys)
    assert not list(tmp_path.iterdir())
