"""Rows whose label depends on the item, the history and, where there is any, knowledge."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from pylum.knowledge import Knowledge
from pylum.rank import Feature, Schema

ITEMS, USERS, DIM = 30, 20, 8
SCHEMA = Schema(
    (
        Feature("item"),
        Feature("brand"),
        Feature("tags", "categories"),
        Feature("price", "number"),
        Feature("age", "number"),
        Feature("last_item", "sequence", "item", 6),
        Feature("last_brand", "sequence", "brand", 6),
        Feature("last_liked", "sequence", None, 6),
    ),
    crosses=(("brand", "item"), ("last_item", "item")),
)


def rows(count: int = 600, seed: int = 0, start: int = 1000) -> pa.Table:
    """Labels follow whether the item's brand is among those remembered, and the price."""
    random = np.random.default_rng(seed)
    item = random.integers(ITEMS, size=count)
    lengths = random.integers(0, 9, count)
    past = [random.integers(ITEMS, size=n) for n in lengths]
    price = random.normal(size=count)
    met = np.array([np.isin(i % 5, p % 5).any() for i, p in zip(item, past, strict=True)])
    odds = 2.0 * met + price - 1
    return pa.table(
        {
            "user": [f"u{u}" for u in random.integers(USERS, size=count)],
            "item": [f"i{i}" for i in item],
            "time": start + np.arange(count),
            "label": (random.random(count) < 1 / (1 + np.exp(-odds))).astype(np.int64),
            "brand": item % 5,
            "tags": [[f"t{i % 3}", f"t{i % 7}"][: i % 3] for i in item],
            "price": price,
            "age": np.where(random.random(count) < 0.1, np.nan, random.random(count)),
            "last_item": [[f"i{i}" for i in p] for p in past],
            "last_brand": [(p % 5).tolist() for p in past],
            "last_liked": [[bool(i % 2) for i in p] for p in past],
        }
    )


def knowledge(cut: int | None = 900, fingerprint: str = "a" * 8, seed: int = 0) -> Knowledge:
    """Of all users but the last, two moments each, and of all items but the last two."""
    generator = torch.Generator().manual_seed(seed)

    def unit(*shape: int) -> torch.Tensor:
        drawn = torch.randn(*shape, DIM, generator=generator)
        return torch.nn.functional.normalize(drawn, dim=-1)

    users = [f"u{u}" for u in range(USERS - 1) for _ in range(2)]
    times = torch.tensor([950, 1300] * (USERS - 1))
    return Knowledge(
        unit(len(users), 3),
        users,
        times,
        torch.zeros_like(times),
        ["a", "b", "c"],
        [f"i{i}" for i in range(ITEMS - 2)],
        unit(ITEMS - 2),
        0.05,
        cut,
        0,
        fingerprint,
    )


def known_rows(of: Knowledge, count: int = 600, seed: int = 0) -> pa.Table:
    """Rows whose label follows the similarity of the item and the first answer as of the row."""
    table = rows(count, seed)
    moments = of.rows(table["user"].to_pylist(), table["time"].to_numpy())
    items = of.item_rows(table["item"])
    score = (of.vectors[moments, 0] * of.item_vectors[items]).sum(1).numpy()
    odds = np.where((moments < 0) | (items < 0), 0, 6 * score)
    random = np.random.default_rng(seed + 1)
    label = (random.random(count) < 1 / (1 + np.exp(-odds))).astype(np.int64)
    return table.set_column(table.column_names.index("label"), "label", pa.array(label))
