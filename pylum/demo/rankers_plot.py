"""What knowledge adds to each ranker, in one picture."""

from __future__ import annotations

from pathlib import Path

from pylum.evaluate.impressions import Comparison
from pylum.figures import save
from pylum.rank.arms import ALL, ARMS, BASE, BOTH_ALL, MISSING, rankers_of

COLOURS = {
    BASE: "#8a8a8a",
    "+ e_i": "#a9d6e5",
    "+ direct": "#61a5c2",
    "+ matching": "#2a6f97",
    "+ both": "#012a4a",
    "+ both, shuffled": "#e07a5f",
    MISSING: "#e9b44c",
    ALL: "#8a8a8a",
    BOTH_ALL: "#6a994e",
}


def plot(path: Path, title: str, found: Comparison) -> bool:
    """AUC of every arm beside the floors, and its gain over the base with a paired interval.

    A PNG; False where matplotlib is not installed. Intervals stand at the gains alone: those of
    the AUC hold what all arms share, so that their overlap says nothing about a difference.
    """
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rankers = rankers_of(found)
    arms = [arm for arm in (*ARMS, MISSING, ALL, BOTH_ALL) if _has(found, rankers, arm)]
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(4 + 2 * len(rankers), 6), sharex=True, layout="constrained"
    )
    for place, arm in enumerate(arms):
        here = [n for n, ranker in enumerate(rankers) if f"{ranker} {arm}" in found.values]
        names = [f"{rankers[n]} {arm}" for n in here]
        x = [n + (place - (len(arms) - 1) / 2) * 0.8 / len(arms) for n in here]
        # Hollow: trained on more rows, so that its gain is not knowledge's alone.
        fill = "white" if arm in (ALL, BOTH_ALL) else COLOURS[arm]
        look = {"fmt": "o", "color": COLOURS[arm], "mfc": fill, "markersize": 6}
        above.errorbar(x, [found.values[name]["AUC"].value for name in names], label=arm, **look)
        if arm != BASE:
            gains = [
                found.gains[f"{rankers[n]} {arm}", f"{rankers[n]} {BASE}"]["AUC"] for n in here
            ]
            spread = [[g.value - g.low for g in gains], [g.high - g.value for g in gains]]
            below.errorbar(x, [g.value for g in gains], spread, **look)
    lines = {"item + user mean": ":", "best possible": "--", "HSTU": "-.", "SASRec": (0, (1, 4))}
    for name, style in lines.items():
        if name in found.values:
            height = found.values[name]["AUC"].value
            above.axhline(height, color="black", ls=style, lw=1, label=name)
    below.axhline(0, color="black", lw=0.8)
    below.set_xticks(range(len(rankers)), rankers)
    below.set_xlim(-0.5, len(rankers) - 0.5)
    above.set_ylabel("AUC")
    below.set_ylabel("gain in AUC over the base")
    for axis in (above, below):
        for edge in range(len(rankers) - 1):
            axis.axvline(edge + 0.5, color="#e5e5e5", lw=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(axis="x", length=0)
        axis.grid(axis="y", color="#e5e5e5", lw=0.6)
        axis.set_axisbelow(True)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    note = "Lines at the gains: 95 % intervals, paired bootstrap over users and seeds."
    figure.supxlabel(note, x=0.01, ha="left", fontsize=8, color="#555555")
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    save(figure, path, dpi=120)
    return True


def _has(found: Comparison, rankers: list[str], arm: str) -> bool:
    return any(f"{ranker} {arm}" in found.values for ranker in rankers)
