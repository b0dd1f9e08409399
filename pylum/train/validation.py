"""Ranking a validation part while training: next item, full catalogue."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from pylum.data.events import OOV_ROW, Events
from pylum.evaluate.metrics import ranks
from pylum.model.base import UserModel
from pylum.model.hstu import HSTU
from pylum.model.hstu_batch import Asked, make_batch
from pylum.model.lum import LUM
from pylum.ragged import Ragged, lengths_to_offsets

MAX_TARGETS = 10_000


class Validation:
    """Questions fixed once: every target of ``events``, or ``MAX_TARGETS`` of them, by seed.

    Each is asked under its own conditions after the behaviours before it.

    Args:
        batch_events: behaviours encoded at a time.
        remove_seen: rank only items the user has not chosen before.
        query_time: ask with the target's time, else with none.
    """

    chosen_by = "ndcg@10"

    def __init__(
        self,
        events: Events,
        *,
        max_length: int,
        batch_events: int,
        seed: int,
        remove_seen: bool = True,
        query_time: bool = False,
    ) -> None:
        sites = torch.arange(events.total) if events.targets is None else events.targets.nonzero()
        sites = sites.reshape(-1)
        if not len(sites):
            raise ValueError("valid must have at least one target, got none")
        if len(sites) > MAX_TARGETS:
            generator = torch.Generator().manual_seed(seed)
            sites = sites[torch.randperm(len(sites), generator=generator)[:MAX_TARGETS]].sort()[0]
        self.events, self.sites, self.max_length = events, sites, max_length
        self.batch_events = batch_events
        self.remove_seen, self.query_time = remove_seen, query_time
        self.first = events.offsets[torch.searchsorted(events.offsets, sites, right=True) - 1]

    def ranks(self, model: UserModel) -> torch.Tensor:
        """``[targets]`` int64 on cpu, 0-based rank of each target's item."""
        answers, vectors = self.answers(model), self._run(model, model.item_vectors)
        return ranks(answers, vectors, self.events.items[self.sites], exclude=self.seen())

    def scores(self, model: UserModel) -> dict[str, float]:
        """``ndcg@10`` and ``hr@10``."""
        found = self.ranks(model).double()
        gain = torch.where(found < 10, 1 / torch.log2(found + 2), 0.0)
        return {"ndcg@10": float(gain.mean()), "hr@10": float((found < 10).double().mean())}

    def answers(self, model: UserModel) -> torch.Tensor:
        """``[targets, D]`` float32 on cpu."""

        def ask() -> torch.Tensor:
            return torch.cat([self._ask(model, *batch) for batch in self._batches()])

        return self._run(model, ask)

    def seen(self) -> Ragged:
        """Rows that do not compete: each target's earlier items, also those beyond the window, and
        the unknown item."""
        if not self.remove_seen:
            count = len(self.sites)
            return Ragged(torch.full((count,), OOV_ROW), torch.arange(count + 1))
        before = self._rows(self.first, self.sites)
        offsets = lengths_to_offsets(before.lengths + 1)
        rows = torch.full((int(offsets[-1]),), OOV_ROW)
        rest = torch.ones(len(rows), dtype=torch.bool)
        rest[offsets[:-1]] = False
        rows[rest] = before.items
        return Ragged(rows, offsets)

    def _run(self, model: UserModel, call: Callable[[], torch.Tensor]) -> torch.Tensor:
        training = model.training
        model.eval()
        with torch.inference_mode():
            found = call().float().cpu()
        model.train(training)
        return found

    def _batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        lengths = (self.sites - self.first).clamp_max(self.max_length) + 1
        batch = (lengths.cumsum(0) - lengths) // self.batch_events
        sizes = torch.unique_consecutive(batch, return_counts=True)[1].tolist()
        yield from zip(self.sites.split(sizes), self.first.split(sizes), strict=True)

    def _ask(self, model: UserModel, sites: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """``[Q, D]`` answers: each question is the last token of a sequence of its own."""
        device = model.device
        start = torch.maximum(first, sites - self.max_length)
        events = self._rows(start, sites).to(device)
        lengths = events.lengths
        names = self.events.conditions
        gaps = times = None
        if self.query_time:
            times = self.events.times[sites]
            gaps = torch.where(sites > start, times - self.events.times[sites - 1], -1).to(device)
            times = times.to(device)
        if isinstance(model, HSTU):
            ends = Asked(torch.arange(len(sites) + 1, device=device), times=times)
            batch = make_batch(model, events, ends)
            hidden = model.run(batch.x, batch.offsets, batch.positions, batch.clock, batch.mask)
            return model.answers(batch.at_targets(hidden))
        assert isinstance(model, LUM)
        queries = model.query_tokens(
            {name: names[name][sites].to(device) for name in names}, gaps, times, count=len(sites)
        )
        x = model.history_tokens(events)
        # Row r of a sequence's 2 n + 1 tokens.
        offsets = lengths_to_offsets(2 * lengths + 1)
        owner = torch.repeat_interleave(offsets.diff())
        rank = torch.arange(len(owner), device=device) - offsets[owner]
        asked = rank == 2 * lengths[owner]
        index = torch.where(asked, len(x) + owner, 2 * events.offsets[owner] + rank)
        hidden = model.run(torch.cat([x, queries])[index], offsets, rank // 2, rows=offsets[1:] - 1)
        return model.answers(hidden)

    def _rows(self, start: torch.Tensor, stop: torch.Tensor) -> Events:
        lengths = stop - start
        offsets = lengths_to_offsets(lengths)
        index = torch.arange(int(offsets[-1])) + (start - offsets[:-1]).repeat_interleave(lengths)
        return self.events.take(index, offsets)
