"""Knowledge of a user model as inputs of a ranker (section 3.3 of arXiv 2502.08309)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import torch

from pylum.knowledge import Knowledge
from pylum.rank.joining import Joined, join
from pylum.rank.known import Known, KnownSizes
from pylum.rank.schema import Schema

PARTS = ("item", "direct", "matching")
SAMPLE_ROWS = 1 << 16  # rows that standardise the inputs


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
        nothing = torch.empty(0, dtype=torch.float32)
        raw = cls(parts, count, own, knowledge.item_vectors.shape[1], nothing, nothing)
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
        empty = torch.zeros(len(index), 0, dtype=torch.float32)
        vectors = torch.zeros(len(index), 0, self.dim, dtype=torch.float32)
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
            torch.tensor(data["mean"], dtype=torch.float32),
            torch.tensor(data["scale"], dtype=torch.float32),
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
