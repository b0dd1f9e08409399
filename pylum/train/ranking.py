"""HSTU's ranking: what each choice came to, predicted at its item token."""

from __future__ import annotations

import numpy as np
import torch

from pylum.data.events import Events
from pylum.evaluate.metrics import auc, log_loss
from pylum.model.base import UserModel
from pylum.model.hstu import HSTU
from pylum.model.hstu_batch import Asked, make_batch
from pylum.train.validation import Validation


class RankingObjective:
    """Cross-entropy of the tasks, at the items of the targets."""

    def loss(self, model: UserModel, events: Events) -> torch.Tensor:
        """Sum over the batch's targets of the mean over tasks, nats. Unknown outcomes add 0."""
        assert isinstance(model, HSTU) and model.tasks is not None
        unknown = None
        if model.schema.item_features and model.config.id_dropout > 0:
            drawn = torch.rand(events.total, device=events.items.device)
            unknown = drawn < model.config.id_dropout
        tokens = model.item_tokens(events.items, unknown)
        batch = make_batch(model, events, item_tokens=tokens)
        hidden = model.run(batch.x, batch.offsets, batch.positions, batch.clock)
        logits, labels = model.tasks(batch.at_choices(hidden)).float(), model.labels(events)
        known = ~labels.isnan()
        if events.targets is not None:
            known = known & events.targets[:, None]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            logits[known], labels[known], reduction="sum"
        )
        return loss / labels.shape[1]


class RankingValidation(Validation):
    """The targets of ``events`` as candidates after the behaviours before them."""

    chosen_by = "auc"

    def scores(self, model: UserModel) -> dict[str, float]:
        """``auc`` and ``logloss``, means over the tasks that have both labels."""
        assert isinstance(model, HSTU)

        def ask() -> torch.Tensor:
            return torch.cat([self._score(model, *batch) for batch in self._batches()])

        found = self._run(model, ask).double().numpy()
        labels = model.labels(self.events.to(model.device)).cpu()[self.sites].numpy()
        aucs, losses = [], []
        for task in range(labels.shape[1]):
            known = ~np.isnan(labels[:, task])
            truth, guess = labels[known, task], found[known, task]
            if len(np.unique(truth)) == 2:
                aucs.append(auc(truth, guess))
                losses.append(log_loss(truth, guess))
        if not aucs:
            raise ValueError("valid must have targets with both labels of a task, got none")
        return {"auc": float(np.mean(aucs)), "logloss": float(np.mean(losses))}

    def _score(self, model: HSTU, sites: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """``[Q, tasks]`` probabilities."""
        assert model.tasks is not None
        start = torch.maximum(first, sites - self.max_length)
        events = self._rows(start, sites).to(model.device)
        shown = self.events.take(sites, torch.arange(len(sites) + 1)).to(model.device)
        choices = model.choice_tokens(shown.items, shown.conditions)
        asked = Asked(shown.offsets, times=shown.times, choices=choices, columns=shown.conditions)
        batch = make_batch(model, events, asked)
        hidden = model.run(batch.x, batch.offsets, batch.positions, batch.clock, batch.mask)
        return model.tasks(hidden[batch.targets]).sigmoid()
