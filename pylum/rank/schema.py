"""What the rows of a ranker hold: its columns, typed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["category", "categories", "number", "sequence"]
KINDS = ("category", "categories", "number", "sequence")


@dataclass(frozen=True)
class Feature:
    """One column.

    Args:
        name: of the column.
        kind: ``"category"``: one string or integer; ``"categories"``: a list of them, in no order;
            ``"number"``: a float; ``"sequence"``: a list of categories, oldest first, one for each
            of the user's last behaviours.
        shares: a category feature whose vocabulary and embedding table this one uses: what is
            remembered of a behaviour (its item, its brand) and what is scored are then one thing.
            A sequence that shares nothing says how each behaviour went (liked, bought).
        max_length: the latest elements of a sequence that are read; 0: all.
    """

    name: str
    kind: Kind = "category"
    shares: str | None = None
    max_length: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.shares is not None and self.kind not in ("categories", "sequence"):
            raise ValueError(f"{self.name!r}: only categories and sequences share a table")
        if self.max_length < 0 or (self.max_length and self.kind != "sequence"):
            raise ValueError(
                f"max_length must be 0 or the length of a sequence, got {self.max_length} "
                f"for {self.kind} {self.name!r}"
            )

    @property
    def table(self) -> str:
        """The feature whose vocabulary and embedding table are used."""
        return self.shares or self.name


@dataclass(frozen=True)
class Schema:
    """The columns of a ranker's rows.

    Args:
        features: what the ranker reads. All sequences of a row have one length.
        label: column of 0 and 1 (or booleans): what is predicted. Only :meth:`Ranker.fit` reads it.
        user, item, time: columns by which knowledge is joined; they are features only if listed.
        condition: column whose value is one of the conditions knowledge was asked under, such as
            the scene a row is shown in: the answer to it is then read beside the others. None: no
            row has one.
        crosses: for wide_deep, tuples of features whose values are crossed; at most one of each
            tuple may hold many values.
    """

    features: tuple[Feature, ...]
    label: str = "label"
    user: str = "user"
    item: str = "item"
    time: str = "time"
    condition: str | None = None
    crosses: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", tuple(self.features))
        object.__setattr__(self, "crosses", tuple(tuple(cross) for cross in self.crosses))
        names = [f.name for f in self.features]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice or not names:
            raise ValueError(f"features must be distinct and at least one, got {twice or 'none'}")
        if self.label in names:
            raise ValueError(f"features must not hold the label {self.label!r}")
        kinds = {f.name: f.kind for f in self.features}
        for f in self.features:
            if f.shares is not None and kinds.get(f.shares) != "category":
                raise ValueError(f"{f.name!r} shares {f.shares!r}, which is no category feature")
        for cross in self.crosses:
            many = [name for name in cross if kinds.get(name) in ("categories", "sequence")]
            if len(cross) < 2 or len(many) > 1 or any(name not in kinds for name in cross):
                raise ValueError(
                    "crosses must be of two or more features, at most one of them of many values, "
                    f"got {cross}"
                )
            if any(kinds[name] == "number" for name in cross):
                raise ValueError(f"crosses must not hold numbers, got {cross}")

    def of(self, *kinds: str) -> tuple[Feature, ...]:
        """The features of these kinds, in order."""
        return tuple(f for f in self.features if f.kind in kinds)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Schema:
        return cls(**{**data, "features": tuple(Feature(**f) for f in data["features"])})
