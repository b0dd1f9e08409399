"""Who is in the cache: entries by user, their pages, and who leaves when room is needed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from pylum.cache.digest import Bytes, event_bytes, matching, page_digests
from pylum.cache.entry import Entry, single
from pylum.cache.host_pool import HostPool
from pylum.cache.moves import Moves
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


class Directory:
    """Entries in the order of their last use.

    Args:
        model: whose window is kept.
        pool: of the pages on the device.
        host: of the pages of users who left the device.
        sliding: move the window by dropping its oldest behaviours, not by computing it anew.
    """

    def __init__(self, model: UserModel, pool: Pool, host: HostPool, sliding: bool) -> None:
        self.model, self.pool, self.host, self.sliding = model, pool, host, sliding
        self.entries: OrderedDict[Hashable, Entry] = OrderedDict()
        names = ("hits", "misses", "bypassed", "evictions", "offloads", "resumes", "slides")
        self.counts = dict.fromkeys(names, 0)
        self._asked: set[Hashable] = set()

    def drop(self, users: Iterable[Hashable]) -> None:
        for user in users:
            entry = self.entries.pop(user, None)
            if entry is not None:
                if entry.pages and entry.copied is not None:
                    self.host.abandon(entry.copied)
                self.pool.give(entry.pages)
                self.host.give(entry.rows)
                entry.pages, entry.rows = [], []

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
        with self._moving() as moves:
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
                            self.drop([user])
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
        self.host.idle()
        self.counts["slides"] += len(moves.slides)
        self.counts["hits"] += sum(slot.reused > 0 for slot in slots.values())
        self.counts["misses"] += sum(slot.reused == 0 for slot in slots.values())
        self.counts["bypassed"] += len(lent)
        return Admitted(list(slots.values()), torch.tensor(lent, dtype=torch.int64), without)

    def prefetch(self, users: Iterable[Hashable]) -> None:
        """Bring users back to the device, as far as those of the last call leave room."""
        users = [user for user in users if user in self.entries]
        keep = self._asked | set(users)
        with self._moving() as moves:
            for user in users:
                entry = self.entries[user]
                if entry.rows:
                    count = len(entry.rows)
                    if not self._room(count, keep, moves):
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
        if not self._room(need, self._asked, moves):
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

    def _room(self, pages: int, keep: set[Hashable], moves: Moves) -> bool:
        """Let users leave the device, longest unused first and none of ``keep``, until ``pages``
        are free."""
        if pages <= self.pool.free:
            return True
        leaving, freed = [], self.pool.free
        for user, entry in self.entries.items():
            if user not in keep and not entry.rows:
                leaving.append(user)
                freed += len(entry.pages)
                if freed >= pages:
                    break
        if freed < pages:
            return False
        for user in leaving:
            self._leave(user, keep, moves)
        return True

    def _leave(self, user: Hashable, keep: set[Hashable], moves: Moves) -> None:
        """Move a user to the host, or drop him where it has no room."""
        entry = self.entries[user]
        count = self.pool.pages_of(entry.behaviours)
        if not self.host.pages or not self._host_room(count, keep):
            self.counts["evictions"] += 1
            self.drop([user])
            return
        pages, rows = entry.pages, self.host.take(count)
        if rows:
            moves.leaving.append((user, entry, pages[:count], rows))
        entry.pages, entry.rows, entry.copied = [], rows, None
        self.pool.give(pages)

    def _host_room(self, rows: int, keep: set[Hashable]) -> bool:
        """Drop users from the host, longest unused first and none of ``keep``, until ``rows`` are
        free."""
        leaving, freed = [], self.host.free
        for user, entry in self.entries.items():
            if freed >= rows:
                break
            if user not in keep and not entry.pages:
                leaving.append(user)
                freed += len(entry.rows)
        if freed < rows:
            return False
        self.counts["evictions"] += len(leaving)
        self.drop(leaving)
        return True

    @contextmanager
    def _moving(self) -> Iterator[Moves]:
        """Decide on moves inside; the copies are queued at the end, those that leave first.

        Where that fails, the users who were to move are gone.
        """
        moves = Moves()
        try:
            yield moves
            self._copy(moves)
        except BaseException:
            self.host.abandon_all()
            self.drop([*(user for user, *_ in moves.leaving), *moves.coming])
            raise
        finally:
            self.host.give(moves.emptied)

    def _copy(self, moves: Moves) -> None:
        # Who was dropped from the host again by the same call is not copied to it.
        leaving = [move for move in moves.leaving if move[1].rows is move[3]]
        if leaving:
            pages = [page for move in leaving for page in move[2]]
            rows = [row for move in leaving for row in move[3]]
            stored = self.host.leave(pages, rows)
            for _, entry, _, _ in leaving:
                entry.copied = stored
        if moves.rows:
            arrived = self.host.come(moves.rows, moves.pages, moves.stored)
            for user in moves.coming:
                self.entries[user].copied = arrived
        self.counts["offloads"] += len(leaving)
        self.counts["resumes"] += len(moves.coming)
