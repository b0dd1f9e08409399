"""Which items may be answered: raw candidates and exclusions as rows of a catalogue."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pylum import ops
from pylum.data.events import OOV_ROW, Events
from pylum.data.vocab import Vocab
from pylum.generation.packing import spread
from pylum.ragged import Ragged, lengths_to_offsets

CHUNK_LIMITS = 1 << 24  # rows of candidates or exclusions held at once
REPEATS = 0.05  # share of training events above which a history is not excluded by default


@dataclass(frozen=True)
class Rows:
    """Vocabulary rows of each user, or of each question.

    Args:
        rows: ``B`` or ``Q`` ragged rows.
        by_user: which of the two.
    """

    rows: Ragged
    by_user: bool

    def batch(self, start: int, stop: int, offsets: torch.Tensor) -> Ragged:
        """The rows of the questions to the users in ``[start, stop)``.

        Args:
            offsets: ``[B + 1]`` int64, questions of all users.
        """
        asked = offsets[start : stop + 1].diff()
        if self.by_user:
            lines = torch.arange(start, stop).repeat_interleave(asked)
        else:
            lines = torch.arange(int(offsets[start]), int(offsets[stop]))
        lengths = self.rows.lengths[lines]
        index = spread(self.rows.offsets[lines], lengths)
        return Ragged(self.rows.values[index], lengths_to_offsets(lengths))


@dataclass(frozen=True)
class Limits:
    """What the answers are chosen from.

    Args:
        shared: ``[C]`` int64 sorted rows of the item vocabulary that all choose from; None: all.
        own: rows each user or question chooses from; None: no further limit.
        excluded: rows each user or question does not get; None: none.
        unknown: candidates the model does not know, which are left out.
        rule: how exclusion was decided, for the report.
    """

    shared: torch.Tensor | None
    own: Rows | None
    excluded: Rows | None
    unknown: int
    rule: str


def limits(
    candidates: Any,
    exclude: Any,
    events: Events,
    vocab: Vocab,
    questions: int,
    repeat_share: float,
) -> Limits:
    """Code the arguments of :func:`pylum.generate`.

    Args:
        events: ``B`` whole histories, not cut to the window.
        questions: ``Q``.
        repeat_share: share of the training events whose item their user chose before.

    Raises:
        ValueError: a shape or name is not as ``generate`` wants it.
    """
    users = len(events)
    shared = own = None
    unknown = 0
    if candidates is not None:
        if is_ragged(candidates):
            own, unknown = coded_rows("candidates", candidates, users, questions, vocab)
        else:
            rows = torch.from_numpy(vocab.rows(candidates, "candidates"))
            unknown = int((rows == OOV_ROW).sum())
            shared = rows[rows != OOV_ROW].unique()
    excluded, rule = None, "given"
    if isinstance(exclude, str):
        rule = _rule(exclude, repeat_share)
        if rule == "history":
            excluded = Rows(Ragged(events.items, events.offsets), True)
    elif is_ragged(exclude):
        excluded, _ = coded_rows("exclude", exclude, users, questions, vocab)
    else:
        raise ValueError(
            "exclude must be 'auto', 'history', 'none' or the items of each user or question as a "
            f"Ragged or a list of lists, got {exclude!r}"
        )
    return Limits(shared, own, excluded, unknown, rule)


def _rule(exclude: str, repeat_share: float) -> str:
    if exclude not in ("auto", "history", "none"):
        raise ValueError(f"exclude must be 'auto', 'history' or 'none', got {exclude!r}")
    if exclude != "auto":
        return exclude
    if repeat_share <= REPEATS:
        return "history"
    warnings.warn(
        f"exclude='none': {repeat_share:.0%} of the events this model was trained on repeat an "
        "item of their user; pass exclude='history' to leave known items out",
        stacklevel=6,
    )
    return "none"


def is_ragged(values: Any) -> bool:
    """Whether rows of different lengths were passed, not one list for all."""
    if isinstance(values, Ragged):
        return True
    nested = (list, tuple, np.ndarray, torch.Tensor)
    return (
        isinstance(values, (list, tuple))
        and len(values) > 0
        and all(isinstance(row, nested) for row in values)
    )


def coded_rows(
    name: str, values: Any, users: int, questions: int, vocab: Vocab
) -> tuple[Rows, int]:
    """Rows of raw ids, unknown ones left out, and how many those are."""
    ragged = values if isinstance(values, Ragged) else Ragged.from_lists(values)
    ragged = ragged.to("cpu")
    if len(ragged) not in (users, questions):
        raise ValueError(
            f"{name} must have a row for each of {users} users or {questions} questions, "
            f"got {len(ragged)}"
        )
    coded = Ragged(torch.from_numpy(vocab.rows(ragged.values, name)), ragged.offsets)
    known, unknown = known_rows(coded)
    return Rows(known, len(ragged) == users), unknown


def known_rows(rows: Ragged) -> tuple[Ragged, int]:
    """Without the row of unknown items, and how many those were."""
    known = rows.values != OOV_ROW
    if bool(known.all()):
        return rows, 0
    kept = lengths_to_offsets(known)[rows.offsets]
    return Ragged(rows.values[known], kept), int((~known).sum())


def translate(rows: Ragged, catalogue: torch.Tensor | None) -> Ragged:
    """Rows of the vocabulary as rows of a catalogue; those it lacks are left out.

    Args:
        catalogue: ``[C]`` int64 sorted rows; None: every row but that of unknown items.
    """
    if catalogue is None:
        kept, _ = known_rows(rows)
        return Ragged(kept.values - 1, kept.offsets)
    if not len(catalogue):
        return Ragged(rows.values[:0], torch.zeros_like(rows.offsets))
    place = torch.searchsorted(catalogue, rows.values).clamp(max=len(catalogue) - 1)
    known = catalogue[place] == rows.values
    return Ragged(place[known], lengths_to_offsets(known)[rows.offsets])


def select(
    queries: torch.Tensor,
    vectors: torch.Tensor,
    k: int,
    candidates: Ragged | None,
    exclude: Ragged | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`pylum.ops.topk`, in chunks that hold ``CHUNK_LIMITS`` rows of limits at most.

    Args:
        queries, vectors: where the work is done.
        candidates, exclude: on the host.

    Returns:
        scores and rows on the host.
    """
    held = sum(len(rows.values) for rows in (candidates, exclude) if rows is not None)
    chunks = max(1, -(-held // CHUNK_LIMITS))
    step = max(1, -(-len(queries) // chunks))
    parts = []
    for start in range(0, max(1, len(queries)), step):
        stop = min(start + step, len(queries))
        part = [
            None
            if rows is None
            else Ragged(
                rows.values[int(rows.offsets[start]) : int(rows.offsets[stop])],
                rows.offsets[start : stop + 1] - rows.offsets[start],
            ).to(queries.device)
            for rows in (candidates, exclude)
        ]
        parts.append(ops.topk(queries[start:stop], vectors, k, candidates=part[0], exclude=part[1]))
    scores, rows = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    return scores, rows
