"""What a table of behaviours holds: its fields, typed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Kind = Literal["category", "categories", "number", "vector"]
KINDS = ("category", "categories", "number", "vector")


@dataclass(frozen=True)
class Field:
    """One feature.

    ``category``: one value of a vocabulary. ``categories``: any number of values of one vocabulary
    (item features only). ``number``: a float. ``vector``: ``dim`` floats, e.g. a text embedding.
    """

    name: str
    kind: Kind = "category"
    dim: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if (self.kind == "vector") != (self.dim > 0):
            raise ValueError(f"dim is the width of a vector field, got {self.dim} for {self.kind}")


@dataclass(frozen=True)
class Schema:
    """The fields of behaviours and items.

    Args:
        conditions: what is known before the choice: scenario, query, category.
        outcomes: what is known only after it: rating, kind of behaviour, dwell time.
        item_features: what is known of an item beside its id.
    """

    conditions: tuple[Field, ...] = ()
    outcomes: tuple[Field, ...] = ()
    item_features: tuple[Field, ...] = field(default=())

    def __post_init__(self) -> None:
        names = [f.name for f in (*self.conditions, *self.outcomes)]
        reserved = {"user", "item", "time", "target"}
        clash = sorted({n for n in names if names.count(n) > 1 or n in reserved})
        if clash:
            raise ValueError(f"field names must be unique and not reserved, got {clash}")
        for f in (*self.conditions, *self.outcomes):
            if f.kind == "categories":
                raise ValueError(f"field {f.name!r}: only item features may hold many values")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Schema:
        return cls(**{name: tuple(Field(**f) for f in fields) for name, fields in data.items()})
