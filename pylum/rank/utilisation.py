"""Knowledge of a user model as inputs of a ranker (section 3.3 of arXiv 2502.08309)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pylum.data.columns import MICROSECONDS, as_times
from pylum.data.tables import pick
from pylum.knowledge import Knowledge
from pylum.rank.inputs import Known
from pylum.rank.schema import Schema

PARTS = ("item", "direct", "matching")
SAMPLE_ROWS = 1 << 16  # rows that standardise the inputs


@dataclass(frozen=True, eq=False)
class Joined:
    """Where the knowledge of ``N`` rows stands.

    Args:
        moments: ``[N]`` int64 rows of the knowledge's vectors; -1: none.
        items: ``[N]`` int64 rows of its item vectors; -1: none.
    """

    moments: torch.Tensor
    items: torch.Tensor


def join(knowledge: Knowledge, rows: pa.Table, schema: Schema) -> Joined:
    """The latest moment of each row's user that is not after the row, and its item's vector.

    Raises:
        ValueError: the rows lack a column.
        TypeError: users or items are of another type than those of the knowledge.
    """
    times = row_times(rows, schema)
    users = pick(rows, schema.user, "rows").to_pylist()
    moments = knowledge.rows(users, times)
    items = knowledge.item_rows(pick(rows, schema.item, "rows"))
    return Joined(torch.from_numpy(moments), torch.from_numpy(items))


def row_times(rows: pa.Table, schema: Schema) -> npt.NDArray[np.int64]:
    return as_times(pick(rows, schema.time, "rows"), schema.time) // MICROSECONDS


def refuse_in_sample(knowledge: Knowledge, rows: pa.Table, schema: Schema) -> None:
    """A user model remembers what it was fitted on: rows before its cut teach too much trust.

    Raises:
        ValueError: a row is not later than the latest event the model was trained on.
    """
    if knowledge.cut is None:
        return
    inside = int((row_times(rows, schema) <= knowledge.cut).sum())
    if inside:
        raise ValueError(
            f"{inside} of {len(rows)} rows are not later than {knowledge.cut}, the latest event "
            "the user model was trained on: train it on earlier events, or pass "
            "allow_in_sample=True where it was not trained on these rows"
        )


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a ranker takes from knowledge, standardised.

    Args:
        parts: some of ``"item"`` (e_i), ``"direct"`` (o_q of every condition) and ``"matching"``
            (their similarities).
        conditions: how many.
        dim: of the vectors.
        mean, scale: ``[conditions]`` of the similarities in the training rows.
    """

    parts: tuple[str, ...]
    conditions: int
    dim: int
    mean: torch.Tensor
    scale: torch.Tensor

    @classmethod
    def fit(cls, parts: tuple[str, ...], knowledge: Knowledge, joined: Joined) -> Inputs:
        """Standardised by an even sample of the training rows that have knowledge."""
        both = ((joined.moments >= 0) & (joined.items >= 0)).nonzero().squeeze(1)
        if not len(both):
            raise ValueError(
                "knowledge must know a user and item of some row as of its time, got none: is it "
                "of the same users, and are its times in the same unit?"
            )
        at = both[torch.linspace(0, len(both) - 1, min(len(both), SAMPLE_ROWS)).long()]
        found = similarities(knowledge, joined.moments[at], joined.items[at])
        scale = found.std(0, correction=0).clamp_min(1e-6)
        count = knowledge.vectors.shape[1]
        return cls(parts, count, knowledge.item_vectors.shape[1], found.mean(0), scale)

    @property
    def width(self) -> int:
        sizes = {
            "item": self.dim,
            "direct": self.conditions * self.dim,
            "matching": self.conditions,
        }
        return sum(sizes[part] for part in self.parts)

    def gather(self, knowledge: Knowledge, joined: Joined, index: torch.Tensor) -> Known:
        """Of the rows at ``index``. Elements of unit vectors are scaled to a variance of one."""
        moments, items = joined.moments[index], joined.items[index]
        no_moment, no_item = (moments < 0)[:, None], (items < 0)[:, None]
        values, missing = [], []
        for part in self.parts:
            if part == "matching":
                found = similarities(knowledge, moments.clamp_min(0), items.clamp_min(0))
                values.append((found - self.mean) / self.scale)
                missing.append((no_moment | no_item).expand_as(found))
            else:
                if part == "item":
                    vectors, gone = knowledge.item_vectors[items.clamp_min(0)], no_item
                else:
                    vectors, gone = knowledge.vectors[moments.clamp_min(0)].flatten(1), no_moment
                values.append(vectors.float() * self.dim**0.5)
                missing.append(gone.expand_as(vectors))
        return Known(torch.cat(values, 1), torch.cat(missing, 1))

    def check(self, knowledge: Knowledge) -> None:
        """Raise where the knowledge has other sizes."""
        shape = [knowledge.vectors.shape[1], knowledge.item_vectors.shape[1]]
        if shape != [self.conditions, self.dim]:
            raise ValueError(
                f"knowledge must have {self.conditions} conditions of {self.dim} numbers, as in "
                f"training, got {shape[0]} of {shape[1]}"
            )

    def to_json(self) -> dict[str, Any]:
        return {
            "parts": list(self.parts),
            "conditions": self.conditions,
            "dim": self.dim,
            "mean": self.mean.tolist(),
            "scale": self.scale.tolist(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Inputs:
        return cls(
            tuple(data["parts"]),
            data["conditions"],
            data["dim"],
            torch.tensor(data["mean"]),
            torch.tensor(data["scale"]),
        )


def similarities(knowledge: Knowledge, moments: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    """``[n, conditions]`` cosines of answers and items over the temperature."""
    answers = knowledge.vectors[moments].float()
    vectors = knowledge.item_vectors[items].float()
    return torch.einsum("rqd,rd->rq", answers, vectors) / knowledge.temperature
