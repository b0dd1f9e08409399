"""The table of CPU kernels: each op beside its fastest peer and its share of the ceiling.

All contestants of a row are called in turn in one process, and so are two probes: torch's matrix
product of 512 cubed in the row's dtype, and a read of as many bytes as the op reads. The ceiling is
the slower of flops at the one rate and bytes at the other; its share is the ceiling's time over
ours. With fewer flops than the product's, a share above 1 says that torch's product was no ceiling.
"""

from __future__ import annotations

import time
from itertools import chain
from typing import Any

import numpy as np
import torch

from pylum.bench import attention, tables
from pylum.bench.entry import Entry
from pylum.bench.harness import interleaved

GEMM = 512
OURS, PRODUCT, READ = "pylum", "gemm probe", "read probe"


def table(
    only: str = "",
    seconds: float = 1.0,
    limit: int | None = None,
    *,
    calls: int = 5,
    processor_time: bool = False,
) -> list[dict[str, Any]]:
    """Measure and print the rows of every op whose name contains ``only``.

    Args:
        only: part of the op's name.
        seconds: of each contestant of a row.
        limit: rows at most; None: all.
        calls: of each contestant at least.
        processor_time: time the calling thread's use of the processor instead of the clock, for one
            thread on a machine that others use.

    Returns:
        A row each: op, case, goal, milliseconds and quartiles of every contestant, the fastest
        peer, the ratio to it, GFLOP/s and GB/s of the probes and the share of the ceiling.
    """
    torch.manual_seed(0)
    print(f"{'op':<36} {'case':<62} {'ms':>9} {'ratio':>7} {'goal':>5} {'share':>6}  fastest peer")
    rows: list[dict[str, Any]] = []
    for op, make in chain(attention.entries(), tables.entries()):
        if limit is not None and len(rows) == limit:
            break
        if only in op:
            entry = make()
            rows.append(measure(entry, seconds, calls, processor_time))
            print(line(rows[-1]), flush=True)
    return rows


def measure(
    entry: Entry, seconds: float, least: int = 5, processor_time: bool = False
) -> dict[str, Any]:
    """One row of the table."""
    a = torch.randn(GEMM, GEMM).to(entry.dtype)
    read = torch.ones(max(1024, int(entry.bytes) // 4))
    calls = {
        OURS: entry.ours,
        **entry.peers,
        PRODUCT: lambda: a @ a,
        READ: lambda: read.dot(read),
    }
    clock = time.thread_time if processor_time else time.perf_counter
    times = interleaved(calls, seconds=seconds, least=least, clock=clock)
    quartiles = {name: np.percentile(ms, [25, 50, 75]) for name, ms in times.items()}
    gflops = 2 * GEMM**3 / quartiles[PRODUCT][1] / 1e6
    gbytes = 4 * len(read) / quartiles[READ][1] / 1e6
    ceiling = max(entry.flops / gflops, entry.bytes / gbytes) / 1e6
    peer = min(entry.peers, key=lambda name: quartiles[name][1])
    ours = quartiles[OURS][1]
    return {
        "op": entry.op,
        "case": entry.case,
        "goal": entry.goal,
        "ms": {name: [round(float(x), 4) for x in q] for name, q in quartiles.items()},
        "runs": len(times[OURS]),
        "clock": "processor" if processor_time else "wall",
        "peer": peer,
        "ratio": round(float(quartiles[peer][1] / ours), 3),
        "share": round(float(ceiling / ours), 3),
        "bound": "flops" if entry.flops / gflops >= entry.bytes / gbytes else "bytes",
        "probe_gflops": round(float(gflops), 1),
        "probe_gbytes": round(float(gbytes), 2),
    }


def line(row: dict[str, Any]) -> str:
    """A row as text; what misses its goal is marked."""
    goal = "" if row["goal"] is None else f"{row['goal']:g}"
    missed = " *" if row["goal"] is not None and row["ratio"] < row["goal"] else "  "
    return (
        f"{row['op']:<36} {row['case']:<62} {row['ms'][OURS][1]:9.3f} {row['ratio']:7.2f}{missed}"
        f"{goal:>4} {row['share']:6.0%}  {row['peer']} (of {row['bound']})"
    )
