"""From a table to what a network is trained on: rows coded, and joined with knowledge."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pylum.knowledge import Knowledge
from pylum.rank.coding import Coded, Coder, Collected
from pylum.rank.joining import Joined, in_sample, join
from pylum.rank.rows import Rows
from pylum.rank.schema import Schema


def knowledge_of(given: Any) -> Knowledge | None:
    """The argument ``knowledge``: a folder is loaded.

    Raises:
        TypeError: it is neither a knowledge, a folder nor None.
        FileNotFoundError, ValueError: the folder holds no whole knowledge.
    """
    if isinstance(given, (str, os.PathLike)):
        return Knowledge.load(given)
    if given is not None and not isinstance(given, Knowledge):
        raise TypeError(f"knowledge must be a Knowledge or a folder, got {type(given).__name__}")
    return given


def columns_of(schema: Schema, knowledge: Knowledge | None, label: bool) -> tuple[str, ...]:
    """What is read beside the features."""
    wanted = [schema.label] if label else []
    if knowledge is not None:
        wanted += [schema.user, schema.item, schema.time]
        wanted += [] if schema.condition is None else [schema.condition]
    return tuple(wanted)


def read_all(
    coder: Coder,
    rows: Rows,
    knowledge: Knowledge | None,
    *,
    known: Any = None,
    allow_in_sample: bool = True,
) -> tuple[Coded, Joined | None]:
    """Every row, labels too, as compact columns; the table itself goes by in pieces.

    Args:
        rows: at least one.
        known: ``[N]`` bool: the rows that knowledge is joined to; None: all.
        allow_in_sample: also join it to rows that are not later than the user model's training.

    Raises:
        ValueError: rows are in-sample, or ``known`` does not fit.
    """
    found, joined = Collected(), []
    start = inside = 0
    for piece, mine in _beside(rows, known):
        found.add(coder.encode(piece, with_labels=True))
        if knowledge is not None:
            at = join(knowledge, piece, coder.schema)
            late = in_sample(knowledge, piece, coder.schema)
            if mine is not None:
                at, late = at.only(mine), late & mine
            inside += int(late.sum())
            joined.append(at)
        start += len(piece)
    if known is not None and len(known) != start:
        raise ValueError(f"known must be [{start}] booleans, got {len(known)}")
    if inside and not allow_in_sample:
        assert knowledge is not None
        raise ValueError(
            f"{inside} of {start} rows are not later than {knowledge.cut}, the latest event "
            "the user model was trained on: train it on earlier events, leave these rows out of "
            "known, or pass allow_in_sample=True where it was not trained on them"
        )
    return found.rows(), Joined.of(joined) if joined else None


def _beside(rows: Rows, known: Any) -> Iterator[tuple[pa.Table, torch.Tensor | None]]:
    mask = None if known is None else np.asarray(known)
    if mask is not None and (mask.dtype != bool or mask.ndim != 1):
        raise ValueError(f"known must be [N] booleans, got {list(mask.shape)} of {mask.dtype}")
    start = 0
    for piece in rows:
        stop = start + len(piece)
        if mask is not None and len(mask) < stop:
            raise ValueError(f"known must hold every row, got {len(mask)} of at least {stop}")
        yield piece, None if mask is None else torch.from_numpy(mask[start:stop])
        start = stop
