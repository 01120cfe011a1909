"""Files of a run: each complete, or as it was."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def first_line(error):
    """What PyTorch says before its traces."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def write_atomically(path, write):
    """Call write(temporary path), then put the file in place: it is complete, or as it was.

    OSError, naming the file, if that fails.
    """
    path = Path(os.path.realpath(path))  # what a link points to, not the link
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        os.chmod(temporary, mode)  # some writers make files that nobody else may read
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, Exception):  # a full disk is another error for each of the writers
            raise OSError(f"{path} cannot be written: {first_line(error)}") from error
        raise
