"""Next-item accuracy of LUM on MovieLens-100K, protocol `loo-full`.

`tune` tries settings on NDCG@10 of the five items before the test item, trained on what comes
before them: the changes of MOVES to START, then those of the winner, until the budget of CPU
seconds is spent. `curve` follows the winner from epoch to epoch. `final` trains it on all but the
test item, once per seed, and records the rank of each user's test item among the items the user
has not seen. `oracle` trains with one genre of each film as its condition and ranks the films of
the target's genre, asked with the genre and with ANY, beside popularity. Every result goes to the
JSON as soon as it exists; finished runs are skipped. `table` prints them beside the peers', with
paired bootstrap intervals over users and seeds.

    python -m benchmarks.accuracy.ml100k tune lum
    python -m benchmarks.accuracy.ml100k final lum
    python -m benchmarks.accuracy.ml100k oracle
    python -m benchmarks.accuracy.ml100k table

Models: lum (no condition: ANY, no time), lum_time (the time since the event before, the target's
time given, as HSTU's time bias has it). One thread; times are CPU seconds of the process.
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

from benchmarks.accuracy.ml100k_settings import MOVES, START, TIMED_MOVES, merged
from benchmarks.accuracy.ml100k_table import table
from benchmarks.accuracy.ranks import metrics
from pylum import LUM, Interactions, LUMConfig, pretrain
from pylum.data import ItemTable
from pylum.data.movielens import movielens_100k
from pylum.data.protocols import part
from pylum.evaluate.metrics import ranks
from pylum.ragged import Ragged, lengths_to_offsets
from pylum.train.validation import Validation

OUT = Path(__file__).parent / "results" / "lum_ml100k.json"


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


def before_the_end(data: Interactions) -> tuple[Interactions, Interactions]:
    """What tuning trains on, and the five targets a user that it asks for; no test item in either.

    One target a user has a standard error of .007, as large as what is to be told apart.
    """
    offsets = data.events.offsets.numpy()
    counts = np.diff(offsets)
    left = np.repeat(offsets[1:], counts) - np.arange(offsets[-1])
    train = part(data, left > 6, left > 6, "before-the-end", "train")
    return train, part(data, left > 1, (left > 1) & (left <= 6), "before-the-end", "valid")


def trial(settings: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    train, valid = before_the_end(load(settings["data"]))
    start = time.process_time()
    model = fit(settings, train, seed)
    seconds = time.process_time() - start
    found = metrics(asked(model, valid).ranks(model).numpy() + 1)
    return {"settings": settings, **found, "cpu_seconds": round(seconds, 1)}


def tune(name: str, budget: float) -> None:
    trials = recorded()["tuning"].get(name, {}).get("trials", [])
    for move in TIMED_MOVES if name == "lum_time" else MOVES:
        settings = merged(START, move)
        if any(t["settings"] == settings for t in trials):
            continue
        if sum(t["cpu_seconds"] for t in trials) >= budget:
            break
        trials.append(trial(settings))
        print(name, move, trials[-1]["NDCG@10"], trials[-1]["cpu_seconds"], flush=True)
        best = max(trials, key=lambda t: t["NDCG@10"])
        report = {
            "budget_cpu_seconds": budget,
            "cpu_seconds": round(sum(t["cpu_seconds"] for t in trials), 1),
            "winner": best["settings"],
            "winner_score": best["NDCG@10"],
            "trials": list(trials),
        }
        update(lambda result, report=report: result["tuning"].update({name: report}))


def curve(name: str) -> None:
    """The winner's NDCG@10 on tuning's targets after each epoch, and the CPU seconds of training.

    Two runs, the same to the bit: one asks after each epoch, one only trains and is timed.
    """
    settings = recorded()["tuning"][name]["winner"]
    train, valid = before_the_end(load(settings["data"]))
    points: list[dict[str, Any]] = []
    fit(settings, train, 0, valid, lambda entry: points.append(dict(entry)))
    seconds: list[float] = []
    start = time.process_time()
    fit(settings, train, 0, None, lambda _: seconds.append(time.process_time() - start))
    found = [
        {
            "epoch": point["epoch"],
            "HR@10": round(point["hr@10"], 5),
            "NDCG@10": round(point["ndcg@10"], 5),
            "train_cpu_seconds": round(spent, 1),
        }
        for point, spent in zip(points, seconds, strict=True)
    ]
    for point in found:
        print(point)
    update(lambda result: result.setdefault("curves", {}).update({name: found}))


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
                placed = found[kept].numpy() + 1
                entry[f"{name}, among {among}"] = {**metrics(placed), "ranks": placed.tolist()}
        entry["kept"] = kept.nonzero()[:, 0].tolist()
        shown = {k: v["NDCG@10"] for k, v in entry.items() if isinstance(v, dict)}
        print(seed, json.dumps(shown), flush=True)
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
    parser.add_argument("command", choices=["tune", "curve", "final", "oracle", "table"])
    parser.add_argument("model", nargs="?", choices=["lum", "lum_time"], default="lum")
    parser.add_argument("--budget", type=float, default=1500.0, help="CPU seconds of tuning")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.command == "tune":
        tune(options.model, options.budget)
    elif options.command == "curve":
        curve(options.model)
    elif options.command == "final":
        final(options.model, options.seeds)
    elif options.command == "oracle":
        oracle(options.seeds)
    else:
        table(recorded())


if __name__ == "__main__":
    main()
