"""Sequence models beside the rankers, on the rankers' rows: HSTU's ranking, and SASRec."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pylum.data import Interactions, Schema
from pylum.data.vocabs import Vocabs
from pylum.generation.choices import predicted_choices
from pylum.knowledge import query
from pylum.model import HSTUConfig, LUMConfig, Task, UserModel
from pylum.train import pretrain

Scores = npt.NDArray[np.float64]
SEQUENCE = ("HSTU", "SASRec")
ONLY_ORDER = ("SASRec",)  # its scores are no probabilities


@dataclass(frozen=True, eq=False)
class Sequences:
    """Behaviours whose choices, and what was shown beside them, are the rankers' rows.

    Args:
        data: all of them, without a condition that tells the label.
        stages: divides it as the rows are: user model, ranker, validation and test.
        task: what a row's label is.
        liked: ``[N]`` which events SASRec learns to find; None: all.
        settings: by model: of its configuration and, under ``"run"``, of :func:`pylum.pretrain`.
    """

    data: Interactions
    stages: Callable[[Interactions], tuple[Interactions, ...]]
    task: Task
    liked: npt.NDArray[np.bool_] | None = None
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)

    def scores(self, name: str, rows: pa.Table, seed: int, **run: Any) -> Scores:
        """``[N]`` of test rows, by a model that is trained on the rankers' training rows.

        Each row is scored after the events before its own; the epoch is chosen on the validation
        rows.

        Args:
            name: one of :data:`SEQUENCE`.
            rows: with ``event``, counted over the data, and ``item``.
            seed: of the training.
            run: of :func:`pylum.pretrain`, over the settings.
        """
        if name not in SEQUENCE:
            raise ValueError(f"name must be one of {', '.join(SEQUENCE)}, got {name!r}")
        score = self._hstu if name == "HSTU" else self._sasrec
        settings = dict(self.settings.get(name, {}))
        options = {"progress": False, "seed": seed, **settings.pop("run", {}), **run}
        return score(rows, settings, options)

    def _hstu(self, rows: pa.Table, settings: dict[str, Any], run: dict[str, Any]) -> Scores:
        config = HSTUConfig(task="ranking", tasks=(self.task,), **settings)
        _, train, valid, test = self.stages(self.data)
        model = pretrain(config, train, valid=valid, **run)
        _check(model, test)
        events = torch.from_numpy(rows["event"].to_numpy().copy())
        items = torch.from_numpy(self.data.vocabs.items.rows(rows["item"].combine_chunks()))
        # Without anything beside a choice its row comes out of a causal pass.
        shown = None if self.data.events.shown is None else items
        return predicted_choices(model, self.data.events, events, shown)[:, 0].double().numpy()

    def _sasrec(self, rows: pa.Table, settings: dict[str, Any], run: dict[str, Any]) -> Scores:
        bare = bare_items(self.data, self.liked)
        _, train, valid, test = self.stages(bare)
        model = pretrain(LUMConfig(**settings), train, valid=valid, **run)
        _check(model, test)
        answers = query(model, bare, at="each")
        items = torch.from_numpy(answers.item_rows(rows["item"]))
        asked = answers.vectors[torch.from_numpy(rows["event"].to_numpy().copy()), 0]
        return (asked * answers.item_vectors[items]).sum(1).double().numpy()


def bare_items(data: Interactions, targets: npt.NDArray[np.bool_] | None = None) -> Interactions:
    """Which items were chosen, in which order, and nothing else of the events; what an item is
    stays known."""
    vocabs = Vocabs(data.vocabs.items, {}, {}, data.vocabs.features)
    learned = None if targets is None else torch.from_numpy(targets)
    events = replace(data.events, conditions={}, outcomes={}, shown=None, targets=learned)
    schema = Schema(item_features=data.schema.item_features)
    return replace(data, schema=schema, vocabs=vocabs, events=events)


def _check(model: UserModel, test: Interactions) -> None:
    inside = int(model.record.seen(test.event_hashes()).sum())
    if inside:
        raise ValueError(f"the sequence model was trained on {inside} events of {test.part}")
