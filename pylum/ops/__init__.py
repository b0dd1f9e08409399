"""The kernels, usable alone from PyTorch; the same names stand in :mod:`pylum.reference`."""

from pylum.ops.attention import attention
from pylum.ops.mask import Mask
from pylum.ops.pages import PagedPrefix, gather_pages, pages_like
from pylum.ops.sampled_softmax import sampled_softmax
from pylum.ops.topk import topk

__all__ = [
    "Mask",
    "PagedPrefix",
    "attention",
    "gather_pages",
    "pages_like",
    "sampled_softmax",
    "topk",
]
