"""Files of a run: each complete, or as it was."""

from __future__ import annotations

import fcntl
import os
import secrets
import sys
from contextlib import contextmanager, suppress
from pathlib import Path


def first_line(error):
    """What PyTorch says before its traces."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def cannot_be_written(path, error):
    """The OSError of one line, with its errno, for what a writer of `path` has raised."""
    number = getattr(error, "errno", None)
    told = f"{path} cannot be written: {number and error.strerror or first_line(error)}"
    return OSError(number, told) if number else OSError(told)


def write_atomically(path, write):
    """Call write(temporary path), then put the file in place: it is complete, or as it was.

    OSError, naming the file, if that fails; with its errno (ENOSPC: the disk is full) where the
    writer's error has one.
    """
    path = Path(os.path.realpath(path))  # what a link points to, not the link
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        if path.is_dir():
            raise OSError("it is a folder")
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        os.chmod(temporary, mode)  # some writers make files that nobody else may read
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, Exception):
            raise cannot_be_written(path, error) from error
        raise


def append_line(path, line):
    """Append a line to a text file; OSError, naming the file, where not all of it can be written.

    The file is then as it was.
    """
    try:
        with open(path, "ab", buffering=0) as file:
            size = file.tell()
            try:
                content = memoryview(line.encode() + b"\n")
                while content:
                    content = content[file.write(content) :]
            except BaseException:
                with suppress(OSError):  # of what is no plain file
                    file.truncate(size)
                raise
    except OSError as error:
        raise cannot_be_written(path, error) from error


def make_folder(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"{folder} must be a folder, not (in) a file") from error


@contextmanager
def locked(folder):
    """No other process has this folder locked meanwhile; ValueError where one has.

    The lock ends with its process, however that ends; the file stays.
    """
    make_folder(folder)
    with open(folder / ".lock", "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process is training in {folder}; wait for its end, or give another --out"
            ) from None
        except OSError as error:  # such as of a network's file system
            print(f"warning: {folder} cannot be locked: {error.strerror}", file=sys.stderr)
        yield
