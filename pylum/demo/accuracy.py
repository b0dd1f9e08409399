"""Recall@10 on the test part: what the condition is worth, and what any model must beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from pylum.data import ANY_ROW, Events, Interactions
from pylum.demo.case import Case
from pylum.evaluate import floors, metrics
from pylum.evaluate.next_item import targets_of
from pylum.generation.catalogue import catalogue
from pylum.generation.limits import REPEATS
from pylum.generation.packing import spread
from pylum.generation.prefixes import PrefixQuestions, answer_prefixes, plan
from pylum.model import LUM
from pylum.ragged import Ragged, lengths_to_offsets

K = 10


@dataclass(frozen=True)
class Row:
    """``recall`` of one contestant; ``best`` of the exact prediction asked alike, if known."""

    name: str
    recall: float
    best: float | None = None


def table(case: Case, model: LUM, train: Interactions, test: Interactions) -> list[Row]:
    """Recall@10 of the next item, asked with the right condition, a wrong one and ANY."""
    scored = targets_of(test)
    events = test.histories().encode(model.vocabs, model.schema)
    targets = test.events.items[scored.index]
    # Where users hardly ever come back to an item, what they have seen is removed.
    seen = None if train.repeat_share > REPEATS else _seen(test.events, scored.users, scored.places)
    best = {}
    if case.world is not None:
        best = {
            mode: case.world.bayes_recall(test, K, mode=mode) for mode in ("right", "wrong", "any")
        }

    def recall(columns: dict[str, torch.Tensor]) -> float:
        questions = PrefixQuestions(scored.users, scored.places, columns)
        vectors = catalogue(model)[1:]
        hits = 0
        for index, answers in answer_prefixes(
            model, events, questions, plan(model, questions, 65536)
        ):
            known = events.items[scored.index[index]] > 0
            index, answers = index[known], answers[known]
            limits = None if seen is None else _rows_of(seen, index)
            rank = metrics.ranks(
                answers, vectors, events.items[scored.index[index]] - 1, exclude=limits
            )
            hits += int((rank < K).sum())
        return hits / len(targets)

    items = len(test.vocabs.items)
    exclude = None if seen is None else Ragged(seen.values + 1, seen.offsets)
    popular = floors.popularity(train.events, items, targets, exclude)
    rows = [Row("LUM, ANY", recall({}), best.get("any"))]
    if case.condition is not None:
        right = events.conditions[case.condition][scored.index]
        others = events.conditions[case.condition].unique()
        wrong = _other(right, others[others > ANY_ROW])
        others_asked = {name: column[scored.index] for name, column in events.conditions.items()}
        rows = [
            Row(
                "LUM, right condition",
                recall({**others_asked, case.condition: right}),
                best.get("right"),
            ),
            Row(
                "LUM, wrong condition",
                recall({**others_asked, case.condition: wrong}),
                best.get("wrong"),
            ),
            *rows,
        ]
        asked = test.events.conditions[case.condition][scored.index]
        within = floors.popularity_by_condition(
            train.events, items, case.condition, targets, asked, exclude
        )
        rows.append(Row("popularity in the condition", _share(within)))
    rows.append(Row("popularity", _share(popular)))
    return rows


def _share(ranks: torch.Tensor) -> float:
    return float((ranks < K).double().mean())


def _other(right: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Another of ``values`` for each question, drawn by seed 0."""
    random = np.random.default_rng(0)
    place = torch.searchsorted(values, right).clamp(max=len(values) - 1)
    step = torch.from_numpy(random.integers(1, max(2, len(values)), size=len(right)))
    return values[(place + step) % len(values)]


def _seen(events: Events, users: torch.Tensor, places: torch.Tensor) -> Ragged:
    """What each question's user chose before, as rows of the catalogue without the unknown item."""
    rows = events.items[spread(events.offsets[users], places)] - 1
    return Ragged(rows, lengths_to_offsets(places))


def _rows_of(rows: Ragged, index: torch.Tensor) -> Ragged:
    lengths = rows.lengths[index]
    return Ragged(rows.values[spread(rows.offsets[index], lengths)], lengths_to_offsets(lengths))
