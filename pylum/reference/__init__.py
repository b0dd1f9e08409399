"""Every op of :mod:`pylum.ops` in plain PyTorch, accumulated in float64: obvious, not fast."""

from pylum.reference.sampled_softmax import sampled_softmax
from pylum.reference.topk import topk

__all__ = ["sampled_softmax", "topk"]
