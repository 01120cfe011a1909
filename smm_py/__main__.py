"""`python -m smm_py`: what a report of a bug needs."""

import json
import os
from importlib import metadata

from ._config import show_config


def installation() -> str:
    """How this package came here, and where it is."""
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


show_config()
print(f"installation: {installation()}")
