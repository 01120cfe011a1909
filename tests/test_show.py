"""What a trained model makes of a user's pictures, and the examples that `--help` gives."""

import json
import shlex
from importlib import import_module

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for name in ("scipy", "safetensors", "matplotlib", "tqdm", "PIL"):
    pytest.importorskip(name)

import miniature  # noqa: E402
from PIL import Image  # noqa: E402
from pipelines import check_error  # noqa: E402

import examples  # noqa: E402
import smm_py  # noqa: E402
from examples import data  # noqa: E402
from examples.data.properties import REAL  # noqa: E402
from examples.data.reader import load_as_viewed  # noqa: E402
from examples.object_discovery.config import Config as Discovery  # noqa: E402
from examples.object_discovery.model import slot_of_each_pixel  # noqa: E402
from examples.set_prediction.listing import without_repeats  # noqa: E402
from examples.shared.command import main, make_parser, newest_run, run  # noqa: E402
from examples.shared.pictures import eval_seeds, to_input  # noqa: E402
from examples.shared.show import places, read, reader_of  # noqa: E402

PIPELINES = {
    name: import_module(f"examples.{name}.__main__").PIPELINE for name in examples.PIPELINES
}
SIZE = 16
OPTIONS = ["--steps", "1", "--image-size", str(SIZE), "--pictures", "8", "--batch-size", "4"]
OPTIONS += ["--max-objects", "3", "--dim", "16", "--hidden", "16", "--threads", "1"]
OF_SLATE = ["--heads", "2", "--blocks", "1", "--vocabulary", "12", "--channels", "8"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """name -> the folder of a run of one step, with four slots."""
    folder = tmp_path_factory.mktemp("runs")
    for name, pipeline in PIPELINES.items():
        own = OF_SLATE if name == "slate" else []
        out = ["--slots", "4", "--out", str(folder / name)]
        run(pipeline, ["train", *OPTIONS, *own, *out])
    return folder


def show(runs, name, *arguments, out="shown"):
    return run(
        PIPELINES[name],
        ["show", *map(str, arguments), "--run", str(runs / name), "--out", str(out), "--json"],
    )


def save(path, seed=0, shape=(30, 44), mode=None, **options):
    miniature_picture = Image.fromarray(miniature.picture(seed, *shape))
    (miniature_picture.convert(mode) if mode else miniature_picture).save(path, **options)
    return path


@pytest.mark.parametrize("name", PIPELINES)
def test_a_png_and_numbers_for_each_picture(name, runs, tmp_path):
    """Files and folders, in the order given; each by itself; with other slots and seeds."""
    (tmp_path / "photos").mkdir()
    save(tmp_path / "photos" / "b.png", 1), save(tmp_path / "photos" / "a.jpg", 2)
    first = save(tmp_path / "a.png", 3, (50, 20))
    out = tmp_path / "shown"
    result = show(runs, name, first, tmp_path / "photos", out=out)
    pictures = result["pictures"]
    assert [one["file"] for one in pictures] == [
        str(tmp_path / path) for path in ("a.png", "photos/a.jpg", "photos/b.png")
    ]
    assert [one["shown"] for one in pictures] == [
        str(out / f"{path}.png") for path in ("a-shown", "a-shown-2", "b-shown")
    ]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        one["shown"].split("/")[-1] for one in pictures
    )
    for one in pictures:
        with Image.open(one["shown"]) as drawn:
            assert drawn.format == "PNG" and min(drawn.size) > 150
    assert pictures[0]["size"] == (20, 50) and pictures[0]["part"] == (0, 15, 20, 20)
    json.dumps(result)
    last = show(runs, name, tmp_path / "photos" / "b.png", out=out)["pictures"][0]
    assert last == {**pictures[2], "shown": last["shown"]}
    assert show(runs, name, first, "--seed", 5, out=out)["pictures"][0] != pictures[0]
    assert show(runs, name, first, "--slots", 6, out=out)["protocol"]["slots"] == 6


@pytest.mark.parametrize("name", PIPELINES)
def test_built_in_scenes_without_a_picture(name, runs, tmp_path):
    pictures = show(runs, name, "--images", 2, "--min-objects", 3, out=tmp_path)["pictures"]
    scenes = data.open_dataset(split="val", size=SIZE, min_objects=3, max_objects=3)
    for number, one in enumerate(pictures):
        assert one["file"] == str(tmp_path / f"val-{number}.png")
        assert np.array_equal(data.load_image(one["file"]), scenes[number]["image"])
    assert (
        pictures == show(runs, name, *(one["file"] for one in pictures), out=tmp_path)["pictures"]
    )


def given(runs, name, path):
    """A picture's file as the model of a run reads it, that model, and its input and seed."""
    model = examples.load(runs / name)
    one = read(path, reader_of(model.config), SIZE)
    return one, model, (to_input(one.image[None], "cpu"), eval_seeds([0]))


def test_objects_are_those_of_the_model(runs, tmp_path):
    path = save(tmp_path / "a.png")
    one, model, inputs = given(runs, "set_prediction", path)
    with torch.no_grad():
        every = model(*inputs, model.config.eval_iters).numpy()
    row = without_repeats(every, model.config.apart)[0]
    found = show(runs, "set_prediction", path, out=tmp_path)["pictures"][0]
    assert all(thing["confidence"] > 0.5 for thing in found["objects"])
    assert all(thing["confidence"] <= 0.5 for thing in found["unlikely"])
    things = found["objects"] + found["unlikely"]
    assert [thing["confidence"] for thing in things] == sorted(row[:, REAL].round(4), reverse=True)
    for thing in things:
        own = row[thing["slot"] - 1]
        assert thing["confidence"] == pytest.approx(own[REAL], abs=1e-4)
        assert thing["coordinates"] == pytest.approx(3 * own[:3], abs=1e-3)
        words = " ".join(thing[key] for key in ("size", "color", "material", "shape"))
        assert words == data.properties.describe(own)
        assert thing["probability"]["shape"] == pytest.approx(own[7:10].max(), abs=1e-4)
        assert np.shape(thing["place"]) == (2,)


def test_regions_are_those_of_the_model(runs, tmp_path):
    path = save(tmp_path / "a.png", shape=(32, 48))
    one, model, inputs = given(runs, "object_discovery", path)
    model.merge = False
    with torch.no_grad():
        scene = model(*inputs, model.config.eval_iters)
    found = show(runs, "object_discovery", path, "--no-merge", out=tmp_path)["pictures"][0]
    owner = slot_of_each_pixel(scene, inputs[0])[0].numpy()
    assert len(found["slots"]) == 4 and found["objects"] == len(set(owner.flat) - {4})
    assert found["background"] == pytest.approx((owner == 4).mean(), abs=1e-4)
    for k, slot in enumerate(found["slots"]):
        assert slot["share"] == pytest.approx((owner == k).mean(), abs=1e-4)
        assert slot["prior"] == 0.25  # a uniform one
        assert slot["object"] == slot["slot"]
        y, x = np.nonzero(owner == k)
        corners = (
            [8 + 2 * x.min(), 2 * y.min(), 10 + 2 * x.max(), 2 + 2 * y.max()] if len(x) else None
        )
        assert slot["box"] == corners
    error = (scene.reconstruction - inputs[0]).square().mean()
    assert found["mse"] == pytest.approx(float(error), rel=1e-5)
    slots = show(runs, "object_discovery", path, out=tmp_path)["pictures"][0]["slots"]
    assert {slot["object"] for slot in slots} < {1, 2, 3, 4}  # these masks overlap


def test_tokens_are_those_of_the_model(runs, tmp_path):
    path = save(tmp_path / "a.png")
    one, model, inputs = given(runs, "slate", path)
    tokens, slots, _ = model.encode(*inputs, model.config.eval_iters)
    found = show(runs, "slate", path, out=tmp_path)["pictures"][0]
    assert found["tokens"] == tokens.reshape(SIZE // 4, SIZE // 4).tolist()
    error = ((model.generate(slots) - inputs[0]) / 2).square().sum()
    assert found["mse"] == pytest.approx(float(error), rel=1e-5)
    assert sum(slot["share"] for slot in found["slots"]) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", PIPELINES)
def test_a_files_name_is_no_formula(name, runs, tmp_path):
    path = save(tmp_path / r"$\nothing$.png")
    assert show(runs, name, path, out=tmp_path)["images"] == 1


def test_words_for_people(runs, tmp_path, capsys):
    """Without --json: how the picture was brought to size, what was found, where its PNG is."""
    path = save(tmp_path / "a.png", shape=(20, 50))
    arguments = ["show", str(path), "--out", str(runs / "object_discovery")]  # a run itself
    assert main(PIPELINES["object_discovery"], arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"model: {runs / 'object_discovery' / 'model.safetensors'}, 4 slots"
    size = f"columns 15 to 34 and rows 0 to 19 of it resized to {SIZE} x {SIZE}"
    assert lines[1] == f"{path}: 50 x 20 pixels, {size}"
    assert [line.split(":")[0].strip() for line in lines[3:7]] == [f"slot {k}" for k in range(1, 5)]
    assert lines[7].startswith("  background: ")
    place = runs / "object_discovery" / "a-shown.png"
    assert lines[8:] == [f"  picture: {place}"] and place.exists()


def test_modes_of_files(tmp_path):
    """What a viewer shows: turned as EXIF says, white where it is transparent."""
    stored = miniature.picture(0, 6, 9)
    exif = Image.Exif()
    exif[0x112] = 6  # to be turned by 90 degrees, clockwise
    save(tmp_path / "turned.png", 0, (6, 9), exif=exif)
    assert np.array_equal(load_as_viewed(tmp_path / "turned.png"), np.rot90(stored, -1))
    alpha = np.dstack([stored, np.full((6, 9), 255, np.uint8)])
    alpha[0, :, 3], alpha[1, :, 3] = 0, 128
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    seen = load_as_viewed(tmp_path / "alpha.png")
    assert (seen[0] == 255).all() and np.array_equal(seen[2:], stored[2:])
    assert np.abs(seen[1] - (stored[1] / 2 + 127.5)).max() <= 1.5
    grey = stored[..., 0]
    Image.fromarray(grey.astype(np.uint16) * 256 + 7).save(tmp_path / "sixteen.png")
    Image.fromarray(grey).save(tmp_path / "grey.png")
    for name in ("sixteen.png", "grey.png"):
        assert np.array_equal(load_as_viewed(tmp_path / name), np.dstack([grey] * 3)), name
    palette = Image.fromarray(grey % 4)
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 1, 2, 3])
    palette.save(tmp_path / "palette.png", transparency=0)
    colours = np.array([[255] * 3, [40, 50, 60], [70, 80, 90], [1, 2, 3]])
    assert np.array_equal(load_as_viewed(tmp_path / "palette.png"), colours[grey % 4])


@pytest.mark.parametrize(
    "layout", ["shapestacks", "clevrtex", "clevr_with_masks", "coco", "folder"]
)
def test_pictures_are_brought_to_size_as_in_training(layout, tmp_path):
    """By a data set's own crop, to the bit; `part` is what it shows."""
    if layout == "coco":
        pytest.importorskip("pycocotools")
    if layout == "folder":
        save(tmp_path / "a.png", 0, (40, 60))
    else:
        getattr(miniature, layout)(tmp_path)
    split = "val" if layout == "coco" else "train"
    stored, sized = (data.open_dataset(tmp_path, None, split, size) for size in (None, SIZE))
    assert reader_of(Discovery(data=str(tmp_path))).name == layout
    for index in range(len(stored)):
        image = stored[index]["image"]
        Image.fromarray(image).save(tmp_path / "one.bmp")
        one = read(tmp_path / "one.bmp", data.READERS[layout], SIZE)
        assert np.array_equal(one.image, sized[index]["image"])
        left, top, width, height = one.part
        assert width == height and width <= min(image.shape[:2])
        assert one.place(0, 0) == [left, top] and one.place(SIZE, SIZE) == [
            left + width,
            top + height,
        ]
        part = image[top : top + height, left : left + width].astype(float)
        assert np.abs(part.mean() - one.image.mean()) < 3


def test_where_the_data_set_is_no_longer_there(capsys):
    assert reader_of(Discovery(data="nowhere")).name == "folder"
    assert "nowhere, which the model has learned from, is not there" in capsys.readouterr().err
    assert reader_of(Discovery(data="nowhere", dataset="clevrtex")).name == "clevrtex"
    assert reader_of(Discovery()).name == "folder" and not capsys.readouterr().err


def test_the_newest_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert newest_run("slate") is None
    for name in ("slate-2", "slate-10", "slate-x", "set_prediction-11"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "model.safetensors").touch()
    (tmp_path / "runs" / "slate-12").mkdir()  # in training
    assert str(newest_run("slate")) == "runs/slate-10"


def test_names_of_the_pngs(tmp_path):
    files = [tmp_path / name for name in ("a.png", "b/a.png", "a-shown.png", "a.jpg")]
    names = [path.name for path in places(files, tmp_path)]
    assert names == ["a-shown.png", "a-shown-2.png", "a-shown-shown.png", "a-shown-3.png"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--dataset", "clevr"), "show needs a PICTURE"),
        (("nowhere.png",), "picture nowhere.png is missing"),
        (("text.png",), "text.png cannot be read: cannot identify image file"),
        (("empty",), "empty has no picture (.png, .jpg"),
        (("a.png", "--image-size", 32), "image_size differs from the run in"),
        (("a.png", "--slots", 0), "slots must be at least 1, got 0"),
        (("a.png", "--seed", -1), "seed must be from 0 to"),
        (("a.png", "--seeds", 2), "seeds must be left out with show"),
    ],
)
def test_errors_are_one_line(arguments, message, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.png"), (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty").mkdir()
    given = ("a.png", *arguments) if message.startswith("picture") else arguments
    check_error(
        "slate", ("show", *given, "--run", runs / "slate", "--out", "x"), message, tmp_path, capsys
    )
    assert not (tmp_path / "x").exists()  # nothing is written


def test_what_belongs_to_show_alone(runs, tmp_path, monkeypatch, capsys):
    for option in (("a.png",), ("--json",), ("--run", runs)):
        message = f"{'PICTURE' if option == ('a.png',) else option[0]} is of show alone, got eval"
        check_error("slate", ("eval", *option), message, tmp_path, capsys)
    picture = save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    assert main(PIPELINES["slate"], ["show", "a.png"]) == 2
    assert "show needs --run or --weights, as there is no" in capsys.readouterr().err
    message = "show needs --weights or a trained run in --run, got --run"
    check_error("slate", ("show", picture, "--run", tmp_path), message, tmp_path, capsys)


@pytest.mark.parametrize("name", PIPELINES)
def test_examples_of_the_pipelines_help(name):
    commands = check_examples(f"examples.{name}", make_parser(PIPELINES[name]).format_help(), None)
    parsed = [make_parser(PIPELINES[name]).parse_intermixed_args(one) for one in commands]
    assert {one.command for one in parsed} == {None, "train", "show", *PIPELINES[name].commands}


def check_examples(module, text, parse):
    """The arguments of the examples at the end of a command line's help, which are understood."""
    lines = text.split("examples, from the repository's root:\n")[1].splitlines()
    commands = [shlex.split(line) for line in lines if not line.startswith("  #")]
    assert commands and all(one[:3] == ["python", "-m", module] for one in commands)
    return [parse(one[3:]) if parse else one[3:] for one in commands]


def test_examples_of_all_other_help(monkeypatch):
    from examples.data.__main__ import parser
    from examples.reproduce import __main__ as reproduce
    from tests.benchmarks import __main__ as benchmarks
    from tests.reliability import __main__ as reliability

    own = reproduce.make_parser()
    for options, rest in check_examples(
        "examples.reproduce", own.format_help(), own.parse_known_args
    ):
        assert set(options.items) <= {*reproduce.ITEMS, "all"}
        make_parser(PIPELINES["slate"]).parse_args(rest)
    check_examples("examples.data", parser().format_help(), parser().parse_args)
    check_examples("tests.benchmarks", benchmarks.EXAMPLES, benchmarks.options)
    own = reliability.make_parser()
    check_examples("tests.reliability", own.format_help(), own.parse_args)


KINDS = {
    "smm": ("SlotMixture", []),
    "sa": ("SlotAttention", ["--start", "gaussian"]),
    "kmeans": ("KMeans", []),
    "gmm": ("GaussianMixture", ["--temperature", "0.3"]),
}


@pytest.mark.parametrize("model", KINDS)
def test_a_runs_slot_module(model, tmp_path):
    """In NumPy and PyTorch, with the options of its training: what the model itself computes."""
    name, options = KINDS[model]
    out = str(tmp_path / "run")
    run(PIPELINES["set_prediction"], ["train", "--model", model, *OPTIONS, *options, "--out", out])
    trained, file = examples.load(out), tmp_path / "run" / "model.safetensors"
    picture = to_input(miniature.picture(0, SIZE, SIZE)[None], "cpu")
    with torch.no_grad():
        features = trained.features(picture).contiguous()
        state = trained.slots.initial_state(features, generator=torch.Generator().manual_seed(1))
        expected = trained.slots(features, state)
        there = getattr(smm_py.torch, name).load(file)(features, state)
    arrays = {key: value.numpy() for key, value in state.items()}
    here = getattr(smm_py, name).load(file)(features.numpy(), arrays)
    assert torch.equal(there, expected) and np.array_equal(here.slots, expected.numpy())
