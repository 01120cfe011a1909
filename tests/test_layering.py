"""Dependencies: examples -> smm_py.torch -> smm_py -> _core -> smm.h <- core -> kernels."""

import ast
import re
from pathlib import Path

import pytest
from processes import run_python

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"


def includes(path):
    return re.findall(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', path.read_text(), re.M)


@pytest.mark.parametrize(
    "folder, others",
    [
        ("include", "float.h"),
        ("kernels", "stdlib.h string.h math.h immintrin.h arm_neon.h"),
        ("core", "smm.h kernels.h stdlib.h string.h math.h omp.h sys/mman.h"),
        (
            "python",
            "smm.h Python.h numpy/arrayobject.h stdarg.h stdlib.h string.h pthread.h sched.h "
            "time.h unistd.h",
        ),
    ],
)
def test_c_includes(folder, others):
    """A folder includes its own headers and those named here."""
    own = {path.name for path in (CSRC / folder).glob("*.h")}
    allowed = own | {"stddef.h", "stdint.h", *others.split()}
    files = list((CSRC / folder).glob("*.[ch]"))
    assert files
    for path in files:
        assert set(includes(path)) <= allowed, path.name


def test_openmp_is_in_one_file_and_intrinsics_in_the_vector_headers():
    for path in CSRC.rglob("*.[ch]"):
        text = path.read_text()
        if path.name != "parallel.h":
            assert "#pragma omp" not in text and "omp_" not in text, path
        if not path.name.startswith("vec_"):
            assert "_mm512_" not in text and "_mm256_" not in text and "q_f32(" not in text, path


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


@pytest.mark.parametrize(
    "pattern, forbidden",
    [
        ("smm_py/*.py", ("torch", "examples", "scipy", ".torch")),
        ("smm_py/torch/*.py", ("examples", "scipy")),
        ("examples/data/*.py", ("torch", "smm_py")),
        ("examples/metrics/__init__.py", ("torch", "smm_py", ".inception")),
        ("examples/metrics/frechet.py", ("torch", "smm_py")),
    ],
)
def test_python_imports(pattern, forbidden):
    files = list(ROOT.glob(pattern))
    assert files
    for path in files:
        for name in imported(path):
            assert not any(name == f or name.startswith(f + ".") for f in forbidden), (
                f"{path.name} imports {name}"
            )


def test_mypy():
    pytest.importorskip("mypy")
    pytest.importorskip("torch")
    done = run_python("-m", "mypy", cwd=ROOT)
    assert done.returncode == 0, done.stdout


def test_source_folder_without_a_build_says_what_to_do(tmp_path):
    (tmp_path / "smm_py").mkdir()
    for path in (ROOT / "smm_py").glob("*.py"):
        (tmp_path / "smm_py" / path.name).write_text(path.read_text())
    done = run_python("-E", "-S", "-c", "import smm_py", cwd=tmp_path)
    assert done.returncode != 0 and "pip install" in done.stderr
