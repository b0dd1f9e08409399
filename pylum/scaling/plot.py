"""A sweep as a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from pylum.figures import save
from pylum.scaling.fit import ScalingFit


def save_plot(
    path: str | os.PathLike[str],
    x: Sequence[float],
    y: Sequence[float],
    fit: ScalingFit,
    *,
    xlabel: str,
    ylabel: str,
) -> None:
    """Points and fitted curve as PNG or SVG; needs ``pip install pylum[plot]``."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    line = np.geomspace(min(x), max(x), 200)
    axes.plot(line, fit.predict(line), color="0.6", label=str(fit).split(":")[0])
    axes.plot(x, y, "o", color="tab:blue", label="runs")
    axes.set_xscale("log")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    save(figure, path, dpi=150)
