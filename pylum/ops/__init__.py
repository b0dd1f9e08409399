"""The kernels, usable alone from PyTorch; the same names stand in :mod:`pylum.reference`."""

from pylum.ops.append_pages import append_pages
from pylum.ops.attention import attention
from pylum.ops.mask import Mask
from pylum.ops.pages import PagedPrefix, gather_pages, pages_like
from pylum.ops.prefix_attention import prefix_attention
from pylum.ops.sampled_softmax import sampled_softmax
from pylum.ops.topk import topk

__all__ = [
    "Mask",
    "PagedPrefix",
    "append_pages",
    "attention",
    "gather_pages",
    "pages_like",
    "prefix_attention",
    "sampled_softmax",
    "topk",
]
