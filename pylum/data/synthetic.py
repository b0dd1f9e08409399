"""Users of a synthetic world and what they do, drawn by seed, as many as asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pylum.data.bayes import Bayes, Floats, Mode
from pylum.data.histories import Histories
from pylum.data.interactions import MEMORY_LIMIT, Interactions
from pylum.data.schema import Field
from pylum.data.world import (
    BRANDS,
    CATEGORIES,
    DAYPARTS,
    RELEASE,
    SCENE_SHARES,
    SCENES,
    START,
    WINDOW,
    World,
)

BLOCK = 256  # users drawn from one random stream


@dataclass(frozen=True, eq=False, kw_only=True)
class Synthetic(World):
    """Users of a :class:`~pylum.data.world.World`, and the best possible prediction for them.

    Args:
        users: how many.
        seed: of the users and what they do.
        length: fewest and most behaviours of a user.

    Other arguments as :class:`~pylum.data.world.World`.

    Raises:
        ValueError: a size is not positive, or a share not in its range.
    """

    users: int = 3000
    seed: int = 0
    length: tuple[int, int] = (40, 60)

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.length
        if self.users < 1:
            raise ValueError(f"users must be at least 1, got {self.users}")
        if not 1 <= low <= high:
            raise ValueError(f"length must be 1 <= fewest <= most, got {self.length}")

    def record_batches(self, rows: int = 65_536) -> Iterator[pa.RecordBatch]:
        """All behaviours, user by user, in batches of ``rows``, on which nothing else depends.

        Columns: user, item, time (seconds), scene, daypart (with ``dayparts``), liked.
        """
        held: list[pa.RecordBatch] = []
        count = 0
        for start in range(0, self.users, BLOCK):
            held.append(self._block(start // BLOCK, start, min(start + BLOCK, self.users)))
            count += held[-1].num_rows
            while count >= rows:
                table = pa.Table.from_batches(held).combine_chunks()
                yield table.slice(0, rows).to_batches()[0]
                held = table.slice(rows).to_batches()
                count -= rows
        if count:
            yield pa.Table.from_batches(held).combine_chunks().to_batches()[0]

    def interactions(self, *, memory_limit: int = MEMORY_LIMIT) -> Interactions:
        """The behaviours as a data set: conditions scene (and daypart), outcome liked."""
        conditions: list[str | Field] = ["scene", *(["daypart"] if self.dayparts else [])]
        return Interactions.from_arrow(
            self.record_batches(),
            condition=conditions,
            event="liked",
            items=self.item_table(),
            memory_limit=memory_limit,
        )

    def hidden_types(self) -> npt.NDArray[np.int64]:
        """``[users]`` the type of each user."""
        blocks = range(-(-self.users // BLOCK))
        drawn = [self._user_random(b).integers(self.types, size=BLOCK) for b in blocks]
        return np.concatenate(drawn)[: self.users]

    def bayes(
        self,
        histories: Histories,
        conditions: Sequence[Any] | Mapping[str, Sequence[Any]] | None = None,
        *,
        times: Any = None,
    ) -> Floats:
        """The exact probability of the next item, given everything but the hidden type.

        Args:
            histories: of this world, ``B`` users.
            conditions: ``C`` scenes or ``ANY``, asked of every user; a dict for several fields,
                whose rows are zipped; None: ``ANY``.
            times: ``[B]`` seconds at which is asked; by default that of the last behaviour.

        Returns:
            ``[B * C, items]`` float64, user by user, in the order of ``names``.
        """
        return self._bayes.predict(self._bayes.next_moments(histories, conditions, times))

    def chances_of(self, data: Interactions, events: Any, items: Any) -> Floats:
        """The exact probability that an event's user chose an item at it, from everything earlier.

        Args:
            data: of this world.
            events: ``[N]`` which event of ``data``.
            items: ``[N]`` places in ``names``.

        Returns:
            ``[N]`` float64.
        """
        events, items = np.asarray(events, np.int64), np.asarray(items, np.int64)
        moments = self._bayes.moments(data.histories())
        out = np.empty(len(events))
        for start in range(0, len(events), BLOCK * 8):
            rows = slice(start, start + BLOCK * 8)
            chances = self._bayes.predict(moments.take(events[rows]))
            out[rows] = np.take_along_axis(chances, items[rows, None], 1)[:, 0]
        return out

    def bayes_recall(self, part: Interactions, k: int = 10, *, mode: Mode = "right") -> float:
        """Share of the targets of ``part`` among the ``k`` best items of the exact prediction.

        Args:
            mode: ask with the ``right`` condition of each target, with a ``wrong`` one (another
                scene drawn by seed 0, the other daypart), or with ``any``.
        """
        hits = total = 0
        for chosen, chances in self._bayes.blocks(part, mode):
            own = chances[np.arange(len(chosen)), chosen, None]
            # Ties go to the lower item, as in top-k.
            ahead = (chances > own) | (
                (chances == own) & (np.arange(self.num_items) < chosen[:, None])
            )
            hits += int((ahead.sum(1) < k).sum())
            total += len(chosen)
        return hits / total

    def entropy(self, part: Interactions, *, mode: Mode = "right") -> float:
        """Mean entropy of the exact prediction at the targets of ``part``, in nats.

        What a model's mean cross-entropy cannot go below, but by chance.
        """
        sums = total = 0.0
        for _, chances in self._bayes.blocks(part, mode):
            sums -= float((chances * np.log(np.maximum(chances, 1e-300))).sum())
            total += len(chances)
        return sums / total

    def loss(self, part: Interactions, *, mode: Mode = "right") -> float:
        """Mean cross-entropy of the exact prediction on the targets themselves, in nats."""
        sums = total = 0.0
        for chosen, chances in self._bayes.blocks(part, mode):
            sums -= float(np.log(chances[np.arange(len(chosen)), chosen]).sum())
            total += len(chosen)
        return sums / total

    @cached_property
    def _bayes(self) -> Bayes:
        return Bayes(self)

    def _user_random(self, block: int) -> np.random.Generator:
        return np.random.default_rng([self.world, self.seed, block])

    def _block(self, block: int, first: int, last: int) -> pa.RecordBatch:
        """The behaviours of users ``first`` to ``last``; a full block is drawn whatever is kept."""
        random = self._user_random(block)
        kinds = random.integers(self.types, size=BLOCK)
        lengths = random.integers(self.length[0], self.length[1] + 1, size=BLOCK)
        steps = self.length[1]
        times = START + (random.random((BLOCK, steps)) * WINDOW).astype(np.int64)
        times[np.arange(steps) >= lengths[:, None]] = np.iinfo(np.int64).max
        times.sort(1)
        scenes = random.choice(len(SCENES), (BLOCK, steps), p=SCENE_SHARES)
        parts = random.integers(len(DAYPARTS), size=(BLOCK, steps))
        items = np.empty((BLOCK, steps), np.int64)
        category = np.full(BLOCK, len(CATEGORIES))
        brand = np.full(BLOCK, len(BRANDS))
        early, late = self.category_given
        shelves = self.item_given.reshape(2, -1, self.items_per_shelf)
        for step in range(steps):
            moved = self.drifted(np.minimum(times[:, step], START + WINDOW))[:, None]
            at = (kinds, scenes[:, step], category)
            category = _draw(random, (1 - moved) * early[at] + moved * late[at])
            brand = _draw(random, self.brand_given[kinds, parts[:, step], brand])
            shelf = category * len(BRANDS) + brand
            released = (times[:, step] >= RELEASE).astype(int)
            number = _draw(random, shelves[released, shelf])
            items[:, step] = shelf * self.items_per_shelf + number
        chance = self.like_given[kinds[:, None], self.brand[items]]
        liked = random.random((BLOCK, steps)) < chance
        kept = (np.arange(steps) < lengths[:, None]) & (np.arange(BLOCK) < last - first)[:, None]
        users = pa.array([f"user-{u:07}" for u in range(first, last)])
        columns: dict[str, Any] = {
            "user": users.take(pa.array(np.nonzero(kept)[0])),
            "item": pa.array(self.names).take(pa.array(items[kept])),
            "time": pa.array(times[kept]),
            "scene": pa.array(SCENES).take(pa.array(scenes[kept])),
        }
        if self.dayparts:
            columns["daypart"] = pa.array(DAYPARTS).take(pa.array(parts[kept]))
        columns["liked"] = pa.array(liked[kept])
        return pa.record_batch(columns)


def _draw(random: np.random.Generator, chances: Floats) -> npt.NDArray[np.int64]:
    """One index per row of ``[N, n]`` probabilities."""
    sums = chances.cumsum(1)
    return np.minimum(
        (random.random((len(chances), 1)) * sums[:, -1:] > sums).sum(1), chances.shape[1] - 1
    )
