"""What this package runs on."""

from __future__ import annotations

import os
import sys

from . import _core


def processor() -> str:
    """The processor's name."""
    import platform

    try:
        with open("/proc/cpuinfo") as lines:
            return next(x.partition(":")[2].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(name: str) -> str:
    """Of a package, which is not imported."""
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def show_config() -> None:
    """Print versions, the system, instruction sets built and chosen, OpenMP and threads.

    `python -m smm_py` adds how the package was installed, for reports of bugs.

    Examples
    --------
    >>> from smm_py import show_config
    >>> show_config()  # doctest: +ELLIPSIS
    smm_py ...
    CPython ...
    """
    import platform

    import numpy

    chosen, sets, openmp = _core.simd()
    built = ", ".join(
        name if there else f"{name} (not on this machine)" for name, there in sets.items()
    )
    print(
        f"smm_py {_core.__version__}\n"
        f"{platform.python_implementation()} {sys.version.partition(' (')[0]}, "
        f"NumPy {numpy.__version__}, PyTorch {_version('torch')}\n"
        f"system: {platform.platform()}\n"
        f"processor: {processor()}\n"
        f"instruction sets: {built}; chosen: {chosen}\n"
        f"OpenMP: {'yes' if openmp else 'no'}\n"
        f"threads: {_core.get_num_threads()} of {os.cpu_count()} processors"
    )
