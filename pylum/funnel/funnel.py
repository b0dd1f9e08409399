"""The stages in a row, with what each costs and what each loses."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pylum.data.columns import listed
from pylum.funnel.candidates import Candidates, Rows, Scores
from pylum.funnel.recall import Recall, together
from pylum.funnel.rerank import Rerank
from pylum.funnel.scores import Scorer
from pylum.modes import on_host

STAGES = ("recall", "prerank", "rank", "rerank")


@dataclass(frozen=True, eq=False)
class Recommendation:
    """Slates of ``B`` users.

    Args:
        users: raw ids.
        items: ``[B, k]`` raw item ids, best first; None where the slate is short.
        scores: ``[B, k]`` float32 of the rank stage; -inf where there is no item.
        sizes: by stage, ``[B]`` items it passed on.
        seconds: by stage, of all users together.
    """

    users: list[Any]
    items: npt.NDArray[Any]
    scores: Scores
    sizes: dict[str, Rows]
    seconds: dict[str, float]

    def __str__(self) -> str:
        users = max(1, len(self.users))
        lines = [f"{'stage':8} {'items':>8} {'ms / user':>10}"]
        for stage in STAGES:
            mean = float(self.sizes[stage].mean()) if len(self.users) else 0.0
            lines.append(f"{stage:8} {mean:8.1f} {1000 * self.seconds[stage] / users:10.3f}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Audit:
    """What the stages lose against ranking the whole catalogue.

    Args:
        k: size of the best list.
        recall: by stage, the mean share of the ``k`` items that the rank stage likes best in the
            whole catalogue which the stage passed on.
        seconds: by stage, and ``"full"``: ranking the whole catalogue.
        users: how many were asked.
    """

    k: int
    recall: dict[str, float]
    seconds: dict[str, float]
    users: int

    def __str__(self) -> str:
        lines = [f"{'stage':8} {f'recall@{self.k}':>10} {'ms / user':>10}"]
        for stage in (*STAGES, "full"):
            share = f"{self.recall[stage]:10.4f}" if stage in self.recall else f"{'1':>10}"
            ms = 1000 * self.seconds[stage] / max(1, self.users)
            lines.append(f"{stage:8} {share} {ms:10.3f}")
        return "\n".join(lines)


@on_host
class Funnel:
    """From the whole catalogue to a slate.

    Args:
        recall: a source of candidates, or several, which take turns.
        prerank: cheap scores of what was recalled.
        rank: the ranker's scores of what is left.
        rerank: makes the slate.
        budgets: items passed on by each stage: ``{"recall": 500, "prerank": 200, "rank": 50}``.
        items: the catalogue's raw ids; the stages speak of them by row.
        exclude: gives, of raw user ids, the rows that each must not be shown.

    Raises:
        ValueError: a budget is missing, below 1, or larger than that of the stage before; or the
            groups or vectors of ``rerank`` are not of all ``items``.
        TypeError: a budget is no integer.
    """

    def __init__(
        self,
        recall: Recall | Sequence[Recall],
        prerank: Scorer,
        rank: Scorer,
        rerank: Rerank,
        budgets: Mapping[str, int],
        *,
        items: Sequence[Any],
        exclude: Callable[[list[Any]], list[Rows]] | None = None,
    ) -> None:
        if sorted(budgets) != sorted(STAGES[:3]):
            raise ValueError(f"budgets must name {', '.join(STAGES[:3])}, got {sorted(budgets)}")
        sizes = [budgets[stage] for stage in STAGES[:3]]
        for stage, size in zip(STAGES, sizes, strict=False):
            _check_count(f"budgets[{stage!r}]", size)
        if min(sizes) < 1 or sizes != sorted(sizes, reverse=True):
            raise ValueError(f"budgets must be at least 1 and not grow, got {dict(budgets)}")
        self.sources = list(recall) if isinstance(recall, Sequence) else [recall]
        if not self.sources:
            raise ValueError("recall must have at least one source, got none")
        self.prerank, self.rank, self.rerank = prerank, rank, rerank
        self.budgets, self.exclude = dict(budgets), exclude
        self.items = np.array([*items, None], dtype=object)[:-1]
        if isinstance(rerank, Rerank):
            rerank.check(len(self.items))

    def recommend(self, users: Sequence[Any], k: int = 10) -> Recommendation:
        """A slate of at most ``k`` items for each user.

        Args:
            users: raw ids.
            k: at most the budget of the rank stage.

        Raises:
            ValueError: ``k`` is out of range, a stage gave a NaN, another number of scores, or
                an item it may not, or ``exclude`` gave rows that are none.
            TypeError: ``users`` is no list, or ``k`` no integer.
        """
        return self._run(listed(users), k)[0]

    def audit(self, users: Sequence[Any], k: int = 10) -> Audit:
        """Run the stages, and the rank stage on the whole catalogue beside them.

        Args:
            users: raw ids; a sample will do, for each is ranked against every item.
            k: as for :meth:`recommend`.
        """
        asked = listed(users)
        made, stages, exclude = self._run(asked, k)
        hits: dict[str, list[float]] = {stage: [] for stage in STAGES}
        seconds = 0.0
        for b, user in enumerate(asked):
            every = np.setdiff1d(np.arange(len(self.items)), exclude[b])
            begin = time.perf_counter()
            full = Candidates.of([user], [every])
            best, _ = full.best(self._scores("rank", full), k)
            seconds += time.perf_counter() - begin
            for stage in STAGES:
                kept = np.isin(best.rows, stages[stage][b]).mean() if len(best) else 1.0
                hits[stage].append(float(kept))
        recall = {stage: float(np.mean(hits[stage])) if asked else 1.0 for stage in STAGES}
        return Audit(k, recall, {**made.seconds, "full": seconds}, len(asked))

    def _run(
        self, users: list[Any], k: int
    ) -> tuple[Recommendation, dict[str, list[Rows]], list[Rows]]:
        _check_count("k", k)
        if not 1 <= k <= self.budgets["rank"]:
            raise ValueError(f"k must be in [1, {self.budgets['rank']}], got {k}")
        exclude = self._excluded(users)
        clock = [time.perf_counter()]
        found = together(self.sources, users, self.budgets["recall"], exclude)
        self._check(found, exclude)
        clock.append(time.perf_counter())
        near, _ = found.best(self._scores("prerank", found), self.budgets["prerank"])
        clock.append(time.perf_counter())
        ranked, scores = near.best(self._scores("rank", near), self.budgets["rank"])
        clock.append(time.perf_counter())
        slates = self.rerank(ranked, scores, k)
        clock.append(time.perf_counter())
        items = np.full((len(users), k), None, dtype=object)
        values = np.full((len(users), k), -np.inf, np.float32)
        for b, slate in enumerate(slates):
            items[b, : len(slate)] = self.items[ranked.rows[slate]]
            values[b, : len(slate)] = scores[slate]
        stages = {
            "recall": found.lists(),
            "prerank": near.lists(),
            "rank": ranked.lists(),
            "rerank": [ranked.rows[slate] for slate in slates],
        }
        sizes = {
            stage: np.array([len(r) for r in rows], np.int64) for stage, rows in stages.items()
        }
        seconds = dict(zip(STAGES, np.diff(clock).tolist(), strict=True))
        return Recommendation(users, items, values, sizes, seconds), stages, exclude

    def _excluded(self, users: list[Any]) -> list[Rows]:
        if self.exclude is None:
            return [np.empty(0, np.int64)] * len(users)
        given = [np.asarray(rows) for rows in self.exclude(users)]
        if len(given) != len(users):
            raise ValueError(f"exclude must give rows for {len(users)} users, got {len(given)}")
        for user, rows in zip(users, given, strict=True):
            if len(rows) and not (
                np.issubdtype(rows.dtype, np.integer)
                and 0 <= rows.min() <= rows.max() < len(self.items)
            ):
                raise ValueError(
                    f"exclude must give rows in [0, {len(self.items)}), got {rows[:3].tolist()} "
                    f"for user {user!r}"
                )
        return [rows.astype(np.int64) for rows in given]

    def _scores(self, stage: str, candidates: Candidates) -> Scores:
        scores = np.asarray(getattr(self, stage)(candidates), np.float32)
        if scores.shape != (len(candidates),):
            raise ValueError(
                f"{stage} must give [{len(candidates)}] scores, got {list(scores.shape)}"
            )
        if np.isnan(scores).any():
            owner = candidates.owners[int(np.flatnonzero(np.isnan(scores))[0])]
            raise ValueError(f"{stage} gave NaN for user {candidates.users[owner]!r}")
        return scores

    def _check(self, found: Candidates, exclude: list[Rows]) -> None:
        if len(found) and not 0 <= found.rows.min() <= found.rows.max() < len(self.items):
            raise ValueError(
                f"recall must give rows in [0, {len(self.items)}), got {found.rows.min()} to "
                f"{found.rows.max()}"
            )
        for user, rows, banned in zip(found.users, found.lists(), exclude, strict=True):
            if np.isin(rows, banned).any():
                raise ValueError(f"recall gave user {user!r} an item that is excluded")
            if len(np.unique(rows)) < len(rows):
                raise ValueError(f"recall gave user {user!r} an item twice")


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {value!r}")
