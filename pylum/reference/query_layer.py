"""Reference of :func:`pylum.ops.query_layer`."""

from __future__ import annotations

import torch

from pylum.ops.mask import Mask
from pylum.ops.pages import PagedPrefix
from pylum.ops.query_layer import LayerWeights
from pylum.ops.residual_norm import EPS
from pylum.reference.prefix_attention import prefix_attention
from pylum.reference.residual_norm import residual_norm
from pylum.reference.rotary import rotary
from pylum.reference.swiglu import swiglu


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
    """As :func:`pylum.ops.query_layer`, argument for argument."""
    w = LayerWeights(*(tensor.double() for tensor in weights))
    total, h = residual_norm(x.double(), None, w.attention_norm, eps=eps)
    q, k, v = rotary(h @ w.qkv.T, positions, cos, sin, heads=heads, kv_heads=prefix.k.shape[1])
    attended = prefix_attention(q, k, v, offsets, prefix, mask)
    total, h = residual_norm(attended.flatten(1) @ w.out.T, total, w.ffn_norm, eps=eps)
    return (total + swiglu(h @ w.gate_up.T) @ w.down.T).to(x.dtype)
