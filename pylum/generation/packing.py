"""One packed pass: histories, then what is asked after each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from pylum import ops
from pylum.data.events import Events
from pylum.generation.hstu import (
    Candidates,
    candidate_scores,
    candidates_asked,
    hstu_hidden,
)
from pylum.generation.spread import spread
from pylum.model import HSTU, LUM, UserModel
from pylum.model.config import ModelConfig
from pylum.model.hstu_batch import Asked
from pylum.ragged import lengths_to_offsets
from pylum.transfer import moved


@dataclass(frozen=True)
class Questions:
    """``Q`` targets of ``B`` histories, one history's after the other's.

    Args:
        columns: of every condition field, ``[Q]`` rows or numbers, or ``[Q, dim]``.
        offsets: ``[B + 1]`` int64.
        visible: ``[Q]`` int64 behaviours each target sees, non-decreasing in a history; None: all.
        times: ``[Q]`` int64 seconds, the clock when the question is asked; None: unknown.
    """

    columns: dict[str, torch.Tensor]
    offsets: torch.Tensor
    visible: torch.Tensor | None = None
    times: torch.Tensor | None = None

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def take(self, index: torch.Tensor, offsets: torch.Tensor) -> Questions:
        """The targets at ``index``, divided by ``offsets``."""
        return Questions(
            {name: column[index] for name, column in self.columns.items()},
            offsets,
            None if self.visible is None else self.visible[index],
            None if self.times is None else self.times[index],
        )

    def users(self, rows: torch.Tensor) -> tuple[Questions, torch.Tensor]:
        """The questions to the histories at ``rows``, and where they stand among all."""
        asked = self.offsets.diff()[rows]
        index = spread(self.offsets[rows], asked)
        return self.take(index, lengths_to_offsets(asked)), index


Asking = Questions | Candidates


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a packed batch lie.

    Args:
        offsets: ``[B + 1]`` int64, tokens of each sequence.
        history: ``[2 N]`` int64, the history tokens in their order.
        targets: ``[Q]`` int64, the targets in theirs.
        positions: ``[T]`` int64, in behaviours.
        mask: of the batch.
    """

    offsets: torch.Tensor
    history: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor
    mask: ops.Mask

    def to(self, device: torch.device) -> Layout:
        """The same on ``device``."""
        return Layout(
            moved(self.offsets, device),
            moved(self.history, device),
            moved(self.targets, device),
            moved(self.positions, device),
            self.mask.to(device),
        )


def window_starts(config: ModelConfig, lengths: torch.Tensor) -> torch.Tensor:
    """``ModelConfig.window_start`` of many histories: the first behaviour the model sees."""
    over = (lengths - config.max_length).clamp(min=0)
    return -(-over // config.window_step) * config.window_step


def windows(config: ModelConfig, events: Events) -> Events:
    """Each history cut to the behaviours the model sees."""
    lengths = events.lengths
    starts = window_starts(config, lengths)
    if not bool(starts.any()):
        return events
    kept = lengths - starts
    offsets = lengths_to_offsets(kept)
    return events.take(spread(events.offsets[:-1] + starts, kept), offsets)


def layout(
    behaviours: torch.Tensor, questions: Questions, reused: torch.Tensor | None = None
) -> Layout:
    """Histories of ``behaviours [B]``, each followed by its targets.

    Args:
        reused: ``[B]`` int64 leading behaviours of each that are cached and not in the batch.
    """
    first = torch.zeros_like(behaviours) if reused is None else reused
    tokens = 2 * (behaviours - first)
    asked = questions.offsets.diff()
    offsets = lengths_to_offsets(tokens + asked)
    history = spread(offsets[:-1], tokens)
    targets = spread(offsets[:-1] + tokens, asked)
    seen = questions.visible
    if seen is None:
        seen = behaviours.repeat_interleave(asked)
    positions = torch.empty(int(offsets[-1]), dtype=torch.int64)
    positions[history] = spread(2 * first, tokens) // 2
    positions[targets] = seen
    visible = None if questions.visible is None else 2 * questions.visible
    return Layout(
        offsets, history, targets, positions, ops.Mask(num_targets=asked, visible=visible)
    )


def gaps(events: Events, questions: Questions) -> torch.Tensor | None:
    """``[Q]`` int64 seconds from the last visible behaviour to the question; -1: there is none."""
    if questions.times is None:
        return None
    asked = questions.offsets.diff()
    seen = questions.visible
    if seen is None:
        seen = events.lengths.repeat_interleave(asked)
    if not events.total:
        return torch.full_like(questions.times, -1)
    last = events.offsets[:-1].repeat_interleave(asked) + seen - 1
    passed = questions.times - events.times[last.clamp(min=0)]
    return passed.masked_fill(seen == 0, -1)


def question_tokens(model: LUM, events: Events, questions: Questions) -> torch.Tensor:
    """``[Q, width]`` on the model's device."""
    device, since, times = model.device, gaps(events, questions), questions.times
    return model.query_tokens(
        {name: moved(column, device) for name, column in questions.columns.items()},
        None if since is None else moved(since, device),
        None if times is None else moved(times, device),
        count=len(questions),
    )


Prefixes = Callable[[torch.Tensor], Sequence[ops.PagedPrefix]]


def answer(
    model: UserModel,
    events: Events,
    questions: Asking,
    reused: torch.Tensor | None = None,
    prefixes: Prefixes | None = None,
) -> torch.Tensor:
    """``[Q, D]`` unit vectors, or ``[Q, tasks]`` predictions for candidates, on the model's device.

    Args:
        events: histories within the model's window, on the host like all that is asked.
        reused: ``[B]`` int64 leading behaviours of each that are cached.
        prefixes: the pages of the batch, given the tokens each history has there; what is not
            cached is written to them. None: no cache.
    """
    if isinstance(model, LUM):
        assert isinstance(questions, Questions)
        return _answer_lum(model, events, questions, reused, prefixes)
    assert isinstance(model, HSTU)
    hidden = hstu_hidden(model, events, asked_of(model, questions), reused, prefixes)
    if isinstance(questions, Candidates):
        return candidate_scores(model, hidden)
    return model.answers(hidden)


def asked_of(model: HSTU, questions: Asking) -> Asked:
    """The targets of a batch."""
    if isinstance(questions, Candidates):
        return candidates_asked(model, questions)
    return Asked(questions.offsets, questions.visible, questions.times)


def _answer_lum(
    model: LUM,
    events: Events,
    questions: Questions,
    reused: torch.Tensor | None,
    prefixes: Prefixes | None,
) -> torch.Tensor:
    where = layout(events.lengths, questions, reused)
    there = where.to(model.device)
    tokens = asked = question_tokens(model, events, questions)
    if len(where.history):
        part, since = events, None
        if reused is not None:
            new = events.lengths - reused
            index = spread(events.offsets[:-1] + reused, new)
            part = events.take(index, lengths_to_offsets(new))
            if model.config.query_time:
                since = moved(model.gaps(events)[index], model.device)
        tokens = asked.new_empty(int(where.offsets[-1]), asked.shape[1])
        items = model.item_tokens(part.items)
        part = part.to(model.device)
        tokens[there.history] = model.history_tokens(part, gaps=since, item_tokens=items)
        tokens[there.targets] = asked
    if prefixes is None:
        hidden = model.run(tokens, there.offsets, there.positions, there.mask, rows=there.targets)
        return model.answers(hidden)
    pages = prefixes(2 * events.lengths)
    hidden = model.run_cached(tokens, where.offsets, where.positions, pages, where.mask)
    return model.answers(hidden[there.targets])
