"""The pictures that docs/pictures.py draws are those that its page shows.

Code blocks of pages, links and the reference are checked where the site is built (.ci/docs).
"""

import importlib.util
import re
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
DOCS = Path(__file__).resolve().parents[1] / "docs"


def test_pictures(tmp_path):
    spec = importlib.util.spec_from_file_location("pictures", DOCS / "pictures.py")
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    pictures.main(tmp_path)
    drawn = sorted(path.name for path in tmp_path.iterdir())
    shown = re.findall(r"\(images/(mixture-.*?)\)", (DOCS / "slot-mixture.md").read_text())
    assert drawn == sorted(shown)
    assert all((DOCS / "images" / name).stat().st_size < 200_000 for name in shown)


def test_three_lines_of_the_readme_learn():
    """After the step, the features of the step are likelier than before."""
    torch = pytest.importorskip("torch")
    text = (DOCS.parent / "README.md").read_text().split("## Three lines that learn")[1]
    load, *lines = re.search(r"```python\n(.*?)```", text, re.S)[1].split("\n\n")
    create, learn, step = lines[0].splitlines()
    names = {}
    exec(f"{load}\n{create}", names)
    features = torch.randn(8, 256, 64, generator=torch.Generator().manual_seed(0))
    start = names["slots"].initial_state(features, generator=torch.Generator().manual_seed(1))

    def likelihood():
        with torch.no_grad():
            return float(names["slots"].run(features, start).log_likelihood.mean())

    torch.manual_seed(2)
    before = likelihood()
    exec(f"{learn}\n{step}", names)
    assert likelihood() > before
