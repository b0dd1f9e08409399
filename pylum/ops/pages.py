"""A history's keys and values in fixed-size pages, so that many users share one pool."""

from __future__ import annotations

from dataclasses import dataclass

import torch

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

    Args:
        k: ``[total, kv_heads, head_dim]``; only its shape, dtype and device are read.
        v: ``[total, kv_heads, value_dim]``.
        num_pages: pages of 64 tokens in each pool.

    Returns:
        ``k`` and ``v`` of a :class:`PagedPrefix`.
    """
    return (
        k.new_empty((num_pages, k.shape[1], PAGE, k.shape[2])),
        v.new_empty((num_pages, v.shape[1], PAGE, v.shape[2])),
    )


def gather_pages(prefix: PagedPrefix) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The cached tokens of every sequence, packed.

    Returns:
        ``k [total, kv_heads, head_dim]``, ``v [total, kv_heads, value_dim]``,
        ``offsets [batch + 1]`` int64, where ``total`` is the sum of ``prefix.lengths``.
    """
    offsets = lengths_to_offsets(prefix.lengths)
    sequence = torch.repeat_interleave(prefix.lengths)
    position = torch.arange(len(sequence), device=sequence.device) - offsets[sequence]
    page = prefix.table[sequence, position // PAGE]
    return prefix.k[page, :, position % PAGE], prefix.v[page, :, position % PAGE], offsets
