"""The table of CUDA kernels: each op beside its fastest peer and its share of the ceiling.

Contestants are called in turn and timed by CUDA events, several calls between two of them where a
call is short, so that the queue is never empty. Two probes go round with them: torch's matrix
product of 8,192 cubed in the row's dtype, and a copy of 1 GiB on the device. The ceiling is the
slower of flops at the one rate and bytes at the other; its share is the ceiling's time over ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import torch

from pylum.bench import cuda_attention, cuda_rows
from pylum.bench.cpu import OURS, PRODUCT, judged, line
from pylum.bench.entry import Entry, Row, chosen

COPY = "copy probe"
TURN_MS = 5.0  # of one contestant between two events
L2_BYTES = 256 << 20


def table(
    only: str = "",
    seconds: float = 0.5,
    *,
    device: str = "cuda",
    tiny: bool = False,
    cold: bool = False,
    each: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Measure and print the rows of every op whose name contains ``only``.

    Args:
        only: part of the op's name.
        seconds: of each contestant of a row.
        device: ``"cpu"`` runs the same calls by the clock: that they run, not how fast.
        tiny: sizes for such a run.
        cold: overwrite the L2 cache before every call, and time single calls.
        each: called with each row as it is measured.

    Returns:
        A row each, as :func:`pylum.bench.cpu.table` has them; ``refused`` names peers that this
        torch or this device does not have, and why.

    Raises:
        ValueError: no op is so called.
    """
    makers = chosen(chain(cuda_attention.entries(tiny), cuda_rows.entries(tiny)), only)
    torch.manual_seed(0)
    print(f"{'op':<36} {'case':<62} {'ms':>9} {'ratio':>7} {'goal':>4}    {'share':>6} {'goal':>4}")
    rows: list[dict[str, Any]] = []
    with torch.device(device):
        for make in makers:
            rows.append(measure(make(), seconds, torch.device(device), tiny, cold))
            print(line(rows[-1]), flush=True)
            for name, why in rows[-1]["refused"].items():
                print(f"    {name}: {why}")
            if each is not None:
                each(rows[-1])
            if device != "cpu":
                torch.cuda.empty_cache()
    return rows


def measure(
    entry: Entry, seconds: float, device: torch.device, tiny: bool, cold: bool
) -> dict[str, Any]:
    """One row of the table."""
    size, count = (64, 1 << 10) if tiny else (8192, 1 << 29)
    a = torch.randn(size, size).to(entry.dtype)
    source = torch.zeros(count, dtype=torch.uint8)
    target = torch.empty_like(source)
    probes = {PRODUCT: lambda: a @ a, COPY: lambda: target.copy_(source)}
    peers, refused = _willing(entry.peers)
    if not peers:
        peers = {"nobody": lambda: None}
    times = _turns({OURS: entry.ours, **peers, **probes}, seconds, device, cold)
    gflops = 2 * size**3 / float(np.median(times[PRODUCT])) / 1e6
    gbytes = 2 * count / float(np.median(times[COPY])) / 1e6
    return judged(entry, times, [*peers], gflops, gbytes) | {
        "clock": "host" if device.type == "cpu" else "cold events" if cold else "events",
        "refused": refused,
        "tflops": round(float(entry.flops / np.median(times[OURS]) / 1e9), 2),
        "probe_gflops": round(gflops, 1),
        "probe_gbytes": round(gbytes, 2),
    }


def _willing(
    peers: dict[str, Callable[[], Any]],
) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """Peers that run here, and the first line of what the others say."""
    willing, refused = {}, {}
    for name, call in peers.items():
        try:
            call()
            willing[name] = call
        except (RuntimeError, NotImplementedError, ImportError, AttributeError, TypeError) as error:
            refused[name] = str(error).strip().splitlines()[0][:120] if str(error) else repr(error)
    return willing, refused


def _turns(
    calls: dict[str, Callable[[], Any]], seconds: float, device: torch.device, cold: bool
) -> dict[str, np.ndarray]:
    """Milliseconds of a call, contestants in turn; at least five turns."""
    timed = _by_clock if device.type == "cpu" else _by_events
    flush = torch.empty(L2_BYTES if cold else 1, dtype=torch.uint8)
    repeats = {}
    for name, call in calls.items():
        call()
        once = min(timed(call, 1), timed(call, 1))
        repeats[name] = 1 if cold else max(1, min(200, int(TURN_MS / max(once, 1e-3))))
    times: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    while len(times[OURS]) < 5 or time.perf_counter() - start < seconds * len(calls):
        for name, call in calls.items():
            if cold:
                flush.fill_(1)
            times[name].append(timed(call, repeats[name]))
    return {name: np.array(values) for name, values in times.items()}


def _by_events(call: Callable[[], Any], repeats: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / repeats


def _by_clock(call: Callable[[], Any], repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return 1e3 * (time.perf_counter() - begin) / repeats
