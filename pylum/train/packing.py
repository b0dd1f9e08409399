"""An epoch as packed batches: windows of users' histories, no padding."""

from __future__ import annotations

import torch

from pylum.data.events import Events
from pylum.ragged import lengths_to_offsets


def plan_epoch(
    offsets: torch.Tensor,
    max_length: int,
    batch_events: int,
    generator: torch.Generator,
    user_rate: float = 0.0,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Cut users into windows, shuffle them, and divide them into batches.

    A user of at most ``max_length`` events is one window. A longer one is cut into windows of
    ``max_length`` behind a first window of random length, so that every event is in one window and
    over the epochs each is seen behind contexts of every length.

    Args:
        offsets: ``[B + 1]`` int64, in events.
        max_length: events of a window at most.
        batch_events: a batch ends with the window that fills it.
        user_rate: a user of ``n`` events is in the epoch with probability ``min(1, rate / n)``, at
            least one user is; 0: all are.

    Returns:
        for each batch, windows as ``(starts [W], lengths [W])``, rows of the events.
    """
    starts, lengths = offsets[:-1], offsets.diff()
    starts, lengths = starts[lengths > 0], lengths[lengths > 0]
    if user_rate and len(lengths):
        # Below the rate where uniform * n is; the least of them decides where none is.
        draw = torch.rand(len(lengths), generator=generator, dtype=torch.float64) * lengths
        kept = draw < max(user_rate, float(draw.min()) * (1 + 1e-9))
        starts, lengths = starts[kept], lengths[kept]
    first = lengths.clone()
    long = lengths > max_length
    first[long] = torch.randint(1, max_length + 1, (int(long.sum()),), generator=generator)
    # Window w of a user begins at 0 or first + (w - 1) * max_length.
    count = 1 + (lengths - first + max_length - 1) // max_length
    owner = torch.repeat_interleave(count)
    rank = torch.arange(len(owner)) - lengths_to_offsets(count)[owner]
    begin = torch.where(rank == 0, 0, first[owner] + (rank - 1) * max_length)
    end = torch.minimum(first[owner] + rank * max_length, lengths[owner])
    order = torch.randperm(len(owner), generator=generator)
    begins, sizes = (starts[owner] + begin)[order], (end - begin)[order]
    batch = (sizes.cumsum(0) - sizes) // batch_events
    per_batch = torch.unique_consecutive(batch, return_counts=True)[1].tolist()
    return list(zip(begins.split(per_batch), sizes.split(per_batch), strict=True))


def gather(events: Events, starts: torch.Tensor, lengths: torch.Tensor) -> Events:
    """The windows as a batch of histories."""
    offsets = lengths_to_offsets(lengths)
    index = torch.arange(int(offsets[-1])) + (starts - offsets[:-1]).repeat_interleave(lengths)
    return events.take(index, offsets)
