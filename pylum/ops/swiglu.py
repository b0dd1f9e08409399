"""The gate of a gated feed-forward layer."""

from __future__ import annotations

import torch

from pylum import _C
from pylum.ops._library import register, run_on


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """``silu(gate) * up``, with gate and up side by side (arXiv 2002.05202).

    Args:
        gate_up: ``[rows, 2 * width]`` float32, bfloat16 or, on CUDA, float16, contiguous: gate,
            then up.

    Returns:
        ``[rows, width]``, dtype of ``gate_up``; arithmetic is float32.

    Raises:
        ValueError: a shape, device or layout is not as above.
        TypeError: a dtype is not as above.
    """
    if gate_up.ndim != 2:
        raise ValueError(f"gate_up must be [rows, 2 * width], got {list(gate_up.shape)}")
    return _op(gate_up)


def _run(gate_up):
    out = _fake(gate_up)
    _C.swiglu_forward(gate_up, out, run_on(out))
    return out


def _fake(gate_up):
    return gate_up.new_empty((gate_up.shape[0], gate_up.shape[1] // 2))


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, dout):
    return _backward_op(dout, *ctx.saved_tensors)


def _run_backward(dout, gate_up):
    dgate_up = torch.empty_like(gate_up)
    _C.swiglu_backward(dout.contiguous(), gate_up, dgate_up, run_on(gate_up))
    return dgate_up


def _backward_fake(dout, gate_up):
    return torch.empty_like(gate_up)


_op = register(
    "swiglu(Tensor gate_up) -> Tensor",
    cpu=_run,
    cuda=_run,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
_backward_op = register(
    "swiglu_backward(Tensor dout, Tensor gate_up) -> Tensor",
    cpu=_run_backward,
    cuda=_run_backward,
    fake=_backward_fake,
)
