"""The Large User Model (arXiv 2502.08309, sections 3.1 and 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from pylum import ops
from pylum.data.events import Events
from pylum.data.items import ItemTable
from pylum.data.schema import Schema
from pylum.data.vocabs import Vocabs
from pylum.model.base import UserModel
from pylum.model.config import LUMConfig
from pylum.model.transformer import UserEncoder
from pylum.modes import on_host_or_meta


class LUM(UserModel):
    """Answers "what would this user choose under this condition" with a unit vector.

    Behaviour ``k`` is two tokens at position ``k``: its condition, then the item chosen under it.
    The hidden state of a condition token answers for the item that follows; a condition asked after
    a history is one more such token, a target, at the position after the behaviours it sees.

    Args:
        config: sizes.
        schema, vocabs, items: of the data; they belong to the model and are saved with it.
    """

    config_class = LUMConfig
    config: LUMConfig

    @on_host_or_meta
    def __init__(self, config: LUMConfig, schema: Schema, vocabs: Vocabs, items: ItemTable) -> None:
        super().__init__(config, schema, vocabs, items)
        self.user_encoder = UserEncoder(config)
        self._make_answers()
        self.float()  # whatever torch's default dtype is

    def gaps(self, events: Events) -> torch.Tensor:
        """``[N]`` int64 seconds since the event before; -1 for a user's first."""
        # One more than there are: users without events at the end begin behind the last.
        gaps = events.times.new_full((events.total + 1,), -1)
        gaps[1:-1] = events.times.diff()
        gaps[events.offsets[:-1]] = -1
        return gaps[:-1]

    def history_tokens(
        self,
        events: Events,
        *,
        gaps: torch.Tensor | None = None,
        item_tokens: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """``[2 N, width]`` tokens, condition and item of each behaviour in turn.

        Args:
            events: ``N`` behaviours.
            gaps: as :meth:`gaps` gives them, the default.
            item_tokens: ``[N, width]`` tokens of ``events.items``, where they are known already.
        """
        if gaps is None and self.config.query_time:
            gaps = self.gaps(events)
        conditions = self.condition_encoder(events.conditions, events.total, gaps, events.times)
        items = self.item_tokens(events.items) if item_tokens is None else item_tokens
        if self.outcome_encoder is not None:
            items = items + self.outcome_encoder(events.outcomes, events.total)
        return torch.stack([conditions, items], 1).flatten(0, 1)

    def query_tokens(
        self,
        conditions: Mapping[str, torch.Tensor],
        gaps: torch.Tensor | None = None,
        times: torch.Tensor | None = None,
        *,
        count: int | None = None,
    ) -> torch.Tensor:
        """``[Q, width]`` tokens of conditions asked.

        Args:
            conditions: columns of ``Q`` rows by field; a field left out is ANY.
            gaps: ``[Q]`` int64 seconds since the last event; negative or None: unknown.
            times: ``[Q]`` int64 seconds of the clock, for ``config.calendar``; None: unknown.
            count: ``Q``, needed where no column tells it.
        """
        columns = [*conditions.values(), *(c for c in (gaps, times) if c is not None)]
        if count is None and not columns:
            raise ValueError("count must be given where there is no condition column, got None")
        return self.condition_encoder(
            conditions, len(columns[0]) if count is None else count, gaps, times
        )

    def run(
        self,
        x: torch.Tensor,
        offsets: torch.Tensor,
        positions: torch.Tensor,
        mask: ops.Mask | None = None,
        *,
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One causal pass over packed sequences.

        Args:
            x: ``[T, width]`` tokens, history tokens of a sequence before its targets.
            offsets: ``[B + 1]`` int64, in tokens.
            positions: ``[T]`` int64 in ``[0, max_length]``, in behaviours.
            mask: which tokens are targets and what they see, in tokens; None: causal.
            rows: ``[R]`` int64 distinct tokens whose hidden state is wanted; None: all.

        Returns:
            ``[T, width]`` or ``[R, width]`` hidden states.
        """
        return self.user_encoder.run(x, offsets, positions, mask, rows)

    def run_cached(
        self,
        x: torch.Tensor,
        offsets: torch.Tensor,
        positions: torch.Tensor,
        prefixes: Sequence[ops.PagedPrefix],
        mask: ops.Mask | None = None,
    ) -> torch.Tensor:
        """The pass of :meth:`run` over tokens whose earlier history lies in pages. Inference only.

        New history rows are appended to the pages; targets are not.

        Args:
            x: ``[T, width]`` tokens; of each sequence its new history tokens, then its targets.
            offsets: ``[B + 1]`` int64, in tokens; it, ``positions`` and ``mask`` best on the host,
                where it is found out which rows are new, also for a model on a GPU.
            positions: ``[T]`` int64 in ``[0, max_length]``, in behaviours.
            prefixes: one per layer, sharing ``table`` and ``lengths``. Lengths count the new
                history rows already, and the table has pages for them.
            mask: how many targets each sequence has and what they see; None: no targets.

        Returns:
            ``[T, width]`` hidden states, of the new history rows too.
        """
        return self.user_encoder.run_cached(x, offsets, positions, prefixes, mask)
