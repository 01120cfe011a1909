"""JSON files of users: each field that is read is there and of its type, or an error names it."""

from __future__ import annotations

import json
from pathlib import Path


def parse_json(text):
    """The content of JSON; ValueError for what is none."""
    try:
        return json.loads(text)
    except RecursionError:  # of the parser, which would end the program
        raise ValueError("its JSON is nested too deeply") from None


def load_json(path, kind="file"):
    """The content of a JSON file; an error names the file."""
    try:
        return parse_json(Path(path).read_text())
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{kind} {path} is missing") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{kind} {path} cannot be read: {reason}") from error


KINDS = {dict: "an object", list: "a list", str: "a text", int: "an integer"}


def take(thing, name, kind, what):
    """The field `name`, of a kind (or kinds) of `KINDS`, of a JSON object `what`.

    ValueError, naming both, for what is missing or of another kind.
    """
    if not isinstance(thing, dict):
        raise ValueError(f"{what} must be an object, got {shown(thing)}")
    if name not in thing:
        raise ValueError(f"{what} has no {name}")
    value = thing[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        expected = " or ".join(KINDS[one] for one in kinds if one in KINDS)
        raise ValueError(f"{name} of {what} must be {expected}, got {shown(value)}")
    return value


def shown(value):
    """A value in a message of one line."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
