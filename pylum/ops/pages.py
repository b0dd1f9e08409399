"""A history's keys and values in fixed-size pages, so that many users share one pool."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pylum.ops.huge_pages import huge_pages
from pylum.ragged import lengths_to_offsets

PAGE = 64


@dataclass(frozen=True)
class PagedPrefix:
    """One layer's cached keys and values of a batch of users.

    Token ``t`` of sequence ``b`` lies in page ``table[b, t // 64]`` at slot ``t % 64``. The layers
    of a model share ``table`` and ``lengths`` and have pools of their own.

    Args:
        k: ``[pages, kv_heads, 64, head_dim]`` pool of keys, made by :func:`pages_like`.
        v: ``[pages, kv_heads, 64, value_dim]`` pool of values, dtype of ``k``.
        table: ``[batch, max_pages]`` int64 pages of each sequence; entries past its length are
            ignored.
        lengths: ``[batch]`` int64 tokens of each sequence, context included, that the pages hold.

    The order of elements inside a page belongs to the kernels: write with
    :func:`pylum.ops.append_pages`, read with :func:`gather_pages`.
    """

    k: torch.Tensor
    v: torch.Tensor
    table: torch.Tensor
    lengths: torch.Tensor

    def __post_init__(self) -> None:
        for name, pool in (("k", self.k), ("v", self.v)):
            if pool.dim() != 4 or pool.shape[2] != PAGE or pool.shape[:2] != self.k.shape[:2]:
                raise ValueError(
                    f"prefix.{name} must be [pages, kv_heads, {PAGE}, dim] as made by pages_like, "
                    f"got {list(pool.shape)}"
                )
            if pool.dtype != self.k.dtype:
                raise TypeError(f"prefix.v must be {self.k.dtype} like k, got {pool.dtype}")
        for name, tensor in (("table", self.table), ("lengths", self.lengths)):
            if tensor.dtype != torch.int64:
                raise TypeError(f"prefix.{name} must be int64, got {tensor.dtype}")
        if self.table.dim() != 2:
            raise ValueError(
                f"prefix.table must be [batch, max_pages], got {list(self.table.shape)}"
            )
        if self.lengths.shape != self.table.shape[:1]:
            raise ValueError(
                f"prefix.lengths must be [batch = {self.table.shape[0]}], "
                f"got {list(self.lengths.shape)}"
            )


def pages_like(
    k: torch.Tensor, v: torch.Tensor, num_pages: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Uninitialised pools for keys and values shaped like ``k`` and ``v``.

    Large ones on the CPU lie on huge pages of memory where the system has them.

    Args:
        k: ``[total, kv_heads, head_dim]``; only its shape, dtype and device are read.
        v: ``[total, kv_heads, value_dim]``.
        num_pages: pages of 64 tokens in each pool.

    Returns:
        ``k`` and ``v`` of a :class:`PagedPrefix`.
    """
    k_pages = k.new_empty((num_pages, k.shape[1], PAGE, k.shape[2]))
    v_pages = v.new_empty((num_pages, v.shape[1], PAGE, v.shape[2]))
    huge_pages(k_pages)
    huge_pages(v_pages)
    return k_pages, v_pages


def gather_pages(prefix: PagedPrefix) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The cached tokens of every sequence, packed.

    Returns:
        ``k [total, kv_heads, head_dim]``, ``v [total, kv_heads, value_dim]``,
        ``offsets [batch + 1]`` int64, where ``total`` is the sum of ``prefix.lengths``.
    """
    offsets = lengths_to_offsets(prefix.lengths)
    sequence = torch.repeat_interleave(prefix.lengths)
    position = torch.arange(len(sequence), device=sequence.device) - offsets[sequence]
    page, slot = prefix.table[sequence, position // PAGE], position % PAGE
    return (
        _gather(prefix.k, key_order, page, slot),
        _gather(prefix.v, value_order, page, slot),
        offsets,
    )


def _gather(
    pool: torch.Tensor,
    order: Callable[[torch.Tensor], torch.Tensor],
    page: torch.Tensor,
    slot: torch.Tensor,
) -> torch.Tensor:
    return pool.flatten(2)[page[:, None], :, order(pool)[slot]].transpose(1, 2).contiguous()


def key_order(pool: torch.Tensor) -> torch.Tensor:
    """``[64, head_dim]``: where each element of a slot's key stands among a page's elements.

    On the CPU keys stand in the vector lanes: ``[head_dim, 64]``, bfloat16 in pairs of elements,
    ``[head_dim / 2, 64, 2]``, of an odd ``head_dim`` the last element of all slots at the end.
    """
    slot, d = torch.arange(PAGE, device=pool.device)[:, None], _elements(pool)
    if pool.device.type != "cpu":
        return slot * len(d) + d
    if pool.dtype != torch.bfloat16:
        return d * PAGE + slot
    single = (d == len(d) - 1) & (len(d) % 2 == 1)
    return torch.where(single, d * PAGE + slot, (d // 2 * PAGE + slot) * 2 + d % 2)


def value_order(pool: torch.Tensor) -> torch.Tensor:
    """``[64, value_dim]``, as :func:`key_order`: rows, on the CPU bfloat16 in pairs of slots."""
    slot, d = torch.arange(PAGE, device=pool.device)[:, None], _elements(pool)
    if pool.device.type == "cpu" and pool.dtype == torch.bfloat16:
        return (slot // 2 * len(d) + d) * 2 + slot % 2
    return slot * len(d) + d


def _elements(pool: torch.Tensor) -> torch.Tensor:
    return torch.arange(pool.shape[3], device=pool.device)
