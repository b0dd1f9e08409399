"""Ranking a validation part while training: next item, full catalogue."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pylum import ops
from pylum.data.events import OOV_ROW, Events
from pylum.model.lum import LUM
from pylum.ragged import Ragged, lengths_to_offsets

MAX_TARGETS = 10_000


class Validation:
    """Questions fixed once: every target of ``events``, or ``MAX_TARGETS`` of them, by seed.

    Each is asked under its own conditions, its time unknown, after the behaviours before it.

    Args:
        batch_events: behaviours encoded at a time.
        remove_seen: rank only items the user has not chosen before.
    """

    def __init__(
        self,
        events: Events,
        *,
        max_length: int,
        batch_events: int,
        seed: int,
        remove_seen: bool = True,
    ) -> None:
        sites = torch.arange(events.total) if events.targets is None else events.targets.nonzero()
        sites = sites.reshape(-1)
        if not len(sites):
            raise ValueError("valid must have at least one target, got none")
        if len(sites) > MAX_TARGETS:
            generator = torch.Generator().manual_seed(seed)
            sites = sites[torch.randperm(len(sites), generator=generator)[:MAX_TARGETS]].sort()[0]
        self.events, self.sites, self.max_length = events, sites, max_length
        self.batch_events, self.remove_seen = batch_events, remove_seen
        self.first = events.offsets[torch.searchsorted(events.offsets, sites, right=True) - 1]

    def ranks(self, model: LUM, k: int = 10) -> torch.Tensor:
        """``[targets]`` int64, 1-based rank of each target's item; ``k + 1`` where beyond ``k``."""
        training = model.training
        model.eval()
        device = model.answer.weight.device
        found = []
        with torch.inference_mode():
            vectors = model.item_vectors()
            for sites, first in self._batches():
                answers = self._ask(model, sites, first, device)
                _, items = ops.topk(
                    answers.float().cpu(),
                    vectors.float().cpu(),
                    k,
                    exclude=self._seen(sites, first),
                )
                hit = items == self.events.items[sites][:, None]
                found.append(torch.where(hit.any(1), hit.int().argmax(1) + 1, k + 1))
        model.train(training)
        return torch.cat(found)

    def scores(self, model: LUM) -> dict[str, float]:
        """``ndcg@10`` and ``hr@10``."""
        ranks = self.ranks(model).double()
        gain = torch.where(ranks <= 10, 1 / torch.log2(ranks + 1), 0.0)
        return {"ndcg@10": float(gain.mean()), "hr@10": float((ranks <= 10).double().mean())}

    def _batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        lengths = (self.sites - self.first).clamp_max(self.max_length) + 1
        batch = (lengths.cumsum(0) - lengths) // self.batch_events
        sizes = torch.unique_consecutive(batch, return_counts=True)[1].tolist()
        yield from zip(self.sites.split(sizes), self.first.split(sizes), strict=True)

    def _ask(
        self, model: LUM, sites: torch.Tensor, first: torch.Tensor, device: torch.device
    ) -> torch.Tensor:
        """``[Q, D]`` answers: each question is the last token of a sequence of its own."""
        start = torch.maximum(first, sites - self.max_length)
        events = self._rows(start, sites).to(device)
        lengths = events.lengths
        names = self.events.conditions
        queries = model.query_tokens(
            {name: names[name][sites].to(device) for name in names}, count=len(sites)
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

    def _seen(self, sites: torch.Tensor, first: torch.Tensor) -> Ragged:
        """Each question's earlier items, beyond the window too, and the unknown item."""
        if not self.remove_seen:
            return Ragged(torch.full((len(sites),), OOV_ROW), torch.arange(len(sites) + 1))
        before = self._rows(first, sites)
        offsets = lengths_to_offsets(before.lengths + 1)
        rows = torch.full((int(offsets[-1]),), OOV_ROW)
        rest = torch.ones(len(rows), dtype=torch.bool)
        rest[offsets[:-1]] = False
        rows[rest] = before.items
        return Ragged(rows, offsets)

    def _rows(self, start: torch.Tensor, stop: torch.Tensor) -> Events:
        lengths = stop - start
        offsets = lengths_to_offsets(lengths)
        index = torch.arange(int(offsets[-1])) + (start - offsets[:-1]).repeat_interleave(lengths)
        return self.events.take(index, offsets)
