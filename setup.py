"""Build of the extension. Switches: SMM_SANITIZE=1 (address, undefined) or thread, SMM_NO_OPENMP=1."""

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
    if os.environ.get("SMM_NO_OPENMP") == "1" or compiler.compiler_type == "msvc":
        return []
    program = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"
    command = [*compiler.compiler_so[:1], "-fopenmp"]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text(program)
        try:
            done = subprocess.run(
                [*command, str(source), "-o", str(source.with_suffix(".out"))], capture_output=True
            )
        except OSError:
            return []
    return ["-fopenmp"] if done.returncode == 0 else []


class BuildExtension(build_ext):
    """Adds what depends on the compiler: OpenMP, sanitizers."""

    def build_extensions(self):
        if self.compiler.compiler_type != "msvc" and not shutil.which(self.compiler.compiler_so[0]):
            sys.exit(
                "smm_py needs a C compiler (for example gcc); "
                f"{self.compiler.compiler_so[0]!r} was not found"
            )
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
