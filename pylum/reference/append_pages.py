"""Reference of :func:`pylum.ops.append_pages`."""

from __future__ import annotations

import torch

from pylum.ops.pages import PAGE, PagedPrefix, key_order, value_order


def append_pages(
    prefix: PagedPrefix,
    k: torch.Tensor,
    v: torch.Tensor,
    offsets: torch.Tensor,
    *,
    starts: torch.Tensor,
    positions: torch.Tensor | None = None,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
) -> None:
    """As :func:`pylum.ops.append_pages`, argument for argument."""
    keys, values = key_order(prefix.k), value_order(prefix.v)
    for b in range(len(offsets) - 1):
        for row in range(int(offsets[b]), int(offsets[b + 1])):
            token = int(starts[b]) + row - int(offsets[b])
            page, slot = int(prefix.table[b, token // PAGE]), token % PAGE
            key = k[row].double()
            if cos is not None and sin is not None:
                position = token if positions is None else int(positions[row])
                c, s = cos[position].double(), sin[position].double()
                first, second = key.chunk(2, dim=-1)
                key = torch.cat([first * c - second * s, second * c + first * s], dim=-1)
            prefix.k[page].flatten(1)[:, keys[slot]] = key.to(prefix.k.dtype)
            prefix.v[page].flatten(1)[:, values[slot]] = v[row].to(prefix.v.dtype)
