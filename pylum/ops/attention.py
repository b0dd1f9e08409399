"""Attention over a packed batch of sequences."""

from __future__ import annotations

import math

import torch

from pylum import _C
from pylum.ops._library import autocast_dtype, register, run_on
from pylum.ops.bias import RelativeBias, bias_operands
from pylum.ops.mask import Mask, flatten


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
    """Each row attends within its sequence to the keys the mask lets it see.

    The weights are ``softmax(scale q.k)``, or ``silu(scale q.k + bias) * score_scale`` (HSTU,
    arXiv 2402.17152, section 3.2). To the bit, a row's result depends on the keys it sees and on
    nothing else: not on the other sequences of the batch, their number, threads, nor on NaN among
    the keys it does not see. Sums are float32. Gradients are deterministic.

    Args:
        q: ``[total, heads, head_dim]`` float32, bfloat16 or, on CUDA, float16, ``head_dim`` up to
            256, last dimension contiguous; views of a fused projection are read in place.
        k: ``[total, kv_heads, head_dim]``, dtype of ``q``; ``kv_heads`` divides ``heads``, and
            consecutive heads share one.
        v: ``[total, kv_heads, value_dim]``, dtype of ``q``.
        offsets: ``[batch + 1]`` int64, cumulative lengths of the sequences.
        mask: who sees whom; default: causal.
        score: ``"softmax"`` or ``"silu"``.
        scale: default ``1 / sqrt(head_dim)`` for softmax, 1 for silu.
        score_scale: silu only, and required there: a number or ``[total]`` float32 (no gradient).
            HSTU divides by a length: use the model's maximum, never the batch's, or a user's
            result depends on the others.
        bias: silu only: of position and time; its tables have gradients.

    Returns:
        ``[total, heads, value_dim]``, dtype of ``q``.

    Raises:
        ValueError: a shape, device, layout or value is not as above. On CUDA rows of bad values
            become NaN and :func:`pylum.check` raises.
        TypeError: a dtype is not as above.
    """
    q, k, v = autocast(q, k, v)
    scores = score_operands(q, score, scale, score_scale)
    return _op(q, k, v, offsets, *flatten(mask), *scores, *bias_operands(bias))[0]


def autocast(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Under autocast all take its dtype."""
    dtype = autocast_dtype(q=q, k=k, v=v)
    return (q, k, v) if dtype is None else (q.to(dtype), k.to(dtype), v.to(dtype))


def score_operands(
    q: torch.Tensor, score: str, scale: float | None, score_scale: torch.Tensor | float | None
) -> tuple[bool, float, torch.Tensor | None, float]:
    """silu, scale, score_scale as a tensor or None, score_scale as a number."""
    if score not in ("softmax", "silu"):
        raise ValueError(f'score must be "softmax" or "silu", got {score!r}')
    silu = score == "silu"
    if silu and score_scale is None:
        raise ValueError(
            'score_scale must be given with score="silu": a number, as 1 / the model\'s maximum '
            "length, or one per row"
        )
    if not silu and score_scale is not None:
        raise ValueError('score_scale must be None with score="softmax"')
    if scale is None:
        scale = 1.0 if silu else 1 / math.sqrt(max(1, q.shape[-1]))
    if isinstance(score_scale, torch.Tensor):
        if score_scale.requires_grad:
            raise ValueError("score_scale has no gradient: detach it")
        return silu, scale, score_scale, 0.0
    return silu, scale, None, 0.0 if score_scale is None else float(score_scale)


# Places among the operands after q, k and v.
_TARGETS = 2
_SILU = 7
_TABLES = slice(11, 13)  # of the bias


def _forward(q, k, v, *operands):
    out, lse = _empty(q, v, operands[_SILU])
    sizes = _C.attention_workspace(q, v, operands[0], operands[_TARGETS] is not None)
    _C.attention_forward(q, k, v, *operands, out, lse, *workspace(q, *sizes), run_on(q))
    return out, lse


def workspace(
    q: torch.Tensor, words: int, floats: int
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """What a CUDA kernel describes the batch in, and where it sums chunks of keys; else None."""
    return (
        q.new_empty(words, dtype=torch.int64) if words else None,
        q.new_empty(floats, dtype=torch.float32) if floats else None,
    )


def _forward_fake(q, k, v, *operands):
    return _empty(q, v, operands[_SILU])


def _empty(q, v, silu):
    rows, heads = q.shape[:2]
    lse = q.new_empty((0,) if silu else (rows, heads), dtype=torch.float32)
    return q.new_empty((rows, heads, v.shape[2])), lse


def _setup_context(ctx, inputs, output):
    ctx.tensors = [x is None or isinstance(x, torch.Tensor) for x in inputs]
    ctx.numbers = [x for x, tensor in zip(inputs, ctx.tensors, strict=True) if not tensor]
    kept = [x for x, tensor in zip(inputs, ctx.tensors, strict=True) if tensor]
    ctx.save_for_backward(*kept, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward_of_forward(ctx, dout, _dlse):
    if dout is None:
        return (None,) * len(ctx.tensors)
    *kept, out, lse = ctx.saved_tensors
    tensors, numbers = iter(kept), iter(ctx.numbers)
    inputs = [next(tensors if tensor else numbers) for tensor in ctx.tensors]
    dq, dk, dv, *dtables = _backward_op(dout, *inputs, out, lse)
    gradients = [dq, dk, dv, *[None] * (len(inputs) - 3)]
    for place, table, d in zip((14, 15), inputs[14:16], dtables, strict=True):
        gradients[place] = None if table is None else d
    return tuple(gradients)


def _backward(dout, q, k, v, *rest):
    *operands, out, lse = rest
    widest = v if v.shape[2] >= q.shape[2] else q
    sizes = _C.attention_workspace(q, widest, operands[0], operands[_TARGETS] is not None)
    if sizes[0]:
        return _backward_on_device(dout, q, k, v, operands, out, lse, sizes)
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    threads = torch.get_num_threads()
    sums = _C.attention_backward_workspace(q, k, v, operands[0], threads)
    dtables = _empty_tables(q, operands)
    entries = sum(d.numel() for d in dtables)
    copies = flat = None
    if entries:
        copies = q.new_zeros((_C.bias_copies, entries), dtype=torch.float64)
        flat = q.new_empty(entries, dtype=torch.float32)
    _C.attention_backward(
        dout if dout.stride(-1) == 1 else dout.contiguous(),
        q,
        k,
        v,
        *operands,
        out,
        lse,
        dq,
        dk,
        dv,
        q.new_empty(sums, dtype=torch.float32),
        copies,
        flat,
        threads,
    )
    if flat is not None:
        dtables = tuple(d.clone() for d in flat.split([d.numel() for d in dtables]))
    return dq, dk, dv, *dtables


def _backward_on_device(dout, q, k, v, operands, out, lse, sizes):
    gradients = tuple(x.new_empty(x.shape) for x in (q, k, v))
    dtables = _empty_tables(q, operands)
    sizes_of_tables = [d.numel() for d in dtables]
    entries = sum(sizes_of_tables)
    sums = flat = None
    if entries:
        sums = q.new_zeros(_C.attention_bias_words(entries), dtype=torch.int64)
        flat = q.new_empty(entries, dtype=torch.float32)
    _C.attention_backward_on_device(
        dout if dout.stride(-1) == 1 else dout.contiguous(),
        q,
        k,
        v,
        *operands,
        out,
        lse,
        *gradients,
        torch.empty_like(lse),
        sums,
        flat,
        *workspace(q, *sizes),
        run_on(q),
    )
    if flat is not None:
        dtables = tuple(d.clone() for d in flat.split(sizes_of_tables))
    return *gradients, *dtables


def _empty_tables(q, operands):
    return tuple(
        q.new_empty(0 if table is None else table.shape, dtype=torch.float32)
        for table in operands[_TABLES]
    )


def _backward_fake(dout, q, k, v, *rest):
    return *(x.new_empty(x.shape) for x in (q, k, v)), *_empty_tables(q, rest)


MASK = (
    "Tensor? num_context, Tensor? num_targets, Tensor? group_offsets, Tensor? visible, "
    "SymInt window, SymInt min_full"
)
SCORE = (
    "bool silu, float scale, Tensor? score_scales, float score_scale, Tensor? position_table, "
    "Tensor? time_table, Tensor? thresholds, Tensor? timestamps, Tensor? query_times"
)
_OPERANDS = f"Tensor q, Tensor k, Tensor v, Tensor offsets, {MASK}, {SCORE}"

_backward_op = register(
    f"attention_backward(Tensor dout, {_OPERANDS}, Tensor out, Tensor lse) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    cpu=_backward,
    cuda=_backward,
    fake=_backward_fake,
)
_op = register(
    f"attention({_OPERANDS}) -> (Tensor, Tensor)",
    cpu=_forward,
    cuda=_forward,
    fake=_forward_fake,
    backward=_backward_of_forward,
    setup_context=_setup_context,
)
