"""What HSTU's ranking says of past choices, each as of the moment before it."""

from __future__ import annotations

import torch

from pylum.data.events import Events
from pylum.generation.packing import asking
from pylum.generation.prefixes import Plan, PrefixQuestions, plan
from pylum.generation.spread import spread
from pylum.model import HSTU
from pylum.model.hstu_batch import Asked, make_batch
from pylum.ragged import lengths_to_offsets

BATCH_TOKENS = 65536


def predicted_choices(
    model: HSTU, events: Events, sites: torch.Tensor, batch_tokens: int = BATCH_TOKENS
) -> torch.Tensor:
    """What :func:`pylum.score` gives each event at its own time after the earlier ones of its user.

    An item's token sees what is before it and nothing of its own outcome, so all choices of a
    window come out of one causal pass over it.

    Args:
        events: in the model's rows.
        sites: ``[Q]`` int64 which events.

    Returns:
        ``[Q, tasks]`` float32 on cpu.
    """
    assert model.tasks is not None
    owner = torch.searchsorted(events.offsets, sites, right=True) - 1
    questions = PrefixQuestions(owner, sites - events.offsets[owner], {})
    steps = plan(model, questions, batch_tokens)
    out = torch.empty(len(sites), len(model.config.tasks))
    run = _alone if model.config.whole_history else _together
    with asking(model):
        for a, b in zip(steps.passes, steps.passes[1:], strict=False):
            index = steps.order[int(steps.questions[a]) : int(steps.questions[b])]
            hidden = run(model, events, sites[index], steps, a, b)
            out[index] = model.tasks.predictions(hidden).cpu()
    return out


def _together(
    model: HSTU, events: Events, sites: torch.Tensor, steps: Plan, a: int, b: int
) -> torch.Tensor:
    """``[n, width]`` of the item tokens in histories that go on."""
    first = events.offsets[steps.users[a:b]] + steps.starts[a:b]
    lengths = steps.stops[a:b] - steps.starts[a:b] + 1
    offsets = lengths_to_offsets(lengths)
    part = events.take(spread(first, lengths), offsets).to(model.device)
    asked = (steps.questions[a + 1 : b + 1] - steps.questions[a:b]).contiguous()
    rows = sites + (offsets[:-1] - first).repeat_interleave(asked)
    batch = make_batch(model, part)
    hidden = model.run(batch.x, batch.offsets, batch.positions, batch.clock)
    return batch.at_choices(hidden)[rows.to(model.device)]


def _alone(
    model: HSTU, events: Events, sites: torch.Tensor, steps: Plan, a: int, b: int
) -> torch.Tensor:
    """``[n, width]`` of candidates, each after the history that ends before it."""
    first = events.offsets[steps.users[a:b]] + steps.starts[a:b]
    lengths = steps.stops[a:b] - steps.starts[a:b]
    part = events.take(spread(first, lengths), lengths_to_offsets(lengths)).to(model.device)
    shown = events.take(sites, steps.questions[a : b + 1] - steps.questions[a]).to(model.device)
    choices = model.choice_tokens(shown.items, shown.conditions)
    asked = Asked(shown.offsets, times=shown.times, choices=choices, columns=shown.conditions)
    batch = make_batch(model, part, asked)
    hidden = model.run(batch.x, batch.offsets, batch.positions, batch.clock, batch.mask)
    return hidden[batch.targets]
