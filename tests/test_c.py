"""C: the tests without Python, here and on arm64, instruction counts; no warning."""

import os
import shutil
import sys
from pathlib import Path

import processes
import pytest

ROOT = Path(__file__).resolve().parents[1]
CC = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
pytestmark = pytest.mark.skipif(CC is None, reason="needs a C compiler")
SOURCES = [
    str(p) for folder in ("core", "kernels") for p in sorted((ROOT / "csrc" / folder).glob("*.c"))
]
INCLUDES = [f"-I{ROOT / 'csrc' / folder}" for folder in ("include", "kernels", "core")]
STRICT = "-std=c99 -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror".split()


def run(*command, cwd=None):
    done = processes.run(*command, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


TESTS = [ROOT / "tests" / "c" / "test_kernels.c", ROOT / "tests" / "c" / "test_core.c"]


def link_programs(compiler, folder, mains, *flags):
    """Programs in a folder, from one compilation of the core."""
    flags = ["-O2", "-fno-math-errno", *flags]
    run(compiler, *STRICT, *flags, *INCLUDES, "-c", *SOURCES, *mains, cwd=folder)
    objects = {path.stem: path for path in folder.glob("*.o")}
    own = [objects.pop(main.stem) for main in mains]
    for main, object in zip(mains, own):
        run(compiler, *flags, object, *objects.values(), "-lm", "-o", folder / main.stem)


def test_c_programs(tmp_path):
    link_programs(CC, tmp_path, TESTS, "-fopenmp")
    for main, last in zip(TESTS, ("all kernels ok", "core ok")):
        assert run(tmp_path / main.stem).splitlines()[-1] == last


ARM = ("aarch64-linux-gnu-gcc", "qemu-aarch64")


@pytest.mark.skipif(
    not all(map(shutil.which, ARM)),
    reason=f"needs {' and '.join(ARM)} (Debian: gcc-aarch64-linux-gnu, qemu-user)",
)
def test_arm64(tmp_path):
    """The NEON kernels and the core, cross-compiled without OpenMP, in an emulator."""
    compiler, emulator = ARM
    link_programs(compiler, tmp_path, TESTS, "-static")
    kernels = run(emulator, tmp_path / "test_kernels").splitlines()
    assert "neon     ok" in kernels and kernels[-1] == "all kernels ok"
    assert run(emulator, tmp_path / "test_core", "quick").splitlines()[-1] == "core ok"


def test_instruction_counts():
    """No kernel takes more instructions than recorded; tests/c/cost.py says how it counts."""
    folder = ROOT / "tests" / "c"
    done = processes.run("make", "-s", "check-cost", f"PYTHON={sys.executable}", cwd=folder)
    if done.stdout.startswith("skipped: "):
        pytest.skip(done.stdout.strip().removeprefix("skipped: "))
    assert done.returncode == 0, done.stdout + done.stderr
