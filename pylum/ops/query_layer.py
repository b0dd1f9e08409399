"""One transformer layer for targets over cached histories, in one call."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from pylum import _C
from pylum.ops._library import TORCH_PATHS, register, threads
from pylum.ops.mask import Mask, flatten
from pylum.ops.pages import PagedPrefix
from pylum.ops.prefix_attention import prefix_attention
from pylum.ops.residual_norm import EPS, residual_norm
from pylum.ops.rotary import rotary
from pylum.ops.swiglu import swiglu

TORCH_PATHS[__name__] = "matrix products on CUDA, where a layer is composed of its ops"


class LayerWeights(NamedTuple):
    """A pre-norm layer: RMSNorm, attention, RMSNorm, gated SiLU; dtype of ``x``, contiguous.

    Args:
        attention_norm: ``[width]``.
        qkv: ``[(heads + 2 kv_heads) * head_dim, width]``, the rows of q, then of k, then of v.
        out: ``[width, heads * head_dim]``.
        ffn_norm: ``[width]``.
        gate_up: ``[2 * ffn, width]``, the rows of the gate, then of up.
        down: ``[width, ffn]``.
    """

    attention_norm: torch.Tensor
    qkv: torch.Tensor
    out: torch.Tensor
    ffn_norm: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


def query_layer(
    x: torch.Tensor,
    offsets: torch.Tensor,
    positions: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    weights: LayerWeights,
    prefix: PagedPrefix,
    mask: Mask,
    *,
    heads: int,
    eps: float = EPS,
) -> torch.Tensor:
    """The residual stream of targets after one layer; no gradient.

    ``x + attend(norm(x))`` with rotary positions over ``prefix`` (:func:`prefix_attention`), then
    ``+ down(silu(gate) * up)`` of its norm. Few rows cost what reading the weights costs, so they
    are read as they lie, once. To the bit, a row's result depends on its history, its group and
    the weights, not on the other rows. Sums are float32.

    On CUDA the layer is its single ops in turn with torch's matrix products, which may round a row
    differently among more or fewer rows, and rounds to the dtype of ``x`` between them.

    Args:
        x: ``[targets, width]`` float32, bfloat16 or, on CUDA, float16, contiguous: every row is a
            target.
        offsets: ``[batch + 1]`` int64, cumulative numbers of targets.
        positions: ``[targets]`` int64, rows of ``cos`` and ``sin``.
        cos, sin: ``[angles, head_dim / 2]`` float32, contiguous.
        weights: of the layer.
        prefix: the histories; dtype of ``x``. Its pools tell ``kv_heads`` and ``head_dim``.
        mask: as for :func:`prefix_attention`; ``num_targets`` counts the rows of each sequence.
        heads: of q.
        eps: of both norms.

    Returns:
        ``[targets, width]``, dtype of ``x``.

    Raises:
        ValueError: a shape, device, layout or value is not as above. On CUDA the rows of a bad
            position, page or length become NaN and :func:`pylum.check` raises.
        TypeError: a dtype is not as above.
    """
    if x.dim() != 2:
        raise ValueError(f"x must be [targets, width], got {list(x.shape)}")
    return _op(
        x,
        offsets,
        positions,
        cos,
        sin,
        *weights,
        prefix.k,
        prefix.v,
        prefix.table,
        prefix.lengths,
        *flatten(mask),
        heads,
        eps,
    )


def _cpu(x, offsets, positions, cos, sin, *operands):
    *tensors, heads, eps = operands
    down, k_pages = tensors[5], tensors[6]
    rows, width = x.shape
    kv_heads, head_dim = k_pages.shape[1], k_pages.shape[3]
    fused, ffn = heads + 2 * kv_heads, down.shape[-1]
    widest = max(width, fused * head_dim, 2 * ffn)
    _C.query_layer_forward(
        x,
        offsets,
        positions,
        cos,
        sin,
        *tensors,
        heads,
        eps,
        x.new_empty((rows * widest,), dtype=torch.float32),
        x.new_empty((rows * max(width, ffn),)),
        x.new_empty((rows, fused, head_dim)),
        x.new_empty((rows, heads, head_dim)),
        out := torch.empty_like(x),
        threads(),
    )
    return out


def _cuda(x, offsets, positions, cos, sin, *operands):
    w = LayerWeights(*operands[:6])
    prefix = PagedPrefix(*operands[6:10])
    num_context, num_targets, group_offsets, visible = operands[10:14]
    window, min_full, heads, eps = operands[14:]
    kv_heads, head_dim = prefix.k.shape[1], prefix.k.shape[3]
    _check(x, w, heads, kv_heads, head_dim)
    mask = Mask(num_context, num_targets, group_offsets, visible, window or None, min_full or None)
    with torch.autocast(x.device.type, enabled=False):
        total, h = residual_norm(x, None, w.attention_norm, eps=eps)
        q, k, v = rotary(F.linear(h, w.qkv), positions, cos, sin, heads=heads, kv_heads=kv_heads)
        attended = prefix_attention(q, k, v, offsets, prefix, mask).flatten(1)
        total, h = residual_norm(F.linear(attended, w.out), total, w.ffn_norm, eps=eps)
        return total + F.linear(swiglu(F.linear(h, w.gate_up)), w.down)


def _check(x, w, heads, kv_heads, head_dim):
    width, ffn = x.shape[1], w.down.shape[-1]
    shapes = (
        (width,),
        ((heads + 2 * kv_heads) * head_dim, width),
        (width, heads * head_dim),
        (width,),
        (2 * ffn, width),
        (width, ffn),
    )
    for name, tensor, shape in zip(w._fields, w, shapes, strict=True):
        if tensor.dtype != x.dtype:
            raise TypeError(f"{name} must be {x.dtype} like x, got {tensor.dtype}")
        if tensor.shape != shape:
            raise ValueError(f"{name} must be {list(shape)}, got {list(tensor.shape)}")


def _fake(x, *_):
    return torch.empty_like(x)


def _no_gradient(ctx, *_):
    raise RuntimeError("pylum.ops.query_layer has no gradient")


_op = register(
    "query_layer(Tensor x, Tensor offsets, Tensor positions, Tensor cos, Tensor sin, "
    "Tensor attention_norm, Tensor qkv, Tensor out, Tensor ffn_norm, Tensor gate_up, Tensor down, "
    "Tensor k_pages, Tensor v_pages, Tensor table, Tensor lengths, Tensor? num_context, "
    "Tensor? num_targets, Tensor? group_offsets, Tensor? visible, SymInt window, "
    "SymInt min_full, int heads, float eps) -> Tensor",
    cpu=_cpu,
    cuda=_cuda,
    fake=_fake,
    backward=_no_gradient,
    setup_context=lambda ctx, inputs, output: None,
)
