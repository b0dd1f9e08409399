"""The user encoder: a causal transformer over packed tokens.

The paper leaves norm, activation and positions open. Here: pre-norm RMSNorm, a gated SiLU
feed-forward layer, rotary positions counted in behaviours. Tokens of all users lie one after the
other, ``[T, width]``, with no padding anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from pylum import ops
from pylum.model.config import LUMConfig
from pylum.ragged import lengths_to_offsets

NORM_EPS = 1e-6

# q, k, v -> [T, heads, head_dim], of one layer.
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Block(nn.Module):
    def __init__(self, config: LUMConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.head_dim = config.head_dim
        self.dropout = config.dropout
        width = config.width
        self.attention_norm = nn.Parameter(torch.ones(width))
        self.q = nn.Parameter(torch.empty(width, width))
        self.kv = nn.Parameter(torch.empty(2 * config.kv_heads * config.head_dim, width))
        self.out = nn.Parameter(torch.empty(width, width))
        self.ffn_norm = nn.Parameter(torch.ones(width))
        self.gate_up = nn.Parameter(torch.empty(2 * config.ffn_width, width))
        self.down = nn.Parameter(torch.empty(width, config.ffn_width))
        # Residual branches start small, so that their sum does not grow with depth.
        branch = (2 * config.layers) ** -0.5
        for weight in (self.q, self.kv, self.gate_up):
            nn.init.normal_(weight, std=width**-0.5)
        nn.init.normal_(self.out, std=width**-0.5 * branch)
        nn.init.normal_(self.down, std=config.ffn_width**-0.5 * branch)

    def forward(
        self,
        x: torch.Tensor,
        attend: Attend,
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """``[T, width]``, or ``[rows, width]``: other rows then only serve as keys and values."""
        h = _norm(x, self.attention_norm)
        k, v = nn.functional.linear(h, self.kv).view(-1, 2, self.kv_heads, self.head_dim).unbind(1)
        q = nn.functional.linear(h if rows is None else h[rows], self.q)
        if rows is not None:
            q = torch.zeros_like(h).index_copy(0, rows, q)
            x = x[rows]
        a = attend(q.view(-1, self.heads, self.head_dim), k, v).flatten(1)
        a = nn.functional.linear(a if rows is None else a[rows], self.out)
        x = x + nn.functional.dropout(a, self.dropout, self.training)
        gate, up = nn.functional.linear(_norm(x, self.ffn_norm), self.gate_up).chunk(2, 1)
        f = nn.functional.linear(nn.functional.silu(gate) * up, self.down)
        return x + nn.functional.dropout(f, self.dropout, self.training)


class UserEncoder(nn.Module):
    """Blocks and the rotary tables of their positions."""

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, config: LUMConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.Parameter(torch.ones(config.width))
        half = config.head_dim // 2
        rates = config.rotary_base ** (-torch.arange(half, dtype=torch.float64) / half)
        # A query after a full window stands one behind its last behaviour.
        angles = torch.arange(config.max_length + 1, dtype=torch.float64)[:, None] * rates
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def run(
        self,
        x: torch.Tensor,
        offsets: torch.Tensor,
        positions: torch.Tensor,
        mask: ops.Mask | None = None,
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One causal pass over packed sequences; arguments as for :meth:`pylum.LUM.run`."""
        cos, sin = self.cos[positions, None], self.sin[positions, None]

        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return ops.attention(_rotate(q, cos, sin), _rotate(k, cos, sin), v, offsets, mask)

        x = nn.functional.dropout(x, self.config.dropout, self.training)
        last = len(self.blocks) - 1
        for i, block in enumerate(self.blocks):
            x = block(x, attend, rows if i == last else None)
        return _norm(x, self.norm)

    def run_cached(
        self,
        x: torch.Tensor,
        offsets: torch.Tensor,
        positions: torch.Tensor,
        prefixes: Sequence[ops.PagedPrefix],
        mask: ops.Mask | None = None,
    ) -> torch.Tensor:
        """New rows on cached prefixes; arguments as for :meth:`pylum.LUM.run_cached`."""
        if len(prefixes) != len(self.blocks):
            raise ValueError(
                f"prefixes must be one per layer = {len(self.blocks)}, got {len(prefixes)}"
            )
        lengths = offsets.diff()
        targets = torch.zeros_like(lengths)
        if mask is not None and mask.num_targets is not None:
            targets = torch.as_tensor(mask.num_targets)
        new = lengths - targets
        end = (offsets[:-1] + new).repeat_interleave(lengths)
        is_new = torch.arange(len(x), device=x.device) < end
        # Appending alone and asking alone are the common calls: no row is moved for them.
        new_rows = slice(None) if not bool(targets.any()) else is_new.nonzero()[:, 0]
        target_rows = slice(None) if not bool(new.any()) else (~is_new).nonzero()[:, 0]
        new_offsets = lengths_to_offsets(new)
        starts = prefixes[0].lengths - new
        cos, sin = self.cos[positions, None], self.sin[positions, None]

        def attend(
            prefix: ops.PagedPrefix, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
        ) -> torch.Tensor:
            k = _rotate(k, cos, sin)
            if new_offsets[-1] > 0:
                ops.append_pages(prefix, k[new_rows], v[new_rows], new_offsets, starts=starts)
            k, v = k[target_rows], v[target_rows]
            return ops.prefix_attention(_rotate(q, cos, sin), k, v, offsets, prefix, mask)

        for block, prefix in zip(self.blocks, prefixes, strict=True):
            x = block(x, partial(attend, prefix))
        return _norm(x, self.norm)


def _norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return nn.functional.rms_norm(x, weight.shape, weight, NORM_EPS)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position: the first half of a head is turned against the second."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
