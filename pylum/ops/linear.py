"""A matrix product of many rows with a small weight."""

from __future__ import annotations

import torch

from pylum import _C
from pylum.ops._library import TORCH_PATHS, autocast_dtype, register, threads

# Beyond, blocking for outer caches matters more than skipping the padding of narrow matrices.
LARGEST = 1024
TORCH_PATHS[__name__] = (
    f"products of other dtypes than float32, with weights beyond {LARGEST:,} by {LARGEST:,}, "
    "on CUDA and under autocast"
)


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``x @ weight.T``, as :func:`torch.nn.functional.linear`.

    float32 on the CPU with a weight of at most 1,024 by 1,024 runs on our kernel, where an element
    is one chain of multiply-adds that does not depend on the number of rows or threads; anything
    else, and everything on CUDA, is torch's. Which one depends on dtype, device and the weight's
    shape alone.

    Args:
        x: ``[total, depth]``.
        weight: ``[width, depth]``, dtype of ``x``.

    Returns:
        ``[total, width]``, dtype of ``x``; under autocast its dtype.

    Raises:
        ValueError: a shape is not as above.
        TypeError: the dtypes differ, outside autocast.
    """
    autocast = autocast_dtype(x=x, weight=weight) is not None
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(
            f"x must be [total, depth] and weight [width, depth], "
            f"got {list(x.shape)} and {list(weight.shape)}"
        )
    if x.dtype != weight.dtype and not autocast:
        raise TypeError(f"weight must be {x.dtype} like x, got {weight.dtype}")
    ours = x.dtype == torch.float32 and x.device.type == "cpu" and max(weight.shape) <= LARGEST
    if autocast or not ours:
        return torch.nn.functional.linear(x, weight)
    return _op(x, weight)


def _product(x, weight, transposed):
    depth, width = weight.shape if transposed else weight.shape[::-1]
    panel = _C.linear_panel
    packed = x.new_empty((-(-width // panel), depth, panel))
    y = x.new_empty((x.shape[0], width))
    _C.linear_product(x.contiguous(), weight.contiguous(), transposed, packed, y, threads())
    return y


def _cpu(x, weight):
    return _product(x, weight, False)


def _fake(x, weight):
    return x.new_empty((x.shape[0], weight.shape[0]))


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, dy):
    return _backward_op(dy, *ctx.saved_tensors, *ctx.needs_input_grad)


def _backward_cpu(dy, x, weight, want_x, want_weight):
    dy, x = dy.contiguous(), x.contiguous()
    dx = _product(dy, weight, True) if want_x else x.new_empty((0,))
    if not want_weight:
        return dx, x.new_empty((0,))
    pad, chunk = _C.linear_pad, _C.linear_gradient_chunk
    chunks, (width, depth) = -(-x.shape[0] // chunk), weight.shape
    workspace = x.new_empty((chunks, width + _C.linear_strip, -(-depth // pad) * pad))
    dweight = torch.empty((width, depth), dtype=x.dtype)
    _C.linear_gradient(dy, x, workspace, dweight, threads())
    return dx, dweight


def _cuda(x, weight):
    return torch.nn.functional.linear(x, weight)


def _backward_cuda(dy, x, weight, want_x, want_weight):
    none = x.new_empty((0,))
    dx = dy @ weight if want_x else none
    return dx, dy.T @ x if want_weight else none.clone()


def _backward_fake(dy, x, weight, want_x, want_weight):
    none = x.new_empty((0,))
    return (
        x.new_empty(x.shape) if want_x else none,
        x.new_empty(weight.shape) if want_weight else none.clone(),
    )


_op = register(
    "linear(Tensor x, Tensor weight) -> Tensor",
    cpu=_cpu,
    cuda=_cuda,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
_backward_op = register(
    "linear_backward(Tensor dy, Tensor x, Tensor weight, bool want_x, bool want_weight) "
    "-> (Tensor, Tensor)",
    cpu=_backward_cpu,
    cuda=_backward_cuda,
    fake=_backward_fake,
)
