"""Chained hashes of behaviours: what proves that cached pages belong to a history."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import numpy.typing as npt

from pylum.data.events import Events

BEHAVIOURS = 32  # of one page: a behaviour is two tokens, a page of the kernels 64
DIGEST_BYTES = 16

Bytes = npt.NDArray[np.uint8]


def event_bytes(events: Events) -> Bytes:
    """``[N, bytes]`` everything the model may read of each behaviour."""
    columns = [events.items, events.times]
    columns += [events.conditions[name] for name in sorted(events.conditions)]
    columns += [events.outcomes[name] for name in sorted(events.outcomes)]
    rows = []
    for column in columns:
        array = np.ascontiguousarray(column.numpy())
        width = array.itemsize * (array.shape[1] if array.ndim == 2 else 1)
        rows.append(array.view(np.uint8).reshape(events.total, width))
    return np.concatenate(rows, 1)


def page_digests(history: Bytes) -> list[bytes]:
    """The digest of each page and of all pages before it; the last page may be partial.

    Args:
        history: ``[n, bytes]`` of one user, as :func:`event_bytes` gives them.
    """
    starts = range(0, len(history), BEHAVIOURS)
    chain = itertools.accumulate(starts, lambda d, s: _digest(d, history, s), initial=b"")
    return list(chain)[1:]


def matching(history: Bytes, digests: list[bytes], known: list[bytes], behaviours: int) -> int:
    """How many leading behaviours of a history are the cached ones.

    Whole pages, and what a partial last page holds where the history goes on from there.

    Args:
        history: ``[n, bytes]``.
        digests: of its pages.
        known, behaviours: digests of the cached pages and how many behaviours those hold.
    """
    full = behaviours // BEHAVIOURS
    pages = 0
    for mine, theirs in zip(digests[: len(history) // BEHAVIOURS], known[:full], strict=False):
        if mine != theirs:
            return pages * BEHAVIOURS
        pages += 1
    partial = behaviours > full * BEHAVIOURS
    if pages == full and partial and len(history) >= behaviours:
        before = digests[full - 1] if full else b""
        if _digest(before, history[:behaviours], full * BEHAVIOURS) == known[full]:
            return behaviours
    return pages * BEHAVIOURS


def _digest(before: bytes, history: Bytes, start: int) -> bytes:
    page = history[start : start + BEHAVIOURS]
    return hashlib.blake2b(before + page.tobytes(), digest_size=DIGEST_BYTES).digest()
