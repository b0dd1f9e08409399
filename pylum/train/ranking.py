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
from pylum.train.validation import Validation


class RankingObjective:
    """The tasks' losses at the items of the targets."""

    def loss(self, model: UserModel, events: Events) -> torch.Tensor:
        """Sum over the batch's targets of the mean over tasks. Unknown outcomes add 0."""
        assert isinstance(model, HSTU) and model.tasks is not None
        unknown = None
        if model.schema.item_features and model.config.id_dropout > 0:
            drawn = torch.rand(events.total, device=events.items.device)
            unknown = drawn < model.config.id_dropout
        tokens = model.item_tokens(events.items, unknown)
        batch = make_batch(model, events, item_tokens=tokens)
        hidden = model.run(batch.x, batch.offsets, batch.positions, batch.clock)
        labels = model.tasks.labels(events.outcomes)
        if events.targets is not None:
            labels = labels.masked_fill(~events.targets[:, None], torch.nan)
        return model.tasks.loss(batch.at_choices(hidden), labels) / labels.shape[1]


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

        def ask() -> torch.Tensor:
            assert isinstance(model, HSTU)
            return predicted_choices(model, self.events, self.sites, 2 * self.batch_events)

        found = self._run(model, ask).double().numpy()
        outcomes = {name: column[self.sites] for name, column in self.events.outcomes.items()}
        columns = {name: column.to(model.device) for name, column in outcomes.items()}
        labels = model.tasks.labels(columns).cpu().double().numpy()
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
