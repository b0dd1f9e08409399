"""Next-item accuracy of our HSTU on MovieLens-100K, protocol `loo-full`, with and without time.

As `ml100k`: `tune` tries MOVES on NDCG@10 of the five items before the test item, trained on what
comes before them, until the budget of CPU seconds is spent; `final` trains the winner on all but
the test item, once per seed, and records the rank of each user's test item among the items the
user has not seen; `table` prints the rows beside RecTools' HSTU, with paired bootstrap intervals.

    python -m benchmarks.accuracy.hstu_ml100k tune
    python -m benchmarks.accuracy.hstu_ml100k final hstu_time
    python -m benchmarks.accuracy.hstu_ml100k final hstu
    python -m benchmarks.accuracy.hstu_ml100k table

The JSON's `search` has what led to PUBLISHED: RecTools' HSTU rebuilt of our parts, and its settings
exchanged for ours one by one, on the same five items. `hstu, projections` and `hstu_time,
projections` are the best of the other moves, trained before each layer had a bias of its own and
the unknown item was a negative.

Models: hstu_time (bias of position and time, the target's time given), hstu (bias of position
alone, with the settings of hstu_time, as the peers' rows have it). One thread; times are CPU
seconds of the process.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.accuracy.ml100k import before_the_end, load
from benchmarks.accuracy.ml100k_settings import merged
from benchmarks.accuracy.ml100k_table import PEERS, compare
from benchmarks.accuracy.ranks import metrics
from pylum import HSTU, HSTUConfig, Interactions, pretrain
from pylum.train.validation import Validation

OUT = Path(__file__).parent / "results" / "hstu_ml100k.json"

START: dict[str, Any] = {
    "config": {"dim": 64, "layers": 2, "heads": 2, "dropout": 0.2, "max_length": 200},
    "run": {"epochs": 24, "lr": 5e-3, "batch_tokens": 8192},
}
# Near RecTools' settings: no projections, one head, a constant rate of learning, small batches.
PUBLISHED: dict[str, Any] = {
    "config": {"dim": 50, "heads": 1, "dropout": 0.35, "project": False},
    "run": {
        "epochs": 35,
        "lr": 3e-3,
        "batch_tokens": 3264,
        "schedule": "constant",
        "weight_decay": 0.0,
    },
}
MOVES: list[dict[str, Any]] = [
    {"run": {"batch_tokens": 4096, "weight_decay": 0.3}},
    {"config": {"dropout": 0.1}, "run": {"weight_decay": 0.3}},
    {},
    {"run": {"weight_decay": 1.0}},
    {"config": {"dropout": 0.35}, "run": {"lr": 3e-3, "epochs": 35, "batch_tokens": 4096}},
    {"config": {"dropout": 0.35}, "run": {"epochs": 35}},
    PUBLISHED,
]


def fit(settings: dict[str, Any], train: Interactions, seed: int, with_time: bool) -> HSTU:
    config = HSTUConfig(**settings["config"], time=with_time)
    run = {"schedule": "cosine", **settings["run"]}
    model: HSTU = pretrain(config, train, seed=seed, progress=False, **run)
    return model


def ranks(model: HSTU, part: Interactions) -> np.ndarray:
    """1-based, of every target of a part; the target's time is given where the model reads it."""
    length = model.config.max_length
    asked = Validation(
        part.events, max_length=length, batch_events=8192, seed=0, query_time=model.config.time
    )
    return asked.ranks(model).numpy() + 1


def tune(budget: float) -> None:
    train, valid = before_the_end(load("ids"))
    for move in MOVES:
        settings, result = merged(START, move), recorded()
        trials = result["trials"]
        if any(t["settings"] == settings for t in trials):
            continue
        if sum(t["cpu_seconds"] for t in trials) >= budget:
            break
        start = time.process_time()
        model = fit(settings, train, 0, True)
        seconds = time.process_time() - start
        found = metrics(ranks(model, valid))
        trials.append({"settings": settings, **found, "cpu_seconds": round(seconds, 1)})
        print(move, found, round(seconds, 1), flush=True)
        write(result)


def final(name: str, seeds: list[int]) -> None:
    settings = max(recorded()["trials"], key=lambda t: t["NDCG@10"])["settings"]
    train, valid, test = load("ids").split("loo-full")
    for seed in seeds:
        result = recorded()
        runs = result["final"].setdefault(name, {"settings": settings, "seeds": {}})["seeds"]
        if str(seed) in runs:
            continue
        start = time.process_time()
        model = fit(settings, train.merged(valid), seed, name == "hstu_time")
        seconds = time.process_time() - start
        found = ranks(model, test)
        runs[str(seed)] = {**metrics(found), "train_cpu_seconds": round(seconds, 1)}
        print(name, seed, runs[str(seed)], flush=True)
        runs[str(seed)]["ranks"] = found.tolist()
        result["users"] = test.users
        write(result)


def table() -> None:
    """Ours beside the peers', on the seeds both have."""
    ours, theirs = recorded(), json.loads(PEERS.read_text())
    place = {user: i for i, user in enumerate(ours["users"])}
    order = [place[user] for user in theirs["users"]]
    rows = {
        f"ours, {name}": np.array([run["ranks"] for run in model["seeds"].values()])
        for name, model in ours["final"].items()
    }
    peers = {}
    for name in ("hstu_time", "hstu"):
        runs = [run["ranks"] for run in theirs["final"].get(name, {"seeds": {}})["seeds"].values()]
        if runs:
            peers[f"RecTools, {name}"] = np.empty((len(runs), len(order)), np.int64)
            peers[f"RecTools, {name}"][:, order] = runs
    for first in ("ours, hstu_time", "ours, hstu"):
        compare(f"loo-full, full catalogue, {first} beside each", rows, peers, first)


def recorded() -> dict[str, Any]:
    if OUT.exists():
        found: dict[str, Any] = json.loads(OUT.read_text())
        return found
    return {
        "data": "MovieLens-100K: 100,000 ratings, 943 users, 1,682 items, all ratings kept",
        "ranks": "1-based, of the test item among the user's unseen items, in the order of `users`",
        "threads": 1,
        "torch": torch.__version__,
        "trials": [],
        "final": {},
    }


def write(result: dict[str, Any]) -> None:
    OUT.parent.mkdir(exist_ok=True)
    aside = OUT.with_suffix(".tmp")
    aside.write_text(json.dumps(result) + "\n")
    aside.replace(OUT)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("command", choices=["tune", "final", "table"])
    parser.add_argument("model", nargs="?", choices=["hstu_time", "hstu"], default="hstu_time")
    parser.add_argument("--budget", type=float, default=750.0, help="CPU seconds of tuning")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.command == "tune":
        tune(options.budget)
    elif options.command == "final":
        final(options.model, options.seeds)
    else:
        table()


if __name__ == "__main__":
    main()
