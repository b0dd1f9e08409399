"""Ragged ranges."""

from __future__ import annotations

import torch

from pylum.ragged import lengths_to_offsets


def spread(starts: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """``[sum of lengths]`` int64: ``start, start + 1, ...`` of each pair in turn."""
    offsets = lengths_to_offsets(lengths)
    return torch.arange(int(offsets[-1])) + (starts - offsets[:-1]).repeat_interleave(lengths)
