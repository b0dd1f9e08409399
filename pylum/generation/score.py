"""How candidates would do with each user: M-FALCON (arXiv 2402.17152, section 3.4)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pylum.conditions import normalise
from pylum.data.events import Events
from pylum.data.histories import Histories, OnUnknown
from pylum.data.interactions import Interactions
from pylum.generation.asking import asking
from pylum.generation.hstu import Candidates
from pylum.generation.inputs import coded_histories, question_times
from pylum.generation.limits import is_ragged
from pylum.generation.packing import answer, window_starts, windows
from pylum.generation.prefixes import spans
from pylum.generation.spread import spread
from pylum.model import HSTU
from pylum.modes import on_host
from pylum.ragged import Ragged, lengths_to_offsets

if TYPE_CHECKING:
    from pylum.cache import UserCache

BATCH_TOKENS = 65536
MICRO_BATCH = 2048
PAGE = 64


@on_host
def score(
    model: HSTU,
    histories: Histories | Interactions | Mapping[Any, Any] | list[Any],
    candidates: Any,
    conditions: Any = None,
    *,
    query_time: Any = None,
    cache: UserCache | None = None,
    on_unknown: OnUnknown = "oov",
    micro_batch: int = MICRO_BATCH,
    batch_tokens: int = BATCH_TOKENS,
) -> Ragged:
    """The model's tasks for candidates, each as if it were the user's next choice.

    A candidate sees the user's history and itself, never another candidate, so scoring many is
    scoring each alone. They go through in micro-batches that share the history's keys and values,
    which ``cache`` keeps for later requests; candidates are never kept.

    Args:
        model: an HSTU trained for ranking.
        histories: ``B`` users, as for :func:`pylum.generate`.
        candidates: ``[C]`` raw item ids for everyone, or a list of lists or
            :class:`~pylum.Ragged` of ``B`` rows. An id the model does not know is scored as the
            unknown item.
        conditions: under which candidates are shown, as for :func:`pylum.generate`: one for each
            user, or one for each candidate. None: ANY.
        query_time: when they are shown: seconds or a datetime, one for all or ``B`` of them. None:
            when the user's last behaviour happened.
        cache: reuse and keep the keys and values of histories.
        on_unknown: events with an item the model does not know, as for :func:`pylum.generate`.
        micro_batch: candidates of a user that go through together.
        batch_tokens: tokens of one pass; a pass holds whole users.

    Returns:
        ``B`` ragged rows of float32 in the order of the candidates, probabilities of yes or
        numbers in their own unit: values ``[C]``, or ``[C, tasks]`` in the order of
        ``model.config.tasks`` where there are several.

    Raises:
        ValueError, TypeError: an argument is not as above; the message names it.
    """
    if not isinstance(model, HSTU):
        raise TypeError(f"model must be a pylum.HSTU, got {type(model).__name__}")
    if model.tasks is None:
        raise ValueError(
            "model must be trained for ranking, got an HSTU for retrieval: use pylum.generate"
        )
    for name, value in (("micro_batch", micro_batch), ("batch_tokens", batch_tokens)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(f"{name} must be an integer, got {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    users, events, _ = coded_histories(model, histories, cache, on_unknown)
    shown = _candidates(model, candidates, conditions, events)
    times = question_times(query_time, torch.arange(len(users) + 1), events, users)
    if times is not None:
        times = times.repeat_interleave(shown.offsets.diff())
        shown = Candidates(shown.rows, shown.columns, shown.offsets, times)
    tasks = len(model.config.tasks)
    out = torch.empty(len(shown), tasks, dtype=torch.float32)
    for start, stop in _passes(model, events, shown, micro_batch, batch_tokens):
        rows = torch.arange(start, stop)
        whole = events.users(rows)
        mine, lines = shown.users(rows)
        with asking(model):
            out[lines] = _score(model, users[start:stop], whole, mine, cache, micro_batch).cpu()
    return Ragged(out[:, 0].clone() if tasks == 1 else out, shown.offsets)


def _candidates(model: HSTU, candidates: Any, conditions: Any, events: Events) -> Candidates:
    users, vocab = len(events), model.vocabs.items
    if is_ragged(candidates):
        given = candidates if isinstance(candidates, Ragged) else Ragged.from_lists(candidates)
        given = given.to("cpu")
        if len(given) != users:
            raise ValueError(
                f"candidates must have a row for each of {users} users, got {len(given)}"
            )
        rows, offsets = torch.from_numpy(vocab.rows(given.values, "candidates")), given.offsets
    else:
        one = torch.from_numpy(vocab.rows(candidates, "candidates"))
        rows, offsets = one.repeat(users), torch.arange(users + 1) * len(one)
    fields, vocabs = model.schema.conditions, model.vocabs.conditions
    asked = normalise(conditions, users, fields, vocabs)
    counts = offsets.diff()
    if torch.equal(asked.offsets.diff(), counts):
        columns = asked.columns
    elif bool((asked.offsets.diff() == 1).all()):
        owner = torch.repeat_interleave(counts)
        columns = {name: column[owner] for name, column in asked.columns.items()}
    else:
        raise ValueError(
            "conditions must be one for each user or one for each candidate, got "
            f"{asked.offsets.diff().tolist()[:5]} for users with {counts.tolist()[:5]} candidates"
        )
    _check_context(model, columns, offsets, events)
    return Candidates(rows, columns, offsets)


def _check_context(
    model: HSTU, columns: dict[str, torch.Tensor], offsets: torch.Tensor, events: Events
) -> None:
    """An empty history has the context of its candidates: it must be one."""
    counts = offsets.diff()
    asked = ((events.lengths == 0) & (counts > 0)).nonzero()[:, 0]
    index = spread(offsets[asked], counts[asked])
    first = offsets[asked].repeat_interleave(counts[asked])
    for name in model.config.context:
        same = columns[name][index] == columns[name][first]
        if not bool((same | (columns[name][index].isnan() & columns[name][first].isnan())).all()):
            raise ValueError(
                f"conditions must have one value of {name!r}, a field of the user, for all "
                "candidates of a user without history"
            )


def _passes(
    model: HSTU, events: Events, shown: Candidates, micro_batch: int, batch_tokens: int
) -> list[tuple[int, int]]:
    """Users of each pass."""
    lengths = events.lengths - window_starts(model.config, events.lengths)
    tokens = model.config.tokens_per_behaviour * lengths
    tokens = tokens + model.config.context_tokens + model.config.passing_tokens
    tokens = tokens + shown.offsets.diff().clamp(max=micro_batch)
    bounds = spans(tokens, batch_tokens)
    return list(itertools.pairwise(bounds))


def _score(
    model: HSTU,
    users: list[Any],
    whole: Events,
    shown: Candidates,
    cache: UserCache | None,
    micro_batch: int,
) -> torch.Tensor:
    """``[Q, tasks]``."""
    events, counts = windows(model.config, whole), shown.offsets.diff()
    steps = -(-int(counts.max()) // micro_batch) if len(counts) else 0
    if cache is None and steps <= 1:
        return answer(model, events, shown)
    if cache is None:
        from pylum.cache.user_cache import RequestCache

        pages = -(-(model.config.context_tokens + 2 * events.lengths + 1) // PAGE)
        cache = RequestCache(model, PAGE * int(pages.sum()), graphs=False)
        users = list(range(len(users)))
    out = torch.empty(len(shown), len(model.config.tasks), dtype=torch.float32)
    for step in range(max(1, steps)):
        first = (counts.clamp(max=step * micro_batch)).long()
        size = counts.clamp(max=(step + 1) * micro_batch) - first
        lines = spread(shown.offsets[:-1] + first, size)
        part = shown.take(lines, lengths_to_offsets(size))
        out[lines] = cache.answer(model, users, whole, events, part)[0].cpu()
    return out
