"""Rows of an HSTU pass whose earlier history lies in pages."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pylum import ops
from pylum.model.hstu_places import Clock
from pylum.ragged import lengths_to_offsets
from pylum.transfer import moved


@dataclass(frozen=True)
class Cached:
    """What a pass needs to know of its rows beside their tokens; all on one device.

    Args:
        offsets: ``[B + 1]`` int64, new history rows and then targets of each sequence.
        positions: ``[T]`` int64, in tokens.
        clock: of the keys and the rows.
        own: ``[T]`` int64 seconds at which each row happened.
        starts: ``[B]`` int64 tokens of each history before the new ones.
        new_offsets: ``[B + 1]`` int64, new history rows alone.
        new, targets: int64 rows of each kind; None: no row is new, and all are targets.
    """

    offsets: torch.Tensor
    positions: torch.Tensor
    clock: Clock
    own: torch.Tensor
    starts: torch.Tensor | None = None
    new_offsets: torch.Tensor | None = None
    new: torch.Tensor | None = None
    targets: torch.Tensor | None = None

    def append(self, prefix: ops.PagedPrefix, k: torch.Tensor, v: torch.Tensor) -> None:
        """Write the keys and values of the new rows to their pages."""
        if self.new is not None and self.new_offsets is not None and self.starts is not None:
            ops.append_pages(prefix, k[self.new], v[self.new], self.new_offsets, starts=self.starts)

    def of_targets(self, x: torch.Tensor) -> torch.Tensor:
        """The rows of ``x`` that are targets."""
        return x if self.targets is None else x[self.targets]


def cached_rows(
    offsets: torch.Tensor,
    positions: torch.Tensor,
    clock: Clock,
    mask: ops.Mask | None,
    lengths: torch.Tensor,
) -> Cached:
    """Sort the rows of a pass.

    Args:
        offsets, positions, clock, mask: as for :meth:`pylum.HSTU.run_cached`, best on the host.
        lengths: ``[B]`` int64 tokens of each history, new ones included; the result is where they
            are.
    """
    device, offsets = lengths.device, moved(offsets, "cpu")
    rows, total = offsets.diff(), int(offsets[-1])
    targets = torch.zeros_like(rows)
    if mask is not None and isinstance(mask.num_targets, torch.Tensor):
        targets = moved(mask.num_targets, "cpu")
    # The rows of a sequence are its last keys.
    ends = lengths_to_offsets(lengths + moved(targets, device))[1:]
    there, clock = moved(offsets, device), clock.to(device)
    shift = (ends - there[1:]).repeat_interleave(moved(rows, device), output_size=total)
    own = clock.timestamps[torch.arange(total, device=device) + shift]
    asked = Cached(there, moved(positions, device), clock, own)
    new = rows - targets
    if not bool(new.any()):
        return asked
    is_new = torch.arange(total) < (offsets[:-1] + new).repeat_interleave(rows)
    return Cached(
        asked.offsets,
        asked.positions,
        clock,
        own,
        lengths - moved(new, device),
        moved(lengths_to_offsets(new), device),
        moved(is_new.nonzero()[:, 0], device),
        moved((~is_new).nonzero()[:, 0], device),
    )
