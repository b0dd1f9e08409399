"""The table of CPU kernels by threads: each op on one and on several, in turn, by the clock.

Beside each op stand torch's matrix product and, where the op reads more than caches hold, a read of
as many bytes, on as many threads: cores that share a memory or a clock do not read or multiply
twice as fast as one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pylum.bench.cpu import GEMM, OURS, PRODUCT, READ, entries, summary
from pylum.bench.entry import Entry, Row, chosen
from pylum.bench.harness import interleaved

# A call of one thread that takes less is not one of the large shapes that a goal is set for.
LARGE = 5.0
FAR = 1 << 26  # bytes that no cache holds
GOAL = 0.9  # of the threads


def table(
    only: str = "",
    seconds: float = 1.0,
    limit: int | None = None,
    *,
    calls: int = 5,
    threads: int = 2,
    each: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Measure and print the rows of every op whose name contains ``only``.

    Args:
        only: part of the op's name.
        seconds: of each contestant of a row.
        limit: rows at most; None: all.
        calls: of each contestant at least.
        threads: compared with one.
        each: called with each row as it is measured.

    Returns:
        A row each: op, case, threads, milliseconds and quartiles of every contestant on one and on
        ``threads`` threads, how many times one thread's speed op, product and read reach, and
        whether the op reaches :data:`GOAL` of the threads (None: it is too short to be asked).

    Raises:
        ValueError: no op is so called.
    """
    makers = chosen(entries(), only, limit)
    torch.manual_seed(0)
    before = torch.get_num_threads()
    print(
        f"{'op':<36} {'case':<62} {'ms of 1':>9} {'ms of ' + str(threads):>9} "
        f"{'times':>6} {'goal':>5}  {'':<6} {'product':>8} {'read':>6}"
    )
    rows: list[dict[str, Any]] = []
    try:
        for make in makers:
            torch.set_num_threads(threads)
            rows.append(measure(make(), seconds, calls, threads))
            print(line(rows[-1]), flush=True)
            torch.set_num_threads(before)
            if each is not None:
                each(rows[-1])
    finally:
        torch.set_num_threads(before)
    print(summary(rows))
    return rows


def measure(entry: Entry, seconds: float, least: int, threads: int) -> dict[str, Any]:
    """One row of the table."""
    a = torch.randn(GEMM, GEMM).to(entry.dtype)
    calls: dict[str, Callable[[], Any]] = {OURS: entry.ours, PRODUCT: lambda: a @ a}
    if entry.bytes >= FAR:
        read = torch.ones(int(entry.bytes) // 4)
        calls[READ] = lambda: read.dot(read)

    def on(count: int, call: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> None:
            torch.set_num_threads(count)
            call()

        return run

    times = interleaved(
        {f"{name}, {n}": on(n, call) for name, call in calls.items() for n in (1, threads)},
        seconds=seconds,
        least=least,
    )
    quartiles = {name: np.percentile(ms, [25, 50, 75]) for name, ms in times.items()}
    gain = {
        name: round(float(quartiles[f"{name}, 1"][1] / quartiles[f"{name}, {threads}"][1]), 3)
        for name in calls
    }
    large = quartiles[f"{OURS}, 1"][1] >= LARGE
    return {
        "op": entry.op,
        "case": entry.case,
        "threads": threads,
        "ms": {name: [round(float(x), 4) for x in q] for name, q in quartiles.items()},
        "runs": len(times[f"{OURS}, 1"]),
        "times": gain,
        "goal": GOAL * threads if large else None,
        "met": gain[OURS] >= GOAL * threads if large else None,
    }


def line(row: dict[str, Any]) -> str:
    """A row as text."""
    goal = "" if row["goal"] is None else f"{row['goal']:.2f}"
    verdict = {True: "met", False: "missed", None: ""}[row["met"]]
    one, several = (row["ms"][f"{OURS}, {n}"][1] for n in (1, row["threads"]))
    read = f"{row['times'][READ]:.2f}" if READ in row["times"] else ""
    return (
        f"{row['op']:<36} {row['case']:<62} {one:9.3f} {several:9.3f} {row['times'][OURS]:6.2f} "
        f"{goal:>5}  {verdict:<6} {row['times'][PRODUCT]:8.2f} {read:>6}"
    )
