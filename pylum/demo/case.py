"""What a demo runs on: data with a protocol, and how to speak of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pylum.data import Interactions, Synthetic
from pylum.data.movielens import movielens_100k
from pylum.model import LUMConfig


@dataclass(frozen=True, eq=False)
class Case:
    """Data of a demo.

    Args:
        name: of the data.
        data: all of it.
        protocol: how it is split.
        condition: the field that is asked; None: everything is ANY.
        config, options: of the model and of ``pretrain``.
        world: where the data is synthetic, what knows the best possible prediction.
        oracle: the condition is derived from the item itself, so asking it gives something away.
    """

    name: str
    data: Interactions
    protocol: str
    condition: str | None
    config: LUMConfig
    options: dict[str, Any] = field(default_factory=dict)
    world: Synthetic | None = None
    oracle: bool = False


def synthetic(users: int, epochs: int) -> Case:
    """The offline default: a seeded world with hidden user types."""
    world = Synthetic(users=users)
    return Case(
        f"a synthetic shop, {users:,} users",
        world.interactions(),
        "global-time",
        "scene",
        LUMConfig(dim=64, layers=2, dropout=0.0, initial_scale=0.2),
        {"epochs": epochs, "lr": 3e-3},
        world,
    )


def ml_100k(epochs: int) -> Case:
    """MovieLens 100K, asked by genre."""
    return Case(
        "MovieLens 100K",
        movielens_100k(condition="genre"),
        "loo-full",
        "genre",
        LUMConfig(dim=64, layers=2, dropout=0.4),
        {"epochs": epochs},
        oracle=True,
    )


def parquet(
    path: Path, user: str, item: str, time: str, condition: str | None, epochs: int
) -> Case:
    """A table of the user's own."""
    if not path.exists():
        raise ValueError(f"data must be synthetic, ml-100k or an existing path, got {path}")
    return Case(
        path.name,
        Interactions.from_parquet(str(path), user=user, item=item, time=time, condition=condition),
        "global-time",
        condition,
        LUMConfig(dim=64, layers=2),
        {"epochs": epochs},
    )
