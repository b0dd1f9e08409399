"""Questions after prefixes of histories: all prefixes of a user in one causal pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pylum.data.events import Events
from pylum.generation.asking import asking
from pylum.generation.packing import Questions, answer, window_starts
from pylum.generation.spread import spread
from pylum.model import UserModel
from pylum.ragged import lengths_to_offsets


@dataclass(frozen=True)
class PrefixQuestions:
    """``Q`` questions, each after the first behaviours of a user.

    Args:
        users: ``[Q]`` int64 which history of the events.
        visible: ``[Q]`` int64 behaviours of it that are seen.
        columns: of every condition field, ``[Q]`` rows or numbers, or ``[Q, dim]``.
        times: ``[Q]`` int64 seconds, the clock of the question; None: unknown.
    """

    users: torch.Tensor
    visible: torch.Tensor
    columns: dict[str, torch.Tensor]
    times: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.users)


@dataclass(frozen=True)
class Plan:
    """Passes over segments of histories.

    A segment is a stretch of one history that begins where the window of all of its prefixes
    begins. So a prefix sees exactly what it would see alone: where a history outgrows the model's
    window, prefixes whose windows begin elsewhere are other segments, computed again. So are all
    prefixes of a model whose last tokens see more than the others (``HSTUConfig.min_full``).

    Args:
        order: ``[Q]`` int64 questions by user, then by visible length.
        users, starts, stops: ``[S]`` int64, behaviours ``starts`` to ``stops`` of ``users``.
        questions: ``[S + 1]`` int64 offsets of ``order``.
        passes: ``[P + 1]`` int64 offsets of the segments.
    """

    order: torch.Tensor
    users: torch.Tensor
    starts: torch.Tensor
    stops: torch.Tensor
    questions: torch.Tensor
    passes: list[int]


def plan(model: UserModel, questions: PrefixQuestions, batch_tokens: int) -> Plan:
    """Segments in the order of users, and passes of at most ``batch_tokens`` (or one segment)."""
    by_length = torch.sort(questions.visible, stable=True).indices
    order = by_length[torch.sort(questions.users[by_length], stable=True).indices]
    users, visible = questions.users[order], questions.visible[order]
    starts = window_starts(model.config, visible)
    new = torch.ones(len(order), dtype=torch.bool)
    new[1:] = (users[1:] != users[:-1]) | (starts[1:] != starts[:-1])
    if model.config.whole_history:
        new[1:] |= visible[1:] != visible[:-1]
    first = new.nonzero().squeeze(1)
    bounds = torch.cat([first, torch.tensor([len(order)])])
    stops = visible[bounds[1:] - 1]
    starts = starts[first]
    tokens = model.config.tokens_per_behaviour * (stops - starts) + bounds.diff()
    return Plan(order, users[first], starts, stops, bounds, spans(tokens, batch_tokens))


def spans(tokens: torch.Tensor, limit: int) -> list[int]:
    """Offsets of consecutive groups of at most ``limit`` tokens, or of one element."""
    ends = tokens.cumsum(0)
    out = [0]
    while out[-1] < len(tokens):
        before = int(ends[out[-1] - 1]) if out[-1] else 0
        stop = int(torch.searchsorted(ends, before + limit, right=True))
        out.append(max(stop, out[-1] + 1))
    return out


def answer_prefixes(
    model: UserModel, events: Events, questions: PrefixQuestions, steps: Plan, first: int = 0
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The passes of a plan in turn, from ``first`` on.

    Yields:
        ``[n]`` int64 which questions, ``[n, D]`` their answers.
    """
    for a, b in zip(steps.passes[first:], steps.passes[first + 1 :], strict=False):
        q = slice(int(steps.questions[a]), int(steps.questions[b]))
        index = steps.order[q]
        asked = (steps.questions[a + 1 : b + 1] - steps.questions[a:b]).contiguous()
        lengths = steps.stops[a:b] - steps.starts[a:b]
        part = events.take(
            spread(events.offsets[steps.users[a:b]] + steps.starts[a:b], lengths),
            lengths_to_offsets(lengths),
        )
        packed = Questions(
            {name: column[index] for name, column in questions.columns.items()},
            lengths_to_offsets(asked),
            questions.visible[index] - steps.starts[a:b].repeat_interleave(asked),
            None if questions.times is None else questions.times[index],
        )
        with asking(model):
            answers = answer(model, part, packed)
        yield index, answers
