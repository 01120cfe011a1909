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
