"""New tokens' keys and values into the pages of their sequences."""

from __future__ import annotations

import torch

from pylum import _C
from pylum.ops._library import register, run_on
from pylum.ops.pages import PagedPrefix


def append_pages(
    prefix: PagedPrefix,
    k: torch.Tensor,
    v: torch.Tensor,
    offsets: torch.Tensor,
    *,
    starts: torch.Tensor,
    positions: torch.Tensor | None = None,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
) -> None:
    """Write keys and values at their places in the pages of ``prefix``, in place.

    Row ``i`` of sequence ``b`` becomes its token ``starts[b] + i``. ``prefix.lengths`` is neither
    read nor changed: it must count the new tokens when :func:`pylum.ops.prefix_attention` reads
    them. Two sequences must not write to one slot.

    With ``cos`` and ``sin`` the keys are rotated on the way (rotary positions, arXiv 2104.09864):
    elements d and d + head_dim / 2 make a pair, as in Llama; computed in float32, rounded once.

    Args:
        prefix: pools and table; the pages of the tokens written must stand in the table.
        k: ``[total, kv_heads, head_dim]`` float32, bfloat16 or, on CUDA, float16, dtype of the
            pools, last dimension contiguous.
        v: ``[total, kv_heads, value_dim]``, dtype of ``k``, last dimension contiguous.
        offsets: ``[batch + 1]`` int64, cumulative numbers of new tokens.
        starts: ``[batch]`` int64, tokens each sequence holds before.
        positions: ``[total]`` int64, row of ``cos`` and ``sin`` for each token; default: the
            token's place in its sequence.
        cos, sin: ``[angles, head_dim / 2]`` float32; default: keys are written as they come.

    Raises:
        ValueError: a shape, device, layout, page or position is not as above. On CUDA a token
            without a page is not written, a key without an angle is NaN, and :func:`pylum.check`
            raises.
        TypeError: a dtype is not as above.
    """
    _op(prefix.k, prefix.v, prefix.table, k, v, offsets, starts, positions, cos, sin)


def _run(k_pages, v_pages, table, k, v, offsets, starts, positions, cos, sin):
    _C.append_pages_forward(
        k_pages, v_pages, table, k, v, offsets, starts, positions, cos, sin, run_on(k)
    )


def _fake(k_pages, v_pages, table, k, v, offsets, starts, positions, cos, sin):
    return None


_op = register(
    "append_pages(Tensor(a!) k_pages, Tensor(b!) v_pages, Tensor table, Tensor k, Tensor v, "
    "Tensor offsets, Tensor starts, Tensor? positions, Tensor? cos, Tensor? sin) -> ()",
    cpu=_run,
    cuda=_run,
    fake=_fake,
)
