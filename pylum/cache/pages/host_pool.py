"""Pages of users who left the device: keys and values that wait in the host's memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import torch

from pylum import ops
from pylum.cache.pages.lanes import Lanes, Mark, lanes_of
from pylum.cache.pages.pool import Pages, Pool
from pylum.transfer import moved

# The host's allocator of pinned memory rounds up to powers of two: slabs fill one, not all of it.
SLAB_BYTES = 1 << 28
# Pages on their way lie in a buffer of at most so much of the device's memory.
STAGED_BYTES = 1 << 26


class HostPool(Pages):
    """Pages in the host's memory, pinned where the pool is on a GPU.

    A page here is all layers' keys and values of 64 tokens, one after the other, as they lie on the
    device: what comes back is what left, to the bit, and a page is one copy.

    Copies run on two lanes, :mod:`pylum.cache.pages.lanes`. Pages that leave are gathered into a
    buffer first: the caller's stream waits for that only, not for the copy to the host.

    Args:
        pool: the pages of the device.
        pages: room here.

    Raises:
        MemoryError: the host does not have that much memory to give.
    """

    def __init__(self, pool: Pool, pages: int) -> None:
        super().__init__(pages)
        self.pool = pool
        self.lanes: Lanes = lanes_of(pool.device)
        self._flat = [slab.flatten(1) for pair in pool.layers for slab in pair]
        self._widths = [slab.shape[1] for slab in self._flat]
        width = sum(self._widths)
        page_bytes = width * pool.layers[0][0].element_size()
        self._staged_pages = max(1, STAGED_BYTES // page_bytes)
        pinned = pool.device.type == "cuda"
        self._slab_pages = max(1, SLAB_BYTES // page_bytes if pinned else pages)
        self._slabs: list[torch.Tensor] = []
        try:
            for first in range(0, pages, self._slab_pages):
                rows = min(self._slab_pages, pages - first)
                slab = torch.empty(rows, width, dtype=pool.dtype, pin_memory=pinned)
                self._slabs.append(slab)
        except RuntimeError as error:
            raise MemoryError(
                f"host_tokens must fit the host's memory, got {pages} pages of {page_bytes} bytes: "
                f"{error}"
            ) from error
        if pages:
            self.lanes.share(self._flat)
        # Work that has what is free now: pages of the device, rows of the host.
        self._idle: list[Mark] = []
        self._gathered: list[Mark] = []
        self._loaded: list[Mark] = []
        # What the next call has to come after, whichever stream it is on.
        self._before: list[Mark] = []

    def begin(self) -> None:
        """A call begins: the caller's stream goes on behind the calls before."""
        for mark in (*self._before, *self._gathered):
            mark.wait()
        self._before = []
        self.idle()

    def end(self) -> None:
        """A call ends: its work has been given to the caller's stream."""
        self._before.append(self.lanes.here())

    def idle(self) -> None:
        """Pages that are free now are read and written by nothing but what has been given to the
        caller's stream by now, and the calls before."""
        self._idle = [*self._before, self.lanes.here()]

    def abandon(self, copied: Mark) -> None:
        """Pages are given back while a copy to them is on its way."""
        copied.wait()
        self._before.append(copied)

    def abandon_all(self) -> None:
        """Any pages may be given back."""
        for mark in self._loaded:
            self.abandon(mark)

    def leave(self, pages: Sequence[int], rows: Sequence[int]) -> Mark:
        """Copy pages of the device to ``rows`` of the host; the caller may write to them again.

        Returns:
            when the rows hold them.
        """
        for some, there in self._steps(pages, rows):
            staged: list[torch.Tensor] = []
            gather = partial(self._gather, some, staged)
            gathered = self.lanes.run("out", gather, [*self._idle, *self._loaded])
            gathered.wait()
            self._gathered = [gathered]
            stored = self.lanes.run("out", partial(self._store, staged, there), self._loaded)
        return stored

    def come(self, rows: Sequence[int], pages: Sequence[int], stored: Iterable[Mark] = ()) -> Mark:
        """Copy ``rows`` of the host to free pages of the device.

        Args:
            stored: when the rows hold what is to come.

        Returns:
            when the pages hold it.
        """
        for there, some in self._steps(rows, pages):
            after = [*stored, *self._idle, *self._gathered]
            arrived = self.lanes.run("back", partial(self._load, there, some), after)
            self._loaded = [arrived]
        return arrived

    def prefixes(
        self, rows: Sequence[int], tokens: int, stored: Mark | None
    ) -> list[ops.PagedPrefix]:
        """Each layer's view of one user's pages here, copied to the device to be read."""
        device = self.pool.device
        if stored is not None:
            stored.wait()
        parts = self._fetch(rows).split(self._widths, 1)
        slabs = itertools.chain(*self.pool.layers)
        shaped = [p.unflatten(1, s.shape[1:]) for p, s in zip(parts, slabs, strict=True)]
        table = moved(torch.arange(len(rows))[None], device)
        lengths = moved(torch.tensor([tokens]), device)
        return [
            ops.PagedPrefix(k, v, table, lengths)
            for k, v in zip(shaped[::2], shaped[1::2], strict=True)
        ]

    def _steps(
        self, first: Sequence[int], second: Sequence[int]
    ) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
        for at in range(0, len(first), self._staged_pages):
            part = slice(at, at + self._staged_pages)
            yield first[part], second[part]

    def _gather(self, pages: Sequence[int], staged: list[torch.Tensor]) -> None:
        index = moved(torch.tensor(pages, dtype=torch.int64), self.pool.device)
        staged.append(torch.cat([slab.index_select(0, index) for slab in self._flat], 1))

    def _store(self, staged: list[torch.Tensor], rows: Sequence[int]) -> None:
        buffer = staged.pop()
        for at, slab in self._runs(rows):
            slab.copy_(buffer[at : at + len(slab)], non_blocking=True)

    def _load(self, rows: Sequence[int], pages: Sequence[int]) -> None:
        index = moved(torch.tensor(pages, dtype=torch.int64), self.pool.device)
        parts = self._fetch(rows).split(self._widths, 1)
        for slab, part in zip(self._flat, parts, strict=True):
            slab.index_copy_(0, index, part)

    def _fetch(self, rows: Sequence[int]) -> torch.Tensor:
        """``[rows, elements]`` on the device, on the current stream."""
        width, pool = sum(self._widths), self.pool
        buffer = torch.empty(len(rows), width, dtype=pool.dtype, device=pool.device)
        for at, slab in self._runs(rows):
            buffer[at : at + len(slab)].copy_(slab, non_blocking=True)
        return buffer

    def _runs(self, rows: Sequence[int]) -> Iterator[tuple[int, torch.Tensor]]:
        """Rows that lie one after the other, and which of ``rows`` is the first of them."""
        at = 0
        while at < len(rows):
            slab, first = divmod(rows[at], self._slab_pages)
            count = 1
            while (
                at + count < len(rows)
                and rows[at + count] == rows[at] + count
                and first + count < self._slab_pages
            ):
                count += 1
            yield at, self._slabs[slab][first : first + count]
            at += count
