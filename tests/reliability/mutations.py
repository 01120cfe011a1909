"""Mutated files: weights, and what the examples read of a run (configuration, checkpoint, weights)
and of data (pictures). Documented errors that name the file, or a usable result.
"""

import contextlib
import io
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from .outcome import Outcome, last_line

ALLOWED = (ValueError, TypeError, KeyError, MemoryError)
MEMORY = 8 << 30  # of the process: what a number in a file asks for must not take the machine's


def mutate(content, rng):
    """Other bytes: some changed, cut out, put in twice, or numbers and words of text replaced."""
    data = bytearray(content)
    for _ in range(1 + rng.integers(3)):
        n, kind = len(data), rng.integers(8)
        if n == 0:
            break
        at = int(rng.integers(min(n, 2000) if rng.random() < 0.7 else n))
        length = int(min(n - at, 1 + rng.integers(1 << rng.integers(8))))
        if kind == 0:
            data[at] = int(rng.integers(256))
        elif kind == 1:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length]
        elif kind == 4:
            data[at:at] = rng.bytes(length)
        elif kind == 5:
            del data[at:]
        else:
            words = (b"-1", b"0", b"1e999", b"99999999999", b"null", b"[]", b"{}", b'"a"', b"NaN")
            digits = [i for i in range(min(n, 4000)) if chr(data[i]).isdigit()]
            if digits:
                at = digits[rng.integers(len(digits))]
                data[at : at + 1] = words[rng.integers(len(words))]
    return bytes(data)


def weights(seconds, count, outcome, rng):
    """`load` of the NumPy modules and of the twins."""
    from cases import CASES, build, inputs

    from smm_py import torch as twins

    names = list(CASES)
    modules = {name: build(name, dtype="float32") for name in names}
    calls = {name: inputs(module, 1, 9) for name, module in modules.items()}
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "weights.safetensors")
        for i in range(count):
            if time.monotonic() > end:
                break
            name = names[i % len(names)]
            module, (x, call) = modules[name], calls[name]
            module.save(path)
            content = path.read_bytes()
            changed = mutate(content, rng)
            path.write_bytes(changed)
            kind = type(module)
            twin = getattr(twins, kind.__name__)
            load = twin.load if i % 4 == 3 and hasattr(twin, "load") else kind.load
            outcome.count("files of weights")
            try:
                loaded = load(path)
            except ALLOWED as error:
                outcome.count("of which refused")
                if path.name not in str(error) and not isinstance(error, MemoryError):
                    outcome.defect(f"{name} weights, no name: {last_line(error)}")
                continue
            except BaseException as error:
                outcome.defect(f"{name} weights {changed[:300].hex()}: {last_line(error)}")
                continue
            if load is kind.load:
                try:
                    with np.errstate(all="ignore"):
                        loaded(x, **call)
                except ALLOWED:
                    outcome.count("of which loaded, and a call refused")
                except BaseException as error:
                    outcome.defect(f"{name} weights, call: {last_line(error)}")


class Late(BaseException):
    """A command that takes too long."""


def late(number, frame):
    raise Late


def command(pipeline, arguments, outcome, what, limit=60):
    """A command of the examples: well, or status 2 and one line."""
    from examples.shared.command import main

    out, err = io.StringIO(), io.StringIO()
    signal.signal(signal.SIGALRM, late)
    signal.alarm(limit)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(pipeline, list(map(str, arguments)))
    except SystemExit as error:
        status = error.code
    except Late:
        outcome.count("commands that took too long and were ended")
        return None
    except BaseException as error:
        outcome.defect(f"{what}: {last_line(error)}")
        return None
    finally:
        signal.alarm(0)
    outcome.count("commands that told an error", int(status == 2))
    line = err.getvalue().strip()
    outcome.expect(status in (0, 2), f"{what}: status {status}")
    if status == 2:
        outcome.expect("error: " in line, f"{what}: no error is told: {line[:200]}")
    return status


def runs(seconds, count, outcome, rng):
    """What a run's folder holds."""
    from examples.object_discovery.__main__ import PIPELINE

    sizes = ("--steps", 4, "--image-size", 32, "--pictures", 8, "--batch-size", 4)
    small = ("--log-every", 1, "--checkpoint-every", 2, "--threads", 1, "--dim", 16)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        if command(PIPELINE, ("train", "--out", run, *sizes, *small), outcome, "training"):
            return
        end = time.monotonic() + seconds
        files = {
            path: path.read_bytes()
            for path in (run / n for n in ("config.json", "checkpoint.pt", "model.safetensors"))
        }
        everything = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        for i in range(count):
            if time.monotonic() > end:
                break
            for path, content in everything.items():
                path.write_bytes(content)
            path = list(files)[i % len(files)]
            path.write_bytes(mutate(files[path], rng))
            outcome.count("files of a run")
            resume = path.name == "checkpoint.pt"
            arguments = ("train", "--resume") if resume else ("eval", "--images", 1, "--draws", 1)
            what = f"{path.name}, {arguments[0]}: {path.read_bytes()[:300]!r}"
            command(PIPELINE, (*arguments, "--out", run), outcome, what)


def pictures(seconds, count, outcome, rng):
    from PIL import Image

    from examples import data

    end = time.monotonic() + seconds
    image = Image.fromarray(rng.integers(0, 256, (24, 20, 3)).astype("uint8"))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "train").mkdir()
        for i in range(count):
            if time.monotonic() > end:
                break
            suffix = ("png", "jpg", "bmp", "tif", "ppm")[i % 5]
            path = Path(folder, "train", f"picture.{suffix}")
            image.save(path)
            path.write_bytes(mutate(path.read_bytes(), rng))
            outcome.count("pictures")
            try:
                item = data.open_dataset(folder, size=16)[0]["image"]
                outcome.expect(item.shape == (16, 16, 3), f"picture of shape {item.shape}")
            except (ValueError, OSError, MemoryError) as error:
                outcome.count("pictures refused")
                if "picture" not in str(error) and not isinstance(error, MemoryError):
                    outcome.defect(f"{suffix} picture, no name: {last_line(error)}")
            except BaseException as error:
                outcome.defect(f"{suffix} picture: {last_line(error)}")
            path.unlink()


def check(seconds, count):
    """count: of weights; of runs and pictures fewer."""
    outcome, rng = Outcome(), np.random.default_rng(0)
    if sys.platform.startswith("linux"):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    weights(seconds / 4, count, outcome, rng)
    pictures(seconds / 4, count // 2, outcome, rng)
    runs(seconds / 2, count // 10, outcome, rng)
    return outcome
