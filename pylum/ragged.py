"""Rows of different lengths in one array."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pylum.modes import on_host
from pylum.transfer import moved


@on_host
@dataclass(frozen=True)
class Ragged:
    """``B`` rows of different lengths: row ``b`` is ``values[offsets[b] : offsets[b + 1]]``.

    Args:
        values: ``[N, ...]`` tensor; or any sequence of length ``N`` where rows hold raw ids.
        offsets: ``[B + 1]`` int64, from 0 to ``N``, non-decreasing. On a GPU its values are not
            looked at: that would wait for it.

    Raises:
        ValueError: the offsets do not describe the values.
        TypeError: the offsets are not int64.
    """

    values: Any
    offsets: torch.Tensor

    def __post_init__(self) -> None:
        offsets = self.offsets
        if not isinstance(offsets, torch.Tensor):
            offsets = torch.as_tensor(offsets)
            object.__setattr__(self, "offsets", offsets)
        if offsets.dtype != torch.int64:
            raise TypeError(f"offsets must be int64, got {offsets.dtype}")
        if offsets.dim() != 1 or offsets.numel() < 1:
            raise ValueError(f"offsets must be [batch + 1], got {list(offsets.shape)}")
        if offsets.device.type != "cpu":
            return
        if int(offsets[0]) != 0 or int(offsets[-1]) != len(self.values):
            raise ValueError(
                f"offsets must run from 0 to {len(self.values)}, "
                f"got {int(offsets[0])} to {int(offsets[-1])}"
            )
        if bool((offsets[1:] < offsets[:-1]).any()):
            raise ValueError("offsets must be non-decreasing")

    def __len__(self) -> int:
        return self.offsets.numel() - 1

    def __getitem__(self, row: int) -> Any:
        if not -len(self) <= row < len(self):
            raise IndexError(f"row must be in [0, {len(self)}), got {row}")
        row %= len(self)
        return self.values[int(self.offsets[row]) : int(self.offsets[row + 1])]

    @property
    def lengths(self) -> torch.Tensor:
        """``[B]`` int64."""
        return self.offsets.diff()

    def to(self, device: torch.device | str) -> Ragged:
        """Values and offsets on ``device``; values that are no tensor stay what they are."""
        values = self.values
        if isinstance(values, torch.Tensor):
            values = moved(values, device)
        return Ragged(values, moved(self.offsets, device))

    @classmethod
    def from_lists(cls, rows: Iterable[Sequence[Any]]) -> Ragged:
        """From a list of lists; numbers become a tensor, anything else stays a list.

        Args:
            rows: lists, tensors or arrays, one a row.

        Raises:
            TypeError: a row is a single value, or a string.
        """
        rows = [_listed(row) for row in rows]
        flat = [value for row in rows for value in row]
        numeric = bool(flat) and all(isinstance(v, (int, float)) for v in flat)
        values: Any = torch.tensor(flat) if numeric else flat
        return cls(values, lengths_to_offsets(torch.tensor([len(r) for r in rows])))

    @classmethod
    def from_arrow(cls, array: Any) -> Ragged:
        """From a pyarrow ``ListArray`` or ``LargeListArray``; null rows become empty.

        Args:
            array: of numbers, which become a tensor, or of anything else or with nulls, which
                become a list.

        Raises:
            TypeError: it is no such array.
        """
        import pyarrow as pa

        if isinstance(array, pa.ChunkedArray):
            array = array.combine_chunks()
        if not (pa.types.is_list(array.type) or pa.types.is_large_list(array.type)):
            raise TypeError(f"array must be an Arrow list array, got {array.type}")
        lengths = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        flat = array.flatten()
        values: Any = (
            torch.from_numpy(flat.to_numpy(zero_copy_only=False).copy())
            if not flat.null_count
            and (pa.types.is_integer(flat.type) or pa.types.is_floating(flat.type))
            else flat.to_pylist()
        )
        return cls(values, lengths_to_offsets(torch.from_numpy(lengths.astype("int64"))))

    @classmethod
    def from_nested(cls, nested: torch.Tensor) -> Ragged:
        """From a torch nested tensor.

        Raises:
            TypeError: it is none.
        """
        if not nested.is_nested:
            raise TypeError(f"nested must be a nested tensor, got {list(nested.shape)}")
        rows = nested.unbind()
        values = torch.cat(list(rows)) if rows else torch.empty(0)
        return cls(values, lengths_to_offsets(torch.tensor([len(row) for row in rows])))

    def to_lists(self) -> list[list[Any]]:
        """``B`` lists of the values, numbers as Python's."""
        values = (
            self.values.tolist() if isinstance(self.values, torch.Tensor) else list(self.values)
        )
        bounds = self.offsets.tolist()
        return [values[a:b] for a, b in itertools.pairwise(bounds)]


def _listed(row: Any) -> list[Any]:
    if isinstance(row, (str, bytes)) or not hasattr(row, "__iter__"):
        raise TypeError(f"rows must be lists, got one of {row!r}")
    return list(row.tolist() if hasattr(row, "tolist") else row)


def lengths_to_offsets(lengths: torch.Tensor) -> torch.Tensor:
    """``[B]`` lengths to ``[B + 1]`` int64 cumulative offsets."""
    offsets = torch.zeros(lengths.numel() + 1, dtype=torch.int64, device=lengths.device)
    torch.cumsum(lengths.to(torch.int64), 0, out=offsets[1:])
    return offsets
