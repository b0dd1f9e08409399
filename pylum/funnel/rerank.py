"""The last stage: a slate under rules, and not ten times the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pylum.funnel.candidates import Candidates, Rows, Scores


class Rerank:
    """Fills a slate place by place, with the item that fits best beside those before it.

    With ``diversity`` > 0 that is maximal marginal relevance (Carbonell and Goldstein, 1998):
    ``(1 - diversity) * score - diversity * (largest cosine with an item of the slate)``, scores
    scaled to 0 to 1 within each user. Else it is the order of the scores. Rules come first: an item
    that breaks one is passed over, and a slate that no allowed item can fill stays short.

    Args:
        diversity: 0 to 1.
        vectors: ``[items, D]`` float32, unit length; needed for ``diversity``.
        groups: of each row a value, by name, such as its brand: ``{"brand": [items]}``.
        most: how many items of one value a slate may hold, by name: ``{"brand": 2}``.
        blocked: rows that are never shown.
        first: rows that lead the slate where they are candidates, in this order.

    Raises:
        ValueError: a number is out of range, or a rule names an unknown group.
    """

    def __init__(
        self,
        *,
        diversity: float = 0.0,
        vectors: torch.Tensor | None = None,
        groups: Mapping[str, Sequence[Any]] | None = None,
        most: Mapping[str, int] | None = None,
        blocked: Sequence[int] = (),
        first: Sequence[int] = (),
    ) -> None:
        groups, most = groups or {}, most or {}
        if not 0 <= diversity <= 1:
            raise ValueError(f"diversity must be in [0, 1], got {diversity}")
        if diversity and vectors is None:
            raise ValueError("vectors must be given where diversity is above 0, got None")
        for name, limit in most.items():
            if name not in groups:
                raise ValueError(f"most must name groups ({', '.join(groups)}), got {name!r}")
            if limit < 1:
                raise ValueError(f"most[{name!r}] must be at least 1, got {limit}")
        self.diversity, self.vectors = diversity, vectors
        self.codes = {
            name: np.unique(np.asarray(groups[name]).astype(str), return_inverse=True)[1]
            for name in most
        }
        self.most = dict(most)
        self.blocked = np.asarray(blocked, np.int64)
        self.first = {row: place for place, row in enumerate(first)}

    def check(self, items: int) -> None:
        """That groups and vectors are those of a catalogue of so many items.

        Raises:
            ValueError: one of them is of more or fewer.
        """
        sizes = {f"groups[{name!r}]": len(code) for name, code in self.codes.items()}
        if self.vectors is not None:
            sizes["vectors"] = len(self.vectors)
        for name, size in sizes.items():
            if size != items:
                raise ValueError(f"{name} must hold a value for each of {items} items, got {size}")

    def __call__(self, candidates: Candidates, scores: Scores, k: int) -> list[Rows]:
        """Places in ``candidates.rows`` of each user's slate, at most ``k``."""
        slates = []
        for b, rows in enumerate(candidates.lists()):
            begin = int(candidates.offsets[b])
            own = scores[begin : begin + len(rows)].astype(np.float64)
            slates.append(begin + self._slate(rows, own, k))
        return slates

    def _slate(self, rows: Rows, scores: np.ndarray, k: int) -> Rows:
        allowed = ~np.isin(rows, self.blocked)
        relevance = _scaled(scores)
        lead = np.array([self.first.get(row, -1) for row in rows.tolist()], np.int64)
        vectors = None
        if self.diversity and self.vectors is not None:
            vectors = self.vectors[torch.from_numpy(rows)].double().numpy()
        nearest = np.zeros(len(rows))
        used = {
            name: np.zeros(int(code.max(initial=0)) + 1, int) for name, code in self.codes.items()
        }
        slate: list[int] = []
        while len(slate) < k and allowed.any():
            value = (1 - self.diversity) * relevance - self.diversity * nearest
            leading = allowed & (lead >= 0)
            if leading.any():
                pick = int(np.flatnonzero(leading)[lead[leading].argmin()])
            else:
                open_ = np.flatnonzero(allowed)
                # Equal values go to the better score, then to the lower row.
                pick = int(open_[np.lexsort((rows[open_], -scores[open_], -value[open_]))[0]])
            slate.append(pick)
            allowed[pick] = False
            for name, code in self.codes.items():
                used[name][code[rows[pick]]] += 1
                allowed &= used[name][code[rows]] < self.most[name]
            if vectors is not None:
                near = vectors @ vectors[pick]
                nearest = near if len(slate) == 1 else np.maximum(nearest, near)
        return np.array(slate, np.int64)


def _scaled(scores: np.ndarray) -> np.ndarray:
    """0 to 1 between the least and the largest finite score; what is infinite is at an end."""
    finite = scores[np.isfinite(scores)]
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 0.0)
    within = np.clip(scores, low, high)
    return np.asarray((within - low) / (high - low) if high > low else np.zeros(len(scores)))
