"""The same bits on any number of threads, from several Python threads, and in forked children."""

import multiprocessing
import threading

import numpy as np
import pytest
from cases import CASES, build, everything, inputs
from processes import HANG

import smm_py


@pytest.fixture(autouse=True)
def restore_threads():
    before = smm_py.get_num_threads()
    yield
    smm_py.set_num_threads(before)


def check_same_bits(module, x, call):
    """Outputs and gradients, on 2, 3 and 5 threads as on one."""
    smm_py.set_num_threads(1)
    one = everything(module, x, call)
    for threads in (2, 3, 5):
        smm_py.set_num_threads(threads)
        more = everything(module, x, call)
        for key, value in one.items():
            assert value.tobytes() == more[key].tobytes(), f"{key} differs with {threads} threads"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 1500), (3, 700), (9, 130)], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_same_bits(name, shape, dtype):
    module = build(name, dtype=dtype)
    x, call = inputs(module, *shape, slots=5, masks=shape[0] == 3)
    check_same_bits(module, x, call)


@pytest.mark.parametrize("masks", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize(
    "name",
    [
        name
        for name, (kind, _) in CASES.items()
        if kind in (smm_py.SlotAttention, smm_py.SlotMixture)
    ],
)
def test_same_bits_where_slots_are_shared_out(name, masks):
    """So wide that threads share an image's slots too, and mixtures recompute their first step."""
    wide = {"input_dim": 90} if name == "sa-wide" else {}
    module = build(name, dim=48, hidden_dim=70, dtype="float32", num_iters=3, **wide)
    x, call = inputs(module, 1, 700, slots=14, masks=masks)
    check_same_bits(module, x, call)


@pytest.mark.parametrize("gradient", ["full", "implicit"])
def test_same_bits_of_large_images(gradient):
    """Images so large that all threads share one, though there is one for each."""
    module = build("smm", dim=256, hidden_dim=16, dtype="float32", gradient=gradient)
    check_same_bits(module, *inputs(module, 2, 4200))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_first_nonfinite_in_shares(dtype):
    """Arrays so large that threads share them: the first of several, wherever it lies."""
    x = np.zeros(300_001, dtype)
    for threads in (1, 2, 3, 40):
        smm_py.set_num_threads(threads)
        assert smm_py._core.first_nonfinite(x) == -1
    for first in (0, 18_749, 150_000, 299_999, 300_000):
        broken = x.copy()
        broken[[first, 300_000]] = np.nan, -np.inf
        for threads in (1, 2, 3, 40):
            smm_py.set_num_threads(threads)
            assert smm_py._core.first_nonfinite(broken) == first


def test_number_of_threads():
    smm_py.set_num_threads(np.int64(3))
    assert smm_py.get_num_threads() == 3
    for bad, error in (
        (0, ValueError),
        (-1, ValueError),
        (2**70, ValueError),
        (1.0, TypeError),
        (True, TypeError),
    ):
        with pytest.raises(error, match="n must be"):
            smm_py.set_num_threads(bad)
    assert smm_py.get_num_threads() == 3


def test_several_python_threads():
    smm_py.set_num_threads(2)
    module = build("smm", dtype="float32")
    work = [inputs(module, 2, 300, seed=seed) for seed in range(8)]
    expected = [everything(module, *w) for w in work]
    got = [None] * len(work)

    def run(i):
        for _ in range(5):
            got[i] = everything(module, *work[i])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(expected, got):
        assert all(a[key].tobytes() == b[key].tobytes() for key in a)


def _child(connection):
    module = build("smm", dtype="float32")
    x, call = inputs(module, 2, 300)
    connection.send((module(x, **call).slots, smm_py.get_num_threads()))


@pytest.mark.filterwarnings(
    "ignore:.*fork.*:DeprecationWarning"
)  # this process has threads on purpose
def test_forked_child():
    """A child forked after the parent has used its threads computes with one, and does not hang."""
    smm_py.set_num_threads(2)
    module = build("smm", dtype="float32")
    x, call = inputs(module, 2, 300)
    expected = module(x, **call).slots
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=_child, args=(there,))
    child.start()
    try:
        assert here.poll(HANG), "the child hangs"
        slots, threads = here.recv()
    finally:
        child.kill()
        child.join()
    assert threads == 1 and np.array_equal(slots, expected)
