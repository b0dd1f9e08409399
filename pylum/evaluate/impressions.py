"""Rankers on labelled rows: AUC, GAUC, log loss and NE, with paired intervals over users."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pylum.evaluate import metrics
from pylum.evaluate.intervals import SAMPLES, Interval, check_draws, user_weights

METRICS = ("AUC", "GAUC", "log loss", "NE")
LOWER_IS_BETTER = ("log loss", "NE")
CHUNK_WEIGHTS = 1 << 21  # row weights held at once
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Contestants on the same rows.

    Args:
        rows, users, seeds: that were scored.
        rate: share of labels that are 1.
        values: by contestant and metric. GAUC is over users who have both labels. A contestant that
            gives no probability has no log loss and no NE.
        gains: by (contestant, base) and metric: the value less the base's, on the same draws.
    """

    rows: int
    users: int
    seeds: int
    rate: float
    values: dict[str, dict[str, Interval]]
    gains: dict[tuple[str, str], dict[str, Interval]]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings."""

        def plain(row: dict[str, Interval]) -> dict[str, Any]:
            return {metric: interval.to_dict() for metric, interval in row.items()}

        return {
            "rows": self.rows,
            "users": self.users,
            "seeds": self.seeds,
            "rate": self.rate,
            "values": {name: plain(row) for name, row in self.values.items()},
            "gains": [
                {"contestant": name, "over": base, **plain(row)}
                for (name, base), row in self.gains.items()
            ],
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1)

    def to_arrow(self) -> pa.Table:
        """A row for each value and each gain: ``contestant``, ``over`` (null for a value),
        ``metric``, ``value`` and its interval ``low`` to ``high`` at ``level``."""
        rows = [((name, None), row) for name, row in self.values.items()]
        rows += [(pair, row) for pair, row in self.gains.items()]  # type: ignore[misc]
        found = [
            {"contestant": name, "over": over, "metric": metric, **interval.to_dict()}
            for (name, over), row in rows
            for metric, interval in row.items()
        ]
        names = [(n, pa.string()) for n in ("contestant", "over", "metric")]
        numbers = [(n, pa.float64()) for n in ("value", "low", "high", "level")]
        return pa.Table.from_pylist(found, pa.schema([*names, *numbers]))


def compare(
    labels: npt.ArrayLike,
    users: npt.ArrayLike,
    scores: Mapping[str, npt.ArrayLike],
    *,
    over: Sequence[tuple[str, str]] = (),
    probabilities: bool = True,
    only_order: tuple[str, ...] = (),
    samples: int = SAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Score contestants on the same rows and the same bootstrap draws.

    Args:
        labels: ``[N]`` 0 or 1.
        users: ``[N]`` whose rows belong together: users are drawn, each with all of its rows.
        scores: by contestant ``[N]``, or ``[S, N]`` for ``S`` seeds, which are drawn too.
        over: pairs of contestants, the second's value subtracted from the first's.
        probabilities: whether scores are probabilities.
        only_order: contestants whose scores are none all the same, such as floors.
        samples, level, seed: of the bootstrap.

    Raises:
        ValueError: shapes differ, a score is NaN, a label is missing from the rows, or there is no
            draw.
    """
    check_draws(samples, level)
    y = np.asarray(labels, np.float64)
    if y.ndim != 1 or not len(y) or not np.isin(y, (0, 1)).all():
        raise ValueError("labels must be [N] of 0 and 1, at least one")
    if y.min() == y.max():
        raise ValueError(f"labels must hold both 0 and 1 for an AUC, got {int(y[0])} in all rows")
    _, owner = np.unique(np.asarray(users), return_inverse=True)
    if owner.shape != y.shape:
        raise ValueError(f"users must be [{len(y)}], got {list(np.shape(users))}")
    found = {name: np.atleast_2d(np.asarray(each, np.float64)) for name, each in scores.items()}
    seeds = max(len(each) for each in found.values())
    for name, each in found.items():
        if each.shape[1:] != y.shape or len(each) not in (1, seeds):
            raise ValueError(
                f"scores of {name!r} must be [{len(y)}] or [{seeds}, {len(y)}], got "
                f"{list(each.shape)}"
            )
        if np.isnan(each).any():
            raise ValueError(f"scores of {name!r} must not be NaN, got {int(np.isnan(each).sum())}")
    count = int(owner.max()) + 1
    rows = np.bincount(owner, minlength=count).astype(np.float64)
    ones = np.bincount(owner, y, minlength=count).astype(np.float64)
    generator = np.random.default_rng(seed)
    weights = np.concatenate([np.ones((1, count)), user_weights(count, samples, generator)])
    drawn = generator.integers(seeds, size=(samples, seeds))
    # By contestant and metric [1 + samples]; the first draw is the data itself.
    draws: dict[str, dict[str, Floats]] = {}
    for name, each in found.items():
        kinds = METRICS if probabilities and name not in only_order else METRICS[:2]
        of_seed = [_draws(y, owner, line, weights, rows, ones, kinds) for line in each]
        draws[name] = {}
        for metric in kinds:
            table = np.stack([of_seed[s % len(each)][metric] for s in range(seeds)])
            picked = np.take_along_axis(table[:, 1:].T, drawn, 1).mean(1)
            draws[name][metric] = np.concatenate([[table[:, 0].mean()], picked])
    gains = {}
    for name, base in over:
        both = [metric for metric in draws[name] if metric in draws[base]]
        gains[name, base] = {
            metric: _interval(draws[name][metric] - draws[base][metric], level) for metric in both
        }
    values = {
        name: {metric: _interval(line, level) for metric, line in row.items()}
        for name, row in draws.items()
    }
    return Comparison(len(y), count, seeds, float(y.mean()), values, gains)


def _interval(line: Floats, level: float) -> Interval:
    if np.isnan(line[1:]).all():
        # GAUC where no user has both labels.
        return Interval(float(line[0]), float("nan"), float("nan"), level)
    low, high = np.nanquantile(line[1:], [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(line[0]), float(low), float(high), level)


def _draws(
    y: Floats,
    owner: npt.NDArray[np.int64],
    scores: Floats,
    weights: Floats,
    rows: Floats,
    ones: Floats,
    kinds: tuple[str, ...],
) -> dict[str, Floats]:
    """Each metric under ``[draws, users]`` weights: ``[draws]``."""
    per_user, _ = metrics.group_auc(y, scores, owner)
    both = ~np.isnan(per_user)
    share = weights[:, both] * rows[both]
    with np.errstate(invalid="ignore", divide="ignore"):
        gauc = (share @ per_user[both]) / share.sum(1)
    out = {"AUC": _aucs(y, owner, scores, weights), "GAUC": gauc}
    if "log loss" in kinds:
        p = np.clip(scores, 1e-15, 1 - 1e-15)
        losses = -(y * np.log(p) + (1 - y) * np.log1p(-p))
        total = weights @ rows
        loss = weights @ np.bincount(owner, losses, minlength=len(rows)) / total
        rate = weights @ ones / total
        with np.errstate(invalid="ignore", divide="ignore"):
            constant = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
            out |= {"log loss": loss, "NE": loss / constant}
    return out


def _aucs(y: Floats, owner: npt.NDArray[np.int64], scores: Floats, weights: Floats) -> Floats:
    """AUC under each line of user weights; the rows are sorted once."""
    order = np.argsort(scores, kind="stable")
    ordered, labels, who = scores[order], y[order], owner[order]
    first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    out = np.empty(len(weights))
    step = max(1, CHUNK_WEIGHTS // len(y))
    for start in range(0, len(weights), step):
        drawn = weights[start : start + step][:, who]
        positive = np.add.reduceat(drawn * labels, first, axis=1)
        negative = np.add.reduceat(drawn * (1 - labels), first, axis=1)
        below = negative.cumsum(1) - negative
        won = (positive * (below + 0.5 * negative)).sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            out[start : start + step] = won / (positive.sum(1) * negative.sum(1))
    return out
