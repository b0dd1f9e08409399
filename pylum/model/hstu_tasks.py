"""What HSTU's ranking predicts of a choice: labels, their loss, and predictions in their units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from pylum.data.events import OOV_ROW, Events
from pylum.data.schema import Schema
from pylum.data.vocabs import Vocabs
from pylum.model.hstu_config import Task
from pylum.ops._library import TORCH_PATHS
from pylum.transfer import moved

TORCH_PATHS[__name__] = "heads of HSTU's ranking tasks"


class TaskHead(nn.Linear):
    """A linear layer with a column for each task (section 3.1 of arXiv 2402.17152: multi-task).

    A yes or no question is a logit under cross-entropy. A number is predicted under squared error,
    as in the published code, and is standardised here, so that tasks of any unit weigh alike.

    Args:
        width: of hidden states.
        tasks: at least one.
        schema, vocabs: of the outcomes.

    Raises:
        ValueError: a task's field is no such outcome, or lacks a value.
    """

    def __init__(self, width: int, tasks: Sequence[Task], schema: Schema, vocabs: Vocabs) -> None:
        super().__init__(width, len(tasks))
        self.asked = tuple(tasks)
        for i, task in enumerate(tasks):
            _check(task, schema)
            if task.of_choice:
                continue
            if task.binary:
                self.register_buffer(f"yes_{i}", _yes(task, vocabs), persistent=False)
            else:
                self.register_buffer(f"mean_{i}", torch.zeros(()))
                self.register_buffer(f"scale_{i}", torch.ones(()))

    def standardise(self, outcomes: Mapping[str, torch.Tensor]) -> None:
        """Take the mean and the deviation of every number that is predicted from ``outcomes``."""
        for i, task in enumerate(self.asked):
            if task.binary:
                continue
            known = outcomes[task.field]
            known = known[~known.isnan()].double()
            if not known.numel():
                raise ValueError(f"task {task.name!r} must have a known {task.field!r}, got none")
            deviation = known.std(unbiased=False)
            getattr(self, f"mean_{i}").copy_(known.mean())
            getattr(self, f"scale_{i}").copy_(deviation if deviation > 0 else 1.0)

    def labels(self, events: Events) -> torch.Tensor:
        """``[N, tasks]`` float32 of what was chosen: 1 for yes, 0 for no, or the number; NaN where
        it is unknown. Beside the events, wherever the head is."""
        columns = []
        for i, task in enumerate(self.asked):
            if task.of_choice:
                columns.append(torch.ones_like(events.items, dtype=torch.float32))
                continue
            column = events.outcomes[task.field]
            if task.binary:
                yes = moved(getattr(self, f"yes_{i}"), column.device)
                column = torch.where(column > OOV_ROW, yes[column], torch.nan)
            columns.append(column.float())
        return torch.stack(columns, 1)

    def loss(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Sum over rows and tasks: nats of yes or no, squared deviations of numbers.

        Args:
            hidden: ``[N, width]``.
            labels: ``[N, tasks]`` of :meth:`labels`; NaN adds nothing.
        """
        out, known = self(hidden).float(), ~labels.isnan()
        total = out.new_zeros(())
        for i, task in enumerate(self.asked):
            rows = known[:, i]
            found, label = out[rows, i], labels[rows, i]
            if task.binary:
                total = total + nn.functional.binary_cross_entropy_with_logits(
                    found, label, reduction="sum"
                )
            else:
                wanted = (label - getattr(self, f"mean_{i}")) / getattr(self, f"scale_{i}")
                total = total + (found - wanted).square().sum()
        return total

    def predictions(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[N, tasks]`` float32: probabilities of yes, and numbers in their own unit."""
        out = self(hidden).float()
        columns = []
        for i, task in enumerate(self.asked):
            if task.binary:
                columns.append(out[:, i].sigmoid())
            else:
                columns.append(out[:, i] * getattr(self, f"scale_{i}") + getattr(self, f"mean_{i}"))
        return torch.stack(columns, 1)


def _check(task: Task, schema: Schema) -> None:
    if task.of_choice:
        if task.values:
            raise ValueError(f"task {task.name!r} of the item itself takes no values")
        return
    kinds = {f.name: f.kind for f in schema.outcomes}
    wanted = "category" if task.binary else "number"
    if kinds.get(task.field) != wanted:
        raise ValueError(
            f"task {task.name!r} must ask a {wanted} among the outcomes {kinds}, got {task.field!r}"
        )


def _yes(task: Task, vocabs: Vocabs) -> torch.Tensor:
    """``[rows]`` float32: 1 for the outcomes that mean yes."""
    vocab = vocabs.outcomes[task.field]
    rows = torch.from_numpy(vocab.rows(list(task.values), f"values of task {task.name!r}"))
    if not bool((rows != OOV_ROW).all()):
        raise ValueError(
            f"task {task.name!r} must have values that {task.field!r} takes, got {task.values}"
        )
    yes = torch.zeros(len(vocab), dtype=torch.float32)
    yes[rows] = 1.0
    return yes
