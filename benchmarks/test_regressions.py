"""Every row of ``pylum bench cpu`` under pytest-benchmark, for a CI that looks for regressions.

    python -m pytest benchmarks --benchmark-enable --benchmark-autosave
    python -m pytest benchmarks --benchmark-enable --benchmark-compare \
        --benchmark-compare-fail=median:20%
    python -m pytest benchmarks --benchmark-enable --baseline benchmarks/results/cpu.json

The first two hold times of one machine against each other. The last holds each ratio to the fastest
peer, both called in turn, against a table of another day: a machine slower today slows both.
Without ``--benchmark-enable`` every row is called once. ``-k "top-k"`` chooses rows by their ids.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pylum.bench.cpu import entries, measure
from pylum.bench.entry import Maker

# Of a ratio: seconds of each contestant, and calls at least.
SECONDS, CALLS = 0.5, 9


def rows() -> list[Any]:
    """A row is known by its op and its number among the op's: cases tell what was drawn."""
    found, seen = [], Counter[str]()
    for op, make in entries():
        found.append(pytest.param(make, seen[op], id=re.sub(r"\W+", "-", f"{op} {seen[op]}")))
        seen[op] += 1
    return found


@pytest.mark.parametrize(("make", "number"), rows())
def test_row(make: Maker, number: int, benchmark: Any, request: pytest.FixtureRequest) -> None:
    entry = make()
    benchmark(entry.ours)
    if benchmark.disabled:
        return
    row = measure(entry, SECONDS, CALLS)
    kept = ("op", "case", "peer", "ratio", "share", "bound", "goal", "met")
    benchmark.extra_info.update({name: row[name] for name in kept})
    path = request.config.getoption("--baseline")
    if path is None:
        return
    before = ratio_of(path, entry.op, number)
    least = before * (1 - request.config.getoption("--slack"))
    assert row["ratio"] >= least, (
        f"{entry.op}, {entry.case}: {row['ratio']:.2f} times {row['peer']}, was {before:.2f}"
    )


def ratio_of(path: Path, op: str, number: int) -> float:
    """Of a row of a table."""
    of_op = [row for row in json.loads(path.read_text())["rows"] if row["op"] == op]
    if number >= len(of_op):
        pytest.skip(f"{path} has {len(of_op)} rows of {op}, not number {number}")
    return float(of_op[number]["ratio"])
