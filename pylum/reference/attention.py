"""Reference of :func:`pylum.ops.attention`, and the mask every attention reference reads."""

from __future__ import annotations

import math

import torch

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
    position = torch.arange(total)
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
        position[row] = context + visible + i - start
        sees[row, : context + visible] = True
        sees[row, history + start : row + 1] = True
    if mask.window is not None:
        near = position[:, None] - position[None, :] < mask.window
        near[:, :context] = True
        sees &= near | ~windowed[:, None]
    return sees


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    sees: torch.Tensor,
    score: str,
    scale: float | None,
    score_scale: torch.Tensor | float | None,
) -> torch.Tensor:
    """One sequence: q ``[rows, heads, head_dim]``, k and v ``[keys, kv_heads, dim]``, float64."""
    repeat = q.shape[1] // max(1, k.shape[1])
    k, v = (x.double().repeat_interleave(repeat, dim=1) for x in (k, v))
    if scale is None:
        scale = 1 / math.sqrt(q.shape[2]) if score == "softmax" else 1.0
    scores = scale * torch.einsum("qhd,khd->hqk", q.double(), k)
    if score == "softmax":
        weights = scores.masked_fill(~sees, -torch.inf).softmax(-1)
    else:
        weights = torch.nn.functional.silu(scores).masked_fill(~sees, 0.0)
        if isinstance(score_scale, torch.Tensor):
            weights = weights * score_scale.double()[:, None]
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
) -> torch.Tensor:
    out = [q.new_zeros((0, q.shape[1], v.shape[2]))]
    for b, (begin, end) in enumerate(zip(offsets.tolist(), offsets.tolist()[1:], strict=False)):
        targets = 0
        if mask is not None and mask.num_targets is not None:
            targets = int(mask.num_targets[b])
        sees = sequence_mask(mask, b, end - begin - targets, targets)
        rows = score_scale[begin:end] if isinstance(score_scale, torch.Tensor) else score_scale
        part = slice(begin, end)
        out.append(attend(q[part], k[part], v[part], sees, score, scale, rows).to(q.dtype))
    return torch.cat(out)
