"""From events to predictions: what happens at a moment or after it moves nothing before it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import pylum
from pylum.rank import Ranker, impression_schema, impressions
from tests.rank.test_ranker import NAMES, SMALL
from tests.serving.worlds import ITEMS, data, model

RATED = 3  # of five grades, the first that counts as liked


def liked_of(of):
    grades = np.array(
        [grade or 0 for grade in of.vocabs.outcomes["rating"].values(of.events.outcomes["rating"])]
    )
    return grades >= RATED


def predictions(of, ranker=None, name="din"):
    """Of every event's row, with knowledge of the same events; the ranker is fitted once."""
    knowledge = pylum.query(model(), of, at="each")
    rows = impressions(of, liked_of(of), order="time")
    if ranker is None:
        ranker = Ranker(name, impression_schema(of), knowledge, **{**SMALL, "epochs": 2})
        ranker.fit(rows)
    return ranker, ranker.predict(rows, knowledge=knowledge)


def changed(of, mask, items=False, outcomes=False):
    """The same events, with other items or outcomes where ``mask`` says."""
    events = of.events
    at = torch.from_numpy(mask)
    if items:
        column = events.items.clone()
        column[at] = 1 + (column[at] + 6) % ITEMS
        events = replace(events, items=column)
    if outcomes:
        column = events.outcomes["rating"].clone()
        column[at] = 1 + column[at] % 5
        events = replace(events, outcomes={"rating": column})
    return replace(of, events=events)


@pytest.mark.parametrize("name", NAMES)
def test_no_earlier_output_moves(name):
    world = data()
    ranker, before = predictions(world, name=name)
    times = world.events.times.numpy()
    order = np.argsort(times)
    moved = 0
    for place in (len(order) // 4, len(order) // 2, len(order) - 10):
        moment = times[order[place]]
        here = np.zeros(len(times), bool)
        here[order[place]] = True
        # Everything from this moment on: items and outcomes.
        _, after = predictions(changed(world, times >= moment, items=True, outcomes=True), ranker)
        earlier = times < moment
        np.testing.assert_allclose(after[earlier], before[earlier], atol=1e-6)
        # The row's own outcome: neither this row nor an earlier one.
        _, after = predictions(changed(world, here, outcomes=True), ranker)
        np.testing.assert_allclose(after[times <= moment], before[times <= moment], atol=1e-6)
        moved += int((np.abs(after - before) > 1e-6).sum())
        # Its own item: no earlier row.
        _, after = predictions(changed(world, here, items=True), ranker)
        np.testing.assert_allclose(after[earlier], before[earlier], atol=1e-6)
        assert abs(after[here] - before[here]) > 1e-7
    assert moved > 0, "later rows must know the outcome, or nothing was tested"
