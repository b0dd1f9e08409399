"""Curves of quality against scale, with intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# Names of the coefficients, and [S, n, p] columns that are linear in all but alpha [S].
FORMS: dict[str, tuple[tuple[str, ...], Callable[[Floats, Floats], Floats]]] = {
    "power_floor": (("a", "alpha", "gamma"), lambda u, alpha: _columns(_power(u, alpha), 1)),
    "power": (("a", "alpha"), lambda u, alpha: _columns(_power(u, alpha))),
    "log": (("a", "b"), lambda u, alpha: _columns(1, u + 0 * alpha[:, None])),
}
ALPHAS = np.geomspace(1e-3, 8.0, 181)
REFINEMENTS = 60


@dataclass(frozen=True)
class ScalingFit:
    """A fitted curve.

    Args:
        form: its name.
        coefficients: by name.
        intervals: by name, lower and upper bound.
        r2: share of the variance of ``y`` that the curve explains.
        level: probability inside the bounds.
        at_bound: the exponent ran to the end of what is searched: these points do not show it.
    """

    form: str
    coefficients: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    r2: float
    level: float
    at_bound: bool

    def predict(self, x: Any) -> Floats:
        """The curve at ``x``."""
        c, x = self.coefficients, np.asarray(x, np.float64)
        if self.form == "log":
            return c["a"] + c["b"] * np.log(x)
        return c["a"] * x ** -c["alpha"] + c.get("gamma", 0.0)

    def __str__(self) -> str:
        written = {"power_floor": "a x^-alpha + gamma", "power": "a x^-alpha", "log": "a + b ln x"}
        shown = ", ".join(
            f"{name} {value:.4g} [{self.intervals[name][0]:.4g}, {self.intervals[name][1]:.4g}]"
            for name, value in self.coefficients.items()
        )
        bound = "; alpha is at the end of its range" if self.at_bound else ""
        return f"{written[self.form]}: {shown}; R2 {self.r2:.4f}{bound}"


def fit_scaling(
    x: Any,
    y: Any,
    form: str = "power_floor",
    *,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> ScalingFit:
    """Fit quality against scale by least squares.

    ``"power_floor"``: ``a x^-alpha + gamma`` (equation 1 of arXiv 2208.08489, the loss in data,
    parameters or compute); ``"power"``: ``a x^-alpha``; ``"log"``: ``a + b ln x`` (figure 4 of
    arXiv 2502.08309, recall in parameters or length). Given alpha the rest is linear, so
    alpha alone is searched, from .001 to 8 (also negative for ``"power"``), and the best fit is
    found wherever it lies.

    Args:
        x: ``[n]`` positive scales, at least two of them distinct beyond the curve's coefficients.
        y: ``[n]`` measurements; or ``[S, n]`` of ``S`` seeds, whose mean is fitted.
        form: one of ``FORMS``.
        samples: bootstrap draws for the intervals, of residuals, or of seeds where there are any.
        level: probability inside the bounds.
        seed: of the draws.

    Raises:
        ValueError: a shape, a number or the form is not as above.
    """
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    scales = np.asarray(x, np.float64)
    runs = np.atleast_2d(np.asarray(y, np.float64))
    if scales.ndim != 1 or runs.shape[1:] != scales.shape or runs.ndim != 2:
        raise ValueError(
            f"x must be [n] and y [n] or [seeds, n], got {list(scales.shape)} and "
            f"{list(np.shape(y))}"
        )
    if not (np.isfinite(scales).all() and np.isfinite(runs).all() and (scales > 0).all()):
        raise ValueError("x must be positive and x and y finite")
    names = FORMS[form][0]
    if len(np.unique(scales)) <= len(names):
        raise ValueError(
            f"x must hold more than {len(names)} distinct scales for {form!r}, "
            f"got {len(np.unique(scales))}"
        )
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")
    # Around their geometric mean the columns are far from parallel, and no power overflows.
    centre = float(np.log(scales).mean())
    u = np.log(scales) - centre
    mean = runs.mean(0)
    best, curve, at_bound = _fit(u, mean[None], form)
    generator = np.random.default_rng(seed)
    if len(runs) > 1:
        drawn = runs[generator.integers(len(runs), size=(samples, len(runs)))].mean(1)
    else:
        # Residuals of a fit with p of n coefficients free are too small by this factor.
        spread = np.sqrt(len(u) / (len(u) - len(names)))
        residuals = (mean - curve[0]) * spread
        residuals = residuals - residuals.mean()
        drawn = curve[0] + residuals[generator.integers(len(u), size=(samples, len(u)))]
    spreads, _, _ = _fit(u, drawn, form)
    bounds = [(1 - level) / 2, (1 + level) / 2]
    values = _uncentred(best, names, centre)
    low, high = np.quantile(_uncentred(spreads, names, centre), bounds, axis=0)
    total = float(((mean - mean.mean()) ** 2).sum())
    left = float(((mean - curve[0]) ** 2).sum())
    return ScalingFit(
        form,
        dict(zip(names, values[0].tolist(), strict=True)),
        {name: (float(a), float(b)) for name, a, b in zip(names, low, high, strict=True)},
        1.0 - left / total if total else 1.0,
        level,
        bool(at_bound[0]),
    )


def _power(u: Floats, alpha: Floats) -> Floats:
    return np.asarray(np.exp(-alpha[:, None] * u))


def _columns(*columns: Floats | int) -> Floats:
    return np.stack(np.broadcast_arrays(*columns), -1).astype(np.float64)


def _fit(u: Floats, ys: Floats, form: str) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
    """Coefficients ``[S, p]`` around the centre, curves ``[S, n]``, exponents at an end ``[S]``."""
    names, design = FORMS[form]
    if "alpha" not in names:
        columns = design(u, np.zeros(1))[0]
        found: Floats = np.linalg.lstsq(columns, ys.T, rcond=None)[0].T
        return found, np.asarray(found @ columns.T), np.zeros(len(ys), bool)
    grid: Floats = ALPHAS if form == "power_floor" else np.concatenate([-ALPHAS[::-1], ALPHAS])
    bases = np.linalg.qr(design(u, grid))[0]
    left = np.stack([((ys - (ys @ q) @ q.T) ** 2).sum(1) for q in bases], 1)
    at = left.argmin(1)
    ends = (at == 0) | (at == len(grid) - 1)

    def loss(alphas: Floats) -> Floats:
        """What is left of each y outside the span of its columns."""
        q = np.linalg.qr(design(u, alphas))[0]
        inside = np.einsum("snp,sp->sn", q, np.einsum("snp,sn->sp", q, ys))
        return np.asarray(((ys - inside) ** 2).sum(1))

    low, high = grid[np.maximum(at - 1, 0)], grid[np.minimum(at + 1, len(grid) - 1)]
    alphas = _golden(loss, low, high)
    columns = design(u, alphas)
    linear = np.einsum("spn,sn->sp", np.linalg.pinv(columns), ys)
    coefficients = np.concatenate([linear[:, :1], alphas[:, None], linear[:, 1:]], 1)
    return coefficients, np.einsum("snp,sp->sn", columns, linear), ends


def _golden(loss: Callable[[Floats], Floats], low: Floats, high: Floats) -> Floats:
    """The least of each function with one minimum between two bounds."""
    ratio = (5**0.5 - 1) / 2
    for _ in range(REFINEMENTS):
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        left = loss(a) <= loss(b)
        low, high = np.where(left, low, a), np.where(left, b, high)
    return (low + high) / 2


def _uncentred(found: Floats, names: tuple[str, ...], centre: float) -> Floats:
    """Coefficients in ``x`` from those in ``ln x - centre``."""
    out = found.copy()
    if "alpha" in names:
        out[:, 0] = found[:, 0] * np.exp(found[:, 1] * centre)
    else:
        out[:, 0] = found[:, 0] - found[:, 1] * centre
    return out
