"""HSTU's ranking on events it was not trained on: every task, beside means of the training part."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pylum.data.events import Events
from pylum.data.interactions import Interactions
from pylum.evaluate.floors import mean_floors
from pylum.evaluate.impressions import compare
from pylum.evaluate.intervals import Interval, bootstrap
from pylum.evaluate.report import aligned, signed
from pylum.evaluate.scoring import Scored, training_part
from pylum.generation.choices import predicted_choices
from pylum.model import HSTU
from pylum.model.hstu_rows import labelled_rows

Floats = npt.NDArray[np.float64]
Table = dict[str, dict[str, Interval]]
NAME = "HSTU"


@dataclass(frozen=True, eq=False)
class TaskScores:
    """One task.

    Args:
        rows: events whose outcome is known.
        mean: of their labels: the share of yes, or the mean number.
        values: by contestant and metric, the model first. Yes or no: AUC, GAUC, log loss and NE,
            the last two of contestants that give probabilities; numbers: MSE and MAE.
        gains: by floor and metric, the model's value less the floor's, on the same users.
    """

    rows: int
    mean: float
    values: Table
    gains: Table


@dataclass(frozen=True, eq=False)
class RankingReport:
    """Accuracy of each task, beside the floors it must beat.

    Args:
        protocol, part: of the data, e.g. ``"global-time"`` and ``"test"``.
        seeds: models that were scored.
        users, events: that were scored.
        tasks: by name.
    """

    protocol: str
    part: str
    seeds: int
    users: int
    events: int
    tasks: dict[str, TaskScores]

    def __getitem__(self, task: str) -> dict[str, Interval]:
        """The model's values of a task, e.g. ``report["liked"]["NE"]``."""
        return self.tasks[task].values[NAME]

    def __str__(self) -> str:
        lines = [f"{self.protocol}, {self.part}: {self.events:,} events of {self.users:,} users"]
        for name, task in self.tasks.items():
            metrics = list(task.values[NAME])
            rows = [["", *metrics]]
            rows += [
                [who, *(str(row[m]) if m in row else "" for m in metrics)]
                for who, row in task.values.items()
            ]
            rows += [
                [f"gain over {who}", *(signed(row[m]) if m in row else "" for m in metrics)]
                for who, row in task.gains.items()
            ]
            lines += ["", f"{name}: {task.rows:,} events, mean {task.mean:.4g}", *aligned(rows)]
        over = f"{self.seeds} seeds and users" if self.seeds > 1 else "users"
        lines.append(f"Brackets: 95 % intervals, bootstrap over {over}.")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings."""

        def plain(table: Table) -> dict[str, Any]:
            return {
                name: {metric: interval.to_dict() for metric, interval in row.items()}
                for name, row in table.items()
            }

        tasks = {
            name: {**vars(task), "values": plain(task.values), "gains": plain(task.gains)}
            for name, task in self.tasks.items()
        }
        return {**vars(self), "tasks": tasks}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1)


def evaluate_ranking(
    models: Sequence[HSTU],
    test: Interactions,
    scored: Scored,
    *,
    samples: int,
    seed: int,
    batch_tokens: int,
) -> RankingReport:
    """Every target of ``test`` is predicted at its own time, after the earlier events of its user.

    Raises:
        ValueError: models differ in their tasks, or a yes or no has one answer in all of ``test``.
    """
    tasks = models[0].config.tasks
    if any(model.config.tasks != tasks for model in models):
        raise ValueError("model must be models of the same tasks")
    found = []
    for model in models:
        assert model.tasks is not None
        events = _events(model, test)
        rows = labelled_rows(model.tasks, events, scored.index)
        own = len(rows.sites) == len(scored.index)
        asked = (rows.sites, None if own else rows.items)
        found.append(predicted_choices(model, events, *asked, batch_tokens).double().numpy())
    whole = training_part(test)
    targets = whole.events.targets
    known = torch.arange(whole.events.total) if targets is None else targets.nonzero()[:, 0]
    parts = [
        (data, labelled_rows(models[0].tasks, _events(models[0], data), index))  # type: ignore[arg-type]
        for data, index in ((whole, known), (test, scored.index))
    ]
    users = [_users(data, rows.sites) for data, rows in parts]
    items = [rows.items.numpy() for _, rows in parts]
    options = {"samples": samples, "seed": seed}
    reports = {}
    for i, task in enumerate(tasks):
        train, truth = (rows.labels[:, i].double().numpy() for _, rows in parts)
        has, learned = ~np.isnan(truth), ~np.isnan(train)
        if not has.any() or not learned.any():
            raise ValueError(f"test must have known outcomes of task {task.name!r}, got none")
        floors = mean_floors(
            train[learned], users[0][learned], items[0][learned], users[1][has], items[1][has]
        )
        lines = np.stack([line[has, i] for line in found])
        case = (truth[has], users[1][has], lines, floors)
        if task.binary:
            reports[task.name] = _binary(task.name, *case, options)
        else:
            reports[task.name] = _number(float(train[learned].mean()), *case, options)
    return RankingReport(
        protocol=str(test.protocol),
        part=str(test.part),
        seeds=len(models),
        users=len(np.unique(users[1])),
        events=len(scored.index),
        tasks=reports,
    )


def _users(data: Interactions, index: torch.Tensor) -> npt.NDArray[np.int64]:
    owner = torch.searchsorted(data.events.offsets, index, right=True) - 1
    return data.user_rows[owner.numpy()]


def _events(model: HSTU, data: Interactions) -> Events:
    """Of a data set, in the model's rows."""
    events = data.histories().encode(model.vocabs, model.schema)
    shown = data.events.shown
    if shown is None:
        return events
    ids = data.vocabs.items.values(shown.flatten())
    rows = torch.from_numpy(model.vocabs.items.rows(ids, "items")).view_as(shown)
    return replace(events, shown=torch.where(shown < 0, shown, rows))


def _binary(
    name: str,
    truth: Floats,
    users: npt.NDArray[np.int64],
    found: Floats,
    floors: dict[str, Floats],
    options: dict[str, int],
) -> TaskScores:
    if truth.min() == truth.max():
        raise ValueError(f"test must hold both answers to task {name!r}, got {int(truth[0])}")
    both = compare(
        truth,
        users,
        {NAME: found, **floors},
        over=[(NAME, name) for name in floors],
        only_order=tuple(floors),
        **options,  # type: ignore[arg-type]
    )
    gains = {name: both.gains[NAME, name] for name in floors}
    return TaskScores(len(truth), float(truth.mean()), both.values, gains)


def _number(
    mean: float,
    truth: Floats,
    users: npt.NDArray[np.int64],
    found: Floats,
    floors: dict[str, Floats],
    options: dict[str, int],
) -> TaskScores:
    guesses = {
        NAME: found,
        "mean": np.full_like(truth, mean),
        "item mean": floors["item mean"],
        "item + user mean": floors["item + user mean"] - mean,
    }
    values: Table = {}
    gains: Table = {}
    for metric, of in (("MSE", np.square), ("MAE", np.abs)):
        errors = {who: np.broadcast_to(of(g - truth), found.shape) for who, g in guesses.items()}
        for who, each in errors.items():
            values.setdefault(who, {})[metric] = bootstrap(each, users, **options)  # type: ignore[arg-type]
            if who != NAME:
                gain = bootstrap(errors[NAME], users, against=each, **options)  # type: ignore[arg-type]
                gains.setdefault(who, {})[metric] = gain
    return TaskScores(len(truth), float(truth.mean()), values, gains)
