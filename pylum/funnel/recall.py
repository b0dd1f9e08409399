"""The first stage: a few hundred items of the whole catalogue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from pylum import ops
from pylum.funnel.candidates import Candidates, Rows, Scores
from pylum.knowledge import Knowledge
from pylum.ragged import Ragged, lengths_to_offsets
from pylum.serving import KnowledgeCache

# Where a user's interests come from: [B, N, D] float32, NaN where a user has none.
Interests = Knowledge | KnowledgeCache | Callable[[list[Any]], torch.Tensor]


class Recall(Protocol):
    """A source of candidates."""

    def __call__(self, users: list[Any], budget: int, exclude: list[Rows]) -> Candidates:
        """At most ``budget`` rows of each user, best first, none of those to exclude."""
        ...


class Search(Protocol):
    """Nearest item vectors."""

    def __call__(
        self, queries: torch.Tensor, k: int, exclude: list[Rows]
    ) -> tuple[npt.NDArray[np.int64], Scores]:
        """Rows and scores, ``[Q, k]``; row -1 where fewer are left."""
        ...


class ExactSearch:
    """Every item is scored, by :func:`pylum.ops.topk`.

    Args:
        vectors: ``[items, D]``, kept as float32.
    """

    def __init__(self, vectors: torch.Tensor) -> None:
        self.vectors = vectors.float()

    def __call__(
        self, queries: torch.Tensor, k: int, exclude: list[Rows]
    ) -> tuple[npt.NDArray[np.int64], Scores]:
        flat = np.concatenate([np.empty(0, np.int64), *exclude])
        masked = Ragged(
            torch.from_numpy(flat), lengths_to_offsets(torch.tensor([len(e) for e in exclude]))
        )
        scores, rows = ops.topk(queries, self.vectors, min(k, len(self.vectors)), exclude=masked)
        return rows.numpy(), scores.numpy()


class FaissSearch:
    """Approximate search with a faiss index; needs ``pip install pylum[faiss]``.

    Args:
        vectors: ``[items, D]`` float32.
        factory: of the index, as faiss describes it.

    Raises:
        ImportError: faiss is missing.
    """

    def __init__(self, vectors: torch.Tensor, factory: str = "HNSW32") -> None:
        try:
            import faiss
        except ImportError as error:
            raise ImportError("FaissSearch needs faiss: pip install pylum[faiss]") from error
        self.index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        array = np.ascontiguousarray(vectors.float().numpy())
        self.index.train(array)
        self.index.add(array)

    def __call__(
        self, queries: torch.Tensor, k: int, exclude: list[Rows]
    ) -> tuple[npt.NDArray[np.int64], Scores]:
        # The index masks nothing, so as many more are asked for as may have to go.
        more = min(k + max((len(e) for e in exclude), default=0), self.index.ntotal)
        scores, rows = self.index.search(np.ascontiguousarray(queries.float().numpy()), more)
        for line, banned in zip(rows, exclude, strict=True):
            line[np.isin(line, banned)] = -1
        order = np.argsort(rows < 0, axis=1, kind="stable")[:, :k]
        rows = np.take_along_axis(rows, order, 1)
        scores = np.where(rows < 0, -np.inf, np.take_along_axis(scores, order, 1))
        return rows, scores.astype(np.float32)


class InterestRecall:
    """The items nearest to a user's interests under any of the conditions asked.

    Each interest brings its own nearest items; an item counts with its best score. A user without
    interests gets none: let another source follow.

    Args:
        interests: a knowledge (the latest moment of each user), a cache, or a function of raw ids.
        search: among the item vectors of the same model.
    """

    def __init__(self, interests: Interests, search: Search) -> None:
        self.interests, self.search = interests, search

    def __call__(self, users: list[Any], budget: int, exclude: list[Rows]) -> Candidates:
        vectors = interests_of(self.interests, users)
        known = (~vectors.isnan().flatten(1).any(1)).nonzero()[:, 0].tolist()
        empty = np.empty(0, np.int64)
        lists = [empty] * len(users)
        count = vectors.shape[1]
        if known and count:
            queries = vectors[known].flatten(0, 1)
            banned = [exclude[b] for b in known for _ in range(count)]
            rows, scores = self.search(queries, budget, banned)
            for place, b in enumerate(known):
                some = slice(place * count, (place + 1) * count)
                lists[b] = _merged(rows[some].ravel(), scores[some].ravel(), budget)
        return Candidates.of(users, lists)


class PopularityRecall:
    """The items chosen most often, the same for everyone.

    Args:
        counts: ``[items]`` how often each was chosen.
    """

    def __init__(self, counts: Any) -> None:
        counts = np.asarray(counts)
        order = np.lexsort((np.arange(len(counts)), -counts))
        self.order = order[counts[order] > 0]

    def __call__(self, users: list[Any], budget: int, exclude: list[Rows]) -> Candidates:
        lists = []
        for banned in exclude:
            head = self.order[: budget + len(banned)]
            lists.append(head[~np.isin(head, banned)][:budget])
        return Candidates.of(users, lists)


def interests_of(source: Interests, users: list[Any]) -> torch.Tensor:
    """``[B, N, D]`` float32; NaN where a user has none."""
    if isinstance(source, KnowledgeCache):
        return source.read(users).vectors
    if isinstance(source, Knowledge):
        rows = source.rows(users)
        vectors = source.vectors[torch.from_numpy(rows.clip(0))].float()
        vectors[torch.from_numpy(rows < 0)] = torch.nan
        return vectors
    vectors = source(users)
    if vectors.dim() != 3 or len(vectors) != len(users):
        raise ValueError(
            f"interests must be [{len(users)}, conditions, width], got {list(vectors.shape)}"
        )
    return vectors.float()


def together(
    sources: Sequence[Recall], users: list[Any], budget: int, exclude: list[Rows]
) -> Candidates:
    """The sources in turn, one item each, without repeats, until the budget is full."""
    found = [source(users, budget, exclude).lists() for source in sources]
    if len(found) == 1:
        return Candidates.of(users, found[0])
    lists = []
    for b in range(len(users)):
        longest = max(len(each[b]) for each in found)
        table = np.full((longest, len(found)), -1, np.int64)
        for column, each in enumerate(found):
            table[: len(each[b]), column] = each[b]
        line = table.ravel()
        line = line[line >= 0]
        _, first = np.unique(line, return_index=True)
        lists.append(line[np.sort(first)][:budget])
    return Candidates.of(users, lists)


def _merged(rows: Rows, scores: Scores, budget: int) -> Rows:
    """Distinct rows, best score first; equal scores go to the lower row."""
    rows, scores = rows[rows >= 0], scores[rows >= 0]
    order = np.lexsort((rows, -scores))
    rows = rows[order]
    _, first = np.unique(rows, return_index=True)
    return rows[np.sort(first)][:budget]
