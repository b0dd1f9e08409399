"""Keys and values of histories, kept between calls."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pylum.cache import files
from pylum.cache.digest import event_bytes, matching, page_digests
from pylum.cache.entry import Entry, joined, merged, single
from pylum.cache.pool import PAGE, Pool, pages_for
from pylum.data.events import Events
from pylum.data.histories import Histories, OnUnknown
from pylum.generation.packing import (
    Questions,
    answer,
    asking,
    layout,
    question_tokens,
    spread,
    windows,
)
from pylum.model import LUM
from pylum.ragged import lengths_to_offsets


@dataclass(frozen=True)
class _Slot:
    """A user of a batch: its row, its entry, the digests to come, and behaviours reused."""

    row: int
    entry: Entry
    digests: list[bytes]
    reused: int


class UserCache:
    """Keeps the keys and values of histories, so that only what is new is computed.

    A call passes whole histories: the user's id finds the pages, and a chained hash of the
    behaviours proves which of them are the same; the rest is computed and kept. Late, edited or
    deleted events are computed again from the first page that changed. Conditions and candidates
    are never kept. Answers are those without a cache, up to rounding.

    Where a history outgrows the model's window, the window moves (every
    ``LUMConfig.window_step`` behaviours) and the history is computed anew: dropping the oldest
    pages would not be exact, since the deeper layers of later behaviours saw them.

    Everything is dropped when the weights of the model change. Calls from several threads take
    turns.

    Args:
        model: whose keys and values are kept.
        max_tokens: room, two tokens a behaviour; users asked longest ago leave first.
        page: tokens of a page; the kernels know 64.

    Raises:
        ValueError: a size is not as above.
    """

    def __init__(self, model: LUM, max_tokens: int, page: int = PAGE) -> None:
        if page != PAGE:
            raise ValueError(f"page must be {PAGE}, got {page}")
        if max_tokens < PAGE:
            raise ValueError(f"max_tokens must be at least one page of {PAGE}, got {max_tokens}")
        self.model = model
        self.max_tokens = max_tokens
        self.fingerprint = model.fingerprint()
        self._pool = Pool(model, max_tokens // PAGE)
        self._entries: OrderedDict[Hashable, Entry] = OrderedDict()
        self._lock = threading.RLock()
        self._counts = dict.fromkeys(
            (
                "tokens_computed",
                "tokens_reused",
                "hits",
                "misses",
                "bypassed",
                "evictions",
                "resets",
            ),
            0,
        )

    def __len__(self) -> int:
        """Number of users."""
        return len(self._entries)

    def __contains__(self, user: Hashable) -> bool:
        return user in self._entries

    @property
    def stats(self) -> dict[str, int]:
        """Counts since the beginning, and what is held now.

        ``hits`` and ``misses`` count users of a call with and without anything reused;
        ``bypassed`` those that found no room; ``resets`` how often changed weights emptied it.
        """
        with self._lock:
            used = self._pool.pages - self._pool.free
            return {
                **self._counts,
                "users": len(self._entries),
                "tokens": sum(2 * entry.behaviours for entry in self._entries.values()),
                "pages": used,
                "max_pages": self._pool.pages,
            }

    def invalidate(self, users: Iterable[Hashable] | None = None) -> None:
        """Forget ``users``; None: everyone. Users that are not held are ignored."""
        with self._lock:
            for user in list(self._entries) if users is None else list(users):
                entry = self._entries.pop(user, None)
                if entry is not None:
                    self._pool.give(entry.pages)

    def events(self, users: Sequence[Hashable]) -> Events:
        """Whole histories as they were last passed or appended, in the model's rows.

        Raises:
            ValueError: the cache does not hold one of the users.
        """
        with self._lock:
            self._check(self.model)
            missing = [user for user in users if user not in self._entries]
            if missing:
                raise ValueError(
                    f"histories must be passed for users the cache does not hold, got "
                    f"{missing[0]!r} and {len(missing) - 1} more"
                )
            return joined([self._entries[user].history for user in users], self.model.schema)

    def append(
        self, users: Sequence[Hashable], new: Any, *, on_unknown: OnUnknown = "oov"
    ) -> list[Hashable]:
        """Add behaviours to users the cache holds, and compute their keys and values.

        An event takes its place by its time: a late one is computed again with all after it.

        Args:
            users: raw ids, each once.
            new: for each user a list of events, ``{"item": ..., "time": ..., "<field>": ...}``; or
                :class:`~pylum.Histories` of these users in this order.
            on_unknown: as for :func:`pylum.generate`.

        Returns:
            The users it does not hold, never seen or gone. Nothing is stored for them: their next
            call passes the whole history.
        """
        users = list(users)
        if len(set(users)) != len(users):
            raise ValueError("users must be distinct")
        if isinstance(new, Mapping):
            raise TypeError("new must be a list with the events of each user, got a dict")
        if not isinstance(new, Histories):
            new = Histories.from_dicts(dict(enumerate(new)), self.model.schema)
        if len(new) != len(users):
            raise ValueError(f"new must hold the events of {len(users)} users, got {len(new)}")
        coded = new.encode(self.model.vocabs, self.model.schema, on_unknown=on_unknown)
        with self._lock:
            self._check(self.model)
            held = [b for b, user in enumerate(users) if user in self._entries]
            known = [users[b] for b in held]
            more = coded.users(torch.tensor(held, dtype=torch.int64))
            both = merged(self.events(known), more)
            nothing = Questions({}, torch.zeros(len(known) + 1, dtype=torch.int64))
            with asking(self.model):
                events = windows(self.model.config, both)
                self.answer(self.model, known, both, events, nothing)
        found = set(known)
        return [user for user in users if user not in found]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a folder that :meth:`load` reads.

        Raises:
            ValueError: ``path`` exists and is no earlier save.
            TypeError: a user id is neither a string nor a number.
        """
        with self._lock:
            self._check(self.model)
            about = {"fingerprint": self.fingerprint, "max_tokens": self.max_tokens}
            files.save(path, self._entries, self._pool, self.model.schema, about)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], model: LUM, max_tokens: int | None = None
    ) -> UserCache:
        """A cache saved by :meth:`save`; where there is less room, users asked last are kept.

        Raises:
            FileNotFoundError: there is no cache at ``path``.
            ValueError: a file is truncated or altered, or the cache is of another model.
        """
        about, tensors = files.read(path)
        cache = cls(model, about["max_tokens"] if max_tokens is None else max_tokens)
        if about["fingerprint"] != cache.fingerprint:
            raise ValueError(
                f"the cache is of another model, {about['fingerprint']}, not {cache.fingerprint}"
            )
        with torch.inference_mode():
            entries = files.restore(
                about["users"], tensors, model.config, model.schema, cache._pool
            )
        cache._entries.update(entries)
        return cache

    def answer(
        self,
        model: LUM,
        users: Sequence[Hashable],
        whole: Events,
        events: Events,
        questions: Questions,
    ) -> tuple[torch.Tensor, int, int]:
        """Answer questions, reusing and keeping what the histories allow.

        Args:
            whole: histories of ``users`` in the model's rows.
            events: the same, cut to the model's window.
            questions: of each user.

        Returns:
            ``[Q, D]`` answers, tokens computed, tokens reused.
        """
        with self._lock:
            self._check(model)
            slots, lent = self._admit(users, whole, events)
            held = torch.tensor([slot.row for slot in slots], dtype=torch.int64)
            out = torch.empty(len(questions), model.dim, dtype=self._pool.dtype)
            if len(held):
                asked, lines = questions.users(held)
                out[lines] = self._run(slots, events.users(held), asked)
            if len(lent):
                asked, lines = questions.users(lent)
                out[lines] = answer(self.model, events.users(lent), asked)
            reused = 2 * sum(slot.reused for slot in slots)
            computed = 2 * events.total - reused + len(questions)
            self._counts["tokens_computed"] += computed
            self._counts["tokens_reused"] += reused
            return out, computed, reused

    def _check(self, model: LUM) -> None:
        """Empty the cache where weights changed; refuse another model."""
        fingerprint = model.fingerprint()
        if model is not self.model and fingerprint != self.fingerprint:
            raise ValueError(
                f"cache must be of this model, got one of {self.fingerprint} for {fingerprint}"
            )
        if fingerprint != self.fingerprint:
            self.invalidate()
            self.fingerprint = fingerprint
            self._counts["resets"] += 1

    def _admit(
        self, users: Sequence[Hashable], whole: Events, events: Events
    ) -> tuple[list[_Slot], torch.Tensor]:
        """Find or make room for each user, and see what can be reused.

        Entries are emptied here and completed after the pass, so that an interrupted pass leaves
        none that promises more than its pages hold.

        Returns:
            what the users with pages reuse, and which users have none.
        """
        data = event_bytes(events)
        bounds = events.offsets.tolist()
        mine, done = set(users), set()
        slots, lent = [], []
        for b, user in enumerate(users):
            history = data[bounds[b] : bounds[b + 1]]
            entry = self._entries.get(user)
            need = pages_for(len(history)) - (len(entry.pages) if entry else 0)
            if user in done or not self._room(need, mine):
                lent.append(b)
                continue
            done.add(user)
            if entry is None:
                entry = self._entries[user] = Entry(single(whole, b))
            self._entries.move_to_end(user)
            digests = page_digests(history)
            same = matching(history, digests, entry.digests, entry.behaviours)
            entry.history, entry.behaviours, entry.digests = single(whole, b), 0, []
            if need > 0:
                entry.pages += self._pool.take(need)
            elif need < 0:
                self._pool.give(entry.pages[need:])
                del entry.pages[need:]
            slots.append(_Slot(b, entry, digests, same))
        self._counts["hits"] += sum(slot.reused > 0 for slot in slots)
        self._counts["misses"] += sum(slot.reused == 0 for slot in slots)
        self._counts["bypassed"] += len(lent)
        return slots, torch.tensor(lent, dtype=torch.int64)

    def _room(self, pages: int, keep: set[Hashable]) -> bool:
        """Let users go, longest unused first and none of ``keep``, until ``pages`` are free."""
        if pages <= self._pool.free:
            return True
        leaving, freed = [], self._pool.free
        for user, entry in self._entries.items():
            if user not in keep:
                leaving.append(user)
                freed += len(entry.pages)
                if freed >= pages:
                    break
        if freed < pages:
            return False
        self._counts["evictions"] += len(leaving)
        self.invalidate(leaving)
        return True

    def _run(self, slots: list[_Slot], events: Events, questions: Questions) -> torch.Tensor:
        """Compute what is new, keep it, and answer."""
        model = self.model
        reused = torch.tensor([slot.reused for slot in slots])
        where = layout(events.lengths, questions, reused)
        new = events.lengths - reused
        index = spread(events.offsets[:-1] + reused, new)
        part = events.take(index, lengths_to_offsets(new))
        since = model.gaps(events)[index] if model.config.query_time else None
        asked = question_tokens(model, events, questions)
        tokens = asked.new_empty(int(where.offsets[-1]), asked.shape[1])
        tokens[where.history] = model.history_tokens(part, gaps=since)
        tokens[where.targets] = asked
        prefixes = self._pool.prefixes([slot.entry.pages for slot in slots], 2 * events.lengths)
        hidden = model.run_cached(tokens, where.offsets, where.positions, prefixes, where.mask)
        for slot, length in zip(slots, events.lengths.tolist(), strict=True):
            slot.entry.behaviours, slot.entry.digests = length, slot.digests
        return model.answers(hidden[where.targets])
