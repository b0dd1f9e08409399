"""What HSTU's ranking says of past moments, each as of before it."""

from __future__ import annotations

import torch

from pylum.data.events import Events
from pylum.generation.asking import asking
from pylum.generation.prefixes import PrefixQuestions, plan
from pylum.generation.spread import spread
from pylum.model import HSTU
from pylum.model.hstu_batch import make_batch
from pylum.model.hstu_rows import shown_at
from pylum.ragged import lengths_to_offsets
from pylum.transfer import moved

BATCH_TOKENS = 65536


def predicted_choices(
    model: HSTU,
    events: Events,
    sites: torch.Tensor,
    items: torch.Tensor | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> torch.Tensor:
    """What :func:`pylum.score` gives each event, or another item at its time and under its
    conditions, after the earlier events of its user.

    An item's token sees what is before it and nothing of its own outcome, so all choices of a
    window come out of one causal pass over it; other items are candidates after its prefixes.

    Args:
        events: in the model's rows.
        sites: ``[Q]`` int64 which events.
        items: ``[Q]`` int64 rows of the item vocabulary; None: the events' own.

    Returns:
        ``[Q, tasks]`` float32 on cpu.
    """
    assert model.tasks is not None
    owner = torch.searchsorted(events.offsets, sites.contiguous(), right=True) - 1
    questions = PrefixQuestions(owner, sites - events.offsets[owner], {})
    steps = plan(model, questions, batch_tokens)
    out = torch.empty(len(sites), len(model.config.tasks), dtype=torch.float32)
    causal = items is None and not model.config.whole_history
    rows = events.items[sites] if items is None else items
    with asking(model):
        for a, b in zip(steps.passes, steps.passes[1:], strict=False):
            index = steps.order[int(steps.questions[a]) : int(steps.questions[b])]
            first = events.offsets[steps.users[a:b]] + steps.starts[a:b]
            lengths = steps.stops[a:b] - steps.starts[a:b] + int(causal)
            offsets = lengths_to_offsets(lengths)
            part = events.take(spread(first, lengths), offsets)
            asked = steps.questions[a : b + 1] - steps.questions[a]
            places = sites[index] - first.repeat_interleave(asked.diff())
            if causal:
                batch = make_batch(model, part)
                hidden = model.run(batch.x, batch.offsets, batch.positions, batch.clock)
                places = places + offsets[:-1].repeat_interleave(asked.diff())
                hidden = batch.at_choices(hidden)[moved(places, model.device)]
            else:
                moments = events.take(sites[index], asked)
                shown = shown_at(model, moments, rows[index], places)
                batch = make_batch(model, part, shown)
                where = (batch.x, batch.offsets, batch.positions, batch.clock)
                hidden = batch.at_targets(model.run(*where, batch.mask))
            out[index] = model.tasks.predictions(hidden).cpu()
    return out
