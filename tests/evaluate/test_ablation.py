"""Several condition fields: each that is left out costs accuracy, as much as it says."""

import numpy as np
import pytest

from pylum import Interactions, LUMConfig, evaluate, pretrain
from pylum.evaluate.likelihood import cross_entropy

SHARED = 4  # values of each field
USERS, EVENTS = 120, 16


@pytest.fixture(scope="module")
def asked():
    """The two fields together say which item is chosen, either alone a quarter of them."""
    random = np.random.default_rng(0)
    total = USERS * EVENTS
    scene, hour = random.integers(SHARED, size=(2, total))
    data = Interactions.from_arrays(
        np.repeat(np.arange(USERS), EVENTS),
        [f"i{s}{h}" for s, h in zip(scene, hour, strict=True)],
        np.tile(np.arange(EVENTS), USERS) * 60,
        condition={"scene": [f"s{s}" for s in scene], "hour": [f"h{h}" for h in hour]},
    )
    train, _, test = data.split("loo-full")
    config = LUMConfig(dim=16, layers=1, dropout=0.0, initial_scale=0.2, query_time=False)
    model = pretrain(config, train, epochs=25, lr=0.02, progress=False)
    named = {"true": "true", "scene": ["scene"], "hour": ["hour"], "any": "any"}
    return {
        name: (
            evaluate(model, test, k=1, conditions=conditions, exclude="none")["HR@1"].value,
            float(np.mean(cross_entropy(model, test, conditions=conditions))),
        )
        for name, conditions in named.items()
    }


def test_each_field_is_worth_what_it_says(asked):
    hits = {name: value for name, (value, _) in asked.items()}
    assert hits["true"] > 0.9
    for one in ("scene", "hour"):
        # One field leaves four items; chance is a quarter, of none a sixteenth.
        assert 0.1 < hits[one] < 0.45
    assert hits["any"] < 0.2


def test_nats_follow_the_items_that_are_left(asked):
    nats = {name: value for name, (_, value) in asked.items()}
    assert nats["true"] < 0.5 * np.log(SHARED)
    for one in ("scene", "hour"):
        assert nats[one] == pytest.approx(np.log(SHARED), abs=0.5)
    assert nats["any"] == pytest.approx(2 * np.log(SHARED), abs=0.5)
