"""Scores of candidates: cheap ones to pre-rank, a ranker's to rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch

from pylum.funnel.candidates import Candidates, Scores
from pylum.funnel.recall import Interests, interests_of
from pylum.knowledge import Knowledge
from pylum.rank import Ranker
from pylum.serving import KnowledgeCache


class Scorer(Protocol):
    def __call__(self, candidates: Candidates) -> Scores:
        """``[total]`` float32, higher is better."""
        ...


class InterestScores:
    """An item's cosine with the nearest of the user's interests; 0 for a user without any.

    Args:
        interests: as for :class:`InterestRecall`.
        vectors: ``[items, D]`` float32, unit length, of the same model.
    """

    def __init__(self, interests: Interests, vectors: torch.Tensor) -> None:
        self.interests, self.vectors = interests, vectors

    def __call__(self, candidates: Candidates) -> Scores:
        answers = interests_of(self.interests, candidates.users)
        out = np.zeros(len(candidates), np.float32)
        for b, rows in enumerate(candidates.lists()):
            if len(rows) and not bool(answers[b].isnan().any()):
                near = self.vectors[torch.from_numpy(rows)].float() @ answers[b].T
                begin = candidates.offsets[b]
                out[begin : begin + len(rows)] = near.amax(1).numpy()
        return out


class RankerScores:
    """A ranker's probabilities.

    Args:
        ranker: fitted.
        rows: makes the ranker's table of raw user ids and raw item ids, one row a pair.
        items: the catalogue's raw ids.
        knowledge: what the ranker reads: a cache is read, and logged, once for every user before
            the rows are made, so rows at the present time see it; None: the ranker's own.
    """

    def __init__(
        self,
        ranker: Ranker,
        rows: Callable[[list[Any], list[Any]], Any],
        items: list[Any],
        knowledge: Knowledge | KnowledgeCache | None = None,
    ) -> None:
        self.ranker, self.rows, self.items, self.knowledge = ranker, rows, items, knowledge

    def __call__(self, candidates: Candidates) -> Scores:
        if len(candidates) == 0:
            return np.empty(0, np.float32)
        users = [candidates.users[b] for b in candidates.owners.tolist()]
        items = [self.items[row] for row in candidates.rows.tolist()]
        known = self.knowledge
        if isinstance(known, KnowledgeCache):
            known = known.read(candidates.users).knowledge()
        table = self.rows(users, items)
        return np.asarray(self.ranker.predict(table, knowledge=known), np.float32)
