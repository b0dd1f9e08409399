"""The sizes of each ranker and how it is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any

LEAST = {"epochs": 0, "seed": 0}
BELOW = {"dropout": 1, "knowledge_dropout": 1}
POSITIVE = ("lr", "knowledge_lr", "ftrl_alpha")


@dataclass(frozen=True)
class Settings:
    """Arguments of a ranker beside its schema.

    Args:
        dim: of every embedding.
        hidden: layers before the logit: the top MLP, over knowledge too.
        bottom: dlrm: layers over the numbers, before the last one of ``dim``.
        attention: din, sim_rank: layers of the activation unit.
        found: sim_rank: behaviours that the search keeps.
        short: sim_rank: latest behaviours that are always attended.
        heads: sim_rank: of the attention over what was found.
        buckets: wide_deep: rows of the wide table, into which crosses are hashed.
        min_count: values seen less often are unknown.
        dropout: of hidden units.
        knowledge_dropout: share of training rows whose user or item is left out of knowledge, so
            that what is missing is trained.
        knowledge_lr: of what knowledge changes, times ``lr``.
        knowledge_dim: width to which vectors of knowledge are made narrower.
        initial_scale: standard deviation of new embeddings.
        epochs: passes over the rows, with knowledge as many again for what it changes; with
            ``valid`` the best one is kept.
        batch_rows: rows of an update.
        lr: learning rate: AdaGrad for wide_deep, Adam for the others.
        weight_decay: L2 of everything but the wide part, in the gradient.
        ftrl_alpha, ftrl_l1, ftrl_l2: wide_deep: of the wide part's FTRL.
        seed: of initialisation, order and dropout.
    """

    dim: int = 16
    hidden: tuple[int, ...] = (128, 64)
    bottom: tuple[int, ...] = (64,)
    attention: tuple[int, ...] = (36,)
    found: int = 20
    short: int = 10
    heads: int = 2
    buckets: int = 1 << 18
    min_count: int = 2
    dropout: float = 0.0
    knowledge_dropout: float = 0.1
    knowledge_lr: float = 1.0
    knowledge_dim: int = 16
    initial_scale: float = 0.05
    epochs: int = 3
    batch_rows: int = 512
    lr: float = 1e-3
    weight_decay: float = 1e-6
    ftrl_alpha: float = 0.02
    ftrl_l1: float = 1.0
    ftrl_l2: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for f in fields(self):
            given, low = getattr(self, f.name), LEAST.get(f.name, 1)
            if isinstance(f.default, tuple):
                wanted = "positive widths"
                fits = isinstance(given, (list, tuple)) and all(_is(w, Integral, 1) for w in given)
                given = tuple(given) if fits else given
            elif isinstance(f.default, int):
                wanted, fits = f"an integer of at least {low}", _is(given, Integral, low)
            else:
                above, below = f.name in POSITIVE, BELOW.get(f.name, math.inf)
                wanted = f"a number in {'(' if above else '['}0, {below})"
                fits = _is(given, Real, 0) and given < below and (given > 0 or not above)
            if not fits:
                raise ValueError(f"{f.name} must be {wanted}, got {given!r}")
            plain: Any = type(f.default)  # a number of numpy's would not go into JSON
            object.__setattr__(self, f.name, plain(given))
        if not self.hidden:
            raise ValueError("hidden must hold at least one width, got none")

    @classmethod
    def of(cls, name: str, given: dict[str, Any]) -> Settings:
        """Those of a ranker, with what is given.

        Raises:
            ValueError: a setting is unknown or not as above.
        """
        known = [f.name for f in fields(cls)]
        strangers = sorted(set(given) - set(known))
        if strangers:
            raise ValueError(f"settings must be among {', '.join(known)}, got {strangers}")
        own: dict[str, Any] = {}
        if name == "wide_deep":
            own = {"dim": 32, "hidden": (256, 128, 64), "lr": 0.02}
        return replace(cls(), **{**own, **given})


def _is(value: Any, kind: type, low: int) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and bool(value >= low)  # type: ignore[operator]
