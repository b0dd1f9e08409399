"""Questions to an HSTU: the next item, or how candidates would do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from pylum import ops
from pylum.data.events import Events
from pylum.generation.spread import spread
from pylum.model import HSTU
from pylum.model.hstu_batch import Asked, make_batch
from pylum.ragged import lengths_to_offsets
from pylum.transfer import moved


@dataclass(frozen=True)
class Candidates:
    """``Q`` items shown after ``B`` histories, one history's after the other's.

    Args:
        rows: ``[Q]`` int64 of the item vocabulary.
        columns: of the condition fields, ``[Q]`` rows or numbers, or ``[Q, dim]``.
        offsets: ``[B + 1]`` int64.
        times: ``[Q]`` int64 seconds at which they are shown, one for each history; None: when its
            last behaviour happened.
    """

    rows: torch.Tensor
    columns: dict[str, torch.Tensor]
    offsets: torch.Tensor
    times: torch.Tensor | None = None

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def take(self, index: torch.Tensor, offsets: torch.Tensor) -> Candidates:
        """The candidates at ``index``, divided by ``offsets``."""
        return Candidates(
            self.rows[index],
            {name: column[index] for name, column in self.columns.items()},
            offsets,
            None if self.times is None else self.times[index],
        )

    def users(self, rows: torch.Tensor) -> tuple[Candidates, torch.Tensor]:
        """The candidates of the histories at ``rows``, and where they stand among all."""
        shown = self.offsets.diff()[rows]
        index = spread(self.offsets[rows], shown)
        return self.take(index, lengths_to_offsets(shown)), index


def hstu_hidden(
    model: HSTU,
    events: Events,
    asked: Asked,
    reused: torch.Tensor | None = None,
    prefixes: Callable[[torch.Tensor], Sequence[ops.PagedPrefix]] | None = None,
) -> torch.Tensor:
    """``[Q, width]`` at the targets.

    Args:
        reused: ``[B]`` int64 leading behaviours that are cached.
        prefixes: the pages of the batch, given the tokens each history has there.
    """
    batch = make_batch(model, events, asked, reused=reused)
    where = (batch.x, batch.offsets, batch.positions, batch.clock)
    if prefixes is None:
        hidden = model.run(*where, batch.mask)
    else:
        hidden = model.run_cached(*where, prefixes(batch.keys), batch.mask)
    return batch.at_targets(hidden)


def candidate_scores(model: HSTU, hidden: torch.Tensor) -> torch.Tensor:
    """``[Q, tasks]`` float32 probabilities, and numbers in their own unit."""
    assert model.tasks is not None
    return model.tasks.predictions(hidden)


def candidates_asked(model: HSTU, shown: Candidates) -> Asked:
    columns = {name: moved(column, model.device) for name, column in shown.columns.items()}
    items = model.item_tokens(shown.rows)
    choices = model.choice_tokens(moved(shown.rows, model.device), columns, item_tokens=items)
    return Asked(shown.offsets, times=shown.times, choices=choices, columns=shown.columns)
