"""The demo in one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pylum.demo.accuracy import K, Row
from pylum.demo.cost import Cost
from pylum.figures import save


def plot(
    path: Path, title: str, rows: list[Row], costs: list[Cost], epochs: list[dict[str, Any]]
) -> bool:
    """Recall, cost and training as one PNG; False where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(14, 3.8), width_ratios=(3, 2, 2), layout="constrained"
    )
    names = [row.name for row in rows]
    values = [row.recall for row in rows]
    colours = ["#2a6f97" if name.startswith("LUM") else "#b0b0b0" for name in names]
    left.barh(names, values, color=colours)
    for i, row in enumerate(rows):
        left.text(max(row.recall, row.best or 0.0), i, f"  {row.recall:.3f}", va="center")
    best = [(i, row.best) for i, row in enumerate(rows) if row.best is not None]
    if best:
        left.plot(
            [b for _, b in best], [i for i, _ in best], "k|", ms=16, mew=2, label="best possible"
        )
        left.legend(loc="lower right", frameon=False)
    left.set_xlim(0, 1.2 * max([*values, *(b for _, b in best)]))
    left.invert_yaxis()
    left.set_title(f"recall@{K} of the next item, test part")

    bars = middle.barh([c.name for c in costs], [c.ms for c in costs], color="#468faf")
    middle.bar_label(bars, fmt="%.1f", padding=3)
    middle.set_xlim(0, 1.25 * max(c.ms for c in costs))
    middle.invert_yaxis()
    middle.set_title("milliseconds for the same questions")

    right.plot([e["epoch"] for e in epochs], [e["loss"] for e in epochs], "o-", color="#2a6f97")
    right.set_xlabel("epoch")
    right.set_title("training loss, nats per choice")
    for axis in (left, middle, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    save(figure, path, dpi=130)
    return True
