"""Move a cached window forward without computing it anew: approximate."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pylum import ops
from pylum.cache.pages.pool import Pool
from pylum.model import LUM


def slide(model: LUM, pool: Pool, pages: Sequence[int], kept: int, shift: int) -> None:
    """Drop a user's ``shift`` oldest behaviours and move the ``kept`` next ones to the front.

    Keys are turned back by ``shift`` positions, so that rotary distances are right again. What
    the deeper layers saw of the dropped behaviours stays in the others: that is the approximation.
    """
    encoder, device = model.user_encoder, pool.device
    tokens = 2 * (kept + shift)
    for prefix in pool.prefixes([pages], torch.tensor([tokens])):
        k, v, _ = ops.gather_pages(prefix)
        ops.append_pages(
            prefix,
            k[2 * shift :],
            v[2 * shift :],
            torch.tensor([0, 2 * kept], device=device),
            starts=torch.tensor([0], device=device),
            positions=torch.full((2 * kept,), shift, device=device),
            cos=encoder.cos.float(),
            sin=-encoder.sin.float(),
        )
