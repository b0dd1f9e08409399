"""Next-item prediction: the loss of one packed batch.

Equation 3 of arXiv 2502.08309: the loss is taken at condition tokens only, a softmax over unit
vectors divided by a temperature. HSTU (arXiv 2402.17152) has the same loss at the token before
each item.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from pylum import ops
from pylum.data.events import ANY_ROW, OOV_ROW, Events
from pylum.model.base import UserModel
from pylum.model.hstu import HSTU
from pylum.model.hstu_batch import make_batch
from pylum.model.lum import LUM

FULL_SOFTMAX_ITEMS = 50_000
UNIFORM_NEGATIVES = 4096


@dataclass(frozen=True)
class Objective:
    """What is predicted against what.

    Args:
        negatives: ``"full"``: every item; ``"in_batch"``: the batch's items and
            ``UNIFORM_NEGATIVES`` uniform ones, corrected by the log of their probability to be
            drawn; a number: that many uniform ones, shared by the batch, as SASRec has it.
        catalogue: ``[R]`` int64 rows of the items that some training event chose, ascending. Only
            they are negatives: one that is never a positive would merely be pushed away. So is the
            unknown item where items have no features: all that nobody chose are that one then, and
            left alone it stays the random vector it began as, before many that somebody chose.
        popularity: ``[items]`` float64 share of each item among the targets, for ``in_batch``.
    """

    negatives: str | int
    catalogue: torch.Tensor
    popularity: torch.Tensor | None = None

    @classmethod
    def of(
        cls, negatives: str | int, events: Events, items: int, *, features: bool = True
    ) -> Objective:
        """``"auto"`` is ``"full"`` up to ``FULL_SOFTMAX_ITEMS`` items, else ``"in_batch"``.

        Args:
            items: of the vocabulary.
            features: do items have any?
        """
        if negatives == "auto":
            negatives = "full" if items <= FULL_SOFTMAX_ITEMS else "in_batch"
        named = negatives in ("full", "in_batch")
        if not named and (isinstance(negatives, str | bool) or negatives < 1):
            raise ValueError(
                f"negatives must be auto, full, in_batch or a positive number, got {negatives!r}"
            )
        catalogue = events.items.unique()
        if not features:
            catalogue = torch.cat([catalogue.new_tensor([OOV_ROW]), catalogue]).unique()
        if negatives != "in_batch":
            return cls(negatives, catalogue)
        targets = events.items if events.targets is None else events.items[events.targets]
        counts = torch.bincount(targets, minlength=items).double()
        return cls(negatives, catalogue, counts / counts.sum())

    def loss(self, model: UserModel, events: Events) -> torch.Tensor:
        """Sum of the loss over the batch's targets, nats; random numbers come from torch's own."""
        catalogue = self.catalogue.to(events.items.device)
        sites = None if events.targets is None else events.targets.nonzero()[:, 0]
        targets = events.items if sites is None else events.items[sites]
        drawn = self._draw(catalogue)
        if self.negatives == "full" or len(catalogue) <= 4 * events.total:
            rows, place, candidates = catalogue, torch.searchsorted(catalogue, events.items), drawn
        else:
            assert drawn is not None
            rows, inverse = torch.cat([events.items, catalogue[drawn]]).unique(return_inverse=True)
            place, candidates = inverse[: events.total], inverse[events.total :]
        unknown = None
        if model.schema.item_features and model.config.id_dropout > 0:
            unknown = torch.rand(len(rows), device=rows.device) < model.config.id_dropout
        tokens = model.item_tokens(rows, unknown)
        answers, place_of = self._answers(model, events, tokens, place, sites)
        if self.negatives == "in_batch":
            assert candidates is not None
            candidates = torch.cat([place_of, candidates]).unique()
        if isinstance(self.negatives, int):
            vectors = model.item_vectors(rows, tokens=tokens)
            return ops.sampled_softmax(
                answers,
                vectors,
                place_of,
                temperature=model.temperature,
                negatives=candidates,
                item_ids=torch.arange(len(vectors), device=vectors.device),
                reduction="sum",
            )
        if candidates is None:
            vectors = model.item_vectors(rows, tokens=tokens)
            return ops.sampled_softmax(
                answers, vectors, place_of, temperature=model.temperature, reduction="sum"
            )
        chosen = rows[candidates]
        vectors = model.item_vectors(chosen, tokens=tokens[candidates])
        return ops.sampled_softmax(
            answers,
            vectors,
            torch.searchsorted(candidates, place_of),
            temperature=model.temperature,
            log_q=self._log_q(chosen, len(targets)),
            reduction="sum",
        )

    def _draw(self, catalogue: torch.Tensor) -> torch.Tensor | None:
        """Uniform places of the catalogue."""
        if self.negatives == "full":
            return None
        count = self.negatives if isinstance(self.negatives, int) else UNIFORM_NEGATIVES
        return torch.randint(len(catalogue), (int(count),), device=catalogue.device)

    def _log_q(self, rows: torch.Tensor, targets: int) -> torch.Tensor:
        """Log of the probability that each row is among the batch's targets or the uniform draws.

        A row is a candidate once however often it was drawn, so this, not the expected count, is
        what makes the sum over candidates an unbiased estimate of the sum over all items.
        """
        assert self.popularity is not None
        missed = targets * torch.log1p(-self.popularity.to(rows.device)[rows].clamp_max(1 - 1e-9))
        missed = missed + UNIFORM_NEGATIVES * torch.log1p(
            torch.tensor(-1.0 / max(2, len(self.catalogue)), dtype=torch.float64)
        )
        return torch.log(-torch.expm1(missed)).float()

    def _answers(
        self,
        model: UserModel,
        events: Events,
        tokens: torch.Tensor,
        place: torch.Tensor,
        sites: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``[N, D]`` answers at the loss sites, and the token row of the item each must find."""
        item_tokens = torch.nn.functional.embedding(place, tokens)
        if isinstance(model, HSTU):
            batch = make_batch(model, events, item_tokens=item_tokens)
            hidden = batch.at_choices(
                model.run(batch.x, batch.offsets, batch.positions, batch.clock)
            )
            if sites is None:
                return model.answers(hidden), place
            return model.answers(hidden[sites]), place[sites]
        assert isinstance(model, LUM)
        config = model.config
        events, gaps = drop_conditions(model, events)
        x = model.history_tokens(events, gaps=gaps, item_tokens=item_tokens)
        lengths = events.lengths
        owner = torch.repeat_interleave(lengths, output_size=events.total)
        rank = torch.arange(events.total, device=x.device) - events.offsets[owner]
        goal = place if sites is None else place[sites]
        if not config.any_targets:
            rows = 2 * (torch.arange(events.total, device=x.device) if sites is None else sites)
            positions = rank.repeat_interleave(2)
            hidden = model.run(x, 2 * events.offsets, positions, rows=rows)
            return model.answers(hidden), goal
        # Of each sequence 2 n history tokens, then n targets that ask ANY at every position.
        start = 3 * events.offsets[owner]
        conditions = start + 2 * rank
        anys = start + 2 * lengths[owner] + rank
        order = torch.empty(3 * events.total, dtype=torch.int64, device=x.device)
        order[conditions] = torch.arange(0, 2 * events.total, 2, device=x.device)
        order[conditions + 1] = order[conditions] + 1
        order[anys] = 2 * events.total
        x = torch.cat([x, model.query_tokens({}, count=1)])[order]
        positions = torch.empty_like(order)
        positions[conditions] = positions[conditions + 1] = positions[anys] = rank
        mask = ops.Mask(num_targets=lengths, visible=2 * rank)
        if sites is not None:
            conditions, anys = conditions[sites], anys[sites]
        hidden = model.run(
            x, 3 * events.offsets, positions, mask, rows=torch.cat([conditions, anys])
        )
        return model.answers(hidden), torch.cat([goal, goal])


def drop_conditions(model: LUM, events: Events) -> tuple[Events, torch.Tensor | None]:
    """Events and gaps in which each condition field, and the time, is ANY here and there."""
    config, device = model.config, events.items.device

    def dropped(column: torch.Tensor, missing: float) -> torch.Tensor:
        if config.any_dropout == 0:
            return column
        hide = torch.rand(len(column), device=device) < config.any_dropout
        return column.masked_fill(hide.view(-1, *[1] * (column.dim() - 1)), missing)

    gaps = dropped(model.gaps(events), -1) if config.query_time else None
    conditions = {
        f.name: dropped(events.conditions[f.name], ANY_ROW if f.kind == "category" else torch.nan)
        for f in model.schema.conditions
        if f.name in events.conditions
    }
    times = dropped(events.times, -1) if config.calendar else events.times
    return replace(events, conditions=conditions, times=times), gaps
