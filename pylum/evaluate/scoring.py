"""The test events of a part, and the ranks a model gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from pylum.data.events import OOV_ROW, Events
from pylum.data.interactions import Interactions
from pylum.evaluate import metrics
from pylum.generation.catalogue import catalogue
from pylum.generation.limits import REPEATS, translate
from pylum.generation.packing import spread
from pylum.generation.prefixes import PrefixQuestions, answer_prefixes, plan
from pylum.model import HSTU, UserModel
from pylum.ragged import Ragged, lengths_to_offsets
from pylum.transfer import moved

MISSED = np.iinfo(np.int64).max  # the rank of a target that no contestant may answer


@dataclass(frozen=True)
class Scored:
    """The test events of a data set.

    Args:
        users: ``[Q]`` int64 which user of the data.
        places: ``[Q]`` int64 which of the user's events: as many are seen before it.
        index: ``[Q]`` int64 which event of all.
    """

    users: torch.Tensor
    places: torch.Tensor
    index: torch.Tensor


def targets_of(data: Interactions) -> Scored:
    """The target events of a part, in row order."""
    events = data.events
    owner = torch.repeat_interleave(events.lengths)
    place = torch.arange(events.total) - events.offsets[owner]
    index = torch.arange(events.total)
    if events.targets is not None:
        index = index[events.targets]
    return Scored(owner[index], place[index], index)


def seen_items(events: Events, scored: Scored) -> Ragged:
    """Items of each target's user before it."""
    rows = events.items[spread(events.offsets[scored.users], scored.places)]
    return Ragged(rows, lengths_to_offsets(scored.places))


def training_part(test: Interactions) -> Interactions:
    """What a model scored on ``test`` may have learned from: the parts before it."""
    assert test.whole is not None and test.protocol is not None
    train, valid, _ = test.whole.split(test.protocol)
    return train.merged(valid) if test.part == "test" else train


def exclusion(exclude: str, train: Interactions) -> Literal["history", "none"]:
    if exclude not in ("auto", "history", "none"):
        raise ValueError(f"exclude must be 'auto', 'history' or 'none', got {exclude!r}")
    if exclude == "auto":
        return "none" if train.repeat_share > REPEATS else "history"
    return exclude  # type: ignore[return-value]


def repeated_targets(seen: Ragged | None, targets: torch.Tensor) -> torch.Tensor:
    """``[Q]`` bool: the target is itself excluded."""
    out = torch.zeros(len(targets), dtype=torch.bool)
    if seen is not None:
        lines = torch.arange(len(targets)).repeat_interleave(seen.lengths)
        out[lines[seen.values == targets[lines]]] = True
    return out


def model_ranks(
    model: UserModel,
    test: Interactions,
    scored: Scored,
    conditions: str | Sequence[str],
    remove_seen: bool,
    repeated: torch.Tensor,
    query_time: bool,
    batch_tokens: int,
) -> tuple[npt.NDArray[np.int64], int]:
    """Rank of each target, and how many the model does not know."""
    events = test.histories().encode(model.vocabs, model.schema)
    targets = events.items[scored.index]
    questions = questions_of(model, events, scored, conditions, query_time)
    vectors = catalogue(model)
    out = torch.full((len(scored.index),), MISSED)
    steps = plan(model, questions, batch_tokens)
    for index, answers in answer_prefixes(model, events, questions, steps):
        known = (targets[index] != OOV_ROW) & ~repeated[index]
        index = index[known]
        answers = answers[moved(known.nonzero()[:, 0], answers.device)]
        limits = None
        if remove_seen:
            mine = Scored(scored.users[index], scored.places[index], scored.index[index])
            limits = translate(seen_items(events, mine), None)
        out[index] = metrics.ranks(answers, vectors[1:], targets[index] - 1, exclude=limits)
    return out.numpy(), int((targets == OOV_ROW).sum())


def questions_of(
    model: UserModel,
    events: Events,
    scored: Scored,
    conditions: str | Sequence[str],
    query_time: bool,
) -> PrefixQuestions:
    """What is asked before each target."""
    return PrefixQuestions(
        scored.users,
        scored.places,
        _asked(model, events, scored.index, conditions),
        events.times[scored.index] if query_time else None,
    )


def _asked(
    model: UserModel, events: Events, index: torch.Tensor, conditions: str | Sequence[str]
) -> dict[str, torch.Tensor]:
    """Condition columns of the questions; a field that is left out is ANY."""
    if conditions == "any":
        return {}
    if isinstance(model, HSTU) and events.conditions:
        raise ValueError(
            f"conditions must be 'any' for an HSTU, which answers for the next item, "
            f"got {conditions!r}"
        )
    names = list(events.conditions) if conditions == "true" else conditions
    if isinstance(names, str):
        raise ValueError(f"conditions must be 'true', 'any' or a list of fields, got {names!r}")
    strangers = [name for name in names if name not in events.conditions]
    if strangers:
        raise ValueError(
            f"conditions must be fields of the model ({', '.join(events.conditions)}), "
            f"got {strangers}"
        )
    return {name: events.conditions[name][index] for name in names}
