"""Every op of :mod:`pylum.ops` in plain PyTorch: obvious, not fast.

Accumulated in float64; attention in float64 only where q is, else in float32.
"""

from pylum.reference.append_pages import append_pages
from pylum.reference.attention import attention
from pylum.reference.dot_interaction import dot_interaction
from pylum.reference.embedding_bag import embedding_bag
from pylum.reference.embedding_sequence import embedding_sequence
from pylum.reference.linear import linear
from pylum.reference.prefix_attention import prefix_attention
from pylum.reference.query_layer import query_layer
from pylum.reference.residual_norm import residual_norm
from pylum.reference.rotary import rotary
from pylum.reference.row_wise import row_wise_adagrad_, row_wise_adamw_
from pylum.reference.sampled_softmax import sampled_softmax
from pylum.reference.swiglu import swiglu
from pylum.reference.topk import topk

__all__ = [
    "append_pages",
    "attention",
    "dot_interaction",
    "embedding_bag",
    "embedding_sequence",
    "linear",
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
