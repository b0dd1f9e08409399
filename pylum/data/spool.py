"""Columns too long for memory: appended by blocks, grouped by user, mapped from unnamed files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

Column = npt.NDArray[Any]
BLOCK = 1 << 18  # rows handled at a time


def allocate(shape: tuple[int, ...], dtype: Any, on_disk: bool) -> Column:
    """An uninitialised column; on disk it lives in a file without a name, gone with the column."""
    if not on_disk or 0 in shape:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(prefix="pylum-") as file:
        return np.memmap(file, dtype, "w+", shape=shape)


class Spool:
    """Columns of equal length that grow by blocks, in memory up to a limit, in files beyond.

    Args:
        limit: bytes of all columns together that may stay in memory.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.rows = 0
        self._held = 0
        self._blocks: dict[str, list[Column]] = {}
        self._files: dict[str, BinaryIO] = {}

    @property
    def on_disk(self) -> bool:
        return bool(self._files)

    def append(self, block: dict[str, Column]) -> None:
        """One more block: the same columns, dtypes and widths every time."""
        self.rows += len(next(iter(block.values())))
        for name, column in block.items():
            self._blocks.setdefault(name, []).append(column)
            self._held += column.nbytes
        if self.on_disk or self._held > self.limit:
            self._flush()

    def close(self) -> dict[str, Column]:
        """The whole columns; the spool is empty afterwards."""
        out: dict[str, Column] = {}
        if self.on_disk:
            self._flush()
        for name in list(self._blocks):
            blocks = self._blocks.pop(name)
            if not self.on_disk:
                out[name] = np.concatenate(blocks) if len(blocks) > 1 else blocks[0]
                continue
            kind = blocks[0]
            with self._files.pop(name) as file:
                file.flush()
                shape = (self.rows, *kind.shape[1:])
                out[name] = np.memmap(file, kind.dtype, "r+", shape=shape)  # type: ignore[call-overload]
        return out

    def _flush(self) -> None:
        for name, blocks in self._blocks.items():
            if name not in self._files:
                self._files[name] = tempfile.TemporaryFile(prefix="pylum-")  # noqa: SIM115
            for block in blocks:
                self._files[name].write(np.ascontiguousarray(block).data)
            # An empty block remembers dtype and width.
            self._blocks[name] = [blocks[0][:0].copy()]
        self._held = 0


def group_by_user(
    columns: dict[str, Column], users: str, key: str, num_users: int, on_disk: bool
) -> tuple[dict[str, Column], npt.NDArray[np.int64]]:
    """Columns sorted by (user, key, original row), stable, a block at a time.

    Rows are first dealt to their users in original order, then each user's rows are sorted.

    Args:
        columns: equally long; consumed, so that at most two copies of one column exist.
        users: name of the ``[N]`` int64 column of users below ``num_users``; not in the result.
        key: name of the ``[N]`` int64 column to sort by within a user.
        on_disk: whether the results are mapped from files.

    Returns:
        the columns, and ``[num_users + 1]`` offsets.
    """
    user = columns.pop(users)
    total = len(user)
    counts = np.zeros(num_users, np.int64)
    for rows in _blocks(total):
        counts += np.bincount(user[rows], minlength=num_users)
    offsets = np.zeros(num_users + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    places = allocate((total,), np.int64, on_disk)
    free = offsets[:-1].copy()
    for rows in _blocks(total):
        block = np.asarray(user[rows])
        order = np.argsort(block, kind="stable")
        ordered = block[order]
        first = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
        runs = np.diff(np.append(first, len(ordered)))
        rank = np.arange(len(ordered)) - np.repeat(first, runs)
        dealt = np.empty(len(block), np.int64)
        dealt[order] = free[ordered] + rank
        places[rows] = dealt
        free[ordered[first]] += runs
    out = {}
    for name in list(columns):
        source = columns.pop(name)
        target = allocate(source.shape, source.dtype, on_disk)
        for rows in _blocks(total):
            target[places[rows]] = source[rows]
        out[name] = target
    for start, stop in _user_blocks(offsets):
        rows = slice(int(offsets[start]), int(offsets[stop]))
        keys = np.asarray(out[key][rows])
        owner = np.repeat(np.arange(stop - start), counts[start:stop])
        if not ((owner[1:] > owner[:-1]) | (keys[1:] >= keys[:-1])).all():
            order = np.lexsort((keys, owner))
            for column in out.values():
                column[rows] = column[rows][order]
    return out, offsets


def take(column: Column, index: npt.NDArray[np.int64], on_disk: bool) -> Column:
    """``column[index]``, a block at a time."""
    out = allocate((len(index), *column.shape[1:]), column.dtype, on_disk)
    for rows in _blocks(len(index)):
        out[rows] = column[index[rows]]
    return out


def _blocks(total: int) -> Iterator[slice]:
    for start in range(0, total, BLOCK):
        yield slice(start, min(start + BLOCK, total))


def _user_blocks(offsets: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Ranges of whole users with about a block of rows, at least one user."""
    start, users = 0, len(offsets) - 1
    while start < users:
        stop = int(np.searchsorted(offsets, offsets[start] + BLOCK, side="right")) - 1
        stop = min(max(stop, start + 1), users)
        yield start, stop
        start = stop
