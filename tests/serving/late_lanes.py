"""Lanes that run as late as they may, and report work on the same pages that nothing orders."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch

from pylum import UserCache

Clock = dict[str, int]


@dataclass
class Work:
    """One piece of a lane's: what it does, what it comes after, and whether it is done."""

    lane: str
    run: Callable[[], None]
    needs: list[Work]
    clock: Clock
    done: bool = False


@dataclass
class LateMark:
    """A point of a lane, or where ``work`` is None, of the caller's."""

    lanes: LateLanes
    work: Work | None
    clock: Clock

    def wait(self) -> None:
        if self.work is not None:
            self.lanes.finish(self.work)
        self.lanes.join("caller", self.clock)


class LateLanes:
    """``pylum.cache.pages.lanes.Lanes`` for a test on the host.

    Work waits until somebody waits for it, or, by ``seed``, runs at some earlier call: as a GPU may
    have it. Each access to a page of the device or a row of the host is compared with all others
    (vector clocks): two of which one writes must be ordered by marks.
    """

    def __init__(self, cache: UserCache, seed: int) -> None:
        self.random = random.Random(seed)
        self.clocks: dict[str, Clock] = defaultdict(dict)
        self.queues: dict[str, list[Work]] = {"out": [], "back": []}
        self.accesses: dict[tuple[str, int], list[tuple[str, Clock, bool]]] = defaultdict(list)
        self.current = "caller"
        self.clock = self.clocks["caller"]
        self.ran = 0
        host, pool = cache._host, cache._pool
        for name in ("_gather", "_load", "_store", "_fetch"):
            setattr(host, name, partial(self._seen, name, getattr(host, name)))
        pool.prefixes = partial(self._seen, "prefixes", pool.prefixes)  # type: ignore[method-assign]
        host.lanes = self

    def here(self) -> LateMark:
        return LateMark(self, None, self._tick("caller"))

    def run(self, lane: str, work: Callable[[], None], after: Iterable[LateMark] = ()) -> LateMark:
        marks = list(after)
        for mark in marks:
            self.join(lane, mark.clock)
        needs = [*self.queues[lane][-1:], *(mark.work for mark in marks if mark.work is not None)]
        queued = Work(lane, work, needs, self._tick(lane))
        self.queues[lane].append(queued)
        early = self.random.choice(["none", "this", "any"])
        if early != "none":
            pending = [w for queue in self.queues.values() for w in queue if not w.done]
            self.finish(queued if early == "this" else self.random.choice(pending))
        return LateMark(self, queued, queued.clock)

    def share(self, tensors: Iterable[torch.Tensor]) -> None:
        pass

    def finish(self, work: Work) -> None:
        if work.done:
            return
        work.done = True
        for before in work.needs:
            self.finish(before)
        work.needs = []
        current, clock = self.current, self.clock
        self.current, self.clock = work.lane, work.clock
        work.run()
        self.ran += 1
        self.current, self.clock = current, clock

    def join(self, name: str, clock: Clock) -> None:
        mine = self.clocks[name]
        for other, time in clock.items():
            mine[other] = max(mine.get(other, 0), time)

    def _tick(self, name: str) -> Clock:
        clock = self.clocks[name]
        clock[name] = clock.get(name, 0) + 1
        return dict(clock)

    def _seen(self, name: str, function: Callable, *args):
        if name == "prefixes":
            for table in args[0]:
                self._access("page", table, True)
        elif name == "_gather":
            self._access("page", args[0], False)
        elif name == "_load":
            self._access("page", args[1], True)
        elif name == "_store":
            self._access("row", args[1], True)
        else:
            self._access("row", args[0], False)
        return function(*args)

    def _access(self, kind: str, numbers: Iterable[int], writes: bool) -> None:
        clock = self._tick("caller") if self.current == "caller" else self.clock
        for number in numbers:
            before = self.accesses[kind, number]
            for other, theirs, wrote in before:
                if other != self.current and (wrote or writes):
                    ordered = clock.get(other, 0) >= theirs[other]
                    ordered |= theirs.get(self.current, 0) >= clock[self.current]
                    assert ordered, f"{self.current} and {other} meet on {kind} {number}"
            before.append((self.current, clock, writes))
