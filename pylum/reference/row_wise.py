"""Reference of :func:`pylum.ops.row_wise_adagrad_` and :func:`pylum.ops.row_wise_adamw_`."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def row_wise_adagrad_(
    table: torch.Tensor,
    state: torch.Tensor,
    uses: Sequence[tuple],
    *,
    lr: float,
    eps: float = 1e-8,
) -> None:
    """Computed in float64 and rounded once, to the dtypes of ``table`` and ``state``."""
    for row, g in _merged(uses).items():
        accumulated = state[row].double() + g.square().mean()
        table[row] = table[row].double() - lr * g / (accumulated.sqrt() + eps)
        state[row] = accumulated


def row_wise_adamw_(
    table: torch.Tensor,
    moment: torch.Tensor,
    state: torch.Tensor,
    uses: Sequence[tuple],
    *,
    lr: float,
    step: int,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> None:
    """Computed in float64 and rounded once, to the dtypes of the tensors."""
    beta1, beta2 = betas
    for row, g in _merged(uses).items():
        first = beta1 * moment[row].double() + (1 - beta1) * g
        second = beta2 * state[row].double() + (1 - beta2) * g.square().mean()
        denominator = (second / (1 - beta2**step)).sqrt() + eps
        decayed = table[row].double() * (1 - lr * weight_decay)
        table[row] = decayed - lr * first / (1 - beta1**step) / denominator
        moment[row], state[row] = first, second


def _merged(uses: Sequence[tuple]) -> dict[int, torch.Tensor]:
    """The float64 gradient of each row that is used."""
    sums: dict[int, torch.Tensor] = {}
    for use in uses:
        indices, grad, offsets, mode = use
        grad = grad.double()
        if offsets is not None:
            sizes = offsets.diff()
            if mode == "mean":
                grad = grad / sizes.clamp_min(1)[:, None]
            grad = grad.repeat_interleave(sizes, 0)
        for row, g in zip(indices.tolist(), grad, strict=True):
            sums[row] = sums[row] + g if row in sums else g
    return sums
