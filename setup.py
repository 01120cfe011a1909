"""Build of the extension, on Linux and macOS with GCC or Clang.

Switches: SMM_SANITIZE=1 (address, undefined) or thread; SMM_NO_OPENMP=1.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from glob import glob
from pathlib import Path

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

INCLUDES = ["csrc/include", "csrc/kernels", "csrc/core"]
SANITIZERS = {"1": "address,undefined", "thread": "thread"}


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
        for extension in self.extensions:
            extension.extra_compile_args += flags
            extension.extra_link_args += flags
        super().build_extensions()


setup(
    ext_modules=[
        Extension(
            "smm_py._core",
            sources=sorted(
                glob("csrc/core/*.c") + glob("csrc/kernels/*.c") + glob("csrc/python/*.c")
            ),
            depends=sorted(glob("csrc/*/*.h")),
            include_dirs=[*INCLUDES, numpy.get_include()],
            extra_compile_args=["-std=c99", "-O3", "-fno-math-errno", "-Wall", "-Wextra"],
            libraries=["m"],
        )
    ],
    cmdclass={"build_ext": BuildExtension},
)
