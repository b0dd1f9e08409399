"""What a batch's users find in the cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pylum.cache.users.entry import Entry
from pylum.data.events import Events


@dataclass(frozen=True)
class Slot:
    """A user of a batch whose history has pages.

    Args:
        row: of the batch.
        entry: emptied; :meth:`complete` fills it once the pages hold what it says.
        history: whole, as it was passed.
        start: which of it is the first of the window.
        digests: of the window, a page each.
        length: behaviours of the window.
        reused: leading behaviours of it whose keys and values are there already.
        approximate: whether some of those saw behaviours that are no longer in the window.
    """

    row: int
    entry: Entry
    history: Events
    start: int
    digests: list[bytes]
    length: int
    reused: int
    approximate: bool

    def complete(self) -> None:
        """Say that the pages hold the window."""
        entry = self.entry
        entry.history, entry.start = self.history, self.start
        entry.behaviours, entry.digests = self.length, self.digests
        entry.approximate = self.approximate


@dataclass(frozen=True)
class Admitted:
    """What the users of a batch reuse.

    Args:
        slots: of the users with pages.
        lent: ``[L]`` int64 rows of those without: there is no room for them, or they stand in the
            batch twice.
        without: entries of known users without room, and the histories they have from now on; their
            pages hold leading behaviours of those.
    """

    slots: list[Slot]
    lent: torch.Tensor
    without: list[tuple[Entry, Events]]

    def complete(self) -> None:
        """The batch has been answered: pages and histories are those that were passed."""
        for slot in self.slots:
            slot.complete()
        for entry, history in self.without:
            entry.history = history
