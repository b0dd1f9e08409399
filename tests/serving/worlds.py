"""A small data set and untrained models of it: what answers promise holds for any weights."""

from __future__ import annotations

import functools

import numpy as np
import torch

from pylum.data import Field, Interactions
from pylum.model import LUM, LUMConfig

SCENES = ["home", "search", "cart"]
ITEMS = 60


@functools.cache
def data(users: int = 12, longest: int = 40) -> Interactions:
    """Users of 1 to ``longest`` events, one condition of each kind, an outcome, item features."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, longest, users)
    lengths[0] = longest
    total = int(lengths.sum())
    owner = np.repeat([f"u{i}" for i in range(users)], lengths)
    items = np.concatenate([rng.permutation(ITEMS)[:n] for n in lengths])
    return Interactions.from_arrays(
        owner.tolist(),
        [f"i{i}" for i in items],
        (1_700_000_000 + rng.integers(0, 100_000, total)).tolist(),
        condition={
            "scene": rng.choice([*SCENES, None], total).tolist(),
            Field("hour", "number"): rng.uniform(0, 24, total).astype(np.float32),
            Field("text", "vector", 3): rng.normal(size=(total, 3)).astype(np.float32),
        },
        event={"rating": rng.integers(1, 6, total).tolist()},
        items=item_table(range(ITEMS)),
    )


def item_table(items) -> dict[str, list]:
    return {
        "item": [f"i{i}" for i in items],
        "genre": [f"g{i % 5}" for i in items],
        "year": [float(1990 + i % 30) for i in items],
        "tags": [[f"t{i % 3}", f"t{i % 4}"] for i in items],
    }


@functools.cache
def model(**changes) -> LUM:
    """Random weights, large enough that conditions and histories matter."""
    config = {
        "dim": 16,
        "width": 32,
        "heads": 2,
        "layers": 2,
        "max_length": 64,
        "query_time": True,
        "calendar": ("hour",),
        **changes,
    }
    torch.manual_seed(1)
    made = LUM(LUMConfig(**config), data().schema, data().vocabs, data().items)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return made.eval()


def event(item: int, time: int, scene: str | None = "home", **more) -> dict:
    return {"item": f"i{item}", "time": time, "scene": scene, **more}


def history(length: int, seed: int = 0) -> list[dict]:
    """Distinct items, all fields filled."""
    rng = np.random.default_rng(seed)
    return [
        event(
            int(item) % ITEMS,
            1_700_000_000 + 60 * n,
            SCENES[int(rng.integers(3))],
            hour=float(rng.uniform(0, 24)),
            text=rng.normal(size=3).tolist(),
            rating=int(rng.integers(1, 6)),
        )
        for n, item in enumerate(rng.permutation(max(length, ITEMS))[:length])
    ]
