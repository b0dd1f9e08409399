"""Ranks on MovieLens-100K beside the peers', with paired bootstrap intervals."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from pylum.evaluate.intervals import bootstrap
from pylum.evaluate.metrics import hit_rate, ndcg

PEERS = Path(__file__).parent / "results" / "peers_ml100k.json"


def table(ours: dict[str, Any]) -> None:
    """Means over seeds and users, and LUM less each peer, on the users and seeds both have.

    Args:
        ours: what `ml100k` has recorded.
    """
    theirs = json.loads(PEERS.read_text())
    place = {user: i for i, user in enumerate(ours["users"])}
    order = [place[user] for user in theirs["users"]]

    def of_peers(key: str) -> dict[str, np.ndarray]:
        found = {}
        for name, model in theirs["final"].items():
            seeds = [run[key] for run in model["seeds"].values() if key in run]
            if seeds:
                found[name] = np.empty((len(seeds), len(order)), np.int64)
                found[name][:, order] = seeds
        return found

    rows = {
        name: np.array([run["ranks"] for run in model["seeds"].values()])
        for name, model in ours["final"].items()
    }
    for first in rows:
        compare(f"loo-full, full catalogue, {first} beside each", rows, of_peers("ranks"), first)
    runs = list(ours["oracle"].values())
    kept = runs[0]["kept"]
    names = {"genre": "LUM(genre)", "any": "LUM(ANY)", "popularity": "popularity"}
    rows = {
        shown: np.array([run[f"{key}, among genre"]["ranks"] for run in runs])
        for key, shown in names.items()
    }
    peers = {name: found[:, kept] for name, found in of_peers("ranks_among_genre").items()}
    peers.pop("popularity", None)
    compare("among the films of the target's genre", rows, peers, "LUM(genre)")


def compare(
    title: str, ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], first: str
) -> None:
    """``[seeds, users]`` 1-based ranks of each model."""
    every = {**ours, **theirs}
    print(f"{title}: {next(iter(every.values())).shape[1]} users")
    for name, found in every.items():
        scores = {"HR@10": hit_rate(found - 1, 10), "NDCG@10": ndcg(found - 1, 10)}
        line = f"  {name:14}{len(found):2} seeds"
        for metric, values in scores.items():
            line += f"  {metric} {values.mean():.4f}"
            if name != first:
                best = (hit_rate if metric == "HR@10" else ndcg)(every[first] - 1, 10)
                seeds = min(len(best), len(values))
                users = np.arange(values.shape[1])
                less = bootstrap(best[:seeds], users, against=values[:seeds])
                line += (
                    f" ({first} less this: {less.value:+.4f} [{less.low:+.4f}, {less.high:+.4f}])"
                )
        print(line)
