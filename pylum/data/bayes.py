"""The best possible prediction in a synthetic world: exact posterior, recall and entropy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pylum.data.columns import ANY
from pylum.data.events import OOV_ROW, Events
from pylum.data.histories import Histories
from pylum.data.interactions import Interactions
from pylum.data.schema import Field, Schema
from pylum.data.vocab import Vocab
from pylum.data.vocabs import Vocabs
from pylum.data.world import DAYPARTS, RELEASE, SCENE_SHARES, SCENES, START, World

Mode = Literal["right", "wrong", "any"]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
QUERY_BLOCK = 2048
SCHEMA = Schema((Field("scene"), Field("daypart")), (Field("liked"),))


@dataclass(frozen=True, eq=False)
class Moments:
    """Points at which an item is chosen, or could be: ``Q`` of them.

    Args:
        posterior: ``[Q, types]`` of the user's type, from everything earlier.
        previous: ``[Q]`` the item before, -1 for none.
        scene, daypart: ``[Q]``, -1 for not known.
        time: ``[Q]`` int64 seconds.
        chosen: ``[Q]`` the item, -1 where none was.
    """

    posterior: Floats
    previous: Ints
    scene: Ints
    daypart: Ints
    time: Ints
    chosen: Ints

    def __len__(self) -> int:
        return len(self.time)

    def take(self, index: Any) -> Moments:
        return Moments(
            self.posterior[index],
            self.previous[index],
            self.scene[index],
            self.daypart[index],
            self.time[index],
            self.chosen[index],
        )


class Bayes:
    """Predicts with full knowledge of a world, except for what is hidden: the users' types."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._vocabs = Vocabs(
            Vocab(world.names, kind="fixed"),
            {
                "scene": Vocab(SCENES, kind="fixed", any=True),
                "daypart": Vocab(DAYPARTS, kind="fixed", any=True),
            },
            {"liked": Vocab([False, True], kind="fixed")},
        )
        shares = np.asarray(SCENE_SHARES)[:, None, None]
        # An unknown condition is the last of its axis: the mean over the known ones.
        self._categories = [
            np.concatenate([table, (table * shares).sum(1, keepdims=True)], 1)
            for table in world.category_given
        ]
        brands = world.brand_given
        self._brands = np.concatenate([brands, brands.mean(1, keepdims=True)], 1)

    def moments(self, data: Histories) -> Moments:
        """Every event of ``data``, in order, as a moment of choice.

        Raises:
            ValueError: an item is not of this world.
        """
        events = data.encode(self._vocabs, SCHEMA, on_unknown="raise")
        one, evidence = self._evidence(events)
        return replace(one, posterior=_normalised(_before(evidence, events.offsets.numpy())))

    def next_moments(self, data: Histories, conditions: Any = None, times: Any = None) -> Moments:
        """The end of each history, once per condition, user by user.

        Args:
            conditions: scenes or ``ANY``, or a dict of equal lists by field; None: ``ANY``.
            times: ``[B]`` seconds; None: the last event's, or the first second for none.

        Raises:
            ValueError: a condition or an item is not of this world, or lengths do not match.
        """
        asked = conditions if isinstance(conditions, Mapping) else {"scene": conditions or [ANY]}
        codes = {name: self._asked(name, asked[name]) for name in asked}
        if len({len(code) for code in codes.values()}) != 1:
            raise ValueError(f"conditions must be lists of one length, got {asked}")
        count = len(next(iter(codes.values())))
        events = data.encode(self._vocabs, SCHEMA, on_unknown="raise")
        one, evidence = self._evidence(events)
        offsets = events.offsets.numpy()
        sums = np.concatenate([np.zeros((1, self.world.types)), evidence.cumsum(0)])
        last, some = offsets[1:] - 1, np.diff(offsets) > 0
        previous = np.full(len(data), -1)
        previous[some] = one.chosen[last[some]]
        if times is None:
            times = np.full(len(data), START)
            times[some] = one.time[last[some]]
        times = np.asarray(times, np.int64)
        if times.shape != (len(data),):
            raise ValueError(f"times must be [{len(data)}], got {list(times.shape)}")
        unknown = np.full(count, -1)
        return Moments(
            np.repeat(_normalised(sums[offsets[1:]] - sums[offsets[:-1]]), count, 0),
            np.repeat(previous, count),
            np.tile(codes.get("scene", unknown), len(data)),
            np.tile(codes.get("daypart", unknown), len(data)),
            np.repeat(times, count),
            np.full(len(data) * count, -1),
        )

    def predict(self, moments: Moments) -> Floats:
        """``[Q, items]`` probability of each item."""
        categories, brands = self._factors(moments)
        shelf = np.einsum("qt,qtc,qtb->qcb", moments.posterior, categories, brands)
        released = (moments.time >= RELEASE).astype(int)
        spread = np.repeat(shelf.reshape(len(moments), -1), self.world.items_per_shelf, 1)
        out: Floats = spread * self.world.item_given[released]
        return out

    def blocks(
        self, part: Interactions, mode: Mode, seed: int = 0
    ) -> Iterator[tuple[Ints, Floats]]:
        """Chosen items and ``[Q, items]`` predictions at the targets of ``part``, by blocks."""
        if mode not in ("right", "wrong", "any"):
            raise ValueError(f"mode must be right, wrong or any, got {mode!r}")
        moments = self.moments(part.histories())
        if part.events.targets is not None:
            moments = moments.take(part.events.targets.numpy())
        if mode == "any":
            unknown = np.full(len(moments), -1)
            moments = replace(moments, scene=unknown, daypart=unknown)
        elif mode == "wrong":
            random = np.random.default_rng(seed)
            other = random.integers(1, len(SCENES), size=len(moments))
            daypart = np.where(moments.daypart < 0, -1, len(DAYPARTS) - 1 - moments.daypart)
            moments = replace(moments, scene=(moments.scene + other) % len(SCENES), daypart=daypart)
        for start in range(0, len(moments), QUERY_BLOCK):
            block = moments.take(slice(start, start + QUERY_BLOCK))
            yield block.chosen, self.predict(block)

    def _asked(self, name: str, values: Sequence[Any]) -> Ints:
        if name not in self._vocabs.conditions:
            raise ValueError(f"conditions must be scene and daypart, got {name!r}")
        rows = self._vocabs.conditions[name].rows(list(values), name)
        if (rows == OOV_ROW).any():
            raise ValueError(f"{name} must be of this world, got {list(values)}")
        return rows - 2

    def _evidence(self, events: Events) -> tuple[Moments, Floats]:
        """The events as moments, without a posterior, and ``[N, types]`` their log likelihood."""
        chosen = events.items.numpy() - 1
        previous = np.roll(chosen, 1)
        previous[events.offsets[:-1][events.lengths > 0].numpy()] = -1

        def condition(name: str) -> Ints:
            return np.maximum(events.conditions[name].numpy() - 2, -1)

        one = Moments(
            np.empty((len(chosen), self.world.types)),
            previous,
            condition("scene"),
            condition("daypart"),
            events.times.numpy(),
            chosen,
        )
        evidence = np.log(self._chosen_given_type(one))
        chance = self.world.like_given[:, self.world.brand[chosen]].T
        said = events.outcomes["liked"].numpy()[:, None]
        return one, evidence + np.log(np.select([said == 1, said == 2], [1 - chance, chance], 1.0))

    def _factors(self, moments: Moments) -> tuple[Floats, Floats]:
        """``[Q, types, categories]`` and ``[Q, types, brands]``."""
        world = self.world
        category = np.where(moments.previous < 0, -1, world.category[moments.previous])
        brand = np.where(moments.previous < 0, -1, world.brand[moments.previous])
        early, late = (table[:, moments.scene, category] for table in self._categories)
        moved = world.drifted(moments.time)[:, None]
        categories = np.moveaxis((1 - moved) * early + moved * late, 0, 1)
        return categories, np.moveaxis(self._brands[:, moments.daypart, brand], 0, 1)

    def _chosen_given_type(self, moments: Moments) -> Floats:
        """``[Q, types]`` probability of the chosen item."""
        out = np.empty((len(moments), self.world.types))
        for start in range(0, len(moments), QUERY_BLOCK):
            block = moments.take(slice(start, start + QUERY_BLOCK))
            categories, brands = self._factors(block)
            rows = np.arange(len(block))
            released = (block.time >= RELEASE).astype(int)
            out[start : start + len(block)] = (
                categories[rows, :, self.world.category[block.chosen]]
                * brands[rows, :, self.world.brand[block.chosen]]
                * self.world.item_given[released, block.chosen][:, None]
            )
        return out


def _before(evidence: Floats, offsets: Ints) -> Floats:
    """``[N, types]`` what the earlier events of the same user say."""
    sums = np.concatenate([np.zeros((1, evidence.shape[1])), evidence.cumsum(0)])
    out: Floats = sums[:-1] - np.repeat(sums[offsets[:-1]], np.diff(offsets), axis=0)
    return out


def _normalised(logs: Floats) -> Floats:
    weights = np.exp(logs - logs.max(1, keepdims=True))
    out: Floats = weights / weights.sum(1, keepdims=True)
    return out
