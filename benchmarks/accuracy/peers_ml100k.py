"""Next-item accuracy of RecTools' SASRec and HSTU on MovieLens-100K, protocol `loo-full`.

`tune` searches settings on NDCG@10 of the five items before the test item, trained on what comes
before them: a greedy search that changes one setting of the best so far, until the budget of CPU
seconds is spent.
`final` trains the winner on all but the test item, once per seed, and records the rank of each
user's test item in the full catalogue without the user's seen items (`filter_viewed=True`).
Every result goes to the JSON as soon as it exists, and finished runs are skipped.

    python -m benchmarks.accuracy.peers_ml100k tune sasrec --wheel WHEEL
    python -m benchmarks.accuracy.peers_ml100k final sasrec --wheel WHEEL

Models: popularity; sasrec; hstu_time (position and time bias, the target's time given);
hstu (position bias only, with hstu_time's settings); sasrec_start (the settings of START as
they are, 60 epochs: a check against known figures and the speed of those settings).
Needs `rectools[torch]==0.19.0` and, as WHEEL, `pip download --no-deps recbole==1.2.1`.
Everything runs on one thread; times are CPU seconds of the process.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy and torch are imported

import argparse
import ctypes
import fcntl
import importlib.metadata
import json
import logging
import platform
import re
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytorch_lightning
import torch
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import HSTUModel, PopularModel, SASRecModel

from benchmarks.accuracy.loo_split import (
    TEST_TARGET,
    TUNING_TARGETS,
    load_genres,
    load_ml100k,
)
from benchmarks.accuracy.ranks import metrics

OUT = Path(__file__).parent / "results" / "peers_ml100k.json"
ITEMS = 1682
EVAL_EVERY, PATIENCE, MAX_EPOCHS = 5, 2, 60  # epochs, evaluations, epochs

START = {
    "n_blocks": 2,
    "n_heads": 1,
    "n_factors": 50,
    "session_max_len": 200,
    "loss": "sampled_softmax",
    "n_negatives": 128,
    "dropout_rate": 0.2,
    "lr": 1e-3,
    "batch_size": 128,
}
# The full softmax at batch 32 takes a third of START's CPU seconds per epoch. An earlier search on
# the validation item alone (`earlier` in the JSON) led here from START.
FIRST = {
    "sasrec": START | {"loss": "softmax", "batch_size": 32, "lr": 3e-3, "dropout_rate": 0.5},
}
FIRST["hstu_time"] = FIRST["sasrec"] | {"logits_t": 0.05}
# Each is applied to the best settings so far, and kept if NDCG@10 rises.
MOVES = {
    "sasrec": [{"dropout_rate": 0.35}, {"n_factors": 64}, {"lr": 2e-3}],
    "hstu_time": [{"dropout_rate": 0.35}, {"n_factors": 64}, {"lr": 2e-3}],
}


class Split:
    """What a model is trained on, and the items of each user that it is asked for, one by one."""

    def __init__(self, wheel: str, asked: range):
        data = load_ml100k(wheel)
        self.rows = pd.DataFrame(
            {
                Columns.User: data["user"],
                Columns.Item: data["item"],
                Columns.Weight: 1.0,
                Columns.Datetime: pd.to_datetime(data["time"], unit="s"),
                "left": data["left"],
                "genre": data["genre"],
            }
        )
        self.dataset = self._before(asked[0])
        self.asked = asked
        films = [(i, g) for i, genres in load_genres(wheel).items() for g in genres]
        self.films = pd.DataFrame(films, columns=[Columns.Item, "genre"])
        train = self.rows[self.rows["left"] > asked[0]]
        self.users = train[Columns.User].unique()
        # Of each user the last 201 rows are trained on, and the first of them is no target.
        seen = train.groupby(Columns.User).size().to_numpy()
        self.trained_targets = int(np.minimum(seen - 1, START["session_max_len"]).sum())

    def _before(self, left: int) -> Dataset:
        rows = self.rows[self.rows["left"] > left]
        return Dataset.construct(rows.drop(columns=["left", "genre"]))

    def ranks(self, model) -> tuple[np.ndarray, np.ndarray]:
        """1-based rank of each target, users in order and their targets in turn; an item unknown
        to the model ranks last. Then the same among the films of the target's genre."""
        found = [self._ranks(model, left) for left in self.asked]
        return tuple(np.stack(each, 1).ravel() for each in zip(*found, strict=True))

    def _ranks(self, model, left: int) -> tuple[np.ndarray, np.ndarray]:
        target = self.rows[self.rows["left"] == left]
        listed = self._recommend(model, left, ITEMS)
        own = [Columns.User, Columns.Item]
        found = target.merge(listed, on=own, how="left")
        found[Columns.Rank] = found[Columns.Rank].fillna(ITEMS).astype(np.int64)
        seen = target[own[:1]].merge(
            self.rows[self.rows["left"] > left].groupby(own[0]).size().rename("seen").reset_index(),
            on=own[0],
        )["seen"]
        last = found[Columns.Rank].to_numpy() == ITEMS
        rank = np.where(last, ITEMS - seen.to_numpy(), found[Columns.Rank].to_numpy())
        # Of the listed films of the target's genre, those before it.
        of_genre = listed.merge(self.films, on=Columns.Item).merge(
            found[[Columns.User, "genre", Columns.Rank]].rename(columns={Columns.Rank: "own"}),
            on=[Columns.User, "genre"],
        )
        before = of_genre[of_genre[Columns.Rank] < of_genre["own"]].groupby(Columns.User).size()
        among = before.reindex(target[Columns.User]).fillna(0).to_numpy(np.int64) + 1
        return rank, among

    def hits_at_10(self, model) -> float:
        """HR@10 of the last targets from a list of 10, to check the ranks."""
        target = self.rows[self.rows["left"] == self.asked[-1]]
        pairs = self._recommend(model, self.asked[-1], 10)[[Columns.User, Columns.Item]]
        return len(pairs.merge(target, on=[Columns.User, Columns.Item])) / len(target)

    def _recommend(self, model, left: int, k: int) -> pd.DataFrame:
        extra = {}
        target = self.rows[self.rows["left"] == left].drop(columns=["left", "genre"])
        if model.require_recommend_context:
            extra["context"] = target.drop(columns=Columns.Item)
        users = target[Columns.User].to_numpy()
        return model.recommend(users, self._before(left), k=k, filter_viewed=True, **extra)


def build(name: str, settings: dict, seed: int):
    pytorch_lightning.seed_everything(seed)
    settings = dict(settings)
    if "logits_t" in settings:
        settings["lightning_module_kwargs"] = {"logits_t": settings.pop("logits_t")}
    if name.startswith("hstu"):
        return HSTUModel(**settings, relative_time_attention=name == "hstu_time")
    return SASRecModel(**settings)


def run_trial(name: str, settings: dict, split: Split, deadline: float) -> dict:
    """Train until validation NDCG@10 stops rising or the process has used `deadline` CPU s."""
    start, train_seconds, curve = time.process_time(), 0.0, []
    model = build(name, settings, seed=0)
    for epoch in range(EVAL_EVERY, MAX_EPOCHS + 1, EVAL_EVERY):
        begun = time.process_time()
        model.fit_partial(split.dataset, min_epochs=EVAL_EVERY, max_epochs=EVAL_EVERY)
        train_seconds += time.process_time() - begun
        curve.append({"epoch": epoch} | metrics(split.ranks(model)[0]))
        print("  ", curve[-1], flush=True)
        best = max(curve, key=lambda point: point["NDCG@10"])
        if epoch - best["epoch"] >= PATIENCE * EVAL_EVERY or time.process_time() > deadline:
            break
    return {
        "settings": settings,
        "best": best,
        "cpu_seconds": round(time.process_time() - start, 1),
        "train_cpu_seconds_per_epoch": round(train_seconds / epoch, 2),
        "stopped_by_budget": time.process_time() > deadline,
        "validation": curve,
    }


def tune(name: str, split: Split, budget: float) -> None:
    trials = recorded()["tuning"].get(name, {}).get("trials", [])
    deadline = time.process_time() + budget - sum(trial["cpu_seconds"] for trial in trials)
    for move in [{}, *MOVES[name]]:
        best = max(trials, key=lambda trial: trial["best"]["NDCG@10"], default=None)
        settings = (best["settings"] if best else FIRST[name]) | move
        tried = any(move == trial["move"] or settings == trial["settings"] for trial in trials)
        if tried or time.process_time() > deadline:
            continue
        trials.append({"move": move} | run_trial(name, settings, split, deadline))
        best = max(trials, key=lambda trial: trial["best"]["NDCG@10"])
        report = {
            "budget_cpu_seconds": budget,
            "cpu_seconds": round(sum(trial["cpu_seconds"] for trial in trials), 1),
            "winner": {"settings": best["settings"], "epochs": best["best"]["epoch"]},
            "winner_validation": best["best"],
            "trials": list(trials),
        }
        update(lambda result, report=report: result["tuning"].update({name: report}))
        print(name, move, trials[-1]["best"], trials[-1]["cpu_seconds"], flush=True)


def final(name: str, split: Split, seeds: list[int]) -> None:
    if name == "sasrec_start":
        winner = {"settings": START, "epochs": 60}
    elif name == "popularity":
        winner = {"settings": {"score": "count in train"}}
    else:
        source = "hstu_time" if name == "hstu" else name
        winner = recorded()["tuning"][source]["winner"]
    for seed in seeds:
        if str(seed) in recorded()["final"].get(name, {}).get("seeds", {}):
            continue
        start = time.process_time()
        if name == "popularity":
            model = PopularModel().fit(split.dataset)
        else:
            model = build(name, winner["settings"] | {"epochs": winner["epochs"]}, seed)
            model.fit(split.dataset)
        train_seconds = time.process_time() - start
        ranks, among = split.ranks(model)
        figures = metrics(ranks)
        assert figures["HR@10"] == round(split.hits_at_10(model), 5)
        run = figures | {
            "train_cpu_seconds": round(train_seconds, 1),
            "ranks": ranks.tolist(),
            "ranks_among_genre": among.tolist(),
        }
        if "epochs" in winner:
            per_epoch = train_seconds / winner["epochs"]
            run["train_cpu_seconds_per_epoch"] = round(per_epoch, 2)
            run["targets_per_cpu_second"] = round(split.trained_targets / per_epoch)

        def add(result: dict, seed: int = seed, run: dict = run, figures: dict = figures) -> None:
            model_result = result["final"].setdefault(name, winner | {"seeds": {}})
            model_result["seeds"][str(seed)] = run
            runs = model_result["seeds"].values()
            for key in figures:
                model_result[f"mean {key}"] = round(float(np.mean([r[key] for r in runs])), 5)
            result["users"] = split.users.tolist()
            result["trained_targets_per_epoch"] = split.trained_targets

        update(add)
        print(name, seed, figures, round(train_seconds), flush=True)


def update(change: Callable[[dict], None]) -> None:
    """Apply `change` to the JSON; the folder is locked, and the file is replaced whole."""
    OUT.parent.mkdir(exist_ok=True)
    folder = os.open(OUT.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        result = recorded()
        change(result)
        text = json.dumps(result, indent=1)
        # One line per list of numbers.
        text = re.sub(r"\[[\d\s,]+\]", lambda found: " ".join(found[0].split()), text)
        temporary = OUT.with_suffix(".tmp")
        temporary.write_text(text + "\n")
        temporary.rename(OUT)
    finally:
        os.close(folder)


def recorded() -> dict:
    """The results so far."""
    if OUT.exists():
        return json.loads(OUT.read_text())
    packages = ["rectools", "torch", "pytorch-lightning", "numpy", "pandas"]
    return {
        "data": "MovieLens-100K: 100,000 ratings, 943 users, 1,682 items, all ratings kept",
        "protocol": "loo-full: per user last item test, last but one validation; order (time, "
        "row), stable; tuned on NDCG@10 of the five items before the test item, trained on what "
        "comes before them; then trained on all but the test item; full catalogue ranked without "
        "the user's seen items",
        "ranks": "of the test item among the user's unseen items, 1-based, in the order of "
        "`users`; an item that the model never saw in training ranks last",
        "threads": 1,
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
        "tuning": {},
        "final": {},
    }


def keep_freed_memory() -> None:
    """Let glibc reuse large blocks: else page faults take 40 % of RecTools' CPU seconds."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def main() -> None:
    models = ["popularity", "sasrec", "hstu_time", "hstu", "sasrec_start"]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("mode", choices=["tune", "final"])
    parser.add_argument("model", choices=models)
    parser.add_argument("--wheel", required=True, help="recbole-1.2.1-py3-none-any.whl")
    parser.add_argument("--budget", type=float, default=1500, help="CPU seconds of tuning")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    if args.mode == "tune":
        if args.model not in MOVES:
            parser.error(f"tune takes one of {', '.join(MOVES)}, got {args.model}")
        tune(args.model, Split(args.wheel, TUNING_TARGETS), args.budget)
    else:
        final(args.model, Split(args.wheel, TEST_TARGET), args.seeds)


if __name__ == "__main__":
    main()
