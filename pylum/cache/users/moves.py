"""What a call moves between the device and the host."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from pylum.cache.pages.lanes import Mark
from pylum.cache.users.entry import Entry


@dataclass
class Moves:
    """Copies that a call has decided on, not yet queued.

    Rows that are copied back are given back when they have been: another user may not leave to
    them before.

    Args:
        leaving: users with their entries, pages and rows.
        coming: users.
        pages: of the device they come to.
        rows: of the host they come from, page for page.
        emptied: all rows of theirs.
        stored: when the rows hold what is to come.
        slides: entries, behaviours kept and dropped.
    """

    leaving: list[tuple[Hashable, Entry, list[int], list[int]]] = field(default_factory=list)
    coming: list[Hashable] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    emptied: list[int] = field(default_factory=list)
    stored: list[Mark] = field(default_factory=list)
    slides: list[tuple[Entry, int, int]] = field(default_factory=list)

    def bring(self, user: Hashable, entry: Entry, pages: list[int], count: int) -> None:
        """Move a user to ``pages`` of the device; the first ``count`` are copied."""
        self.coming.append(user)
        self.pages += pages[:count]
        self.rows += entry.rows[:count]
        self.emptied += entry.rows
        if entry.copied is not None:
            self.stored.append(entry.copied)
        entry.pages, entry.rows, entry.copied = pages, [], None
