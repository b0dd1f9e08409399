"""Next-item accuracy of LUM on MovieLens-100K, protocol `loo-full`.

`tune` searches settings on the validation item's NDCG@10 with the test item held out: a greedy
search that changes one setting of the best so far, until the budget of CPU seconds is spent. A
trial's score is the mean over the last fifth of its epochs. `final` trains the winner on all but
the test item, once per seed, and records the rank of each user's test item among the items the
user has not seen. Every result goes to the JSON as soon as it exists; finished runs are skipped.

    python -m benchmarks.accuracy.ml100k tune lum
    python -m benchmarks.accuracy.ml100k final lum
    python -m benchmarks.accuracy.ml100k oracle

Models: lum (no condition: ANY, no time), lum_time (the time since the event before, the target's
time given, as HSTU's time bias has it). `oracle` trains with one genre of each film as its
condition and ranks the films of the target's genre, asked with the genre and with ANY, beside
popularity. One thread; times are CPU seconds of the process.
"""

import argparse
import fcntl
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pylum import LUM, Interactions, LUMConfig, pretrain
from pylum.data import ItemTable
from pylum.data.movielens import movielens_100k
from pylum.evaluate.metrics import ranks
from pylum.ragged import Ragged, lengths_to_offsets
from pylum.train.validation import Validation

OUT = Path(__file__).parent / "results" / "lum_ml100k.json"

START: dict[str, Any] = {
    "data": "ids",
    "config": {"dim": 64, "layers": 2, "dropout": 0.4, "max_length": 200},
    "run": {"epochs": 40, "lr": 3e-3, "batch_tokens": 8192, "weight_decay": 0.01},
}
FIRST = {"lum": START, "lum_time": {**START, "config": {**START["config"], "query_time": True}}}
MOVES: list[dict[str, Any]] = [
    {"config": {"dropout": 0.5}},
    {"run": {"weight_decay": 0.3}},
    {"data": "ids, ratings"},
    {"config": {"temperature": 0.07}},
    {"config": {"ffn": 1.0}},
    {"config": {"width": 96}},
    {"run": {"lr": 1.5e-3}},
    {"data": "ids, ratings, genres, year"},
]


def load(content: str) -> Interactions:
    """The data set with what the content names."""
    data = movielens_100k()
    schema, items = data.schema, data.items
    if "genres" not in content:
        items = ItemTable(len(items))
        schema = replace(schema, item_features=())
    if "ratings" not in content:
        schema = replace(schema, outcomes=())
    return replace(data, schema=schema, items=items)


def merged(settings: dict[str, Any], move: dict[str, Any]) -> dict[str, Any]:
    return {
        key: {**value, **move.get(key, {})} if isinstance(value, dict) else move.get(key, value)
        for key, value in settings.items()
    }


def fit(
    settings: dict[str, Any],
    train: Interactions,
    seed: int,
    valid: Interactions | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> LUM:
    config = LUMConfig(**settings["config"])
    return pretrain(
        config,
        train,
        valid=valid,
        valid_time=config.query_time,
        seed=seed,
        schedule="cosine",
        progress=False,
        on_epoch=on_epoch,
        **settings["run"],
    )


def asked(model: LUM, part: Interactions) -> Validation:
    return Validation(
        part.events,
        max_length=model.config.max_length,
        batch_events=8192,
        seed=0,
        query_time=model.config.query_time,
    )


def metrics(found: np.ndarray) -> dict[str, float]:
    """Of 1-based ranks."""
    hit = found <= 10
    return {
        "HR@10": round(float(hit.mean()), 5),
        "NDCG@10": round(float((hit / np.log2(found + 1)).mean()), 5),
        "MRR": round(float((1 / found).mean()), 5),
    }


def trial(settings: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    train, valid, _ = load(settings["data"]).split("loo-full")
    curve: list[dict[str, Any]] = []
    start = time.process_time()

    def note(entry: dict[str, Any]) -> None:
        curve.append(
            {
                "epoch": entry["epoch"],
                "HR@10": round(entry["hr@10"], 5),
                "NDCG@10": round(entry["ndcg@10"], 5),
                "loss": round(entry["loss"], 4),
                "cpu_seconds": round(time.process_time() - start, 1),
            }
        )
        if entry["epoch"] % 5 == 0:
            print("  ", curve[-1], flush=True)

    fit(settings, train, seed, valid, note)
    last = curve[-max(1, len(curve) // 5) :]
    return {
        "settings": settings,
        "score": round(sum(point["NDCG@10"] for point in last) / len(last), 5),
        "best": max(curve, key=lambda point: point["NDCG@10"]),
        "cpu_seconds": round(time.process_time() - start, 1),
        "validation": curve,
    }


def tune(name: str, budget: float) -> None:
    trials = recorded()["tuning"].get(name, {}).get("trials", [])
    for move in [{}, *MOVES]:
        best = max(trials, key=lambda t: t["score"], default=None)
        settings = merged(best["settings"] if best else FIRST[name], move)
        if any(t["move"] == move or t["settings"] == settings for t in trials):
            continue
        if sum(t["cpu_seconds"] for t in trials) >= budget:
            break
        trials.append({"move": move, **trial(settings)})
        print(name, move, trials[-1]["score"], trials[-1]["cpu_seconds"], flush=True)
        best = max(trials, key=lambda t: t["score"])
        report = {
            "budget_cpu_seconds": budget,
            "cpu_seconds": round(sum(t["cpu_seconds"] for t in trials), 1),
            "winner": best["settings"],
            "winner_score": best["score"],
            "trials": list(trials),
        }
        update(lambda result, report=report: result["tuning"].update({name: report}))


def final(name: str, seeds: list[int]) -> None:
    settings = recorded()["tuning"][name]["winner"]
    data = load(settings["data"])
    train, valid, test = data.split("loo-full")
    for seed in seeds:
        if str(seed) in recorded()["final"].get(name, {}).get("seeds", {}):
            continue
        start = time.process_time()
        model = fit(settings, train.merged(valid), seed)
        seconds = time.process_time() - start
        found = asked(model, test).ranks(model).numpy() + 1
        entry = {
            **metrics(found),
            "train_cpu_seconds": round(seconds, 1),
            "ranks": found.tolist(),
        }
        print(name, seed, {key: entry[key] for key in list(entry)[:4]}, flush=True)

        def add(result: dict[str, Any], seed: int = seed, entry: dict[str, Any] = entry) -> None:
            report = result["final"].setdefault(name, {"settings": settings, "seeds": {}})
            report["seeds"][str(seed)] = entry
            result["users"] = test.users

        update(add)


def oracle(seeds: list[int]) -> None:
    settings = recorded()["tuning"]["lum"]["winner"]
    data = movielens_100k("genre")
    genres, rows = data.items.columns["genres"], data.vocabs.conditions["genre"]
    # The films of each condition row; ANY and unknown have none.
    films: list[list[int]] = [[] for _ in range(len(rows))]
    names = data.vocabs.features["genres"]
    at = rows.rows(names.values(np.arange(1, len(names)))).tolist()
    for film, bag in enumerate(genres.to_lists()):
        for genre in bag:
            films[at[genre - 1]].append(film)
    keep = load(settings["data"])
    data = replace(
        data,
        schema=replace(keep.schema, conditions=data.schema.conditions),
        items=keep.items,
    )
    train, valid, test = data.split("loo-full")
    for seed in seeds:
        if str(seed) in recorded()["oracle"]:
            continue
        fitted = train.merged(valid)
        model = fit(settings, fitted, seed)
        questions = asked(model, test)
        targets = test.events.items[questions.sites]
        genre = test.events.conditions["genre"][questions.sites]
        kept = genre >= rows.reserved
        chosen = [films[g] for g in genre.tolist()]
        candidates = Ragged(
            torch.tensor([film for row in chosen for film in row]),
            lengths_to_offsets(torch.tensor([len(row) for row in chosen])),
        )
        vectors = model.item_vectors().detach()
        any_ = test.events.conditions["genre"].clone()
        any_[questions.sites] = 1
        unasked = replace(test, events=replace(test.events, conditions={"genre": any_}))
        counts = torch.bincount(fitted.events.items, minlength=len(vectors)).float()[:, None]
        answers = {
            "genre": (questions.answers(model), vectors),
            "any": (asked(model, unasked).answers(model), vectors),
            "popularity": (torch.ones(len(targets), 1), counts),
        }
        entry: dict[str, Any] = {"users": int(kept.sum())}
        for name, (queries, items) in answers.items():
            for among, allowed in (("all", None), ("genre", candidates)):
                found = ranks(queries, items, targets, exclude=questions.seen(), candidates=allowed)
                entry[f"{name}, among {among}"] = metrics(found[kept].numpy() + 1)
        print(seed, json.dumps(entry, indent=1), flush=True)
        update(lambda result, e=entry, s=seed: result["oracle"].update({str(s): e}))


def recorded() -> dict[str, Any]:
    if OUT.exists():
        return json.loads(OUT.read_text())
    return {
        "data": "MovieLens-100K: 100,000 ratings, 943 users, 1,682 items, all ratings kept",
        "protocol": __doc__,
        "ranks": "1-based, of the test item among the user's unseen items, in the order of `users`",
        "threads": 1,
        "torch": torch.__version__,
        "tuning": {},
        "final": {},
        "oracle": {},
    }


def update(change: Callable[[dict[str, Any]], None]) -> None:
    """Change the file; several processes may do so."""
    OUT.parent.mkdir(exist_ok=True)
    with open(OUT.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = recorded()
        change(result)
        aside = OUT.with_suffix(f".{os.getpid()}.tmp")
        aside.write_text(json.dumps(result) + "\n")
        aside.replace(OUT)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("command", choices=["tune", "final", "oracle"])
    parser.add_argument("model", nargs="?", choices=list(FIRST), default="lum")
    parser.add_argument("--budget", type=float, default=1500.0, help="CPU seconds of tuning")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.command == "tune":
        tune(options.model, options.budget)
    elif options.command == "final":
        final(options.model, options.seeds)
    else:
        oracle(options.seeds)


if __name__ == "__main__":
    main()
