"""What the host waits for: results, and nothing that is worked out on the way to them."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from pylum import ItemIndex, UserCache, generate, generate_batches, query, score
from tests.cuda_emulator.library.worlds import ASK, there
from tests.serving import test_hstu, test_score
from tests.serving.worlds import data, event, history, item_table, model

# Which calls the host waits for is one question, whoever has the kernels.
pytestmark = pytest.mark.parametrize("device", ["second"], indirect=True, scope="module")

HISTORIES = {f"u{n}": history(n, seed=n) for n in (0, 5, 33)}
OWN = [["i1"], ["i2", "i7"], []]
LATER = 1_800_000_000
MORE = [[event(3, LATER)] for _ in HISTORIES]
MASKS = {"variant": "production", "window": 9, "context": ("scene",)}


@pytest.fixture(scope="module")
def world(device):
    """Models on the device, caches that hold the histories, an index."""
    lum, hstu, masks = there(model()), there(test_hstu.model()), there(test_hstu.model(**MASKS))
    ranker = there(test_score.model())
    made = SimpleNamespace(lum=lum, hstu=hstu, masks=masks, ranker=ranker, index=ItemIndex(lum))
    made.of = {name: UserCache(getattr(made, name), 4096) for name in ("lum", "hstu", "masks")}
    made.of["ranker"] = UserCache(ranker, 4096)
    for name in ("hstu", "masks"):
        generate(getattr(made, name), HISTORIES, cache=made.of[name])
    generate(lum, HISTORIES, ASK, cache=made.of["lum"])
    score(ranker, HISTORIES, ["i1"], cache=made.of["ranker"])
    return made


def next_items(w, name, **options):
    return generate(getattr(w, name), HISTORIES, **options)


def candidates(w, **options):
    return score(w.ranker, HISTORIES, ["i1", "i2", "i3"], **options)


@pytest.mark.parametrize(
    ("call", "copies"),
    [
        pytest.param(lambda w: generate(w.lum, HISTORIES, ASK), 3, id="cold"),
        pytest.param(lambda w: generate(w.lum, HISTORIES, ASK, k=0), 1, id="embeddings"),
        pytest.param(
            lambda w: generate(w.lum, HISTORIES, ASK, candidates=["i1", "i2"]), 3, id="shared"
        ),
        pytest.param(lambda w: generate(w.lum, HISTORIES, ASK, candidates=OWN), 3, id="own"),
        pytest.param(lambda w: generate(w.lum, HISTORIES, ASK, exclude=OWN), 3, id="exclude"),
        pytest.param(
            lambda w: list(generate_batches(w.lum, HISTORIES, ASK, batch_tokens=32)), 6, id="two"
        ),
        pytest.param(
            lambda w: generate(w.lum, {"w": history(90)}, ASK, cache=w.of["lum"]), 3, id="window"
        ),
        pytest.param(
            lambda w: generate(
                w.lum, [*HISTORIES], ASK, cache=w.of["lum"], candidates=OWN, query_time=LATER
            ),
            3,
            id="warm",
        ),
        pytest.param(lambda w: next_items(w, "hstu"), 3, id="hstu"),
        pytest.param(lambda w: next_items(w, "hstu", cache=w.of["hstu"]), 3, id="hstu-warm"),
        pytest.param(lambda w: next_items(w, "masks"), 3, id="masks"),
        pytest.param(lambda w: next_items(w, "masks", cache=w.of["masks"]), 3, id="masks-warm"),
        pytest.param(candidates, 1, id="score"),
        pytest.param(lambda w: candidates(w, micro_batch=1), 3, id="micro-batches"),
        pytest.param(lambda w: candidates(w, cache=w.of["ranker"]), 1, id="score-warm"),
        pytest.param(lambda w: w.index.topk(torch.ones(4, w.lum.dim), 3), 2, id="index"),
        pytest.param(
            lambda w: w.index.topk(torch.ones(3, w.lum.dim), 3, exclude=OWN), 2, id="index-exclude"
        ),
        pytest.param(lambda w: w.index.add(item_table(range(70, 72))), 0, id="index-add"),
        pytest.param(lambda w: query(w.lum, data().histories(["u1", "u2"]), ASK), 2, id="query"),
    ],
)
def test_a_call_waits_for_its_results(device, world, call, copies):
    # What is worked out once for a model: its item vectors, how many categories an item has.
    call(world)
    device.waits.clear()
    call(world)
    assert device.waits == Counter({"cpu": copies} if copies else {})


@pytest.mark.parametrize("name", ["lum", "hstu", "masks", "ranker"])
def test_to_append_waits_for_nothing(device, world, name):
    cache = world.of[name]
    for _ in range(2):
        device.waits.clear()
        assert not cache.append([*HISTORIES], MORE)
    assert not device.waits
