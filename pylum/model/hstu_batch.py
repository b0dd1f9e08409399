"""Histories, and what is asked after each, as the tokens and clocks of one HSTU pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pylum import ops
from pylum.data.events import Events
from pylum.model.hstu import HSTU, Clock
from pylum.ops._library import TORCH_PATHS
from pylum.ragged import lengths_to_offsets
from pylum.transfer import moved

TORCH_PATHS[__name__] = "HSTU's tokens, looked up in those of the batch"


@dataclass(frozen=True)
class Asked:
    """``Q`` targets of ``B`` histories, one history's after the other's.

    Args:
        offsets: ``[B + 1]`` int64.
        visible: ``[Q]`` int64 behaviours each sees, non-decreasing in a history; None: all.
        times: ``[Q]`` int64 seconds of the question; None: that of the last behaviour it sees.
        choices: ``[Q, width]`` candidates' tokens, for ranking. Those that see the whole history
            have one time, those that see a part of it are shown when the behaviour after that
            part happened. None, for retrieval: a target is ``p_v`` after ``v`` behaviours.
        columns: of the candidates' condition fields, ``[Q]`` rows; an empty history has the context
            of its first one. None: a missing one.
    """

    offsets: torch.Tensor
    visible: torch.Tensor | None = None
    times: torch.Tensor | None = None
    choices: torch.Tensor | None = None
    columns: Mapping[str, torch.Tensor] | None = None


@dataclass(frozen=True)
class Batch:
    """The arguments of :meth:`HSTU.run`, and which of its rows are what.

    Tokens are on the model's device, all else is where the events were.

    Args:
        keys: ``[B]`` int64 context and history tokens of each sequence, cached ones included.
        choices: ``[N]`` int64 rows that answer for each behaviour that is not cached: ``p_k`` of
            retrieval, ``i_k`` of ranking. None: every row, in its order.
        targets: ``[Q]`` int64 rows.
    """

    x: torch.Tensor
    offsets: torch.Tensor
    positions: torch.Tensor
    clock: Clock
    mask: ops.Mask | None
    keys: torch.Tensor
    choices: torch.Tensor | None
    targets: torch.Tensor

    def at_choices(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[N, width]`` of hidden states ``[T, width]``."""
        if self.choices is None:
            return hidden
        return hidden.index_select(0, moved(self.choices, hidden.device))

    def at_targets(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[Q, width]`` of hidden states ``[T, width]``."""
        return hidden.index_select(0, moved(self.targets, hidden.device))


def make_batch(
    model: HSTU,
    events: Events,
    asked: Asked | None = None,
    *,
    reused: torch.Tensor | None = None,
    item_tokens: torch.Tensor | None = None,
) -> Batch:
    """Pack histories and their targets.

    Args:
        events: ``B`` histories within the model's window; best on the host, also for a model on a
            GPU, unless they are on its device already: where tokens lie is worked out there.
        asked: what is asked, beside the events but for its tokens; None: nothing.
        reused: ``[B]`` int64 leading behaviours of each that are cached and not in the batch; where
            there are any, so is the context.
        item_tokens: ``[N, width]`` tokens of ``events.items``, where they are known already.

    Raises:
        ValueError: a target sees part of its history and the model has ``min_full``: which tokens
            see all would depend on what comes after.
    """
    device, config = events.items.device, model.config
    per, lengths, context = config.tokens_per_behaviour, events.lengths, config.context_tokens
    ranked = asked is not None and asked.choices is not None
    counts = torch.zeros_like(lengths) if asked is None else asked.offsets.diff()
    cached = torch.zeros_like(lengths) if reused is None else reused
    # Tokens of the history; with candidates the action that passed last is one of them.
    history = context + per * lengths + int(ranked)
    skipped = per * cached + context * (cached > 0)
    new = history - skipped
    offsets = lengths_to_offsets(new + counts)
    seen = lengths.repeat_interleave(counts)
    if asked is not None and asked.visible is not None:
        if config.min_full and not torch.equal(seen, asked.visible):
            raise ValueError(
                "visible must be the whole history for a model with min_full: ask after each "
                "prefix as a history of its own"
            )
        seen = asked.visible
    # Of every token but the targets: its sequence and its number there, the context's below 0. Of
    # the new ones, their rows.
    owner, place = _spread(history)
    number = place - context
    fresh = place >= skipped[owner]
    rows = offsets[owner] + place - skipped[owner]
    target_owner, rank = _spread(counts)
    targets = offsets[target_owner] + new[target_owner] + rank
    own, asks = _history_times(events, owner, number, per)
    target_own, target_asks = _target_times(events, asked, target_owner, seen, ranked)
    if ranked:
        last = number == per * lengths[owner]
        latest = (asked.offsets[1:] - 1).clamp(min=0)  # type: ignore[union-attr]
        if asked.times is not None and len(target_asks):  # type: ignore[union-attr]
            known = last & (counts[owner] > 0)
            asks = torch.where(known, target_asks[latest][owner], asks)
            own = torch.where(known & (lengths[owner] == 0), asks, own)
    total = int(offsets[-1])
    key_offsets = lengths_to_offsets(history + counts)
    timestamps = own.new_empty(int(key_offsets[-1]))
    timestamps[key_offsets[owner] + place] = own
    timestamps[key_offsets[target_owner] + history[target_owner] + rank] = target_own
    query_times = own.new_empty(total)
    query_times[rows[fresh]] = asks[fresh]
    query_times[targets] = target_asks
    positions = torch.empty(total, dtype=torch.int64, device=device)
    positions[rows[fresh]] = place[fresh]
    # A candidate sees the action of the last behaviour too.
    sees = per * seen + int(ranked)
    positions[targets] = context + sees
    x = _tokens(
        model,
        events,
        asked,
        item_tokens,
        (rows[fresh], owner[fresh], number[fresh]),
        (targets, target_owner, seen),
        cached,
    )
    mask = choices = None
    if asked is not None:
        whole = ranked and asked.visible is None
        mask = ops.Mask(num_targets=counts, visible=None if whole else sees)
    if context or asked is not None or per > 1:
        choices = rows[fresh & (number >= 0) & (number % per == per - 1)]
    clock = Clock(timestamps, query_times)
    return Batch(x, offsets, positions, clock, mask, history, choices, targets)


def _spread(counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of ``counts`` elements each: whose, and which."""
    owner = torch.repeat_interleave(counts)
    return owner, torch.arange(len(owner), device=counts.device) - lengths_to_offsets(counts)[owner]


def _history_times(
    events: Events, owner: torch.Tensor, number: torch.Tensor, per: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """When each history token happened, and when the one after it did; 0 for the context."""
    if not events.total:
        nothing = torch.zeros_like(number)
        return nothing, nothing
    behaviour, first, n = number // per, events.offsets[owner], events.lengths[owner]
    least, most = torch.zeros_like(n), (n - 1).clamp(min=0)
    own = behaviour - (number % per == 0).long()
    index = (first + own.clamp(min=least, max=most)).clamp(max=events.total - 1)
    after = (first + behaviour.clamp(min=least, max=most)).clamp(max=events.total - 1)
    none = (n == 0) | (number < 0)
    return events.times[index].masked_fill(none, 0), events.times[after].masked_fill(none, 0)


def _target_times(
    events: Events,
    asked: Asked | None,
    owner: torch.Tensor,
    seen: torch.Tensor,
    ranked: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """When each target happened and when it is asked. A candidate happens when it is asked."""
    last = torch.zeros_like(seen)
    if events.total:
        index = events.offsets[owner] + seen - 1
        last = events.times[index.clamp(min=0)].masked_fill(seen == 0, 0)
    if asked is None or asked.times is None:
        return last, last
    return (asked.times if ranked else torch.where(seen == 0, asked.times, last)), asked.times


def _tokens(
    model: HSTU,
    events: Events,
    asked: Asked | None,
    item_tokens: torch.Tensor | None,
    history: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    targets: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    cached: torch.Tensor,
) -> torch.Tensor:
    """``[T, width]``; of cached behaviours only the last is encoded: it is in the next token."""
    rows, owner, number = history
    target_rows, target_owner, seen = targets
    per = model.config.tokens_per_behaviour
    start = (cached - 1).clamp(min=0)
    part, shift = events, -events.offsets[:-1]
    if bool(start.any()):
        kept = events.lengths - start
        offsets = lengths_to_offsets(kept)
        whose, which = _spread(kept)
        index = (events.offsets[:-1] + start)[whose] + which
        part, shift = events.take(index, offsets), start - offsets[:-1]
        item_tokens = None if item_tokens is None else item_tokens[moved(index, model.device)]
    if item_tokens is None:
        item_tokens = model.item_tokens(part.items)
    part = part.to(model.device)
    passed = model.passed_tokens(part, item_tokens=item_tokens)
    pool = [model.begin[None].to(passed.dtype), passed]
    behaviour = number // per
    source = torch.where(behaviour > 0, behaviour - shift[owner], 0)
    if per == 2:
        pool.append(model.choice_tokens(part.items, part.conditions, item_tokens=item_tokens))
        chosen = 1 + len(passed) + behaviour - shift[owner]
        source = torch.where(number % 2 == 1, chosen, source)
    context = model.config.context_tokens
    if context:
        source = torch.where(
            number < 0, sum(map(len, pool)) + context * (owner + 1) + number, source
        )
        pool.append(_context(model, events, asked).flatten(0, 1))
    place = torch.empty(len(rows) + len(target_rows), dtype=torch.int64, device=rows.device)
    place[rows] = source
    if asked is not None and asked.choices is not None:
        end = sum(map(len, pool))
        place[target_rows] = torch.arange(end, end + len(target_rows), device=rows.device)
        pool.append(asked.choices)
    else:
        place[target_rows] = torch.where(seen > 0, seen - shift[target_owner], 0)
    return torch.nn.functional.embedding(moved(place, model.device), torch.cat(pool))


def _context(model: HSTU, events: Events, asked: Asked | None) -> torch.Tensor:
    """``[B, fields, width]``: as of each history's first behaviour, or its first candidate."""
    lengths, names = events.lengths, model.config.context
    columns = {name: events.conditions[name] for name in names if name in events.conditions}
    first, known = events.offsets[:-1].clone(), lengths > 0
    if asked is not None and asked.columns is not None:
        shown = (~known) & (asked.offsets.diff() > 0)
        first = torch.where(shown, events.total + asked.offsets[:-1], first)
        known = known | shown
        columns = {name: torch.cat([c, asked.columns[name]]) for name, c in columns.items()}
    there = model.device
    rows = {name: moved(column[first[known]], there) for name, column in columns.items()}
    tokens = model.context_tokens({}, len(lengths))
    if not bool(known.any()):
        return tokens
    found = model.context_tokens(rows, int(known.sum()))
    return tokens.index_copy(0, moved(known.nonzero()[:, 0], there), found.to(tokens.dtype))
