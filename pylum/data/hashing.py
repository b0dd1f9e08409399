"""A hash of raw ids that is the same in every process, on every machine, in every version.

A string is read as little-endian 64-bit words, zero-padded, folded one by one with the finaliser of
SplitMix64 (Steele et al. 2014) from a start that holds its length in bytes; an integer is one word.
The two start differently, so ``1`` and ``"1"`` do not meet.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Hashes = npt.NDArray[np.uint64]

_INTEGER = np.uint64(0x9E3779B97F4A7C15)
_STRING = np.uint64(0xD1B54A32D192ED03)


def mix(words: Hashes) -> Hashes:
    """SplitMix64's finaliser, elementwise: a bijection of 64-bit words."""
    words = words ^ (words >> np.uint64(30))
    words = words * np.uint64(0xBF58476D1CE4E5B9)
    words = words ^ (words >> np.uint64(27))
    words = words * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def hash_ids(ids: pa.Array) -> Hashes:
    """``[N]`` uint64 hashes of an Arrow array of ``large_string`` or ``int64`` without nulls."""
    if pa.types.is_int64(ids.type):
        return mix(ids.to_numpy(zero_copy_only=False).view(np.uint64) + _INTEGER)
    if not pa.types.is_large_string(ids.type):
        raise TypeError(f"ids must be large_string or int64, got {ids.type}")
    _, offset_buffer, data_buffer = ids.buffers()
    if len(ids) == 0:
        return np.empty(0, np.uint64)
    offsets = np.frombuffer(offset_buffer, np.int64)[ids.offset : ids.offset + len(ids) + 1]
    first, last = int(offsets[0]), int(offsets[-1])
    data = np.zeros(last - first + 8, np.uint8)
    if last > first:
        data[:-8] = np.frombuffer(data_buffer, np.uint8)[first:last]
    starts = offsets[:-1] - first
    lengths = np.diff(offsets)
    windows = np.lib.stride_tricks.sliding_window_view(data, 8)
    hashes = mix(lengths.astype(np.uint64) + _STRING)
    active = np.flatnonzero(lengths > 0)
    done = 0
    while len(active):
        words = windows[starts[active] + done].reshape(-1).view("<u8").astype(np.uint64)
        left = np.minimum(lengths[active] - done, 8).astype(np.uint64)
        words &= np.uint64(0xFFFFFFFFFFFFFFFF) >> (np.uint64(64) - left * np.uint64(8))
        hashes[active] = mix(hashes[active] ^ words)
        done += 8
        active = active[lengths[active] > done]
    return hashes
