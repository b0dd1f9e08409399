"""HSTU's ranking: what each choice came to, predicted at its item token."""

from __future__ import annotations

import numpy as np
import torch

from pylum.data.events import Events
from pylum.evaluate.metrics import auc, log_loss, normalised_entropy
from pylum.generation.choices import predicted_choices
from pylum.model.base import UserModel
from pylum.model.hstu import HSTU
from pylum.model.hstu_batch import make_batch
from pylum.model.hstu_config import Task
from pylum.model.hstu_rows import labelled_rows, shown_at
from pylum.model.hstu_tasks import TaskHead
from pylum.ragged import lengths_to_offsets
from pylum.train.validation import Validation


class RankingObjective:
    """The tasks' losses at the items of the targets, and at those shown beside them."""

    def loss(self, model: UserModel, events: Events) -> torch.Tensor:
        """Sum over the batch's targets of the mean over tasks, and over what was shown at one
        moment. Unknown outcomes add 0."""
        assert isinstance(model, HSTU) and model.tasks is not None
        tokens = model.item_tokens(events.items, _unknown(model, events.items))
        if any(task.of_choice for task in model.config.tasks):
            return self._shown(model, model.tasks, events, tokens)
        batch = make_batch(model, events, item_tokens=tokens)
        hidden = model.run(batch.x, batch.offsets, batch.positions, batch.clock)
        labels = model.tasks.labels(events)
        if events.targets is not None:
            labels = labels.masked_fill(~events.targets[:, None], torch.nan)
        return model.tasks.loss(batch.at_choices(hidden), labels) / labels.shape[1]

    def _shown(
        self, model: HSTU, head: TaskHead, events: Events, tokens: torch.Tensor
    ) -> torch.Tensor:
        """Chosen or not: all are candidates, blind to each other and to what was chosen."""
        device = events.items.device
        sites = torch.arange(events.total, device=device)
        if events.targets is not None:
            sites = sites[events.targets]
        rows = labelled_rows(head, events, sites)
        owner = torch.searchsorted(events.offsets, rows.sites, right=True) - 1
        counts = torch.bincount(owner, minlength=len(events))
        moments = events.take(rows.sites, lengths_to_offsets(counts))
        visible = rows.sites - events.offsets[owner]
        asked = shown_at(model, moments, rows.items, visible, _unknown(model, rows.items))
        batch = make_batch(model, events, asked, item_tokens=tokens)
        where = (batch.x, batch.offsets, batch.positions, batch.clock)
        hidden = batch.at_targets(model.run(*where, batch.mask))
        each = len(rows.sites) / max(1, len(sites))
        return head.loss(hidden, rows.labels) / (each * rows.labels.shape[1])


def _unknown(model: HSTU, items: torch.Tensor) -> torch.Tensor | None:
    """Which items are trained without their id; random numbers come from torch's own."""
    if not model.schema.item_features or model.config.id_dropout == 0:
        return None
    return torch.rand(len(items), device=items.device) < model.config.id_dropout


class RankingValidation(Validation):
    """The targets of ``events`` as candidates after the behaviours before them.

    Args:
        tasks: of the model.
        others: as for :class:`Validation`.
    """

    def __init__(self, events: Events, tasks: tuple[Task, ...], **others: int) -> None:
        super().__init__(events, **others)  # type: ignore[arg-type]
        self.tasks = tasks
        self.chosen_by = "auc" if any(task.binary for task in tasks) else "r2"

    def scores(self, model: UserModel) -> dict[str, float]:
        """``auc``, ``logloss`` and ``ne``, means over the tasks that have both labels; ``r2``, the
        mean over numbers of the share of their variance that is predicted."""
        assert isinstance(model, HSTU) and model.tasks is not None

        events, size = self.events, 2 * self.batch_events
        here = torch.device("cpu")
        rows = labelled_rows(model.tasks, events.to(model.device), self.sites.to(model.device))
        own = len(rows.sites) == len(self.sites)
        items = None if own else rows.items.to(here)
        found = predicted_choices(model, events, rows.sites.to(here), items, size).double().numpy()
        labels = rows.labels.to(here).double().numpy()
        out: dict[str, list[float]] = {}
        for i, task in enumerate(self.tasks):
            known = ~np.isnan(labels[:, i])
            truth, guess = labels[known, i], found[known, i]
            if len(np.unique(truth)) < 2:
                continue
            if task.binary:
                out.setdefault("auc", []).append(auc(truth, guess))
                out.setdefault("logloss", []).append(log_loss(truth, guess))
                out.setdefault("ne", []).append(normalised_entropy(truth, guess))
            else:
                share = 1 - np.square(guess - truth).mean() / truth.var()
                out.setdefault("r2", []).append(float(share))
        if self.chosen_by not in out:
            kind = "both labels" if self.chosen_by == "auc" else "two values"
            raise ValueError(f"valid must have targets with {kind} of a task, got none")
        return {name: float(np.mean(values)) for name, values in out.items()}
