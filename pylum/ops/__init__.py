"""The kernels, usable alone from PyTorch; the same names stand in :mod:`pylum.reference`."""

from pylum.ops.topk import topk

__all__ = ["topk"]
