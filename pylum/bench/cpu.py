"""The table of CPU kernels: each op beside its fastest peer and its share of the ceiling.

All contestants of a row are called in turn in one process, and so are three probes: torch's matrix
product of 512 cubed in the row's dtype, multiply-adds of that dtype from registers, and a read of
as many bytes as the op reads. The ceiling is the slower of flops at the higher rate of the first
two and bytes at that of the last; its share is the ceiling's time over ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pylum import _C
from pylum.bench import attention, tables
from pylum.bench.entry import Entry, Maker, Row, chosen
from pylum.bench.harness import interleaved

GEMM, STEPS = 512, 100_000
OURS, PRODUCT, REGISTERS, READ = "pylum", "gemm probe", "multiply-add probe", "read probe"
EXPLAINED = "benchmarks/CPU_CEILINGS.md"


def entries() -> Iterator[tuple[str, Maker]]:
    """Ops and makers of their rows, in the order of the table."""
    return chain(attention.entries(), tables.entries())


def table(
    only: str = "",
    seconds: float = 1.0,
    limit: int | None = None,
    *,
    calls: int = 5,
    processor_time: bool = False,
    each: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Measure and print the rows of every op whose name contains ``only``.

    Args:
        only: part of the op's name.
        seconds: of each contestant of a row.
        limit: rows at most; None: all.
        calls: of each contestant at least.
        processor_time: time the calling thread's use of the processor instead of the clock, for one
            thread on a machine that others use.
        each: called with each row as it is measured.

    Returns:
        A row each: op, case, goals, milliseconds and quartiles of every contestant, the fastest
        peer, the ratio to it, GFLOP/s and GB/s of the probes, the share of the ceiling, and whether
        the goals are met (None: there is none).

    Raises:
        ValueError: no op is so called.
    """
    makers = chosen(entries(), only, limit)
    torch.manual_seed(0)
    print(f"{'op':<36} {'case':<62} {'ms':>9} {'ratio':>7} {'goal':>4}    {'share':>6} {'goal':>4}")
    rows: list[dict[str, Any]] = []
    for make in makers:
        rows.append(measure(make(), seconds, calls, processor_time))
        print(line(rows[-1]), flush=True)
        if each is not None:
            each(rows[-1])
    print(summary(rows))
    return rows


def measure(
    entry: Entry, seconds: float, least: int = 5, processor_time: bool = False
) -> dict[str, Any]:
    """One row of the table."""
    a = torch.randn(GEMM, GEMM).to(entry.dtype)
    read = torch.ones(max(1024, int(entry.bytes) // 4))
    pairs = entry.dtype == torch.bfloat16
    calls = {
        OURS: entry.ours,
        **entry.peers,
        PRODUCT: lambda: a @ a,
        REGISTERS: lambda: _C.multiply_adds(pairs, STEPS),
        READ: lambda: read.dot(read),
    }
    clock = time.thread_time if processor_time else time.perf_counter
    times = interleaved(calls, seconds=seconds, least=least, clock=clock)
    medians = {name: float(np.median(ms)) for name, ms in times.items()}
    gflops = 2 * GEMM**3 / medians[PRODUCT] / 1e6
    # One thread's: the op has as many as torch.
    registers = _C.multiply_adds(pairs, STEPS)[1] / medians[REGISTERS] / 1e6
    registers *= torch.get_num_threads()
    gbytes = 4 * len(read) / medians[READ] / 1e6
    return judged(entry, times, [*entry.peers], max(gflops, registers), gbytes) | {
        "clock": "processor" if processor_time else "wall",
        "probe_gflops": round(gflops, 1),
        "probe_multiply_adds": round(registers, 1),
        "probe_gbytes": round(gbytes, 2),
    }


def judged(
    entry: Entry,
    times: dict[str, npt.NDArray[np.float64]],
    peers: list[str],
    gflops: float,
    gbytes: float,
) -> dict[str, Any]:
    """What a row has on every device: quartiles, the fastest peer, the share, the verdict.

    Args:
        times: milliseconds of each contestant's calls.
        peers: names of ``times``.
        gflops, gbytes: rates of the ceiling.
    """
    quartiles = {name: np.percentile(ms, [25, 50, 75]) for name, ms in times.items()}
    peer = min(peers, key=lambda name: quartiles[name][1])
    ours = quartiles[OURS][1]
    computing, moving = entry.flops / gflops, entry.bytes / gbytes
    row = {
        "op": entry.op,
        "case": entry.case,
        "goal": entry.goal,
        "share_goal": entry.share,
        "either": entry.either,
        "ms": {name: [round(float(x), 5) for x in q] for name, q in quartiles.items()},
        "runs": len(times[OURS]),
        "peer": peer,
        "ratio": round(float(quartiles[peer][1] / ours), 3),
        "share": round(float(max(computing, moving) / 1e6 / ours), 3),
        "bound": "flops" if computing >= moving else "bytes",
    }
    return row | {"met": met(row)}


def met(row: dict[str, Any]) -> bool | None:
    """Whether a row reaches what is wanted of it; None: nothing is."""
    wanted = [
        row[value] >= row[goal]
        for value, goal in (("ratio", "goal"), ("share", "share_goal"))
        if row[goal] is not None
    ]
    if not wanted:
        return None
    return any(wanted) if row["either"] else all(wanted)


def line(row: dict[str, Any]) -> str:
    """A row as text."""
    goal = "" if row["goal"] is None else f"{row['goal']:g}"
    share = "" if row["share_goal"] is None else f"{row['share_goal']:.0%}"
    joint = "" if not goal or not share else "or" if row["either"] else "and"
    verdict = {True: "met", False: "missed", None: ""}[row["met"]]
    return (
        f"{row['op']:<36} {row['case']:<62} {row['ms'][OURS][1]:9.3f} {row['ratio']:7.2f} "
        f"{goal:>4} {joint:<3}{row['share']:6.0%} {share:>4}  {verdict:<6}  "
        f"{row['peer']} (of {row['bound']})"
    )


def summary(rows: list[dict[str, Any]]) -> str:
    """How many goals are met, and where the others are explained."""
    wanted = [row["met"] for row in rows if row["met"] is not None]
    text = f"{sum(wanted)} of {len(wanted)} goals met"
    if all(wanted):
        return text
    return f"{text}; what bounds the others and what was tried: {EXPLAINED}"
