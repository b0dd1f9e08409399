"""A fused projection divided into rotated queries, rotated keys and values."""

from __future__ import annotations

import torch

from pylum import _C
from pylum.ops._library import register, run_on


def rotary(
    x: torch.Tensor,
    positions: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    heads: int,
    kv_heads: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rotary positions (arXiv 2104.09864) on the q and k of a fused projection.

    Elements ``d`` and ``d + head_dim / 2`` of a head make a pair, as in Llama.

    Args:
        x: ``[total, (heads + 2 * kv_heads) * head_dim]`` float32, bfloat16 or, on CUDA, float16,
            contiguous: the heads of q, of k, of v.
        positions: ``[total]`` int64, row of ``cos`` and ``sin`` for each token.
        cos, sin: ``[angles, head_dim / 2]`` float32.
        heads: of q; 0 where ``x`` holds no q.
        kv_heads: of k and of v; 0 where ``x`` holds neither.

    Returns:
        q ``[total, heads, head_dim]``, k and v ``[total, kv_heads, head_dim]``, contiguous, dtype
        of ``x``; arithmetic is float32, v is a copy.

    Raises:
        ValueError: a shape, device, layout or position is not as above. On CUDA a row of a bad
            position becomes NaN and :func:`pylum.check` raises.
        TypeError: a dtype is not as above.
    """
    return _op(x, positions, cos, sin, heads, kv_heads)


def _run(x, positions, cos, sin, heads, kv_heads):
    q, k, v = _fake(x, positions, cos, sin, heads, kv_heads)
    parts = [part if part.shape[1] else None for part in (q, k, v)]
    _C.rotary_run(x, *parts, positions, cos, sin, heads, kv_heads, False, run_on(x))
    return q, k, v


def _fake(x, positions, cos, sin, heads, kv_heads):
    head_dim = x.shape[1] // max(1, heads + 2 * kv_heads)
    shapes = [(x.shape[0], n, head_dim) for n in (heads, kv_heads, kv_heads)]
    return tuple(x.new_empty(shape) for shape in shapes)


def _setup_context(ctx, inputs, output):
    _, positions, cos, sin, heads, kv_heads = inputs
    ctx.save_for_backward(positions, cos, sin)
    ctx.heads, ctx.kv_heads = heads, kv_heads
    ctx.set_materialize_grads(False)


def _backward(ctx, dq, dk, dv):
    if dq is None and dk is None and dv is None:
        return (None,) * 6
    return _backward_op(dq, dk, dv, *ctx.saved_tensors, ctx.heads, ctx.kv_heads), *[None] * 5


def _run_backward(dq, dk, dv, positions, cos, sin, heads, kv_heads):
    dx = _backward_fake(dq, dk, dv, positions, cos, sin, heads, kv_heads)
    parts = [None if d is None or d.shape[1] == 0 else d.contiguous() for d in (dq, dk, dv)]
    _C.rotary_run(dx, *parts, positions, cos, sin, heads, kv_heads, True, run_on(dx))
    return dx


def _backward_fake(dq, dk, dv, positions, cos, sin, heads, kv_heads):
    like = next(d for d in (dq, dk, dv) if d is not None)
    return like.new_empty((like.shape[0], (heads + 2 * kv_heads) * 2 * cos.shape[1]))


_op = register(
    "rotary(Tensor x, Tensor positions, Tensor cos, Tensor sin, SymInt heads, SymInt kv_heads) "
    "-> (Tensor, Tensor, Tensor)",
    cpu=_run,
    cuda=_run,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
_backward_op = register(
    "rotary_backward(Tensor? dq, Tensor? dk, Tensor? dv, Tensor positions, Tensor cos, "
    "Tensor sin, SymInt heads, SymInt kv_heads) -> Tensor",
    cpu=_run_backward,
    cuda=_run_backward,
    fake=_backward_fake,
)
