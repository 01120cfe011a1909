"""The command for each table and figure of the paper."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")

from examples.reproduce.__main__ import heading, work  # noqa: E402
from examples.reproduce.items import ITEMS, layers  # noqa: E402
from examples.reproduce.trainings import TRAININGS, Result, load, obtain  # noqa: E402
from examples.set_prediction.config import Config  # noqa: E402
from examples.shared.command import tell  # noqa: E402

SHORT = (
    "--steps",
    "2",
    "--pictures",
    "12",
    "--batch-size",
    "4",
    "--image-size",
    "16",
    "--images",
    "4",
    "--draws",
    "1",
    "--log-every",
    "1",
    "--evaluate-every",
    "1",
    "--slots",
    "6",
)


def test_every_table_and_figure_is_there():
    assert list(ITEMS) == [
        *(f"table{i}" for i in range(1, 8)),
        *(f"figure{i}" for i in range(1, 7)),
        "ablations",
    ]
    assert {name for item in ITEMS.values() for name in item.trainings} == set(TRAININGS)


def test_trainings_are_made_once_and_shown(tmp_path, capsys, monkeypatch):
    """The clustering table over two seeds; a second call reads what is there, and the page shows
    it."""
    work(["table4", "--seeds", "2", "--out", str(tmp_path), *SHORT])
    shown = capsys.readouterr().out
    results = [load(tmp_path / "tiny" / "scenes" / name) for name in ITEMS["table4"].trainings]
    for result in results:
        assert len(result.seconds) == 2 and min(result.seconds) > 0
        values = [run["ap"]["inf"] for run in result.figures["seeds"].values()]
        assert (
            f"| {result.label}, `tiny`, scenes | {np.mean(values):.1f} ± {np.std(values):.1f} |"
            in shown
        )
        row = next(
            line for line in shown.splitlines() if line.startswith(f"| {result.label}, `tiny`")
        )
        assert "| - |" not in row and row.count("±") == 6  # at every threshold
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(written) == 4
    work(
        [
            "table4",
            "--seeds",
            "2",
            "--out",
            str(tmp_path),
            *SHORT,
            "--page",
            str(tmp_path / "page.md"),
        ]
    )
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    page = (tmp_path / "page.md").read_text()
    assert (
        all(f"`{result.command}`" in page for result in results)
        and page.count("Not run yet.") == 10
    )
    with pytest.raises(ValueError, match="result of another command"):
        work(["table4", "--seeds", "1", "--out", str(tmp_path), *SHORT])
    monkeypatch.setitem(
        Config.PRESETS, "tiny", {"lr": 0.5}
    )  # of the preset, which the command does not tell
    with pytest.raises(
        ValueError, match=f"result of other settings: lr {results[0].settings['lr']} instead of 0.5"
    ):
        work(["table4", "--seeds", "2", "--out", str(tmp_path), *SHORT])


def test_figures_link_to_pictures_that_are_there(tmp_path):
    """SLATE's and object discovery's, from runs of two steps."""
    names = ["table2", "table3", "figure2", "figure3", "figure4", "figure5", "figure6"]
    work(
        [
            *names,
            "--seeds",
            "1",
            "--out",
            str(tmp_path),
            *SHORT,
            "--page",
            str(tmp_path / "page.md"),
        ]
    )
    page = (tmp_path / "page.md").read_text()
    links = re.findall(r"\]\((.*?)\)", page)
    assert len(links) == 5 and all((tmp_path / link).stat().st_size > 1000 for link in links)
    result = load(tmp_path / "tiny" / "scenes" / "discovery-smm")
    assert [steps for steps, _ in result.curves("mse")] == [[1, 2]]
    assert f"{100 * result.figures['fg_ari']:.1f} ± 0.0" in page
    # what was trained elsewhere stays on the page, with the pictures that only its weights could
    # draw
    (tmp_path / "tiny").rename(tmp_path / "gone")
    work(["--out", str(tmp_path), "--page", str(tmp_path / "page.md")])
    assert (tmp_path / "page.md").read_text() == page
    assert load(tmp_path / "page" / "tiny" / "scenes" / "discovery-smm").settings["steps"] == 2


def test_ablations(tmp_path, monkeypatch):
    """From runs of two steps, one of each kind: rows, the probes' figures, two pictures."""
    monkeypatch.setattr("examples.reproduce.probes.PICTURES", 4)
    kinds = "ablation-sa-wide", "trained-sa", "trained-discovery"
    monkeypatch.setitem(ITEMS, "ablations", replace(ITEMS["ablations"], trainings=kinds))
    work(["ablations", "--seeds", "1", "--out", str(tmp_path), *SHORT])
    text = (tmp_path / "tiny" / "ablations.md").read_text()
    for name in ITEMS["ablations"].trainings:
        assert f"| {TRAININGS[name].label} (1)" in text
    assert text.count("\n### ") == 6 and " nan " not in text and "±" not in text
    links = re.findall(r"\]\((.*?)\)", text)
    assert len(links) == 2
    assert all((tmp_path / "tiny" / link).stat().st_size > 1000 for link in links)
    figures = load(tmp_path / "tiny" / "scenes" / "trained-sa").figures
    assert (
        figures["far_dropped"]["0"] == figures["far_random"]["0"] == figures["far_iterations"]["7"]
    )
    assert len(figures["far_dropped"]) == 6 and len(figures["far_iterations"]) == 10


def test_the_page_keeps_the_ablations(tmp_path):
    """Of one training alone: what is missing leaves its rows out."""
    name = "ablation-smm"
    figures = {"ap": dict.fromkeys(("inf", "1", "0.5", "0.25", "0.125", "0.0625"), 50.0)}
    steps = {"steps": 1500}
    result = Result(
        name, "tiny", "scenes", "", {**figures, "std": figures}, "", [1.0], steps, [], tmp_path
    )
    text = ITEMS["ablations"].make([result], tmp_path)
    assert "| SMM (1) | 1,500 | 50.0 | 50.0 |" in text


def test_a_slot_that_is_left_out_draws_nothing():
    import torch

    from examples.object_discovery.model import Scene
    from examples.reproduce.probes import orders, without

    torch.manual_seed(0)
    pictures, masks = torch.randn(2, 3, 3, 4, 4), torch.randn(2, 3, 1, 4, 4).softmax(1)
    scene = Scene((pictures * masks).sum(1), pictures, masks, None, None)
    assert torch.allclose(without(scene, torch.zeros(2, 0, dtype=torch.long)), scene.reconstruction)
    left = torch.tensor([[0, 2], [1, 0]])
    assert torch.allclose(without(scene, left), torch.stack([pictures[0, 1], pictures[1, 2]]))
    attention = torch.tensor([[[0.5, 0.2, 0.3], [0.1, 0.4, 0.5]]])
    assert orders(attention)["dropped"].tolist() == [[0, 1, 2]]  # masses 0.6, 0.6 and 0.8
    assert sorted(orders(attention)["random"][0].tolist()) == [0, 1, 2]


def test_a_model_that_is_not_trained_yet_leaves_its_cells_empty(tmp_path):
    figures = {"mse": 178.9, "cross_entropy": 98.4, "frechet_dvae": 5.5}
    result = Result(
        "slate-smm", "tiny", "scenes", "", {**figures, "std": figures}, "", [], {}, [], tmp_path
    )
    row = next(
        line
        for line in ITEMS["table2"].make([result], tmp_path).splitlines()
        if line.startswith("| `tiny`")
    )
    assert [cell.strip().split(" ")[0] for cell in row.split("|")[2:-1]] == [
        "-",
        "-",
        "-",
        "178.90",
        "-",
        "98.40",
        "-",
        "5.50",
    ]


def test_layers_are_told_as_they_are():
    import torch

    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 5, 3, 2), torch.nn.ReLU(), torch.nn.Conv2d(5, 2, 1)
    )
    assert layers(net, lambda: net(torch.zeros(1, 3, 9, 9))) == [
        ["`0`", "Conv2d 3x3, 5, stride 2", "5x4x4", "140"],
        ["`2`", "Conv2d 1x1, 2, stride 1", "2x4x4", "12"],
    ]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["table8"], "ITEM must be one of table1, "),
        ([], "name a table or figure"),
        (["table5", "--bogus", "1"], "--bogus 1"),
        (["ablations", "--preset", "paper"], "ablations is of the preset tiny"),
        (["table4", "--seeds", "0"], "seeds must be from 1 to 2147483647, got 0"),
        (["table1", "--preset", "paper"], "table1 needs --data with the folder of clevr, got none"),
        (["figure2", "--preset", "paper", "--data", "nowhere"], "folder nowhere is missing"),
    ],
)
def test_errors_are_one_line(arguments, message, tmp_path, capsys):
    assert tell(lambda: work([*arguments, "--out", str(tmp_path)])) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and message in line and line.count("\n") == 1


def test_a_damaged_result_is_named(tmp_path):
    folder = tmp_path / "tiny" / "scenes" / "sets-smm"
    folder.mkdir(parents=True)
    whole = json.loads(
        (Path(__file__).parents[1] / "docs/results/tiny/scenes/sets-smm/result.json").read_text()
    )
    for damage in ({"training": "sets-smm"}, {**whole, "settings": 5}, {**whole, "figures": {}}):
        (folder / "result.json").write_text(json.dumps(damage))
        with pytest.raises(
            ValueError, match=f"{re.escape(str(folder / 'result.json'))} is not a training's result"
        ):
            obtain("sets-smm", tmp_path, "tiny", None, 1)


def test_the_page_in_docs_is_of_these_items():
    page = (Path(__file__).resolve().parents[1] / "docs" / "results.md").read_text()
    assert [line for line in page.splitlines() if line.startswith("## ")][: len(ITEMS)] == [
        f"## {heading(name)}" for name in ITEMS
    ]
