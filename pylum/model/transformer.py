"""The user encoder: a causal transformer over packed tokens.

The paper leaves norm, activation and positions open. Here: pre-norm RMSNorm, a gated SiLU
feed-forward layer, rotary positions counted in behaviours. Tokens of all users lie one after the
other, ``[T, width]``, with no padding anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from pylum import _C, ops
from pylum.model.config import LUMConfig
from pylum.ops import Mask
from pylum.ops._library import TORCH_PATHS
from pylum.ragged import lengths_to_offsets
from pylum.transfer import moved

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
# A projection divided into heads, with q and k rotated: (fused, heads, kv_heads, rows) -> q, k, v.
Turn = Callable[..., Heads]
# q, k, v -> [T, heads, head_dim], of one layer.
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

# Products of bfloat16 pairs; without them torch's matrix products are faster than query_layer's.
BFLOAT16_PAIRS = _C.build_info()["isa"] == "avx512_bf16"
TORCH_PATHS[__name__] = (
    "matrix products of targets over cached histories "
    + ("" if BFLOAT16_PAIRS else "in bfloat16, ")
    + "on CUDA, in training and under autocast, by pylum.ops.linear's rule"
)


class Block(nn.Module):
    """The weights of one layer; the residual stream is joined by :class:`UserEncoder`."""

    def __init__(self, config: LUMConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.width = width = config.width
        kv_width = config.kv_heads * config.head_dim
        self.attention_norm = nn.Parameter(torch.ones(width))
        self.qkv = nn.Parameter(torch.empty(width + 2 * kv_width, width))
        self.out = nn.Parameter(torch.empty(width, width))
        self.ffn_norm = nn.Parameter(torch.ones(width))
        self.gate_up = nn.Parameter(torch.empty(2 * config.ffn_width, width))
        self.down = nn.Parameter(torch.empty(width, config.ffn_width))
        # Residual branches start small, so that their sum does not grow with depth.
        branch = (2 * config.layers) ** -0.5
        nn.init.normal_(self.qkv, std=width**-0.5)
        nn.init.normal_(self.gate_up, std=width**-0.5)
        nn.init.normal_(self.out, std=width**-0.5 * branch)
        nn.init.normal_(self.down, std=config.ffn_width**-0.5 * branch)

    def attention(
        self, h: torch.Tensor, turn: Turn, attend: Attend, rows: torch.Tensor | None
    ) -> torch.Tensor:
        """``[T, width]`` or ``[rows, width]``: other rows then only serve as keys and values."""
        if rows is None:
            q, k, v = turn(ops.linear(h, self.qkv), self.heads, self.kv_heads)
            return ops.linear(attend(q, k, v).flatten(1), self.out)
        _, k, v = turn(ops.linear(h, self.qkv[self.width :]), 0, self.kv_heads)
        asked, _, _ = turn(ops.linear(h[rows], self.qkv[: self.width]), self.heads, 0, rows)
        q = asked.new_zeros((len(h), *asked.shape[1:])).index_copy(0, rows, asked)
        return ops.linear(attend(q, k, v).flatten(1)[rows], self.out)

    def weights(self) -> ops.LayerWeights:
        return ops.LayerWeights(
            self.attention_norm, self.qkv, self.out, self.ffn_norm, self.gate_up, self.down
        )

    def feed_forward(self, h: torch.Tensor) -> torch.Tensor:
        return ops.linear(ops.swiglu(ops.linear(h, self.gate_up)), self.down)


class UserEncoder(nn.Module):
    """Blocks and the rotary tables of their positions."""

    def __init__(self, config: LUMConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.Parameter(torch.ones(config.width))
        half = config.head_dim // 2
        rates = config.rotary_base ** (-torch.arange(half, dtype=torch.float64) / half)
        # A query after a full window stands one behind its last behaviour.
        angles = torch.arange(config.max_length + 1, dtype=torch.float64)[:, None] * rates
        # [max_length + 1, head_dim / 2]. No buffers: they stay float32 in a model of any dtype.
        self.cos, self.sin = angles.cos().float(), angles.sin().float()

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> UserEncoder:
        super()._apply(fn, recurse)
        self.cos, self.sin = self.cos.to(self.norm.device), self.sin.to(self.norm.device)
        return self

    def run(
        self,
        x: torch.Tensor,
        offsets: torch.Tensor,
        positions: torch.Tensor,
        mask: ops.Mask | None = None,
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One causal pass over packed sequences; arguments as for :meth:`pylum.LUM.run`."""

        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return ops.attention(q, k, v, offsets, mask)

        return self._pass(x, positions, [attend] * len(self.blocks), rows)

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
        offsets, positions = moved(offsets, "cpu"), moved(positions, "cpu")
        mask = None if mask is None else mask.to("cpu")
        lengths = offsets.diff()
        targets = torch.zeros_like(lengths)
        if mask is not None and mask.num_targets is not None:
            targets = torch.as_tensor(mask.num_targets)
        new = lengths - targets
        asks, appends = bool(targets.any()), bool(new.any())
        if mask is not None and asks and not appends:
            device = x.device
            there = moved(offsets, device), moved(positions, device), prefixes, mask.to(device)
            return self.ask(x, *there)
        if not self._fuses(x) or mask is None or not asks:
            return self._append(x, offsets, positions, new, prefixes, mask)
        # History rows see no targets: their pass may come before that of the targets.
        end = (offsets[:-1] + new).repeat_interleave(lengths)
        is_new = torch.arange(len(x)) < end
        news, rest = (moved(rows.nonzero()[:, 0], x.device) for rows in (is_new, ~is_new))
        alone = Mask(mask.num_context, window=mask.window, min_full=mask.min_full)
        hidden = torch.empty_like(x)
        hidden[news] = self._append(
            x[news], lengths_to_offsets(new), positions[is_new], new, prefixes, alone
        )
        hidden[rest] = self.ask(
            x[rest], lengths_to_offsets(targets), positions[~is_new], prefixes, mask
        )
        return hidden

    def _fuses(self, x: torch.Tensor) -> bool:
        """Targets take :func:`pylum.ops.query_layer`: by device, dtype and ISA, never by count."""
        if x.device.type != "cpu" or self.training or torch.is_autocast_enabled("cpu"):
            return False
        return x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and BFLOAT16_PAIRS)

    def ask(
        self,
        x: torch.Tensor,
        offsets: torch.Tensor,
        positions: torch.Tensor,
        prefixes: Sequence[ops.PagedPrefix],
        mask: ops.Mask,
    ) -> torch.Tensor:
        """Rows that are targets, over histories that lie in pages already. Inference only.

        Reads no value on the host: what it does depends on shapes alone, and a CUDA graph may hold
        it.

        Args:
            x: ``[Q, width]`` tokens.
            offsets: ``[B + 1]`` int64, in tokens; like all here on the device of ``x``.
            positions: ``[Q]`` int64 in ``[0, max_length]``, in behaviours.
            prefixes: one per layer, sharing ``table`` and ``lengths``.
            mask: ``num_targets`` are all rows of each sequence.

        Returns:
            ``[Q, width]`` hidden states.
        """
        if not self._fuses(x):

            def attend(
                prefix: ops.PagedPrefix, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
            ) -> torch.Tensor:
                return ops.prefix_attention(q, k, v, offsets, prefix, mask)

            return self._pass(x, positions, [partial(attend, prefix) for prefix in prefixes], None)
        # One call a layer.
        for block, prefix in zip(cast(list[Block], list(self.blocks)), prefixes, strict=True):
            x = ops.query_layer(
                x,
                offsets,
                positions,
                self.cos,
                self.sin,
                block.weights(),
                prefix,
                mask,
                heads=block.heads,
            )
        return ops.residual_norm(x, None, self.norm)[1]

    def _append(
        self,
        x: torch.Tensor,
        offsets: torch.Tensor,
        positions: torch.Tensor,
        new: torch.Tensor,
        prefixes: Sequence[ops.PagedPrefix],
        mask: ops.Mask | None,
    ) -> torch.Tensor:
        """Rows of any kind; the first ``new`` of each sequence are history and are appended."""
        device, lengths = x.device, offsets.diff()
        end = (offsets[:-1] + new).repeat_interleave(lengths)
        is_new = torch.arange(len(x)) < end
        # Appending alone is the common call: no row is moved for it.
        new_rows = slice(None) if bool(is_new.all()) else moved(is_new.nonzero()[:, 0], device)
        target_rows = moved((~is_new).nonzero()[:, 0], device)
        new_offsets = moved(lengths_to_offsets(new), device)
        starts = prefixes[0].lengths - moved(new, device)
        offsets, positions = moved(offsets, device), moved(positions, device)
        mask = None if mask is None else mask.to(device)

        def attend(
            prefix: ops.PagedPrefix, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
        ) -> torch.Tensor:
            ops.append_pages(prefix, k[new_rows], v[new_rows], new_offsets, starts=starts)
            return ops.prefix_attention(q, k[target_rows], v[target_rows], offsets, prefix, mask)

        return self._pass(x, positions, [partial(attend, prefix) for prefix in prefixes], None)

    def _pass(
        self,
        x: torch.Tensor,
        positions: torch.Tensor,
        attends: Sequence[Attend],
        rows: torch.Tensor | None,
    ) -> torch.Tensor:
        def turn(
            fused: torch.Tensor, heads: int, kv_heads: int, rows: torch.Tensor | None = None
        ) -> Heads:
            where = positions if rows is None else positions[rows]
            return ops.rotary(fused, where, self.cos, self.sin, heads=heads, kv_heads=kv_heads)

        dropout = self.config.dropout if self.training else 0.0
        seeds = iter(torch.randint(2**62, (2 * len(attends) + 1,)).tolist() if dropout else [])

        def join(
            branch: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            return ops.residual_norm(branch, residual, weight, dropout=dropout, seed=next(seeds, 0))

        blocks = cast(list[Block], list(self.blocks))
        x, h = join(x, None, blocks[0].attention_norm)
        norms = [*(block.attention_norm for block in blocks[1:]), self.norm]
        for block, attend, norm in zip(blocks, attends, norms, strict=True):
            last = rows if norm is self.norm else None
            a = block.attention(h, turn, attend, last)
            x, h = join(a, x if last is None else x[last], block.ffn_norm)
            x, h = join(block.feed_forward(h), x, norm)
        return h
