"""C programs: the tests without Python, here and on arm64, instruction counts, the example of the README; builds without a warning."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CC = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
pytestmark = pytest.mark.skipif(CC is None, reason="needs a C compiler")
SOURCES = [str(p) for folder in ("core", "kernels") for p in sorted((ROOT / "csrc" / folder).glob("*.c"))]
INCLUDES = [f"-I{ROOT / 'csrc' / folder}" for folder in ("include", "kernels", "core")]
STRICT = "-std=c99 -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror".split()


def build(program, output, *flags):
    done = subprocess.run([CC, *STRICT, *flags, *INCLUDES, str(program), *SOURCES, "-lm", "-o", str(output)],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


PROGRAMS = ("test_kernels", "test_core")


def link_programs(compiler, folder, *flags):
    """Both test programs in a folder, from one compilation of the core."""
    mains = [str(ROOT / "tests" / "c" / f"{name}.c") for name in PROGRAMS]
    done = subprocess.run([compiler, *STRICT, "-O2", "-fno-math-errno", *INCLUDES, "-c", *SOURCES, *mains],
                          capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    objects = {path.stem: str(path) for path in folder.glob("*.o")}
    own = [objects.pop(name) for name in PROGRAMS]
    for name, main in zip(PROGRAMS, own):
        run(compiler, *flags, main, *objects.values(), "-lm", "-o", str(folder / name))


def test_c_programs(tmp_path):
    link_programs(CC, tmp_path)
    for name, last in zip(PROGRAMS, ("all kernels ok", "core ok")):
        assert run(tmp_path / name).splitlines()[-1] == last


def test_example(tmp_path):
    """The example finds its clusters, in C++'s reading of the header too."""
    build(ROOT / "examples" / "c" / "cluster.c", tmp_path / "cluster", "-O1", "-fopenmp")
    lines = run(tmp_path / "cluster").splitlines()
    assert [round(float(line[12:17])) for line in lines[:3]] == [-3, 0, 3]
    assert all("share 0.33" in line for line in lines[:3]) and "slot mixture: ok" in lines[4]
    if shutil.which("g++"):
        unit = tmp_path / "header.cpp"
        unit.write_text('#include "smm.h"\nint main() { return smm_status_str(SMM_OK) == nullptr; }\n')
        run("g++", "-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", INCLUDES[0], str(unit))


ARM = ("aarch64-linux-gnu-gcc", "qemu-aarch64")


@pytest.mark.skipif(not all(map(shutil.which, ARM)), reason=f"needs {' and '.join(ARM)} (Debian: gcc-aarch64-linux-gnu, qemu-user)")
def test_arm64(tmp_path):
    """The NEON kernels and the core, built by a cross compiler, run by an emulator."""
    compiler, emulator = ARM
    link_programs(compiler, tmp_path, "-static")
    kernels = run(emulator, str(tmp_path / "test_kernels")).splitlines()
    assert "neon     ok" in kernels and kernels[-1] == "all kernels ok"
    assert run(emulator, str(tmp_path / "test_core"), "quick").splitlines()[-1] == "core ok"


def test_instruction_counts():
    """No kernel costs more instructions than recorded (tests/c/cost.py says how they are counted)."""
    done = subprocess.run(["make", "-s", "check-cost", f"PYTHON={sys.executable}"], capture_output=True, text=True, cwd=ROOT / "tests" / "c")
    if done.stdout.startswith("skipped: "):
        pytest.skip(done.stdout.strip().removeprefix("skipped: "))
    assert done.returncode == 0, done.stdout + done.stderr
