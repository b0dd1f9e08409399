"""Reference of :func:`pylum.ops.prefix_attention`."""

from __future__ import annotations

import torch

from pylum.ops.bias import RelativeBias
from pylum.ops.mask import Mask
from pylum.ops.pages import PagedPrefix, gather_pages
from pylum.reference.attention import attend, pair_bias, positions, sequence_mask


def prefix_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    offsets: torch.Tensor,
    prefix: PagedPrefix,
    mask: Mask | None = None,
    *,
    score: str = "softmax",
    scale: float | None = None,
    score_scale: torch.Tensor | float | None = None,
    bias: RelativeBias | None = None,
) -> torch.Tensor:
    """As :func:`pylum.ops.prefix_attention`, argument for argument."""
    old_k, old_v, old = gather_pages(prefix)
    out = [q.new_zeros((0, q.shape[1], v.shape[2]))]
    first = first_key = 0
    for b in range(len(offsets) - 1):
        part = slice(int(offsets[b]), int(offsets[b + 1]))
        targets = 0
        if mask is not None and mask.num_targets is not None:
            targets = int(mask.num_targets[b])
        history = int(prefix.lengths[b])
        rows = part.stop - part.start
        whole_k = torch.cat([old_k[old[b] : old[b + 1]], k[first : first + targets]])
        whole_v = torch.cat([old_v[old[b] : old[b + 1]], v[first : first + targets]])
        sees = sequence_mask(mask, b, history, targets)[history + targets - rows :]
        factor = score_scale[part] if isinstance(score_scale, torch.Tensor) else score_scale
        keys = slice(first_key, first_key + history + targets)
        added = pair_bias(bias, positions(mask, b, history, targets), rows, keys, part)
        found = attend(q[part], whole_k, whole_v, sees, score, scale, factor, added)
        out.append(found.to(q.dtype))
        first, first_key = first + targets, keys.stop
    return torch.cat(out)
