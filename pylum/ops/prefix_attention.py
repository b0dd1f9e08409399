"""Attention of new rows and targets over cached histories."""

from __future__ import annotations

import torch

from pylum import _C
from pylum.ops._library import register, run_on
from pylum.ops.attention import MASK, SCORE, autocast, score_operands, workspace
from pylum.ops.bias import RelativeBias, bias_operands
from pylum.ops.mask import Mask, flatten
from pylum.ops.pages import PagedPrefix


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
    """:func:`pylum.ops.attention` on whole sequences, for their last rows only; no gradient.

    Per sequence, ``q`` holds the new history rows, then the targets. The new history must be in the
    pages already (:func:`pylum.ops.append_pages`) and be counted by ``prefix.lengths``: each row
    reads the pages up to its own position. Nothing is written. Results equal those of
    ``attention`` on the whole sequence to the bit, where the pages hold the same keys and values.

    Args:
        q: ``[total, heads, head_dim]`` float32, bfloat16 or, on CUDA, float16, last dimension
            contiguous.
        k: ``[targets, kv_heads, head_dim]``: of the targets only, dtype of ``q``.
        v: ``[targets, kv_heads, value_dim]``: of the targets only, dtype of ``q``.
        offsets: ``[batch + 1]`` int64, cumulative numbers of rows of ``q``.
        prefix: the histories, new rows included; dtype of ``q``.
        mask: counts context and targets as on the whole sequence. Context tokens see each other, so
            they must be in the pages all at once.
        score, scale, score_scale, bias: as in ``attention``; ``score_scale`` is a number or
            ``[total]``, ``bias.timestamps`` are those of whole histories and then targets.

    Returns:
        ``[total, heads, value_dim]``, dtype of ``q``.

    Raises:
        ValueError: a shape, device, layout or value is not as above.
        TypeError: a dtype is not as above.
    """
    q, k, v = autocast(q, k, v)
    return _op(
        q,
        k,
        v,
        offsets,
        prefix.k,
        prefix.v,
        prefix.table,
        prefix.lengths,
        *flatten(mask),
        *score_operands(q, score, scale, score_scale),
        *bias_operands(bias),
    )


def _run(q, k, v, *operands):
    out = q.new_empty((*q.shape[:2], v.shape[2]))
    offsets, _, _, table, _, _, num_targets, *_ = operands
    sizes = _C.prefix_attention_workspace(q, v, offsets, table, num_targets is not None)
    _C.prefix_attention_forward(q, k, v, *operands, out, *workspace(q, *sizes), run_on(q))
    return out


def _fake(q, k, v, *_):
    return q.new_empty((*q.shape[:2], v.shape[2]))


def _no_gradient(ctx, *_):
    raise RuntimeError("pylum.ops.prefix_attention has no gradient: train with pylum.ops.attention")


_op = register(
    "prefix_attention(Tensor q, Tensor k, Tensor v, Tensor offsets, Tensor k_pages, "
    f"Tensor v_pages, Tensor table, Tensor lengths, {MASK}, {SCORE}) -> Tensor",
    cpu=_run,
    cuda=_run,
    fake=_fake,
    backward=_no_gradient,
    setup_context=lambda ctx, inputs, output: None,
)
