"""One row of a benchmark table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class Entry:
    """An op at one size, its peers and its cost.

    Args:
        op: row of the table.
        case: the size.
        goal: wanted ratio to the fastest peer; None: no ratio is wanted.
        ours: one call.
        peers: calls of others that compute the same.
        flops, bytes: of one call, by the op's formula; 0: does not bound it.
        dtype: of the matrix products.
        share: wanted share of the ceiling; None: none is wanted.
        either: the ratio or the share is enough; else both are wanted.
    """

    op: str
    case: str
    goal: float | None
    ours: Callable[[], Any]
    peers: dict[str, Callable[[], Any]]
    flops: float
    bytes: float
    dtype: torch.dtype
    share: float | None = None
    either: bool = False


Maker = Callable[[], Entry]
Row = dict[str, Any]


def chosen(
    entries: Iterable[tuple[str, Maker]], only: str = "", limit: int | None = None
) -> list[Maker]:
    """Makers of the rows whose op's name contains ``only``, at most ``limit``.

    Raises:
        ValueError: there is none, or ``limit`` is below 1.
    """
    found = list(entries)
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    makers = [make for op, make in found if only in op]
    if not makers:
        names = "; ".join(dict.fromkeys(op for op, _ in found))
        raise ValueError(f"only must be a part of an op's name, got {only!r}; they are {names}")
    return makers[:limit]


def name(dtype: torch.dtype) -> str:
    """``float32``, ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


def training(call: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> Callable[[], Any]:
    """Forward and backward, gradients of all tensors."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    with torch.no_grad():
        dout = torch.randn_like(call(*leaves))
    return lambda: torch.autograd.grad(call(*leaves), leaves, dout)


def inference(call: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> Callable[[], Any]:
    """Forward only."""

    @torch.inference_mode()
    def run() -> torch.Tensor:
        return call(*tensors)

    return run
