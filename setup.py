"""Build of the extension, on Linux and macOS with GCC or Clang, and of the text on an index page.

Switches: SMM_SANITIZE=1 (address, undefined) or thread; SMM_NO_OPENMP=1. Debug data is written
where CFLAGS asks for it.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from glob import glob
from pathlib import Path

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

INCLUDES = ["csrc/include", "csrc/kernels", "csrc/core"]
SANITIZERS = {"1": "address,undefined", "thread": "thread"}
# One extension for every Python from 3.11 on; free-threaded Python 3.14 has no stable ABI.
ABI3 = not sysconfig.get_config_var("Py_GIL_DISABLED")


def openmp_flags(compiler):
    """Flags for OpenMP, or none where a small program does not build with them."""
    if os.environ.get("SMM_NO_OPENMP") == "1":
        return []
    program = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text(program)
        command = [compiler.compiler_so[0], "-fopenmp", source, "-o", source.with_suffix(".out")]
        return [] if subprocess.run(command, capture_output=True).returncode else ["-fopenmp"]


class BuildExtension(build_ext):
    """Adds what depends on the compiler: OpenMP, sanitizers."""

    def build_extensions(self):
        if os.name != "posix":
            sys.exit("smm_py builds on POSIX systems (Linux, macOS), with GCC or Clang")
        if not shutil.which(self.compiler.compiler_so[0]):
            sys.exit(f"smm_py needs GCC or Clang; {self.compiler.compiler_so[0]!r} was not found")
        flags = openmp_flags(self.compiler)
        sanitizer = SANITIZERS.get(os.environ.get("SMM_SANITIZE", ""))
        if sanitizer:
            flags += [f"-fsanitize={sanitizer}", "-fno-omit-frame-pointer", "-g1", "-O1"]
        elif "-g" not in os.environ.get("CFLAGS", ""):
            flags += ["-g0"]
        for extension in self.extensions:
            extension.extra_compile_args += flags
            extension.extra_link_args += flags
        super().build_extensions()


def long_description():
    """README.md with links and pictures that work outside the repository."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    source, version = project["urls"]["Source"], project["version"]

    def absolute(match):
        start, target = match.groups()
        kind = "raw" if start.startswith("!") else "blob"
        return f"{start}{source}/{kind}/v{version}/{target}"

    text = Path("README.md").read_text(encoding="utf-8")
    return re.sub(r"(!?\[[^\]]*\]\()(?!\w+:|#)([^)\s]+)", absolute, text)


setup(
    long_description=long_description(),
    long_description_content_type="text/markdown",
    ext_modules=[
        Extension(
            "smm_py._core",
            sources=sorted(
                glob("csrc/core/*.c") + glob("csrc/kernels/*.c") + glob("csrc/python/*.c")
            ),
            depends=sorted(glob("csrc/*/*.h")),
            include_dirs=[*INCLUDES, numpy.get_include()],
            define_macros=[("Py_LIMITED_API", "0x030B0000")] if ABI3 else [],
            py_limited_api=ABI3,
            extra_compile_args=["-std=c99", "-O3", "-fno-math-errno", "-Wall", "-Wextra"],
            libraries=["m"],
        )
    ],
    cmdclass={"build_ext": BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if ABI3 else {},
)
