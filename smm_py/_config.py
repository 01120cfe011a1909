"""What a report of a bug needs to tell."""

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


def _installation() -> str:
    """How this package came here, and where it is."""
    import json
    from importlib import metadata

    folder = os.path.dirname(os.path.abspath(__file__))
    try:
        distribution = metadata.distribution("smm_py")
    except metadata.PackageNotFoundError:
        return f"not installed, from {folder}"
    told = json.loads(distribution.read_text("direct_url.json") or "{}")
    if told.get("dir_info", {}).get("editable"):
        how = "editable"
    elif os.path.realpath(str(distribution.locate_file("smm_py"))) != os.path.realpath(folder):
        how = "not that which is installed"
    else:
        wheel = distribution.read_text("WHEEL") or ""
        tags = [line[5:] for line in wheel.splitlines() if line.startswith("Tag: ")]
        how = ", ".join([told.get("url", "from an index"), *tags]) if wheel else "built in place"
    return f"{folder} ({how})"


def show_config() -> None:
    """Print what a report of a bug needs; `python -m smm_py` prints it too.

    Versions, the system, instruction sets built and chosen, OpenMP, threads, and how the package
    was installed.

    Examples
    --------
    >>> show_config()  # doctest: +ELLIPSIS
    smm_py ...
    installation: ...
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
        f"installation: {_installation()}\n"
        f"{platform.python_implementation()} {sys.version.partition(' (')[0]}, "
        f"NumPy {numpy.__version__}, PyTorch {_version('torch')}\n"
        f"system: {platform.platform()}\n"
        f"processor: {processor()}\n"
        f"instruction sets: {built}; chosen: {chosen}\n"
        f"OpenMP: {'yes' if openmp else 'no'}\n"
        f"threads: {_core.get_num_threads()} of {os.cpu_count()} processors"
    )
