"""The benchmarks run, on shapes of no use: agreement, and the tables that follow."""

import pytest

torch = pytest.importorskip("torch")
from benchmarks import autocast, contenders, measure, report  # noqa: E402
from benchmarks.problem import KINDS, Problem, Shape  # noqa: E402

SMALL = Shape(2, 70, 3, 16, 24, 2)


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads(), measure.smm_py.get_num_threads()
    yield
    torch.set_num_threads(before[0])
    measure.smm_py.set_num_threads(before[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gradient", ["full", "implicit"])
def test_contenders_agree(kind, gradient):
    problem = Problem(kind, SMALL, gradient)
    ours = ("smm_py", "PyTorch")  # others need not be there
    wanted = [n for n in contenders.names(kind, compiled=False) if n.startswith(ours)]
    found, errors, absent = contenders.checked(problem, wanted, True)
    assert list(found) == wanted and not absent
    assert max(errors.values()) < contenders.TOLERANCE


def test_autocast_has_its_table(monkeypatch):
    monkeypatch.setattr(autocast, "SHAPES", {"small": SMALL})
    rows = list(autocast.beside_peers(1, 0.0, compiled=False))
    assert [(r["kind"], r["mode"]) for r in rows] == [
        (kind, mode) for kind in KINDS for mode in ("forward", "step")
    ]
    text = report.autocast({"autocast": rows})
    assert "small, SMM, step" in text and "eager" in text
