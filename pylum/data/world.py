"""A world of users with hidden types, of which everything is known.

Every user has one of a few types, which nobody sees. Each behaviour happens in a scene (and, as an
option, a daypart), drawn independently of everything else. The item follows a Markov chain that
depends on type and condition::

    p(item | type, condition, previous item, time) =
        p(category | type, scene, previous category, time)
      * p(brand | type, daypart, previous brand)
      * p(item | its category and brand, what is released by then)

The first two are softmaxes of a type's taste plus a habit that all types share; the last falls with
the price. Category, brand and price are visible, so an item never seen in training can be predicted
from its features. :mod:`pylum.data.bayes` follows the posterior of the type exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Floats = npt.NDArray[np.float64]

SCENES = ("search", "home", "night", "gift", "travel")
SCENE_SHARES = (0.28, 0.24, 0.2, 0.16, 0.12)
DAYPARTS = ("day", "evening")
CATEGORIES = (
    "tea",
    "coffee",
    "snacks",
    "books",
    "games",
    "music",
    "shoes",
    "bags",
    "lamps",
    "tools",
    "garden",
    "toys",
)
BRANDS = ("alder", "birch", "cedar", "elm", "fir", "hazel", "juniper", "rowan")
START = 1_735_689_600  # 2025-01-01, seconds
WINDOW = 90 * 86_400  # seconds over which every user's behaviours are spread evenly
RELEASE = START + int(0.92 * WINDOW)  # of the cold items: within the last tenth of the events

# How strongly things matter, in nats; the difficulty they give is pinned by a test.
TASTE = (3.5, 2.5)  # of a type in a scene for its first and second category
HABIT = 2.5  # of moving on to the category that follows the previous one in this scene
BRAND_TASTE = 1.5  # of a type for its brand
BRAND_HABIT = 2.0  # of staying with the previous brand
PRICE = 0.8  # against the dearest item of a shelf
LIKE = 1.5  # of an item of the type's own brand


@dataclass(frozen=True, eq=False, kw_only=True)
class World:
    """Tastes, habits and items.

    Args:
        world: seed of all of them; two data sets of one world differ in their users only.
        types: number of hidden types.
        items_per_shelf: items of each category and brand.
        cold: share of items released only at :data:`RELEASE`.
        dayparts: a second condition field, on which the brand depends.
        drift: 0 to 1, how far the tastes have moved to others when the time ends.
    """

    world: int = 0
    types: int = 6
    items_per_shelf: int = 5
    cold: float = 0.1
    dayparts: bool = False
    drift: float = 0.0

    def __post_init__(self) -> None:
        if self.types < 1 or self.items_per_shelf < 1:
            raise ValueError(
                "types and items_per_shelf must be at least 1, "
                f"got {self.types}, {self.items_per_shelf}"
            )
        if not (0 <= self.cold < 1 and 0 <= self.drift <= 1):
            raise ValueError(
                f"cold must be in [0, 1), drift in [0, 1], got {self.cold}, {self.drift}"
            )

    @property
    def num_items(self) -> int:
        return len(CATEGORIES) * len(BRANDS) * self.items_per_shelf

    @cached_property
    def category(self) -> npt.NDArray[np.int64]:
        """``[items]`` category of each item."""
        return np.arange(self.num_items) // (len(BRANDS) * self.items_per_shelf)

    @cached_property
    def brand(self) -> npt.NDArray[np.int64]:
        """``[items]`` brand of each item."""
        return np.arange(self.num_items) // self.items_per_shelf % len(BRANDS)

    @cached_property
    def price(self) -> Floats:
        """``[items]`` price of each item, 0 the cheapest of its shelf and 1 the dearest."""
        steps = max(1, self.items_per_shelf - 1)
        return np.arange(self.num_items) % self.items_per_shelf / steps

    @cached_property
    def is_cold(self) -> npt.NDArray[np.bool_]:
        """``[items]`` whether an item is released only at :data:`RELEASE`."""
        shelf = np.arange(self.num_items) // self.items_per_shelf
        number = np.arange(self.num_items) % self.items_per_shelf
        shelves = len(CATEGORIES) * len(BRANDS)
        out = np.zeros(self.num_items, bool)
        if self.items_per_shelf > 1:
            chosen = self._random("cold").permutation(shelves)
            for turn in range(round(self.cold * self.num_items)):
                place = chosen[turn % shelves]
                out |= (shelf == place) & (
                    number == (turn + turn // shelves) % self.items_per_shelf
                )
        return out

    @cached_property
    def names(self) -> list[str]:
        """``[items]`` raw ids: the category and a number, as ``tea-07``."""
        each = len(BRANDS) * self.items_per_shelf
        digits = len(str(each - 1))
        return [f"{CATEGORIES[i // each]}-{i % each:0{digits}}" for i in range(self.num_items)]

    @cached_property
    def category_given(self) -> tuple[Floats, Floats]:
        """``[types, scenes, categories + 1, categories]`` p(category | type, scene, previous).

        At the start of time and, with drift, at its end; the last previous category is none.
        """
        random, count = self._random("categories"), len(CATEGORIES)
        habit = np.zeros((len(SCENES), count + 1, count))
        for scene in range(len(SCENES)):
            habit[scene, np.arange(count), _derangement(random, count)] = HABIT
        tables = []
        for _ in range(2):
            taste = np.zeros((self.types, len(SCENES), 1, count))
            for strength in TASTE:
                for scene in range(len(SCENES)):
                    order = random.permutation(count)
                    for kind in range(self.types):
                        taste[kind, scene, 0, order[kind % count]] += strength
            tables.append(_softmax(taste + habit))
        return tables[0], tables[1]

    @cached_property
    def brand_given(self) -> Floats:
        """``[types, dayparts, brands + 1, brands]`` p(brand | type, daypart, previous brand)."""
        random, count = self._random("brands"), len(BRANDS)
        logits = np.zeros((self.types, len(DAYPARTS), count + 1, count))
        logits[:, :, np.arange(count), np.arange(count)] += BRAND_HABIT
        for part in range(len(DAYPARTS)):
            order = random.permutation(count)
            for kind in range(self.types):
                logits[kind, part, :, order[kind % count]] += BRAND_TASTE
        if not self.dayparts:
            logits[:, 1] = logits[:, 0]
        return _softmax(logits)

    @cached_property
    def item_given(self) -> Floats:
        """``[2, items]`` p(item | its category and brand) before and after :data:`RELEASE`."""
        weight = np.exp(-PRICE * self.price)
        both = np.stack([np.where(self.is_cold, 0, weight), weight])
        shelves = both.reshape(2, -1, self.items_per_shelf)
        return (shelves / shelves.sum(2, keepdims=True)).reshape(2, -1)

    @cached_property
    def like_given(self) -> Floats:
        """``[types, brands]`` p(liked | type, brand)."""
        own = self.brand_given[:, 0, -1]
        return 1 / (1 + np.exp(-LIKE * (2.0 * (own > 1.5 / len(BRANDS)) - 1)))

    def drifted(self, time: npt.NDArray[np.int64]) -> Floats:
        """How far the tastes have moved at each time, 0 to 1."""
        return self.drift * np.clip((time - START) / WINDOW, 0, 1)

    def item_table(self) -> pa.Table:
        """Columns: item, category, brand, price."""
        return pa.table(
            {
                "item": self.names,
                "category": [CATEGORIES[c] for c in self.category],
                "brand": [BRANDS[b] for b in self.brand],
                "price": pa.array(self.price, pa.float32()),
            }
        )

    def _random(self, what: str) -> np.random.Generator:
        return np.random.default_rng([self.world, *what.encode()])


def _softmax(logits: Floats) -> Floats:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def _derangement(random: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
    """A permutation in one cycle, so that nothing stays where it is."""
    order = random.permutation(count)
    out = np.empty(count, np.int64)
    out[order] = np.roll(order, -1)
    return out
