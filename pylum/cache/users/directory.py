"""Which of the users of a batch are in the cache, and what of their histories."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import torch

from pylum.cache.pages.sliding import slide
from pylum.cache.users.digest import Bytes, event_bytes, matching, page_digests
from pylum.cache.users.entry import Entry, single
from pylum.cache.users.moves import Moves
from pylum.cache.users.residence import Residence
from pylum.cache.users.slots import Admitted, Slot
from pylum.data.events import Events
from pylum.generation.packing import window_starts
from pylum.model import LUM, UserModel


class Directory:
    """Finds a batch's users, and room for them.

    Args:
        model: whose window is kept.
        residence: of the users.
        sliding: move the window by dropping its oldest behaviours, not by computing it anew.
    """

    def __init__(self, model: UserModel, residence: Residence, sliding: bool) -> None:
        self.model, self.residence, self.sliding = model, residence, sliding
        self.pool, self.entries = residence.pool, residence.entries
        self._counts = dict.fromkeys(("hits", "misses", "bypassed", "slides"), 0)
        self._asked: set[Hashable] = set()

    @property
    def counts(self) -> dict[str, int]:
        """Since the beginning."""
        return self._counts | self.residence.counts

    def admit(self, users: Sequence[Hashable], whole: Events, events: Events) -> Admitted:
        """Find or make room for each user on the device, and see what can be reused.

        Entries are emptied here and completed after the pass, so that an interrupted pass leaves
        none that promises more than its pages hold, and histories as they were before it.

        Args:
            whole: histories of ``users``.
            events: the same, cut to the model's window.
        """
        data, bounds = event_bytes(events), events.offsets.tolist()
        starts = window_starts(self.model.config, whole.lengths).tolist()
        self._asked = set(users)
        slots: dict[Hashable, Slot] = {}
        lent, without = [], []
        with self.residence.moving() as moves:
            for b, user in enumerate(users):
                slot, own = None, single(whole, b)
                if user not in slots:
                    history = data[bounds[b] : bounds[b + 1]]
                    slot = self._slot(user, b, history, own, starts[b], moves)
                    known = self.entries.get(user)
                    if slot is None and known is not None:
                        if self._grew(known, history, starts[b]):
                            without.append((known, own))
                        else:
                            self.residence.drop([user])
                if slot is None:
                    lent.append(b)
                else:
                    slots[user] = slot
        for slot in slots.values():
            if slot.entry.copied is not None:
                slot.entry.copied.wait()
                slot.entry.copied = None
        for entry, kept, shift in moves.slides:
            assert isinstance(self.model, LUM)
            slide(self.model, self.pool, entry.pages, kept, shift)
        for slot in slots.values():
            needed = self.pool.pages_for(slot.length)
            self.pool.give(slot.entry.pages[needed:])
            del slot.entry.pages[needed:]
        self.residence.host.idle()
        self._counts["slides"] += len(moves.slides)
        self._counts["hits"] += sum(slot.reused > 0 for slot in slots.values())
        self._counts["misses"] += sum(slot.reused == 0 for slot in slots.values())
        self._counts["bypassed"] += len(lent)
        return Admitted(list(slots.values()), torch.tensor(lent, dtype=torch.int64), without)

    def prefetch(self, users: Iterable[Hashable]) -> None:
        """Bring users back to the device, as far as those of the last call leave room."""
        users = [user for user in users if user in self.entries]
        keep = self._asked | set(users)
        with self.residence.moving() as moves:
            for user in users:
                entry = self.entries[user]
                if entry.rows:
                    count = len(entry.rows)
                    if not self.residence.room(count, keep, moves):
                        return
                    moves.bring(user, entry, self.pool.take(count), count)
                self.entries.move_to_end(user)

    def _slot(
        self,
        user: Hashable,
        row: int,
        history: Bytes,
        whole: Events,
        start: int,
        moves: Moves,
    ) -> Slot | None:
        """Pages for a user and what they hold of his history; None: there is no room.

        The entry is emptied.
        """
        known = self.entries.get(user)
        entry = Entry(whole) if known is None else known
        digests = page_digests(history)
        same, shift = self._same(entry, history, digests, whole, start)
        # A window that moves is read where it lies before it fits its new pages.
        held = self.pool.pages_of(same + shift)
        need = max(self.pool.pages_for(len(history)), held) - len(entry.pages)
        if not self.residence.room(need, self._asked, moves):
            return None
        approximate = same > 0 and (entry.approximate or shift > 0)
        entry.behaviours, entry.digests = 0, []
        self.entries[user] = entry
        self.entries.move_to_end(user)
        taken = self.pool.take(max(0, need))
        if entry.rows:
            moves.bring(user, entry, taken, held)
        else:
            entry.pages += taken
        if shift:
            moves.slides.append((entry, same, shift))
        return Slot(row, entry, whole, start, digests, len(history), same, approximate)

    def _grew(self, entry: Entry, history: Bytes, start: int) -> bool:
        """Whether a history goes on from all that an entry holds."""
        same = matching(history, page_digests(history), entry.digests, entry.behaviours)
        return same == entry.behaviours and start == entry.start

    def _same(
        self, entry: Entry, history: Bytes, digests: list[bytes], whole: Events, start: int
    ) -> tuple[int, int]:
        """Leading behaviours of a history that an entry holds, and how many before them slide
        out."""
        same = matching(history, digests, entry.digests, entry.behaviours)
        shift = start - entry.start
        if not same and self.sliding and 0 < shift < entry.behaviours:
            before = event_bytes(whole)[start - shift :]
            found = matching(before, page_digests(before), entry.digests, entry.behaviours)
            if found > shift:
                return found - shift, shift
        return same, 0
