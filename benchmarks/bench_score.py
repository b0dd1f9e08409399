"""M-FALCON: candidates on one user's history, warm, cold and one by one.

    python -m benchmarks.bench_score [--json benchmarks/results/score_cpu.json]

A ranking HSTU of 4 layers, width 512 and 8 heads reads a history of 2,048 tokens, items and actions
in turn. Warm: its keys and values are cached. Cold: they are not. One by one: each candidate is
scored by a pass of its own over the whole history; ``--alone`` of them are timed, and the time of
all 1,024 is that many times their mean. Every call is the whole of ``pylum.score``.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch

import pylum
from benchmarks import harness
from pylum.data.events import Events
from pylum.data.schema import Field, Schema
from pylum.data.vocabs import Vocabs

ITEMS, BEHAVIOURS, CANDIDATES = 10_000, 1024, 1024


def make(variant: str, dtype: torch.dtype) -> pylum.HSTU:
    """A model with random weights over ``ITEMS`` items."""
    torch.manual_seed(0)
    vocabs = Vocabs(pylum.Vocab(range(ITEMS)), {}, {"rating": pylum.Vocab(range(1, 6))}, {})
    config = pylum.HSTUConfig(
        dim=64,
        layers=4,
        width=512,
        heads=8,
        variant=variant,
        task="ranking",
        tasks=(pylum.Task("liked", "rating", (4, 5)),),
        max_length=BEHAVIOURS,
    )
    items = pylum.data.ItemTable(len(vocabs.items))
    return pylum.HSTU(config, Schema((), (Field("rating"),)), vocabs, items).to(dtype).eval()


def history(model: pylum.HSTU) -> pylum.Histories:
    """Random coded behaviours, minutes to days apart."""
    rng = np.random.default_rng(0)
    gaps = np.exp(rng.normal(6, 3, BEHAVIOURS)).astype(np.int64)
    events = Events(
        torch.tensor([0, BEHAVIOURS]),
        torch.from_numpy(rng.integers(1, ITEMS, BEHAVIOURS)),
        torch.from_numpy(1_600_000_000 + gaps.cumsum()),
        {},
        {"rating": torch.from_numpy(rng.integers(1, 6, BEHAVIOURS))},
    )
    return pylum.Histories([0], events, model.schema, model.vocabs)


def run(variant: str, dtype: torch.dtype, alone: int, seconds: float) -> list[dict[str, Any]]:
    model = make(variant, dtype)
    user = history(model)
    shown = np.random.default_rng(1).integers(0, ITEMS, CANDIDATES).tolist()
    cache = pylum.UserCache(model, 2 * BEHAVIOURS + 64)
    found = pylum.score(model, user, shown, cache=cache)
    cold = pylum.score(model, user, shown)
    single = torch.cat([pylum.score(model, user, [item]).values for item in shown[:alone]])
    close = 1e-4 if dtype == torch.float32 else 3e-2
    for other in (cold.values[:alone], single):
        assert (found.values[:alone] - other).abs().max() < close
    title = f"{variant}, 2,048 tokens, {str(dtype)[6:]}"
    few = shown[:64]
    rows = [
        harness.compare(
            f"64 candidates, {title}",
            {
                "cold": lambda: pylum.score(model, user, few),
                "warm": lambda: pylum.score(model, user, few, cache=cache),
            },
            baseline="cold",
            seconds=seconds,
        )
    ]
    times = harness.interleaved(
        {
            "1,024 candidates, cold": lambda: pylum.score(model, user, shown),
            "1,024 candidates, warm": lambda: pylum.score(model, user, shown, cache=cache),
            "one candidate, cold": lambda: [
                pylum.score(model, user, [item]) for item in shown[:alone]
            ],
        },
        seconds=seconds,
    )
    one = float(np.median(times.pop("one candidate, cold"))) / alone
    row: dict[str, Any] = {"title": f"1,024 candidates, {title}", "one_candidate_ms": one}
    print(f"{row['title']}: one by one {CANDIDATES * one:,.0f} ms ({one:.1f} ms each)")
    for name, values in times.items():
        low, median, high = np.percentile(values, [25, 50, 75])
        ratio = CANDIDATES * one / median
        row[name] = {"ms": median, "ms_25": low, "ms_75": high, "ratio": ratio}
        print(f"  {name:<28} {median:10.1f} ms [{low:.1f}, {high:.1f}]  {ratio:8.0f}x", flush=True)
    return [*rows, row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="write the rows here")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each contestant")
    parser.add_argument("--alone", type=int, default=3, help="candidates timed one by one")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for variant in ("research", "production"):
            rows += run(variant, dtype, arguments.alone, arguments.seconds)
    if arguments.json:
        harness.save(arguments.json, rows)


if __name__ == "__main__":
    main()
