"""Reference of :func:`pylum.ops.residual_norm`."""

from __future__ import annotations

import torch

from pylum.ops.residual_norm import EPS

_WORD, _LONG = (1 << 32) - 1, (1 << 64) - 1


def residual_norm(
    branch: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    *,
    dropout: float = 0.0,
    seed: int = 0,
    eps: float = EPS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`pylum.ops.residual_norm`, argument for argument."""
    kept = kept_elements(branch.shape[0], branch.shape[1], dropout, seed)
    total = branch.double() * kept / (1 - dropout)
    if residual is not None:
        total = total + residual.double()
    rms = (total.square().mean(1, keepdim=True) + eps).sqrt()
    return total.to(branch.dtype), (total / rms * weight.double()).to(branch.dtype)


def kept_elements(rows: int, width: int, dropout: float, seed: int) -> torch.Tensor:
    """``[rows, width]`` bool: splitmix64 of seed and row keys lowbias32 of the column."""
    threshold = int(dropout * 2**32)
    kept = torch.ones(rows, width, dtype=torch.bool)
    for row in range(rows if threshold else 0):
        key = (seed + (row + 1) * 0x9E3779B97F4A7C15) & _LONG
        key = ((key ^ key >> 30) * 0xBF58476D1CE4E5B9) & _LONG
        key = ((key ^ key >> 27) * 0x94D049BB133111EB) & _LONG
        key ^= key >> 31
        for column in range(width):
            x = (column * 0x9E3779B9 + (key & _WORD)) & _WORD
            x = ((x ^ x >> 16) * 0x7FEB352D) & _WORD
            x = ((x ^ x >> 15 ^ key >> 32) * 0x846CA68B) & _WORD
            kept[row, column] = (x ^ x >> 16) >= threshold
    return kept
