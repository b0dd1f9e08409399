"""Every op of :mod:`pylum.ops` in plain PyTorch, accumulated in float64: obvious, not fast."""

from pylum.reference.append_pages import append_pages
from pylum.reference.attention import attention
from pylum.reference.prefix_attention import prefix_attention
from pylum.reference.sampled_softmax import sampled_softmax
from pylum.reference.topk import topk

__all__ = ["append_pages", "attention", "prefix_attention", "sampled_softmax", "topk"]
