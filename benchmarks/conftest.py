"""Options of ``test_regressions.py``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pylum.bench import harness


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pylum")
    group.addoption("--threads", type=int, default=1, help="threads of all contestants (1)")
    group.addoption(
        "--baseline",
        type=Path,
        metavar="JSON",
        help="rows of `pylum bench cpu --json`: fail where a ratio to the fastest peer has fallen",
    )
    group.addoption(
        "--slack", type=float, default=0.25, help="how far a ratio may fall, of itself (0.25)"
    )


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info.update(harness.machine())


@pytest.fixture(autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.config.getoption("--threads"))
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)
