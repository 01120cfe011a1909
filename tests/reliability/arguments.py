"""Any object in place of any argument: documented errors that name it, and no crash."""

import contextlib
import re
import tempfile
from pathlib import Path

import numpy as np

from .outcome import Outcome, last_line

DOCUMENTED = (TypeError, ValueError, KeyError, MemoryError)


class Index:
    """Looks like an integer."""

    def __index__(self):
        return 3

    def __float__(self):
        return 3.0


class Subclass(np.ndarray):
    pass


def hostile(rng):
    """An object that hardly any argument takes."""
    numbers = rng.standard_normal((2, 9, 7))
    loop = []
    loop.append(loop)
    odd = [
        None, True, False, 0, 1, -1, 3, 2**31, 2**63, 2**70, -(2**70), 0.0, -0.0, 1.5, 1e-320,
        1e300, float("nan"), float("inf"), -float("inf"), 1j, "", "abc", "float32", "full", "dim",
        "\0", "\ud800", "x" * 10_000, b"", b"abc", bytearray(8), (), (1, 2), [], [1], [[1], [2, 3]],
        {}, {"slots": None}, {1: 2}, {"mean": numbers, "log_std": 3}, set(), range(3), object(),
        object, len, lambda: 0, Index(), loop, Ellipsis, NotImplemented, slice(3), iter([1]),
        memoryview(b"abcd"), np.float32(2), np.int64(-5), np.bool_(True), np.datetime64("2020"),
        np.dtype("f4"), np.float32, np.nan, np.ma.masked,
    ]  # fmt: skip
    arrays = [
        numbers, numbers.astype("f4"), numbers.astype(">f4"), numbers.astype("f2"),
        numbers.astype("f4")[:, ::-1], numbers.astype("f4")[:, :, :5], numbers.astype("f4")[:0],
        numbers.astype("f4")[:, :0], numbers.astype("f4").T, numbers.astype("c8"),
        numbers.astype("i8"), numbers.astype("u2"), numbers > 0, (numbers > 0)[:, :, 0],
        (numbers > 9)[:, :, 0], numbers.astype(object), numbers.astype("U8"),
        np.zeros((2, 9), "i8"), np.full((2, 3), -1), np.full((2, 3), 2**62), np.zeros((2, 3), "f4"),
        np.full((2, 9, 7), np.nan, "f4"), np.full((2, 9, 7), 3e38, "f4"), np.zeros((), "f4"),
        np.zeros((2, 9, 7), [("a", "f4")]), np.ma.masked_array(numbers.astype("f4"), numbers > 0),
        numbers.astype("f4").view(Subclass), np.broadcast_to(np.float32(0), (10**6, 10**6, 7)),
        np.broadcast_to(np.float32(0), (2, 9, 7)), np.frombuffer(bytes(505), "u1")[1:].view("f4"),
        np.zeros((2, 3, 7), "f4"), np.ones((2, 3), "f4"), np.zeros((1,) * 30, "f4"),
        np.array(["a"]), np.array("2020", "M8[D]"), np.zeros((2, 0, 3), "f4"),
        np.array([1, None], object),
    ]  # fmt: skip
    pool = odd if rng.random() < 0.5 else arrays
    return pool[rng.integers(len(pool))]


def shown(value):
    with contextlib.suppress(Exception):
        if isinstance(value, np.ndarray):
            return f"array of {value.dtype}{list(value.shape)}"
    return f"{type(value).__name__} {repr(value)[:40]}"


def attempt(outcome, what, work, names):
    """Call; whatever it raises must be documented and name one of the arguments."""
    outcome.count("calls")
    try:
        work()
    except DOCUMENTED as error:
        outcome.count("of which refused")
        text = str(error)
        named = any(re.search(rf"\b{re.escape(name)}\b", text) for name in names)
        if not named and not isinstance(error, MemoryError):
            outcome.defect(f"{what} is not named: {last_line(error)}")
    except BaseException as error:
        outcome.defect(f"{what}: {last_line(error)}")


def check(calls):
    from cases import CASES, build, inputs

    import smm_py

    outcome, rng = Outcome(), np.random.default_rng(0)
    modules = {name: build(name, dtype="float32") for name in CASES}
    given = {name: inputs(module, 2, 9) for name, module in modules.items()}
    outs = {name: modules[name](x, **call) for name, (x, call) in given.items()}
    names = list(CASES)
    of_call = ("x", "init", "mask", "slot_mask", "num_iters", "num_slots", "seed", "attention",
               "history", "grad")  # fmt: skip
    of_backward = ("out", "d_slots", "d_mean", "d_variance", "d_prior", "d_log_likelihood",
                   "d_attention")  # fmt: skip
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name, "m.safetensors")

    def call(name):
        module, (x, call) = modules[name], given[name]
        chosen = rng.choice(of_call, 1 + (rng.random() < 0.2), replace=False)
        values = {"x": x, **call, **{c: hostile(rng) for c in chosen}}
        what = f"{name}: call with {', '.join(f'{c} = {shown(values[c])}' for c in chosen)}"
        # where x is another, so are the shapes that others must have
        others = ("init", "num_slots") if "init" in chosen or "x" in chosen else ()
        extra = ("mask", "slot_mask") if "x" in chosen else ()
        attempt(outcome, what, lambda: module(**values), (*chosen, *others, *extra))

    def init(name):
        module, (x, call) = modules[name], given[name]
        entry = rng.choice(("slots", "mean", "log_std", "prior", "indices", "other"))
        values = {**call["init"], entry: hostile(rng)}
        what = f"{name}: init[{entry!r}] = {shown(values[entry])}"
        attempt(outcome, what, lambda: module(x, init=values), ("init", "num_slots"))

    def backward(name):
        module = modules[name]
        chosen = rng.choice(of_backward)
        values = {"out": outs[name], "d_slots": outs[name].slots, chosen: hostile(rng)}
        what = f"{name}: backward with {chosen} = {shown(values[chosen])}"
        names = (chosen, "d_slots") if values[chosen] is None else (chosen,)
        attempt(outcome, what, lambda: module.backward(**values), names)

    def constructor(name):
        module = modules[name]
        option = rng.choice([*module.options, "seed", "colour"])
        values = {**module.options, option: hostile(rng)}
        what = f"{name}: {type(module).__name__}({option} = {shown(values[option])})"
        related = {"dim": ("input_dim", "heads"), "variant": ("eps",), "dtype": tuple(values)}
        names = (option, *related.get(option, ()))
        attempt(outcome, what, lambda: type(module)(**values), names)

    def load(name):
        module = modules[name]
        module.save(path)
        option = rng.choice([*module.options, "seed", "colour"])
        value = hostile(rng)
        what = f"{name}: load({option} = {shown(value)})"
        attempt(
            outcome, what, lambda: type(module).load(path, **{option: value}), (option, path.name)
        )

    def parameter(name):
        module = modules[name]
        if not len(module.parameters):
            return
        key, value = rng.choice(list(module.parameters)), hostile(rng)
        what = f"{name}: parameters[{key!r}] = {shown(value)}"
        before = module.parameters[key]

        def assign():
            module.parameters[key] = value
            module.parameters[key] = before

        attempt(outcome, what, assign, (key,))
        if not isinstance(value, dict):
            attempt(outcome, what, lambda: setattr(module, "parameters", value), ("parameters",))

    def threads(name):
        value, before = hostile(rng), smm_py.get_num_threads()
        if isinstance(value, int) and 1 <= value <= 4096:
            return
        what = f"set_num_threads({shown(value)})"
        attempt(outcome, what, lambda: smm_py.set_num_threads(value), ("n",))
        smm_py.set_num_threads(before)

    def extension(name):
        module, out = modules[name], outs[name]
        values = {**out._call["arguments"], "config": module._spec.config}
        chosen = rng.choice([*values, "attention", "save", "saved", "d_slots"])
        if rng.random() < 0.5 or chosen in ("saved", "d_slots"):
            function, more = smm_py._core.backward, {"saved": out._call["saved"],
                                                     "d_slots": out.slots}  # fmt: skip
        else:
            function, more = smm_py._core.forward, {}
        value = hostile(rng)
        if isinstance(value, tuple) or (
            # the contents of arrays are the caller's word
            isinstance(value, int) and value > 10_000
        ):
            return
        values = {**values, **more, chosen: value}
        what = f"{name}: _core.{function.__name__} with {chosen} = {shown(value)}"
        outcome.count("calls")
        try:
            function(**values)
        except (*DOCUMENTED, OverflowError):
            outcome.count("of which refused")
        except BaseException as error:
            outcome.defect(f"{what}: {last_line(error)}")

    kinds = (
        call,
        call,
        call,
        init,
        init,
        backward,
        constructor,
        load,
        parameter,
        threads,
        extension,
    )
    with folder, np.errstate(all="ignore"):
        while outcome.counts.get("calls", 0) < calls:
            kinds[rng.integers(len(kinds))](names[rng.integers(len(names))])
        for name, (x, call) in given.items():
            same = modules[name](x, **call).slots.tobytes() == outs[name].slots.tobytes()
            outcome.expect(same, f"{name}: another result afterwards")
    return outcome
