"""The notebook runs from its folder as a reader would run it, and what it shows is in the file."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from processes import HANG

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "notebooks"


@pytest.mark.filterwarnings("ignore")  # of the notebook's own machinery
def test_first_slots():
    notebook = nbformat.read(FOLDER / "first_slots.ipynb", as_version=4)
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    assert (
        all(c.execution_count for c in cells)
        and sum(bool(c.outputs) for c in cells) > len(cells) / 2
    )
    NotebookClient(
        notebook, timeout=int(HANG), resources={"metadata": {"path": str(FOLDER)}}
    ).execute()
    assert not [
        o for c in cells for o in c.outputs if o.output_type == "error" or o.get("name") == "stderr"
    ]
