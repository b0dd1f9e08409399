"""A user's live answers as bytes, and the keys they are kept under."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

# Magic and version, checksum of the rest, seconds, events seen, conditions, width.
HEADER = struct.Struct("<4sIdqII")
MAGIC = b"plk1"


def prefix_of(fingerprint: str, conditions: Sequence[Any]) -> bytes:
    """What all keys of one model and one list of conditions begin with.

    Vectors of another model, or asked otherwise, are found under other keys: they can not be
    mistaken for these.
    """
    asked = json.dumps(conditions, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(f"{fingerprint}\n{asked}".encode()).hexdigest()[:32]
    return f"{digest}:".encode()


def key_of(prefix: bytes, user: Any) -> bytes:
    """``1`` and ``"1"`` are two users."""
    if isinstance(user, np.generic):
        user = user.item()
    if isinstance(user, bool) or not isinstance(user, str | int):
        raise TypeError(f"users must be strings or integers, got {user!r}")
    return prefix + json.dumps(user).encode()


def pack(vectors: npt.NDArray[np.float32], time: float, seen: int) -> bytes:
    """``vectors`` is ``[N, D]``."""
    body = np.ascontiguousarray(vectors, np.float32).tobytes()
    rest = HEADER.pack(MAGIC, 0, time, seen, *vectors.shape)[8:] + body
    return MAGIC + struct.pack("<I", zlib.crc32(rest)) + rest


def unpack(
    value: bytes, conditions: int, dim: int
) -> tuple[npt.NDArray[np.float32], float, int] | None:
    """Vectors, time and events seen; None where the bytes are not such an entry."""
    if len(value) != HEADER.size + 4 * conditions * dim or value[:4] != MAGIC:
        return None
    _, check, time, seen, rows, width = HEADER.unpack_from(value)
    if (rows, width) != (conditions, dim) or zlib.crc32(value[8:]) != check:
        return None
    vectors = np.frombuffer(value, np.float32, offset=HEADER.size).reshape(rows, width)
    return vectors, time, seen
