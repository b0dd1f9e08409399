"""What LUM's knowledge adds to four rankers, in the six arms of step 3.

    python -m benchmarks.accuracy.rankers --data synthetic
    python -m benchmarks.accuracy.rankers --data ml-100k --protocol rest-auc --path recbole.whl

synthetic: the seeded world of `pylum demo`. Every choice is one row with label 1; beside it stands
one item drawn evenly among all, label 0. Cuts at the 40 %, 80 % and 90 % quantiles of time: user
model, rankers, validation, test. The best possible score of a row follows from the exact posterior
of the user's type. LUM is asked for all five scenes as of each row's time; each ranker knows the
scene of the row, the last 20 choices, counts and rates.

ml-100k: rating >= 4 is the label, nothing sampled. rest-auc: 5-core, cuts at 40 %, 80 % and 90 % of
each user's events; din-auc: cuts by a hash of the user. LUM reads each event's liked-or-not as its
condition and is asked for both, whatever the row's label.

Prints the table and writes it as JSON.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pylum
from pylum.data import Synthetic
from pylum.data.protocols import stages
from pylum.rank import impression_schema, impressions
from pylum.rank.arms import ARMS, Arms, rows_of, run_arms, table
from pylum.rank.ranker import Ranker

OUT = Path(__file__).parent / "results"
RANKERS: dict[str, dict[str, Any]] = {"wide_deep": {}, "dlrm": {}, "din": {}, "sim_rank": {}}


def report(name: str, seed: int, ranker: Ranker) -> None:
    best = min(ranker.history, key=lambda entry: entry["valid"])
    print(f"  {name}, seed {seed}: {best}", flush=True)


def synthetic(options: argparse.Namespace) -> Arms:
    world = Synthetic(users=options.users)
    data = world.interactions()
    user_model, ranker, valid, test = stages(data, "time")
    start = time.process_time()
    model = pylum.pretrain(
        pylum.LUMConfig(dim=64, layers=2, dropout=0.0, initial_scale=0.2),
        user_model,
        epochs=options.lum_epochs,
        lr=3e-3,
        progress=False,
    )
    print(f"user model: {time.process_time() - start:.0f} CPU seconds", flush=True)
    rows = impressions(data, np.ones(data.events.total, bool), last=20, order="time", negatives=1)
    parts = [rows_of(rows, part) for part in (ranker, valid, test)]
    scenes = data.vocabs.conditions["scene"].ids.to_pylist()
    start = time.process_time()
    knowledge = pylum.query(model, data, scenes, at="each")
    print(f"{len(knowledge):,} moments: {time.process_time() - start:.0f} CPU seconds", flush=True)
    best = best_possible(world, data, parts[2])
    return run_arms(
        f"synthetic, {options.users:,} users",
        impression_schema(data, negatives=1),
        *parts,
        knowledge,
        rankers={name: {**RANKERS[name], "epochs": options.epochs} for name in options.rankers},
        seeds=options.seeds,
        arms=options.arms,
        more={"best possible": best},
        on_fit=report,
    )


def best_possible(world: Synthetic, data: pylum.Interactions, rows: Any) -> np.ndarray:
    """Log odds of each row having been chosen rather than drawn, up to a constant."""
    items = np.asarray(world.names)
    order = np.argsort(items)
    place = order[np.searchsorted(items[order], rows["item"].to_numpy().astype(str))]
    chances = world.chances_of(data, rows["event"].to_numpy(), place)
    return np.log(np.maximum(chances, 1e-30))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", choices=["synthetic"], default="synthetic")
    parser.add_argument("--users", type=int, default=3000)
    parser.add_argument("--rankers", nargs="+", choices=list(RANKERS), default=list(RANKERS))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lum-epochs", type=int, default=8)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    arms = synthetic(options)
    found = arms.comparison()
    print(table(arms.title, found))
    seconds = time.process_time() - start
    print(f"{seconds:.0f} CPU seconds, one thread")
    out = options.out or OUT / f"rankers_{options.data.replace('-', '_')}.json"
    out.parent.mkdir(exist_ok=True)
    given = {name: str(v) if isinstance(v, Path) else v for name, v in vars(options).items()}
    result = {
        "title": arms.title,
        "options": given,
        "cpu_seconds": round(seconds),
        **found.to_dict(),
    }
    aside = out.with_suffix(f".{os.getpid()}.tmp")
    aside.write_text(json.dumps(result, indent=1) + "\n")
    aside.replace(out)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
