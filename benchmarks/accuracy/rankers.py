"""What LUM's knowledge adds to Wide & Deep, DLRM, DIN and SIM, in the six arms of step 3,
and on all rows.

    python -m benchmarks.accuracy.rankers --data synthetic
    python -m benchmarks.accuracy.rankers --data ml-100k --protocol rest-auc

Data, labels and stages are those of `pylum.demo.rankers`; the settings of the rankers were chosen
for the base alone, on the validation rows. One thread. Prints each ranker's table and adds it to
the JSON under its name.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch

from pylum.demo import rankers as demo
from pylum.demo.sequence import SEQUENCE
from pylum.rank.arms import ALL, ARMS, BOTH_ALL, table
from pylum.rank.ranker import Ranker

OUT = Path(__file__).parent / "results"
ALL_ARMS = [*ARMS, ALL, BOTH_ALL]


def report(name: str, seed: int, ranker: Ranker) -> None:
    best = min(ranker.history, key=lambda entry: entry["valid"])
    numbers = {key: round(value, 4) for key, value in best.items()}
    print(f"  {name}, seed {seed}: {numbers}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", choices=["synthetic", "ml-100k"], default="synthetic")
    parser.add_argument("--protocol", choices=["rest-auc", "din-auc"], default="rest-auc")
    parser.add_argument("--path", help="ml-100k: where it is, else it is downloaded")
    parser.add_argument("--in-sample", action="store_true", help="ml-100k: the wrong way, to see")
    parser.add_argument("--users", type=int, default=3000, help="synthetic")
    known = [*demo.RANKERS, *SEQUENCE]
    parser.add_argument("--rankers", nargs="+", choices=known, default=known)
    parser.add_argument("--arms", nargs="+", choices=ALL_ARMS, default=ALL_ARMS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lum-epochs", type=int, help="of the user model")
    parser.add_argument("--epochs", type=int, help="of the rankers")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    more: dict[str, Any] = {"epochs": options.lum_epochs} if options.lum_epochs else {}
    if options.data == "synthetic":
        stage = demo.synthetic(options.users, **more)
        name = "rankers_synthetic"
    else:
        more |= {"path": options.path, "in_sample": options.in_sample}
        stage = demo.ml_100k(options.protocol, **more)
        name = f"rankers_ml_100k_{options.protocol}{'_in_sample' * options.in_sample}"
    user_model = time.process_time() - start
    print(f"user model, rows and knowledge: {user_model:.0f} CPU seconds", flush=True)
    out = options.out or OUT / f"{name}.json"
    out.parent.mkdir(exist_ok=True)
    for ranker in options.rankers:
        start = time.process_time()
        arms = stage.run(
            rankers=[ranker] if ranker in demo.RANKERS else [],
            sequence=[ranker] if ranker in SEQUENCE else [],
            arms=options.arms,
            seeds=options.seeds,
            changes={"epochs": options.epochs} if options.epochs else {},
            on_fit=report,
        )
        found = arms.comparison()
        print(table(arms.title, found))
        seconds = time.process_time() - start
        print(f"{seconds:.0f} CPU seconds on one thread beside the user model's", flush=True)
        # One entry a ranker, written as it ends: several runs may fill one file.
        result = json.loads(out.read_text()) if out.exists() else {}
        of = stage.sequences if ranker in SEQUENCE else stage
        assert of is not None
        result[ranker] = {
            "title": arms.title,
            "settings": of.settings.get(ranker, {}),
            "on_all": stage.on_all.get(ranker, {}),
            "seeds": options.seeds,
            "cpu_seconds": round(seconds),
            "user_model_cpu_seconds": round(user_model),
            "torch": torch.__version__,
            **found.to_dict(),
        }
        aside = out.with_suffix(f".{os.getpid()}.tmp")
        aside.write_text(json.dumps(result, indent=1) + "\n")
        aside.replace(out)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
