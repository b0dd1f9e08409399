"""Ask a model what users want under conditions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pylum.conditions import Conditions, normalise
from pylum.data.events import Events
from pylum.data.histories import Histories, OnUnknown
from pylum.data.interactions import Interactions
from pylum.generation.asking import asking
from pylum.generation.catalogue import catalogue
from pylum.generation.inputs import coded_histories, question_times
from pylum.generation.limits import limits, select, translate
from pylum.generation.packing import Questions, answer, window_starts, windows
from pylum.generation.result import Generation, concatenate
from pylum.model import HSTU, UserModel
from pylum.modes import on_host
from pylum.ops.pages import PAGE
from pylum.transfer import moved

if TYPE_CHECKING:
    from pylum.cache import UserCache

BATCH_TOKENS = 65536


@on_host
def generate(
    model: UserModel,
    histories: Histories | Interactions | Mapping[Any, Any] | list[Any],
    conditions: Any = None,
    *,
    k: int = 10,
    candidates: Any = None,
    exclude: Any = "auto",
    query_time: Any = None,
    cache: UserCache | None = None,
    on_unknown: OnUnknown = "oov",
    batch_tokens: int = BATCH_TOKENS,
) -> Generation:
    """What each user wants under each condition (section 3.2 of arXiv 2502.08309: group query).

    All conditions of a user are asked in one pass over the history, each at the same position
    after it and blind to the others: asking many is asking each alone, in any order.

    Args:
        model: a trained LUM; or an HSTU trained for retrieval, which is asked for the next item and
            takes no conditions.
        histories: ``B`` users: :class:`~pylum.Histories`, all users of
            :class:`~pylum.Interactions`, or ``{user: [{"item": ..., "time": seconds,
            "<field>": ...}, ...]}``. Any user id will do, there is no table of users; a history
            may be empty. With ``cache``, also a list of users whose histories it holds.
        conditions: ``Q`` in all. None: ``[ANY]``; a flat list for everyone; a list of lists or
            :class:`~pylum.Ragged` by user; a dict or DataFrame of fields
            (:func:`pylum.conditions.normalise`).
        k: number of items for each question; 0: embeddings only.
        candidates: None: the whole catalogue; ``[C]`` raw ids for everyone; a list of lists or
            Ragged of ``B`` or ``Q`` rows. Ids the model does not know are left out and counted.
        exclude: items not to answer: ``"history"``, all that was passed, also beyond the model's
            window; ``"none"``; a list of lists or Ragged of ``B`` or ``Q`` rows of raw ids; or
            ``"auto"``: ``"history"``, unless more than 5 % of the events the model was trained on
            repeat an item of their user.
        query_time: when it is asked, for models that read the clock: seconds or a datetime, one
            for all, or ``B`` or ``Q`` of them. None: unknown.
        cache: reuse and keep the keys and values of histories.
        on_unknown: events with an item the model does not know: ``"oov"`` reads it as the unknown
            item, ``"drop"`` leaves the event out, ``"raise"`` is an error.
        batch_tokens: tokens of one pass; a pass holds whole users.

    Returns:
        Answers in the order of users and, in each, of conditions. Where fewer than ``k`` items are
        left: None, row -1, score -inf. Equal scores go to the lower row.

    Raises:
        ValueError, TypeError: an argument is not as above; the message names it.
    """
    parts = generate_batches(
        model,
        histories,
        conditions,
        k=k,
        candidates=candidates,
        exclude=exclude,
        query_time=query_time,
        cache=cache,
        on_unknown=on_unknown,
        batch_tokens=batch_tokens,
    )
    return concatenate(list(parts))


@on_host
def generate_batches(
    model: UserModel,
    histories: Histories | Interactions | Mapping[Any, Any] | list[Any],
    conditions: Any = None,
    *,
    k: int = 10,
    candidates: Any = None,
    exclude: Any = "auto",
    query_time: Any = None,
    cache: UserCache | None = None,
    on_unknown: OnUnknown = "oov",
    batch_tokens: int = BATCH_TOKENS,
) -> Iterator[Generation]:
    """As :func:`generate`, a :class:`Generation` for each batch of users as it is ready.

    Arguments are checked at the call, not at the first batch.
    """
    request = _Request(
        model,
        histories,
        conditions,
        k=k,
        candidates=candidates,
        exclude=exclude,
        query_time=query_time,
        cache=cache,
        on_unknown=on_unknown,
        batch_tokens=batch_tokens,
    )
    return request.batches()


def _check_hstu(model: HSTU, conditions: Any) -> None:
    if model.config.task != "retrieval":
        raise ValueError(
            "model must be trained for retrieval, got an HSTU for ranking: use pylum.score"
        )
    if conditions is not None:
        raise ValueError(
            f"conditions must be None for an HSTU, which answers for the next item, got "
            f"{conditions!r}"
        )


class _Request:
    """Checked and coded arguments of :func:`generate`."""

    def __init__(
        self,
        model: UserModel,
        histories: Any,
        conditions: Any,
        *,
        k: int,
        candidates: Any,
        exclude: Any,
        query_time: Any,
        cache: UserCache | None,
        on_unknown: OnUnknown,
        batch_tokens: int,
    ) -> None:
        if not isinstance(model, UserModel):
            raise TypeError(f"model must be a pylum.LUM or pylum.HSTU, got {type(model).__name__}")
        if isinstance(model, HSTU):
            _check_hstu(model, conditions)
        for name, value, least in (("k", k, 0), ("batch_tokens", batch_tokens, 1)):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise TypeError(f"{name} must be an integer, got {value!r}")
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if k and model.vocabs.items.kind == "hashed":
            raise ValueError(
                f"k must be 0 for a model whose items are hashed: it keeps no ids, got {k}"
            )
        self.model, self.k, self.cache = model, int(k), cache
        self.users, self.events, self.unknown = coded_histories(model, histories, cache, on_unknown)
        self.conditions = normalise(
            conditions, len(self.users), model.schema.conditions, model.vocabs.conditions
        )
        self.offsets = self.conditions.offsets
        self.times = question_times(query_time, self.offsets, self.events, self.users)
        self.limits = limits(
            candidates,
            exclude,
            self.events,
            model.vocabs.items,
            len(self.conditions),
            model.record.repeat_share,
        )
        self.batch_tokens = int(batch_tokens)

    def spans(self) -> Iterator[tuple[int, int]]:
        """Users of each pass: as many as fit ``batch_tokens`` and the cache, at least one."""
        starts = window_starts(self.model.config, self.events.lengths)
        per = self.model.config.tokens_per_behaviour
        history = per * (self.events.lengths - starts)
        ends = (history + self.offsets.diff()).cumsum(0)
        most = self.cache.pass_pages if self.cache is not None else None
        pages = (history + self.model.config.context_tokens + PAGE - 1).div(
            PAGE, rounding_mode="floor"
        )
        pages = pages.cumsum(0)
        start, users = 0, len(self.users)
        while True:
            stop = _fitting(ends, start, self.batch_tokens)
            if most is not None:
                stop = min(stop, _fitting(pages, start, most))
            stop = min(max(stop, start + 1), users)
            yield start, stop
            if stop >= users:
                return
            start = stop

    def batches(self) -> Iterator[Generation]:
        spans = list(self.spans())
        for (start, stop), (_, after) in zip(spans, [*spans[1:], (0, 0)], strict=True):
            yield self._batch(start, stop, after)

    @on_host
    def _batch(self, start: int, stop: int, after: int) -> Generation:
        """Users ``start`` to ``stop``; those to ``after`` are the next."""
        asked = self.conditions.users(start, stop)
        whole = self.events.users(torch.arange(start, stop))
        events = windows(self.model.config, whole)
        questions = Questions(asked.columns, asked.offsets, None, self._times(start, stop))
        with asking(self.model):
            embeddings, work = self._embed(start, stop, whole, events, questions)
            if self.cache is not None and after > stop:
                self.cache.prefetch(self.users[stop:after])
            rows, scores = self._select(embeddings, start, stop)
        return Generation(
            embeddings.float().cpu(),
            self._items(rows),
            scores,
            rows,
            self.users[start:stop],
            asked.raw,
            asked.offsets,
            self._stats(start, stop, asked, work, whole.total - events.total),
        )

    def _times(self, start: int, stop: int) -> torch.Tensor | None:
        if self.times is None:
            return None
        return self.times[int(self.offsets[start]) : int(self.offsets[stop])]

    def _embed(
        self, start: int, stop: int, whole: Events, events: Events, questions: Questions
    ) -> tuple[torch.Tensor, dict[str, int]]:
        """Answers, and counts of the work."""
        if self.cache is not None:
            return self.cache.answer(self.model, self.users[start:stop], whole, events, questions)
        config = self.model.config
        history = config.tokens_per_behaviour * events.total + config.context_tokens * len(events)
        step = max(1, self.batch_tokens - history) if stop == start + 1 else len(questions)
        parts = []
        computed = 0
        for first in range(0, max(1, len(questions)), max(1, step)):
            last = min(first + step, len(questions))
            part = questions
            if (first, last) != (0, len(questions)):
                part = questions.take(torch.arange(first, last), torch.tensor([0, last - first]))
            parts.append(answer(self.model, events, part))
            computed += history + len(part)
        work = {"tokens_computed": computed, "tokens_reused": 0, "approximate_users": 0}
        return torch.cat(parts), work

    def _select(
        self, embeddings: torch.Tensor, start: int, stop: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Vocabulary rows and scores of the best items."""
        count, shared = len(embeddings), self.limits.shared
        if self.k == 0:
            return torch.empty(count, 0, dtype=torch.int64), torch.empty(count, 0)
        vectors = catalogue(self.model)
        vectors = vectors[1:] if shared is None else vectors[moved(shared, vectors.device)]
        limited = [
            None if rows is None else translate(rows.batch(start, stop, self.offsets), shared)
            for rows in (self.limits.own, self.limits.excluded)
        ]
        scores, rows = select(embeddings, vectors, self.k, *limited)
        if shared is None:
            return torch.where(rows >= 0, rows + 1, rows), scores
        if len(shared):
            rows = torch.where(rows >= 0, shared[rows.clamp(min=0)], rows)
        return rows, scores

    def _items(self, rows: torch.Tensor) -> np.ndarray:
        items = np.empty(rows.numel(), dtype=object)
        if rows.numel():
            items[:] = self.model.vocabs.items.values(rows.numpy().reshape(-1))
        return items.reshape(rows.shape)

    def _stats(
        self, start: int, stop: int, asked: Conditions, work: dict[str, int], beyond: int
    ) -> dict[str, Any]:
        first = start == 0
        return {
            "users": stop - start,
            "conditions": len(asked),
            **work,
            "behaviours_beyond_window": beyond,
            "unknown_items": int(self.unknown[start:stop].sum()),
            "unknown_conditions": asked.unknown if first else 0,
            "unknown_candidates": self.limits.unknown if first else 0,
            "exclude": self.limits.rule,
        }


def _fitting(ends: torch.Tensor, start: int, most: int) -> int:
    """Behind the last user from ``start`` on whose end is at most ``most`` behind the start's."""
    before = int(ends[start - 1]) if start else 0
    return int(torch.searchsorted(ends, before + most, right=True))
