"""TFRecord files of tf.train.Example without TensorFlow, as a stream.

A record is its length (8 bytes), a checksum of those, its content, a checksum of that; the checksum
is CRC-32C, rotated and shifted ("masked"). The whole file may be one gzip stream. Sources:
`tensorflow/core/lib/io/record_writer.h` and `tensorflow/core/example/{example,feature}.proto` of
TensorFlow; https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import gzip
import zlib
from functools import lru_cache
from itertools import count

import numpy as np

MOST_BYTES = 2**30  # of a record
_POLYNOMIAL = np.uint32(0x82F63B78)  # CRC-32C, bits in reverse
_BITS = np.arange(32, dtype=np.uint32)


def records(path, start=0, stop=None):
    """(number, content) of the records from `start` to before `stop`, their checksums checked.

    A cut or damaged file raises ValueError that names it and the record.
    """
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    number = 0
    try:
        with (gzip.open if zipped else open)(path, "rb") as file:
            for number in count() if stop is None else range(stop):
                content = _record(file, check=number >= start)
                if content is None:
                    return
                if number >= start:
                    yield number, content
    except (_Damaged, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is cut or damaged at record {number}: {error}") from error


class _Damaged(Exception):
    pass


def _record(file, check):
    """The next record's content, or None at the end of the file."""
    header = file.read(12)
    if not header:
        return None
    _check(header[:8], header[8:], "length")
    size = int.from_bytes(header[:8], "little")
    if size > MOST_BYTES:
        raise _Damaged(f"it should have {size} bytes, more than any record")
    content = file.read(size + 4)
    if len(content) < size + 4:
        raise _Damaged(f"it should have {size + 4} bytes, got {len(content)}")
    if check:
        _check(content[:-4], content[-4:], "content")
    return content[:-4]


def _check(data, stored, what):
    if masked_crc(data).to_bytes(4, "little") != stored:
        raise _Damaged(f"wrong checksum of the {what}")


def masked_crc(data) -> int:
    """CRC-32C of bytes in the form that TFRecord stores."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


def crc32c(data) -> int:
    """CRC-32C (Castagnoli) of bytes.

    Many pieces of the data are divided side by side, two bytes a step, then joined in pairs: the
    remainder of "left right" is that of left moved on by the length of right, plus (xor) that of
    right. Zeros in front of all change nothing.
    """
    data = _PREFIX + data
    pieces = 1 << max(0, (len(data) // 512).bit_length() - 1)
    step = -(-len(data) // (2 * pieces))
    words = np.zeros(pieces * step, "<u2")
    words.view(np.uint8)[words.nbytes - len(data) :] = np.frombuffer(data, np.uint8)
    state = np.zeros(pieces, np.uint32)
    for column in np.ascontiguousarray(words.reshape(pieces, step).T):
        state = _move(state, column)
    move = _moves(step)
    while len(state) > 1:
        state = _apply(move, state[0::2]) ^ state[1::2]
        move = _apply(move, move)
    return int(state[0]) ^ 0xFFFFFFFF


def _table():
    state = np.arange(65536, dtype=np.uint32)
    for _ in range(16):
        state = state >> 1 ^ (state & 1) * _POLYNOMIAL
    return state


def _move(state, word):
    """Remainders after two more bytes."""
    return _TABLE[(state ^ word) & 0xFFFF] ^ state >> 16


@lru_cache(maxsize=256)
def _moves(step):
    """What becomes of each bit of a remainder after `step` words of zeros: a matrix over GF(2)."""
    state = np.uint32(1) << _BITS
    for _ in range(step):
        state = _move(state, np.uint32(0))
    return state


def _apply(matrix, state):
    return np.bitwise_xor.reduce((state[:, None] >> _BITS & 1) * matrix, axis=1)


def _prefix():
    """The four bytes that bring the remainder from 0 to 0xFFFFFFFF, where CRC-32C begins."""
    state = 0xFFFFFFFF
    for _ in range(32):
        state = (state ^ int(_POLYNOMIAL)) << 1 | 1 if state >> 31 else state << 1
    return state.to_bytes(4, "little")


_TABLE, _PREFIX = _table(), _prefix()


def parse_example(content, names) -> dict[str, np.ndarray]:
    """The named features of a tf.train.Example.

    Bytes are uint8 (a list's strings joined), floats float32.
    Features come in any order; a missing one, or content that is no Example, raises ValueError.
    """
    found = {}
    for _, features in _fields(content):
        for _, entry in _fields(features):
            parts = dict(_fields(entry))
            name = bytes(parts.get(1, b"")).decode(errors="replace")
            if name in names:
                found[name] = _values(parts.get(2, b""))
    absent = [name for name in names if name not in found]
    if absent:
        raise ValueError(f"no feature {', '.join(absent)}")
    return found


def _values(feature):
    for kind, values in _fields(feature):
        if kind == 1:
            return _bytes(np.frombuffer(values, np.uint8))
        if kind == 2:
            parts = [np.frombuffer(part, "<f4") for _, part in _fields(values)]
            return np.concatenate(parts or [np.zeros(0, "<f4")])
    raise ValueError("a feature that holds neither bytes nor floats")


def _bytes(values):
    """Strings of a list joined; those of one byte, tag 10 and length 1, are decoded at once."""
    if len(values) % 3 == 0:
        triples = values.reshape(-1, 3)
        if (triples[:, 0] == 10).all() and (triples[:, 1] == 1).all():
            return triples[:, 2].copy()
    return np.frombuffer(b"".join(part for _, part in _fields(values)), np.uint8)


def _fields(buffer):
    """(number, content) of a message's fields: strings, messages, packed lists, fixed 32 bits."""
    view, at = memoryview(buffer), 0
    while at < len(view):
        tag, at = _varint(view, at)
        kind = tag & 7
        if kind == 2:
            size, at = _varint(view, at)
        elif kind == 5:
            size = 4
        else:
            raise ValueError(f"a field of wire type {kind}")
        if at + size > len(view):
            raise ValueError("a field that ends beyond its message")
        yield tag >> 3, view[at : at + size]
        at += size


def _varint(view, at):
    value = shift = 0
    while True:
        if at >= len(view) or shift > 63:
            raise ValueError("a number without an end")
        value |= (view[at] & 127) << shift
        if view[at] < 128:
            return value, at + 1
        at, shift = at + 1, shift + 7
