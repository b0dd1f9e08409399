"""Work on a GPU that is recorded once and then launched as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch


class Graph(Protocol):
    """A recording of work whose tensors stay where they are."""

    def record(self, work: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Record ``work``, which must read no value on the host.

        Returns:
            what it made; :meth:`replay` writes to it.

        Raises:
            RuntimeError: the work cannot be recorded.
        """

    def replay(self) -> None:
        """Do the work again on the caller's stream, with what its tensors hold now."""


class CudaGraph:
    """A ``torch.cuda.CUDAGraph``.

    Args:
        device: the GPU.
        pool: ``torch.cuda.graph_pool_handle()``, memory that recordings share: replays of one cache
            take turns, and what each returns stays alive.
    """

    def __init__(self, device: torch.device, pool: Any) -> None:
        self.device, self.pool = device, pool
        self.graph = torch.cuda.CUDAGraph()

    def record(self, work: Callable[[], torch.Tensor]) -> torch.Tensor:
        with torch.cuda.device(self.device):
            # Libraries make their workspaces on first use, which cannot be recorded.
            side, here = torch.cuda.Stream(), torch.cuda.current_stream()
            side.wait_stream(here)
            with torch.cuda.stream(side):
                work()
            here.wait_stream(side)
            # Other threads may allocate meanwhile.
            mode = "thread_local"
            with torch.cuda.graph(self.graph, pool=self.pool, capture_error_mode=mode):
                return work()

    def replay(self) -> None:
        self.graph.replay()


def graphs_of(device: torch.device) -> Callable[[], Graph] | None:
    """What makes graphs on ``device``; None where there are none."""
    if device.type != "cuda":
        return None
    pool = torch.cuda.graph_pool_handle()
    return lambda: CudaGraph(device, pool)
