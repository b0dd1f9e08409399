"""Items shown at the moments of events: as rows with labels, and as the targets of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pylum.data.events import Events
from pylum.model.hstu import HSTU
from pylum.model.hstu_batch import Asked
from pylum.model.hstu_tasks import TaskHead
from pylum.transfer import moved


@dataclass(frozen=True)
class Rows:
    """``R`` items shown at the moments of events, with what came of them.

    Args:
        sites: ``[R]`` int64 the event of each, ascending.
        items: ``[R]`` int64 rows of the item vocabulary.
        labels: ``[R, tasks]`` float32; NaN: unknown.
    """

    sites: torch.Tensor
    items: torch.Tensor
    labels: torch.Tensor


def labelled_rows(head: TaskHead, events: Events, sites: torch.Tensor) -> Rows:
    """The choices at ``sites``, ascending, and what was shown beside them, which has the label 0 of
    the task that asks what was chosen, and no other.

    Raises:
        ValueError: a task asks what was chosen and nothing was shown beside.
    """
    labels = head.labels(events)[sites]
    asks = [i for i, task in enumerate(head.asked) if task.of_choice]
    if not asks:
        return Rows(sites, events.items[sites], labels)
    if events.shown is None:
        raise ValueError(
            f"task {head.asked[asks[0]].name!r} asks what was chosen: the data must hold what was "
            "shown beside, see Interactions.beside"
        )
    beside = events.shown[sites]
    which, place = (beside >= 0).nonzero(as_tuple=True)
    others = labels.new_full((len(which), labels.shape[1]), torch.nan)
    others[:, asks] = 0.0
    all_sites = torch.cat([sites, sites[which]])
    order = torch.sort(all_sites, stable=True).indices
    return Rows(
        all_sites[order],
        torch.cat([events.items[sites], beside[which, place]])[order],
        torch.cat([labels, others])[order],
    )


def shown_at(
    model: HSTU,
    moments: Events,
    items: torch.Tensor,
    visible: torch.Tensor,
    unknown: torch.Tensor | None = None,
) -> Asked:
    """Items as candidates at the times and under the conditions of events.

    Args:
        moments: ``R`` events, by the histories they are of.
        items: ``[R]`` int64 rows of the item vocabulary.
        visible: ``[R]`` int64 behaviours before each.
        unknown: ``[R]`` bool on the model's device, items whose id is hidden.
    """
    device = model.device
    rows = moved(items, device)
    columns = {name: moved(column, device) for name, column in moments.conditions.items()}
    choices = model.choice_tokens(rows, columns, item_tokens=model.item_tokens(items, unknown))
    visible = moved(visible, moments.items.device)
    return Asked(moments.offsets, visible, moments.times, choices, moments.conditions)
