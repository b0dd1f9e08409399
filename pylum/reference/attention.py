"""Reference of :func:`pylum.ops.attention`, and the mask every attention reference reads."""

from __future__ import annotations

import math

import torch

from pylum.ops.bias import RelativeBias
from pylum.ops.mask import Mask


def sequence_mask(mask: Mask | None, sequence: int, history: int, targets: int) -> torch.Tensor:
    """Who sees whom in one sequence: ``[history + targets, history + targets]`` bool.

    Args:
        sequence: its number in the batch.
        history: its context and history tokens.
        targets: its trailing targets.
    """
    mask = mask or Mask()
    context = 0 if mask.num_context is None else int(mask.num_context[sequence])
    total = history + targets
    sees = torch.zeros(total, total, dtype=torch.bool)
    position = positions(mask, sequence, history, targets)
    windowed = torch.full((total,), mask.window is not None)
    if mask.min_full is not None:
        windowed[max(0, history - mask.min_full) :] = False
    for row in range(history):
        sees[row, : context if row < context else row + 1] = True
    first = 0
    if targets and isinstance(mask.num_targets, torch.Tensor):
        first = int(mask.num_targets[:sequence].sum())
    for i in range(targets):
        start, visible = i, history - context
        if mask.group_offsets is not None:
            start = max(int(g) for g in mask.group_offsets if int(g) <= first + i) - first
        if mask.visible is not None:
            visible = int(mask.visible[first + i])
        row = history + i
        sees[row, : context + visible] = True
        sees[row, history + start : row + 1] = True
    if mask.window is not None:
        near = position[:, None] - position[None, :] < mask.window
        near[:, :context] = True
        sees &= near | ~windowed[:, None]
    return sees


def positions(mask: Mask | None, sequence: int, history: int, targets: int) -> torch.Tensor:
    """``[history + targets]`` int64; arguments as for :func:`sequence_mask`."""
    mask = mask or Mask()
    position = torch.arange(history + targets)
    first = 0
    if targets and isinstance(mask.num_targets, torch.Tensor):
        first = int(mask.num_targets[:sequence].sum())
    for i in range(targets):
        start, visible = i, history
        if mask.group_offsets is not None:
            start = max(int(g) for g in mask.group_offsets if int(g) <= first + i) - first
        if mask.visible is not None:
            context = 0 if mask.num_context is None else int(mask.num_context[sequence])
            visible = context + int(mask.visible[first + i])
        position[history + i] = visible + i - start
    return position


def pair_bias(
    bias: RelativeBias | None,
    position: torch.Tensor,
    rows: int,
    timestamps: slice,
    query_times: slice,
) -> torch.Tensor | None:
    """``[rows, keys]`` float64 of one sequence, whose last ``rows`` keys are the rows.

    Args:
        position: ``[keys]``, of the sequence.
        timestamps, query_times: the sequence's part of each.
    """
    if bias is None:
        return None
    out = torch.zeros(rows, len(position), dtype=torch.float64)
    if bias.position_table is not None:
        length = (len(bias.position_table) + 1) // 2
        distance = position[None, :] - position[len(position) - rows :, None]
        entry = (distance + length - 1).clamp(0, 2 * length - 2)
        out = out + bias.position_table.double()[entry]
    if bias.time_table is not None:
        assert bias.thresholds is not None
        assert bias.timestamps is not None and bias.query_times is not None
        gap = (bias.query_times[query_times][:, None] - bias.timestamps[timestamps][None, :]).abs()
        out = out + bias.time_table.double()[torch.bucketize(gap, bias.thresholds, right=True)]
    return out


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sees: torch.Tensor,
    score: str,
    scale: float | None,
    score_scale: torch.Tensor | float | None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """One sequence: q ``[rows, heads, head_dim]``, k and v ``[keys, kv_heads, dim]``.

    In float64 where q is, else in float32.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    repeat = q.shape[1] // max(1, k.shape[1])
    k, v = (x.to(wide).repeat_interleave(repeat, dim=1) for x in (k, v))
    if scale is None:
        scale = 1 / math.sqrt(q.shape[2]) if score == "softmax" else 1.0
    scores = scale * torch.einsum("qhd,khd->hqk", q.to(wide), k)
    if bias is not None:
        scores = scores + bias.to(wide)
    if score == "softmax":
        weights = scores.masked_fill(~sees, -torch.inf).softmax(-1)
    else:
        weights = torch.nn.functional.silu(scores).masked_fill(~sees, 0.0)
        if isinstance(score_scale, torch.Tensor):
            weights = weights * score_scale.to(wide)[:, None]
        elif score_scale is not None:
            weights = weights * score_scale
    return torch.einsum("hqk,khd->qhd", weights, v)


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    offsets: torch.Tensor,
    mask: Mask | None = None,
    *,
    score: str = "softmax",
    scale: float | None = None,
    score_scale: torch.Tensor | float | None = None,
    bias: RelativeBias | None = None,
) -> torch.Tensor:
    """As :func:`pylum.ops.attention`, argument for argument."""
    out = [q.new_zeros((0, q.shape[1], v.shape[2]))]
    for b, (begin, end) in enumerate(zip(offsets.tolist(), offsets.tolist()[1:], strict=False)):
        targets = 0
        if mask is not None and mask.num_targets is not None:
            targets = int(mask.num_targets[b])
        history = end - begin - targets
        sees = sequence_mask(mask, b, history, targets)
        rows = score_scale[begin:end] if isinstance(score_scale, torch.Tensor) else score_scale
        part = slice(begin, end)
        added = pair_bias(bias, positions(mask, b, history, targets), end - begin, part, part)
        out.append(attend(q[part], k[part], v[part], sees, score, scale, rows, added).to(q.dtype))
    return torch.cat(out)
