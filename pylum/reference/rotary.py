"""Reference of :func:`pylum.ops.rotary`."""

from __future__ import annotations

import torch


def rotary(
    x: torch.Tensor,
    positions: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    heads: int,
    kv_heads: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As :func:`pylum.ops.rotary`, argument for argument."""
    q, k, v = x.view(len(x), heads + 2 * kv_heads, 2 * cos.shape[1]).split(
        [heads, kv_heads, kv_heads], 1
    )
    c, s = cos.double()[positions, None], sin.double()[positions, None]

    def turned(h: torch.Tensor) -> torch.Tensor:
        a, b = h.double().chunk(2, 2)
        return torch.cat([a * c - b * s, b * c + a * s], 2).to(x.dtype)

    return turned(q), turned(k), v.clone()
