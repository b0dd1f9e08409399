"""Interleaved timing of named contestants in one process, printed as ratios to a baseline.

A measurement rotates through the contestants, so that drift of the machine hits all alike. Median
and quartiles are kept; ceilings are measured by the caller in the same run.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch


def interleaved(
    contestants: dict[str, Callable[[], Any]],
    *,
    seconds: float = 1.0,
    least: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, np.ndarray]:
    """Milliseconds of each call, rotating until every contestant has ``least`` and ``seconds``.

    ``clock`` may be :func:`time.thread_time`, the processor's time, where one thread computes on a
    machine that others use.
    """
    for call in contestants.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    start = time.perf_counter()
    limit = seconds * len(contestants)
    while min(map(len, times.values())) < least or time.perf_counter() - start < limit:
        for name, call in contestants.items():
            begin = clock()
            call()
            times[name].append(1e3 * (clock() - begin))
    return {name: np.array(values) for name, values in times.items()}


def compare(
    title: str,
    contestants: dict[str, Callable[[], Any]],
    *,
    baseline: str,
    flops: float | None = None,
    bytes: float | None = None,
    seconds: float = 1.0,
) -> dict[str, Any]:
    """Time the contestants, print a table with ratios to ``baseline``, and return the row.

    Args:
        flops, bytes: of one call, by the op's formula; printed as GFLOP/s and GB/s.
    """
    times = interleaved(contestants, seconds=seconds)
    base = np.median(times[baseline])
    row: dict[str, Any] = {"title": title, "baseline": baseline, "contestants": {}}
    print(title)
    for name, values in times.items():
        low, median, high = np.percentile(values, [25, 50, 75])
        entry = {"ms": median, "ms_25": low, "ms_75": high, "ratio": base / median}
        entry["runs"] = len(values)
        text = f"  {name:<28} {median:10.3f} ms [{low:.3f}, {high:.3f}]  {base / median:6.2f}x"
        if flops:
            entry["gflops"] = flops / median / 1e6
            text += f"  {entry['gflops']:8.1f} GFLOP/s"
        if bytes:
            entry["gbytes"] = bytes / median / 1e6
            text += f"  {entry['gbytes']:7.2f} GB/s"
        print(text, flush=True)
        row["contestants"][name] = entry
    return row


def machine() -> dict[str, Any]:
    """Commit of the package, processor, torch and threads of a run."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0].split(":", 1)[1].strip() if names else model
    return {
        "commit": _commit(),
        "cpu": model,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def _commit() -> str | None:
    """Of this package's own checkout, wherever it is called; None: it is no checkout."""
    here = Path(__file__).parent
    try:
        asked = ["git", "ls-files", "--error-unmatch", Path(__file__).name]
        subprocess.run(asked, cwd=here, capture_output=True, check=True)
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def save(path: str | Path, rows: list[dict[str, Any]]) -> None:
    """Write rows and the machine as JSON, to a temporary name first."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    temporary.replace(path)
