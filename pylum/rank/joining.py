"""Which knowledge each row may read: the latest of its user, of its item, as of its time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pylum.data.columns import ANY, MICROSECONDS, as_times
from pylum.data.tables import pick
from pylum.data.vocab import Vocab
from pylum.knowledge import Knowledge
from pylum.rank.schema import Schema


@dataclass(frozen=True, eq=False)
class Joined:
    """Where the knowledge of ``N`` rows stands.

    Args:
        moments: ``[N]`` int64 rows of the knowledge's vectors; -1: none.
        items: ``[N]`` int64 rows of its item vectors; -1: none.
        own: ``[N]`` int64 which condition is the row's own; -1: none. None: rows have none.
    """

    moments: torch.Tensor
    items: torch.Tensor
    own: torch.Tensor | None = None

    @classmethod
    def of(cls, pieces: Sequence[Joined]) -> Joined:
        """Pieces of rows, one after the other."""
        own = [piece.own for piece in pieces if piece.own is not None]
        moments, items = ([getattr(p, name) for p in pieces] for name in ("moments", "items"))
        return cls(torch.cat(moments), torch.cat(items), torch.cat(own) if own else None)

    def only(self, known: torch.Tensor) -> Joined:
        """Nothing known of the other rows; ``known`` is ``[N]`` bool."""
        return replace(
            self,
            moments=self.moments.masked_fill(~known, -1),
            items=self.items.masked_fill(~known, -1),
        )


def join(knowledge: Knowledge, rows: pa.Table, schema: Schema) -> Joined:
    """The latest moment of each row's user that is not after the row, and its item's vector.

    A moment or item of NaN, as a log of reads has them, says that nothing was known then.

    Raises:
        ValueError: the rows lack a column.
        TypeError: users or items are of another type than those of the knowledge.
    """
    moments = knowledge.rows(pick(rows, schema.user, "rows"), row_times(rows, schema))
    items = knowledge.item_rows(pick(rows, schema.item, "rows"))
    own = None if schema.condition is None else _own(knowledge, rows, schema.condition)
    return Joined(
        _known(torch.from_numpy(moments), knowledge.vectors.flatten(1)),
        _known(torch.from_numpy(items), knowledge.item_vectors),
        own,
    )


def _known(place: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Rows of ``vectors``; -1 also where they hold no numbers."""
    if not len(vectors):
        return place
    return place.masked_fill(~vectors[place.clamp_min(0), 0].isfinite(), -1)


def _own(knowledge: Knowledge, rows: pa.Table, column: str) -> torch.Tensor:
    """``[N]`` which of the knowledge's conditions is each row's own; -1: none."""
    values = knowledge.conditions
    if any(isinstance(value, dict) for value in values):
        raise ValueError("knowledge must be of single conditions where rows have their own")
    plain = [value for value in values if value is not ANY]
    place = torch.tensor([-1] + [n for n, value in enumerate(values) if value is not ANY])
    return place[torch.from_numpy(Vocab(plain).rows(pick(rows, column, "rows"), column))]


def row_times(rows: pa.Table, schema: Schema) -> npt.NDArray[np.int64]:
    return as_times(pick(rows, schema.time, "rows"), schema.time) // MICROSECONDS


def in_sample(knowledge: Knowledge, rows: pa.Table, schema: Schema) -> torch.Tensor:
    """``[N]`` bool: rows that are not later than the latest event the model was trained on."""
    if knowledge.cut is None:
        return torch.zeros(len(rows), dtype=torch.bool)
    return torch.from_numpy(row_times(rows, schema) <= knowledge.cut)
