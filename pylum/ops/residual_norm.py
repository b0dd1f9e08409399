"""A residual branch joined, dropped out and normed in one pass."""

from __future__ import annotations

import torch

from pylum import _C
from pylum.ops._library import autocast_dtype, register, run_on

EPS = 1e-6


def residual_norm(
    branch: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    *,
    dropout: float = 0.0,
    seed: int = 0,
    eps: float = EPS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``sum = residual + dropout(branch)`` and ``sum / sqrt(mean(sum^2) + eps) * weight``.

    The join of a pre-norm transformer (RMSNorm, arXiv 1910.07467). What is dropped follows from
    ``seed``, row and column by a hash: it is the same on every machine and for any number of
    threads, and no mask is stored for the backward pass.

    Args:
        branch: ``[rows, width]`` float32, bfloat16 or, on CUDA, float16, contiguous; on CUDA at
            most 24,576 wide where a gradient is wanted.
        residual: the same, dtype of ``branch``; None: zeros. Under autocast, where dtypes differ,
            all are taken as float32.
        weight: ``[width]``, dtype of ``branch``.
        dropout: probability that an element of ``branch`` is zeroed, in [0, 1); the others are
            divided by ``1 - dropout``.
        seed: int64.
        eps: added to the mean square.

    Returns:
        sum and normed, ``[rows, width]`` in the dtype of ``branch``; arithmetic is float32.

    Raises:
        ValueError: a shape, device, layout or the probability is not as above.
        TypeError: a dtype is not as above.
    """
    if autocast_dtype(branch=branch, residual=residual, weight=weight) is not None:
        branch, weight = branch.float(), weight.float()
        residual = None if residual is None else residual.float()
    return _op(branch, residual, weight, dropout, seed, eps)[:2]


def _run(branch, residual, weight, dropout, seed, eps):
    sum_, normed = torch.empty_like(branch), torch.empty_like(branch)
    scales = branch.new_empty(branch.shape[:1], dtype=torch.float32)
    _C.residual_norm_forward(
        branch, residual, weight, dropout, seed, eps, sum_, normed, scales, run_on(sum_)
    )
    return sum_, normed, scales


def _fake(branch, residual, weight, dropout, seed, eps):
    scales = branch.new_empty(branch.shape[:1], dtype=torch.float32)
    return torch.empty_like(branch), torch.empty_like(branch), scales


def _setup_context(ctx, inputs, output):
    _, _, weight, dropout, seed, _ = inputs
    sum_, _, scales = output
    ctx.save_for_backward(sum_, weight, scales)
    ctx.dropout, ctx.seed = dropout, seed
    ctx.mark_non_differentiable(scales)
    ctx.set_materialize_grads(False)


def _backward(ctx, dsum, dnormed, _dscales):
    if dsum is None and dnormed is None:
        return (None,) * 6
    sum_, weight, scales = ctx.saved_tensors
    dresidual, dbranch, dweight = _backward_op(
        dsum, dnormed, sum_, weight, scales, ctx.dropout, ctx.seed
    )
    if ctx.dropout == 0:
        dbranch = dresidual
    wants = ctx.needs_input_grad[1]
    return dbranch, dresidual if wants else None, dweight, None, None, None


def _run_backward(dsum, dnormed, sum_, weight, scales, dropout, seed):
    dresidual, dbranch, dweight = _backward_fake(dsum, dnormed, sum_, weight, scales, dropout, seed)
    width = sum_.shape[1]
    total = scales.new_empty((width,))
    _C.residual_norm_backward(
        None if dsum is None else dsum.contiguous(),
        None if dnormed is None else dnormed.contiguous(),
        sum_,
        weight,
        scales,
        dropout,
        seed,
        dresidual,
        dbranch if dropout > 0 else None,
        scales.new_empty((_C.residual_norm_parts(sum_), width)),
        total,
        run_on(sum_),
    )
    dweight.copy_(total)
    return dresidual, dbranch, dweight


def _backward_fake(dsum, dnormed, sum_, weight, scales, dropout, seed):
    dbranch = torch.empty_like(sum_) if dropout > 0 else sum_.new_empty((0,))
    return torch.empty_like(sum_), dbranch, torch.empty_like(weight)


_op = register(
    "residual_norm(Tensor branch, Tensor? residual, Tensor weight, float dropout, int seed, "
    "float eps) -> (Tensor, Tensor, Tensor)",
    cpu=_run,
    cuda=_run,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
_backward_op = register(
    "residual_norm_backward(Tensor? dsum, Tensor? dnormed, Tensor sum, Tensor weight, "
    "Tensor scales, float dropout, int seed) -> (Tensor, Tensor, Tensor)",
    cpu=_run_backward,
    cuda=_run_backward,
    fake=_backward_fake,
)
