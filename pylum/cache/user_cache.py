"""Keys and values of histories, kept between calls."""

from __future__ import annotations

import os
import threading
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch

from pylum.cache import files
from pylum.cache.answering import Answering
from pylum.cache.arguments import check_arguments
from pylum.cache.pages.host_pool import HostPool
from pylum.cache.pages.pool import PAGE, Pool
from pylum.cache.users.directory import Directory
from pylum.cache.users.entry import joined, merged
from pylum.cache.users.residence import Residence
from pylum.cache.warm import WarmQuestions
from pylum.cache.warm.graphs import graphs_of
from pylum.data.columns import listed
from pylum.data.events import Events
from pylum.data.histories import Histories, OnUnknown
from pylum.generation.asking import asking
from pylum.generation.packing import Asking, Questions, windows
from pylum.model import UserModel
from pylum.modes import on_host


@on_host
class UserCache:
    """Keeps the keys and values of histories, so that only what is new is computed.

    A call passes whole histories: the user's id finds the pages, and a chained hash of the
    behaviours proves which of them are the same; the rest is computed and kept. Late, edited or
    deleted events are computed again from the first page that changed. Conditions and candidates
    are never kept. Answers are those without a cache, up to rounding.

    Where a history outgrows the model's window, the window moves (every
    ``LUMConfig.window_step`` behaviours) and the history is computed anew: dropping the oldest
    behaviours would not be exact, since the deeper layers of later ones saw them. With
    ``overflow="sliding"`` they are dropped all the same; answers are then approximate, and
    ``stats["approximate_users"]`` of a generation counts whose.

    Users leave the device for the host's memory where ``host_tokens`` gives room there, longest
    unused first, and come back when they are asked: their pages are copied, not computed, and
    answers stay the same to the bit. On a GPU that memory is pinned; nobody waits for what leaves,
    and :meth:`prefetch` starts what comes back before it is needed, as a call with several batches
    does by itself. From there users leave for good, longest unused first.

    Everything is dropped when the weights of the model change. Calls from several threads take
    turns.

    Args:
        model: whose keys and values are kept.
        max_tokens: room on the model's device, two tokens a behaviour (one for HSTU's retrieval);
            users asked longest ago leave first. A batch of users must fit; who does not is
            answered without the cache. With ``host_tokens`` a call takes its users in passes
            that fit.
        page: tokens of a page; the kernels know 64.
        overflow: ``"rebuild"``, or ``"sliding"`` (approximate).
        host_tokens: more room, in the host's memory, for users who leave the device; 0: they leave
            for good. It is allocated at once.
        graphs: on a GPU, questions to histories that are cached are one launch, of a CUDA graph
            (an HSTU's once their tokens are looked up). Each size of a call is recorded once and
            padded to; ``stats`` counts ``recordings`` and ``replays``. What that does to the last
            bits of answers says :mod:`pylum.cache.warm`.

    Raises:
        ValueError: an argument is not as above, or the model has ``HSTUConfig.min_full``.
        MemoryError: the host has no room for ``host_tokens``.
    """

    # Whether histories grow between calls.
    _growing = True

    def __init__(
        self,
        model: UserModel,
        max_tokens: int,
        page: int = PAGE,
        *,
        overflow: Literal["rebuild", "sliding"] = "rebuild",
        host_tokens: int = 0,
        graphs: bool = True,
    ) -> None:
        check_arguments(model, max_tokens, page, overflow, host_tokens, self._growing)
        self.model = model
        self.max_tokens, self.host_tokens = max_tokens, host_tokens
        self.overflow: Literal["rebuild", "sliding"] = overflow
        self.fingerprint = model.fingerprint()
        self._pool = Pool(model, max_tokens // PAGE)
        self._host = HostPool(self._pool, host_tokens // PAGE)
        self._residence = Residence(self._pool, self._host)
        self._entries = self._residence.entries
        self._directory = Directory(model, self._residence, overflow == "sliding")
        make = graphs_of(model.device) if graphs else None
        self._warm = None if make is None else WarmQuestions(model, self._pool, make)
        self._answering = Answering(model, self._pool, self._directory, self._warm)
        self._lock = threading.RLock()
        self._resets = 0

    def __reduce_ex__(self, protocol: object) -> Any:
        raise TypeError(
            "a UserCache cannot be copied or pickled: each process makes its own, or reads what "
            "another has saved with UserCache.load"
        )

    def __len__(self) -> int:
        """Number of users."""
        return len(self._entries)

    def __contains__(self, user: Hashable) -> bool:
        return user in self._entries

    @property
    def pass_pages(self) -> int | None:
        """Pages that the users of one pass may take; None: passes take no notice.

        Those of the device, where users leave for the host: a pass's users then make room for the
        next one's, and nobody is answered without the cache for want of it.
        """
        return self._pool.pages if self.host_tokens else None

    @property
    def stats(self) -> dict[str, int]:
        """Counts since the beginning, and what is held now.

        ``hits`` and ``misses`` count users of a call with and without anything reused;
        ``bypassed`` those that found no room; ``evictions`` users who left for good, ``offloads``
        those who left for the host and ``resumes`` those who came back; ``slides`` counts windows
        moved by dropping, and ``resets`` how often changed weights emptied it. ``users`` and
        ``tokens`` are held in all, ``host_users`` and ``host_tokens`` of them in the host's memory.
        """
        with self._lock:
            entries = list(self._entries.values())
            away = [entry for entry in entries if entry.rows]
            return {
                **self._answering.counts,
                "resets": self._resets,
                "users": len(entries),
                "tokens": self._pool.tokens(sum(entry.behaviours for entry in entries)),
                "pages": self._pool.pages - self._pool.free,
                "max_pages": self._pool.pages,
                "host_users": len(away),
                "host_tokens": self._pool.tokens(sum(entry.behaviours for entry in away)),
                "host_pages": self._host.pages - self._host.free,
                "max_host_pages": self._host.pages,
            }

    def invalidate(self, users: Iterable[Hashable] | None = None) -> None:
        """Forget ``users``; None: everyone. Users that are not held are ignored."""
        with self._lock:
            self._residence.drop(list(self._entries) if users is None else listed(users))
            self._host.idle()

    def prefetch(self, users: Iterable[Hashable]) -> None:
        """Start to bring users back from the host's memory to the device, and do not wait for it.

        The call that asks them waits for what is still on its way. They come in their order as far
        as there is room beside the users of the last call; users who are on the device or not held
        are ignored, but count as used now.
        """
        users = listed(users)
        with self._lock, torch.inference_mode():
            self._check(self.model)
            self._directory.prefetch(users)

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
            The users it does not hold, never seen or gone, also for want of room now. Nothing is
            stored for them: their next call passes the whole history.
        """
        users = listed(users)
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
            return [user for user in users if user not in self._entries]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a folder that :meth:`load` reads.

        Raises:
            ValueError: ``path`` exists and is no earlier save.
            TypeError: a user id is neither a string nor a number.
        """
        with self._lock:
            self._check(self.model)
            about = {
                "fingerprint": self.fingerprint,
                "max_tokens": self.max_tokens,
                "host_tokens": self.host_tokens,
                "overflow": self.overflow,
            }
            self._host.begin()
            files.save(path, self._entries, self._pool, self._host, self.model.schema, about)
            self._host.end()

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        model: UserModel,
        max_tokens: int | None = None,
        host_tokens: int | None = None,
    ) -> UserCache:
        """A cache saved by :meth:`save`; where there is less room, users asked last are kept.

        Args:
            max_tokens, host_tokens: room; None: as it was.

        Raises:
            FileNotFoundError: there is no cache at ``path``.
            ValueError: a file is truncated or altered, or the cache is of another model.
        """
        about, tensors = files.read(path)
        room = about["max_tokens"] if max_tokens is None else max_tokens
        more = about["host_tokens"] if host_tokens is None else host_tokens
        cache = cls(model, room, overflow=about["overflow"], host_tokens=more)
        if about["fingerprint"] != cache.fingerprint:
            raise ValueError(
                f"the cache is of another model, {about['fingerprint']}, not {cache.fingerprint}"
            )
        with torch.inference_mode():
            entries = files.restore(about["users"], tensors, model.schema, cache._pool, cache._host)
        cache._entries.update(entries)
        return cache

    def answer(
        self,
        model: UserModel,
        users: Sequence[Hashable],
        whole: Events,
        events: Events,
        questions: Asking,
    ) -> tuple[torch.Tensor, dict[str, int]]:
        """Answer questions, reusing and keeping what the histories allow.

        Args:
            whole: histories of ``users`` in the model's rows.
            events: the same, cut to the model's window.
            questions: of each user.

        Returns:
            ``[Q, D]`` answers or ``[Q, tasks]`` predictions; counts of tokens computed and
            reused, and of approximate users.
        """
        with self._lock:
            self._check(model)
            self._host.begin()
            try:
                return self._answering.answer(users, whole, events, questions)
            finally:
                self._host.end()

    def _check(self, model: UserModel) -> None:
        """Empty the cache where weights changed; refuse another model, device or dtype."""
        if model.device != self._pool.device:
            raise ValueError(
                f"cache must be on the device of its model, {model.device}, got one on "
                f"{self._pool.device}: make a new one"
            )
        dtype = model.item_encoder.ids.dtype
        if dtype != self._pool.dtype:
            raise ValueError(
                f"cache must be of the dtype of its model, {dtype}, got one of {self._pool.dtype}: "
                "make a new one"
            )
        fingerprint = model.fingerprint()
        if model is not self.model and fingerprint != self.fingerprint:
            raise ValueError(
                f"cache must be of this model, got one of {self.fingerprint} for {fingerprint}"
            )
        if fingerprint != self.fingerprint:
            self.invalidate()
            self.fingerprint = fingerprint
            self._resets += 1


class RequestCache(UserCache):
    """Keys and values shared by the passes of one request, whose histories do not change."""

    _growing = False
