"""Recall@10 of a two-tower retriever with and without LUM's interests, on the generator.

    python -m benchmarks.accuracy.retrieval

The stages of `benchmarks.accuracy.rankers`: the user model is trained on the first 40 % of time,
the two towers on the next 40 %, both are scored on the last tenth. Every contestant answers from
the whole catalogue as of each test event; the towers and LUM know the event's scene. "without
conditions" is LUM's transformer trained on items alone and asked for the next one, as SASRec is;
"base, all rows" are towers trained on the first 80 %.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

import pylum
from pylum.data import Interactions, Synthetic
from pylum.data.protocols import stages
from pylum.evaluate import Interval, bootstrap, metrics
from pylum.evaluate.floors import popularity
from pylum.rank import impression_schema, impressions
from pylum.rank.arms import rows_of
from pylum.rank.two_tower import TwoTower

OUT = Path(__file__).parent / "results" / "retrieval_synthetic.json"
CONFIG = pylum.LUMConfig(dim=64, layers=2, dropout=0.0, initial_scale=0.2)
RUN = {"lr": 3e-3, "progress": False}
TOWERS = {"dim": 32, "epochs": 10, "lr": 3e-3, "hidden": (128, 64)}
K = 10


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--users", type=int, default=1500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lum-epochs", type=int, default=8)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    world = Synthetic(users=options.users)
    data = world.interactions()
    user_model, ranker, _, test = stages(data, "time")
    model = pylum.pretrain(CONFIG, user_model, epochs=options.lum_epochs, **RUN)
    scenes = data.vocabs.conditions["scene"].ids.to_pylist()
    knowledge = pylum.query(model, data, scenes, at="each")
    rows = impressions(data, np.ones(data.events.total, bool), order="time")
    early, train, asked = (rows_of(rows, part) for part in (user_model, ranker, test))
    items = world.item_table()
    place = {name: n for n, name in enumerate(items["item"].to_pylist())}
    target = torch.tensor([place[name] for name in asked["item"].to_pylist()])

    bare = Interactions.from_arrow(world.record_batches(), event="liked", items=items)
    plain_model = pylum.pretrain(CONFIG, stages(bare, "time")[0], epochs=options.lum_epochs, **RUN)
    plain = pylum.query(plain_model, bare, at="each")

    moments = torch.from_numpy(asked["event"].to_numpy().copy())
    scene = torch.tensor([scenes.index(value) for value in asked["scene"].to_pylist()])
    found: dict[str, list[torch.Tensor]] = {
        "popularity": [popular(data, user_model.merged(ranker), asked)],
        "without conditions": [ranked(plain, plain.vectors[moments, 0], items, target)],
        "LUM alone": [ranked(knowledge, knowledge.vectors[moments, scene], items, target)],
    }
    schema = replace(impression_schema(data, negatives=1, crosses=False), condition="scene")
    user = ["scene", "user_count", *(f.name for f in schema.of("sequence"))]
    contestants = {
        "two towers": (None, train),
        "two towers + LUM": (knowledge, train),
        "two towers, all rows": (None, pa.concat_tables([early, train])),
    }
    for name, (known, fitted) in contestants.items():
        found[name] = []
        for seed in options.seeds:
            towers = TwoTower(
                schema, user, ["item", "category", "brand", "price"], known, seed=seed, **TOWERS
            ).fit(fitted)
            found[name].append(metrics.ranks(towers.users(asked), towers.items(items), target))
            print(f"  {name}, seed {seed}: {towers.history[-1]}", flush=True)
    report(options, world, test, asked, found, time.process_time() - start)


def popular(data: Interactions, known: Interactions, asked: pa.Table) -> torch.Tensor:
    rows = torch.from_numpy(data.vocabs.items.rows(asked["item"].combine_chunks()))
    return popularity(known.events, len(data.vocabs.items), rows, None)


def ranked(
    knowledge: pylum.Knowledge, vectors: torch.Tensor, items: pa.Table, target: torch.Tensor
) -> torch.Tensor:
    rows = torch.from_numpy(knowledge.item_rows(items["item"]))
    return metrics.ranks(vectors, knowledge.item_vectors[rows], target)


def report(
    options: argparse.Namespace,
    world: Synthetic,
    test: Interactions,
    asked: pa.Table,
    found: dict[str, list[torch.Tensor]],
    seconds: float,
) -> None:
    users = asked["user"].to_numpy()
    seeds = len(options.seeds)
    hits = {
        name: np.stack([metrics.hit_rate(lines[s % len(lines)], K) for s in range(seeds)])
        for name, lines in found.items()
    }
    best = world.bayes_recall(test, K)
    result: dict = {"users": options.users, "seeds": options.seeds, "best possible": best}
    print(f"synthetic, {options.users:,} users: Recall@{K} on {len(users):,} test events")
    for name, lines in hits.items():
        value = bootstrap(lines, users)
        gain: Interval | None = None
        if name != "two towers":
            gain = bootstrap(lines, users, against=hits["two towers"])
        shown = f"{gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]" if gain else ""
        print(f"{name:21s} {value}  {shown}".rstrip())
        result[name] = {"value": value.to_dict(), "over two towers": gain and gain.to_dict()}
    print(f"{'best possible':21s} {best:.4f}")
    print("Second column: over the two towers. 95 % intervals, bootstrap over users and seeds.")
    result["cpu_seconds"] = round(seconds)
    print(f"{seconds:.0f} CPU seconds on one thread")
    options.out.parent.mkdir(exist_ok=True)
    aside = options.out.with_suffix(".tmp")
    aside.write_text(json.dumps(result, indent=1) + "\n")
    aside.replace(options.out)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
