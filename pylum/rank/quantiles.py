"""Numbers as the share of training rows below them (section 3.1 of arXiv 1606.07792)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

QUANTILES = 256


def quantile_bounds(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The bounds of ``QUANTILES`` equally filled parts; equal ones are kept, NaN does not count."""
    known = values[np.isfinite(values)]
    if not len(known):
        return np.zeros(QUANTILES - 1)
    return np.quantile(known, np.arange(1, QUANTILES) / QUANTILES)


def quantile(
    values: npt.NDArray[np.float64], bounds: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """``(i - 1) / (n - 1)`` for a value in the i-th of n parts; .5 for NaN.

    A value on several equal bounds lies in the middle of them.
    """
    below = np.searchsorted(bounds, values, "left")
    upto = np.searchsorted(bounds, values, "right")
    return np.where(np.isnan(values), 0.5, (below + upto) / 2 / len(bounds))
