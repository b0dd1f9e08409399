"""The kernels, usable alone from PyTorch; the same names stand in :mod:`pylum.reference`."""

from pylum.ops.sampled_softmax import sampled_softmax
from pylum.ops.topk import topk

__all__ = ["sampled_softmax", "topk"]
