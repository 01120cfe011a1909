"""The notebooks run from their folder as a reader would run them, and hold what they show."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from processes import HANG

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "notebooks"
NEEDS = {
    "em_in_two_dimensions": ["sklearn"],
    "slots_of_a_photograph": ["sklearn"],
    "your_own_model": ["torch"],
}


@pytest.mark.filterwarnings("ignore")  # of the notebook's own machinery
@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.ipynb")))
def test_notebook(name):
    for module in NEEDS.get(name, []):
        pytest.importorskip(module)
    path = FOLDER / f"{name}.ipynb"
    assert path.stat().st_size < 400_000
    notebook = nbformat.read(path, as_version=4)
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    assert (
        all(c.execution_count for c in cells)
        and sum(bool(c.outputs) for c in cells) >= len(cells) / 2
    )
    NotebookClient(
        notebook, timeout=int(HANG), resources={"metadata": {"path": str(FOLDER)}}
    ).execute()
    assert not [
        o for c in cells for o in c.outputs if o.output_type == "error" or o.get("name") == "stderr"
    ]
