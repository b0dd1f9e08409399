"""Dot products of all pairs of a row's vectors."""

from __future__ import annotations

import torch

from pylum import _C
from pylum.ops._library import register, run_on


def dot_interaction(vectors: torch.Tensor) -> torch.Tensor:
    """The dots of each vector of a row with those before it (section 2.1 of arXiv 1906.00091).

    Args:
        vectors: ``[batch, count, dim]`` float32, bfloat16 or, on CUDA, float16, contiguous, dim at
            most 512.

    Returns:
        ``[batch, count (count - 1) / 2]``, dtype of ``vectors``: the strict lower triangle of
        ``vectors @ vectors.T``, row by row; sums are float32.

    Raises:
        ValueError: a shape, device or layout is not as above.
        TypeError: a dtype is not as above.
    """
    if vectors.ndim != 3:
        raise ValueError(f"vectors must be [batch, count, dim], got {list(vectors.shape)}")
    return _op(vectors)


def _run(vectors):
    out = _fake(vectors)
    _C.dot_interaction_forward(vectors, out, run_on(vectors))
    return out


def _fake(vectors):
    count = vectors.shape[1]
    return vectors.new_empty((vectors.shape[0], count * (count - 1) // 2))


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, dout):
    return _backward_op(dout, *ctx.saved_tensors)


def _run_backward(dout, vectors):
    dvectors = torch.empty_like(vectors)
    _C.dot_interaction_backward(dout.contiguous(), vectors, dvectors, run_on(vectors))
    return dvectors


def _backward_fake(dout, vectors):
    return torch.empty_like(vectors)


_op = register(
    "dot_interaction(Tensor vectors) -> Tensor",
    cpu=_run,
    cuda=_run,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
_backward_op = register(
    "dot_interaction_backward(Tensor dout, Tensor vectors) -> Tensor",
    cpu=_run_backward,
    cuda=_run_backward,
    fake=_backward_fake,
)
