"""Two threads beside one: ops at sizes where a team should pay, and sequences of few heads.

Calls with one thread and with two alternate in one process; the ratio is of the medians. Two cores
must be free: what else runs on them shows as a ratio below.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.harness import interleaved, save
from pylum import ops
from pylum.bench import attention, tables
from pylum.bench.entry import inference, name, training

GOAL = 1.8
# What marks a row of attention in the table of CPU kernels as large enough for two threads.
LARGE = ("L 4096", "lognormal", "N 64 on 8,192", "N 256 on 8,192")


def few_heads() -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """One sequence, of fewer heads than two threads share evenly."""
    for dtype in (torch.bfloat16, torch.float32):
        for heads, kv_heads in ((1, 1), (4, 1), (3, 3)):
            for title, run in (("forward", inference), ("forward + backward", training)):
                q = torch.randn(4096, heads, 64).to(dtype)
                k, v = (torch.randn(4096, kv_heads, 64).to(dtype) for _ in range(2))
                offsets = torch.tensor([0, 4096])
                call = run(lambda q, k, v, o=offsets: ops.attention(q, k, v, o), q, k, v)
                case = f"L 4096, {heads} heads, {kv_heads} of keys, {name(dtype)}"
                yield f"few heads, {title}", case, call


def rows(only: str) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    for title, case, call in few_heads():
        if only in title:
            yield title, case, call
    for entries, sizes in ((attention.entries(), LARGE), (tables.entries(), ("",))):
        for title, make in entries:
            entry = make() if only in title else None
            if entry and any(size in entry.case for size in sizes):
                yield title, entry.case, entry.ours


def timed(call: Callable[[], Any], threads: int) -> None:
    torch.set_num_threads(threads)
    call()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="rows whose op contains this")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--save", help="write JSON here")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    kept = []
    print(f"{'op':<36} {'case':<62} {'1 thread':>9} {'2 threads':>9} {'ratio':>6}")
    for title, case, call in rows(arguments.only):
        contestants = {str(n): partial(timed, call, n) for n in (1, 2)}
        times = interleaved(contestants, seconds=arguments.seconds)
        one, two = (float(np.median(times[n])) for n in ("1", "2"))
        missed = "" if one / two >= GOAL else " *"
        print(f"{title:<36} {case:<62} {one:9.3f} {two:9.3f} {one / two:6.2f}{missed}", flush=True)
        kept.append({"op": title, "case": case, "goal": GOAL, "ms": [one, two]})
    if arguments.save:
        save(arguments.save, kept)


if __name__ == "__main__":
    main()
