"""Knowledge of a user model as inputs of a ranker (section 3.3 of arXiv 2502.08309)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pylum.data.columns import ANY, MICROSECONDS, as_times
from pylum.data.tables import pick
from pylum.data.vocab import Vocab
from pylum.knowledge import Knowledge
from pylum.rank.inputs import Known, KnownSizes
from pylum.rank.schema import Schema

PARTS = ("item", "direct", "matching")
SAMPLE_ROWS = 1 << 16  # rows that standardise the inputs


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


def matching(knowledge: Knowledge, rows: pa.Table, schema: Schema) -> torch.Tensor:
    """``[N, answers]`` similarity of every answer and the row's item, over the temperature.

    The row's own condition is the last answer where the schema names one. What is not known is the
    mean of what is.
    """
    joined = join(knowledge, rows, schema)
    inputs = Inputs.fit(("matching",), knowledge, joined)
    known = inputs.gather(knowledge, joined, torch.arange(len(rows)))
    found = torch.where(known.no_number, 0, known.numbers)
    return found * inputs.scale + inputs.mean


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


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a ranker takes from knowledge, standardised.

    Args:
        parts: some of ``"item"`` (e_i), ``"direct"`` (o_q of every condition) and ``"matching"``
            (their similarities).
        conditions: how many.
        own: whether rows have a condition of their own, whose answer is one more.
        dim: of the vectors.
        mean, scale: ``[answers]`` of the similarities in the training rows.
    """

    parts: tuple[str, ...]
    conditions: int
    own: bool
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
        count, own = knowledge.vectors.shape[1], joined.own is not None
        raw = cls(parts, count, own, knowledge.item_vectors.shape[1], torch.zeros(0), torch.ones(0))
        found, gone = raw._similarities(knowledge, joined, at)
        known = (~gone).double()
        rows = known.sum(0).clamp_min(1)
        mean = (found * known).sum(0) / rows
        scale = ((found - mean).square() * known).sum(0).div(rows).sqrt().clamp_min(1e-6)
        return replace(raw, mean=mean.float(), scale=scale.float())

    @property
    def answers(self) -> int:
        """Answers of a row: one for each condition, and its own."""
        return self.conditions + self.own

    @property
    def vectors(self) -> int:
        """How many of the inputs are vectors; the rest are similarities."""
        return ("item" in self.parts) + self.answers * ("direct" in self.parts)

    @property
    def numbers(self) -> int:
        return self.answers * ("matching" in self.parts)

    def gather(self, knowledge: Knowledge, joined: Joined, index: torch.Tensor) -> Known:
        """Of the rows at ``index``. Elements of unit vectors are scaled to a variance of one."""
        values, missing = [], []
        if "item" in self.parts:
            items = joined.items[index]
            values.append(knowledge.item_vectors[items.clamp_min(0)][:, None])
            missing.append((items < 0)[:, None])
        if "direct" in self.parts:
            answers, gone = self._answers(knowledge, joined, index)
            values.append(answers)
            missing.append(gone)
        empty = torch.zeros(len(index), 0)
        vectors = torch.zeros(len(index), 0, self.dim)
        no_vector = empty.bool()
        if values:
            vectors = torch.cat(values, 1).float() * self.dim**0.5
            no_vector = torch.cat(missing, 1)
        numbers, no_number = empty, empty.bool()
        if "matching" in self.parts:
            numbers, no_number = self._similarities(knowledge, joined, index)
            numbers = (numbers - self.mean) / self.scale
        return Known(vectors, numbers, no_vector, no_number, "item" in self.parts)

    def _answers(
        self, knowledge: Knowledge, joined: Joined, index: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``[n, answers, dim]`` and ``[n, answers]`` bool, which are not known."""
        moments = joined.moments[index]
        answers = knowledge.vectors[moments.clamp_min(0)].float()
        gone = (moments < 0)[:, None].expand(-1, self.conditions)
        if joined.own is not None:
            own = joined.own[index]
            mine = answers[torch.arange(len(index)), own.clamp_min(0)]
            answers = torch.cat([answers, mine[:, None]], 1)
            gone = torch.cat([gone, ((moments < 0) | (own < 0))[:, None]], 1)
        return answers, gone

    def _similarities(
        self, knowledge: Knowledge, joined: Joined, index: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``[n, answers]`` cosines over the temperature, and which of them are not known."""
        answers, gone = self._answers(knowledge, joined, index)
        items = joined.items[index]
        vectors = knowledge.item_vectors[items.clamp_min(0)].float()
        found = torch.einsum("rqd,rd->rq", answers, vectors) / knowledge.temperature
        return found, gone | (items < 0)[:, None]

    def sizes(self, narrow: int) -> KnownSizes:
        """For a network that makes vectors at most ``narrow`` wide."""
        return KnownSizes(self.vectors, self.numbers, self.dim, min(narrow, self.dim))

    def to_json(self) -> dict[str, Any]:
        return {
            "parts": list(self.parts),
            "conditions": self.conditions,
            "own": self.own,
            "dim": self.dim,
            "mean": self.mean.tolist(),
            "scale": self.scale.tolist(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Inputs:
        return cls(
            tuple(data["parts"]),
            data["conditions"],
            data["own"],
            data["dim"],
            torch.tensor(data["mean"]),
            torch.tensor(data["scale"]),
        )


def check_pinned(knowledge: Knowledge | None, inputs: Inputs | None, fingerprint: Any) -> None:
    """Knowledge must be what was trained with: of the same user model, asked as much.

    Raises:
        ValueError: it is not.
    """
    if knowledge is None or inputs is None:
        if knowledge is not None or inputs is not None:
            wanted = f"of fingerprint {fingerprint}" if inputs else "None"
            raise ValueError(
                f"knowledge must be {wanted}, as in training, got "
                f"{'none' if knowledge is None else knowledge.fingerprint}"
            )
        return
    if knowledge.fingerprint != fingerprint:
        raise ValueError(
            f"knowledge must be of the user model {fingerprint} it was trained with, got "
            f"{knowledge.fingerprint}: vectors of two models do not compare"
        )
    shape = [knowledge.vectors.shape[1], knowledge.item_vectors.shape[1]]
    if shape != [inputs.conditions, inputs.dim]:
        raise ValueError(
            f"knowledge must have {inputs.conditions} conditions of {inputs.dim} numbers, as in "
            f"training, got {shape[0]} of {shape[1]}"
        )
