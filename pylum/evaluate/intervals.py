"""Confidence intervals: paired bootstrap over users, crossed with seeds.

Seeds alone resample the initialisation, not the users; rows alone ignore that one user's rows
belong together. So users are drawn with replacement, each with all of its rows, and every
contestant is measured on the same draw.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SAMPLES = 1000
CHUNK_WEIGHTS = 1 << 22  # user weights held at once


@dataclass(frozen=True)
class Interval:
    """A measured value with the bounds of its bootstrap distribution."""

    value: float
    low: float
    high: float
    level: float = 0.95

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"

    def to_dict(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high, "level": self.level}


def bootstrap(
    values: np.ndarray,
    users: np.ndarray,
    *,
    against: np.ndarray | None = None,
    samples: int = SAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of the mean over rows, users resampled.

    Args:
        values: ``[N]`` a metric's value of each row; or ``[S, N]`` for ``S`` seeds, which are then
            resampled too.
        users: ``[N]`` the user of each row.
        against: shape of ``values``: a contestant on the same rows; the interval is then that of
            the mean difference, on the same draws of users and seeds.
        samples: bootstrap draws.
        level: probability inside the bounds.
        seed: of the draws.

    Returns:
        The mean over all rows (and seeds), and the bounds.

    Raises:
        ValueError: shapes differ, or there is no row.
    """
    values = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if against is not None:
        other = np.atleast_2d(np.asarray(against, dtype=np.float64))
        if other.shape != values.shape:
            raise ValueError(
                f"against must be {list(values.shape)} as values, got {list(other.shape)}"
            )
        values = values - other
    users = np.asarray(users)
    if users.shape != (values.shape[1],) or not len(users):
        raise ValueError(f"users must be [{values.shape[1]}], at least 1, got {list(users.shape)}")
    check_draws(samples, level)
    _, owner, counts = np.unique(users, return_inverse=True, return_counts=True)
    sums = np.stack([np.bincount(owner, line, minlength=len(counts)) for line in values])
    generator = np.random.default_rng(seed)
    means = np.empty(samples)
    step = max(1, CHUNK_WEIGHTS // len(counts))
    for start in range(0, samples, step):
        size = min(step, samples - start)
        weights = user_weights(len(counts), size, generator)
        per_seed = (weights @ sums.T) / (weights @ counts)[:, None]
        drawn = generator.integers(len(values), size=(size, len(values)))
        means[start : start + size] = np.take_along_axis(per_seed, drawn, 1).mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high), level)


def check_draws(samples: int, level: float) -> None:
    """That an interval can be told from so many draws."""
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")


def user_weights(users: int, samples: int, generator: np.random.Generator) -> np.ndarray:
    """How often each user is drawn: ``[samples, users]`` float64, each row summing to users."""
    drawn = generator.integers(users, size=(samples, users))
    drawn += users * np.arange(samples)[:, None]
    return np.bincount(drawn.ravel(), minlength=samples * users).reshape(samples, users) * 1.0


def bootstrap_statistic(
    statistic,
    users: np.ndarray,
    *,
    samples: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """As :func:`bootstrap`, for a statistic that is no mean, such as AUC.

    Args:
        statistic: takes ``[N]`` float64 weights of the rows, returns a float.
        users: ``[N]`` the user of each row.
    """
    _, owner, counts = np.unique(np.asarray(users), return_inverse=True, return_counts=True)
    if not len(counts):
        raise ValueError("users must hold at least one row, got 0")
    generator = np.random.default_rng(seed)
    check_draws(samples, level)
    drawn = [statistic(user_weights(len(counts), 1, generator)[0][owner]) for _ in range(samples)]
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(statistic(np.ones(len(owner))), float(low), float(high), level)
