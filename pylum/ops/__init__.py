"""The kernels, usable alone from PyTorch; the same names stand in :mod:`pylum.reference`."""

from pylum.ops.append_pages import append_pages
from pylum.ops.attention import attention
from pylum.ops.bias import RelativeBias, log_thresholds
from pylum.ops.dot_interaction import dot_interaction
from pylum.ops.embedding_bag import embedding_bag
from pylum.ops.embedding_sequence import embedding_sequence
from pylum.ops.huge_pages import huge_pages
from pylum.ops.linear import linear
from pylum.ops.mask import Mask
from pylum.ops.pages import PagedPrefix, gather_pages, pages_like
from pylum.ops.prefix_attention import prefix_attention
from pylum.ops.query_layer import LayerWeights, query_layer
from pylum.ops.residual_norm import residual_norm
from pylum.ops.rotary import rotary
from pylum.ops.row_wise import RowUse, row_wise_adagrad_, row_wise_adamw_
from pylum.ops.sampled_softmax import sampled_softmax
from pylum.ops.swiglu import swiglu
from pylum.ops.topk import topk

__all__ = [
    "LayerWeights",
    "Mask",
    "PagedPrefix",
    "RelativeBias",
    "RowUse",
    "append_pages",
    "attention",
    "dot_interaction",
    "embedding_bag",
    "embedding_sequence",
    "gather_pages",
    "huge_pages",
    "linear",
    "log_thresholds",
    "pages_like",
    "prefix_attention",
    "query_layer",
    "residual_norm",
    "rotary",
    "row_wise_adagrad_",
    "row_wise_adamw_",
    "sampled_softmax",
    "swiglu",
    "topk",
]
