"""Where each user's pages are: on the device, on the host, or nowhere any more."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager

from pylum.cache.pages.host_pool import HostPool
from pylum.cache.pages.pool import Pool
from pylum.cache.users.entry import Entry
from pylum.cache.users.moves import Moves


class Residence:
    """Entries in the order of their last use, and the pages they have.

    Who needs room on the device gets that of users asked longest ago: they leave for the host, and
    from there for good.

    Args:
        pool: of the pages on the device.
        host: of the pages of users who left the device.
    """

    def __init__(self, pool: Pool, host: HostPool) -> None:
        self.pool, self.host = pool, host
        self.entries: OrderedDict[Hashable, Entry] = OrderedDict()
        self.counts = dict.fromkeys(("evictions", "offloads", "resumes"), 0)

    def drop(self, users: Iterable[Hashable]) -> None:
        """Forget users; those that are not held are ignored."""
        for user in users:
            entry = self.entries.pop(user, None)
            if entry is not None:
                if entry.pages and entry.copied is not None:
                    self.host.abandon(entry.copied)
                self.pool.give(entry.pages)
                self.host.give(entry.rows)
                entry.pages, entry.rows = [], []

    def room(self, pages: int, keep: set[Hashable], moves: Moves) -> bool:
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
    def moving(self) -> Iterator[Moves]:
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
