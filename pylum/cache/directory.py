"""Who is in the cache: entries by user, their pages, and who leaves when room is needed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import torch

from pylum.cache.digest import Bytes, event_bytes, matching, page_digests
from pylum.cache.entry import Entry, single
from pylum.cache.pool import Pool
from pylum.cache.sliding import slide
from pylum.data.events import Events
from pylum.generation.packing import window_starts
from pylum.model import LUM, UserModel


@dataclass(frozen=True)
class Slot:
    """A user of a batch whose history has pages.

    Args:
        row: of the batch.
        entry: emptied; :meth:`complete` fills it once the pages hold what it says.
        digests: of the history's window, a page each.
        length: behaviours of the window.
        reused: leading behaviours of it whose keys and values are there already.
        approximate: whether some of those saw behaviours that are no longer in the window.
    """

    row: int
    entry: Entry
    digests: list[bytes]
    length: int
    reused: int
    approximate: bool

    def complete(self) -> None:
        """Say that the pages hold the window."""
        self.entry.behaviours, self.entry.digests = self.length, self.digests
        self.entry.approximate = self.approximate


class Directory:
    """Entries in the order of their last use.

    Args:
        model: whose window is kept.
        pool: of the pages.
        sliding: move the window by dropping its oldest behaviours, not by computing it anew.
    """

    def __init__(self, model: UserModel, pool: Pool, sliding: bool) -> None:
        self.model, self.pool, self.sliding = model, pool, sliding
        self.entries: OrderedDict[Hashable, Entry] = OrderedDict()
        names = ("hits", "misses", "bypassed", "evictions", "slides")
        self.counts = dict.fromkeys(names, 0)

    def drop(self, users: Iterable[Hashable]) -> None:
        for user in users:
            entry = self.entries.pop(user, None)
            if entry is not None:
                self.pool.give(entry.pages)

    def admit(
        self, users: Sequence[Hashable], whole: Events, events: Events
    ) -> tuple[list[Slot], torch.Tensor]:
        """Find or make room for each user, and see what can be reused.

        Entries are emptied here and completed after the pass, so that an interrupted pass leaves
        none that promises more than its pages hold.

        Args:
            whole: histories of ``users``.
            events: the same, cut to the model's window.

        Returns:
            what the users with pages reuse, and the rows of those without: there is no room for
            them, or they stand in the batch twice.
        """
        data, bounds = event_bytes(events), events.offsets.tolist()
        starts = window_starts(self.model.config, whole.lengths).tolist()
        mine, done = set(users), set()
        slots, lent = [], []
        for b, user in enumerate(users):
            history = data[bounds[b] : bounds[b + 1]]
            entry = self.entries.get(user)
            need = self.pool.pages_for(len(history)) - (len(entry.pages) if entry else 0)
            if user in done or not self._room(need, mine):
                lent.append(b)
                continue
            done.add(user)
            mine_whole = single(whole, b)
            if entry is None:
                entry = self.entries[user] = Entry(mine_whole)
            self.entries.move_to_end(user)
            slots.append(self._slot(b, entry, history, mine_whole, starts[b]))
            if need > 0:
                entry.pages += self.pool.take(need)
            elif need < 0:
                self.pool.give(entry.pages[need:])
                del entry.pages[need:]
        self.counts["hits"] += sum(slot.reused > 0 for slot in slots)
        self.counts["misses"] += sum(slot.reused == 0 for slot in slots)
        self.counts["bypassed"] += len(lent)
        return slots, torch.tensor(lent, dtype=torch.int64)

    def _slot(self, row: int, entry: Entry, history: Bytes, whole: Events, start: int) -> Slot:
        """What of an entry a history reuses; the entry is emptied."""
        digests = page_digests(history)
        same = matching(history, digests, entry.digests, entry.behaviours)
        held, known, was = entry.behaviours, entry.digests, entry.approximate
        shift = start - entry.start
        entry.history, entry.start = whole, start
        entry.behaviours, entry.digests = 0, []
        if not same and self.sliding and 0 < shift < held:
            before = event_bytes(whole)[start - shift :]
            kept = matching(before, page_digests(before), known, held) - shift
            if kept > 0:
                assert isinstance(self.model, LUM)
                slide(self.model, self.pool, entry.pages, kept, shift)
                self.counts["slides"] += 1
                same, was = kept, True
        return Slot(row, entry, digests, len(history), same, was and same > 0)

    def _room(self, pages: int, keep: set[Hashable]) -> bool:
        """Let users go, longest unused first and none of ``keep``, until ``pages`` are free."""
        if pages <= self.pool.free:
            return True
        leaving, freed = [], self.pool.free
        for user, entry in self.entries.items():
            if user not in keep:
                leaving.append(user)
                freed += len(entry.pages)
                if freed >= pages:
                    break
        if freed < pages:
            return False
        self.counts["evictions"] += len(leaving)
        self.drop(leaving)
        return True
