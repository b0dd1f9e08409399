"""HSTU on the device: retrieval and ranking, whole and cached."""

from collections import Counter

import pytest
import torch

from pylum import UserCache, generate, score
from tests.cuda_emulator.library.worlds import CLOSE, histories, same, there
from tests.serving import test_hstu, test_score


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="research"),
        pytest.param({"variant": "production"}, id="production"),
        pytest.param({"variant": "production", "window": 9, "context": ("scene",)}, id="masks"),
    ],
)
def test_hstu_retrieval(device, changes):
    mine = test_hstu.model(**changes)
    theirs = there(mine)
    with device.host():
        expected = generate(mine, histories())
    same(generate(theirs, histories()), expected)
    cache = UserCache(theirs, 4096)
    for _ in range(2):
        if device.waits is not None:
            device.waits.clear()
        same(generate(theirs, histories(), cache=cache), expected)
        # Of the embeddings, scores and rows, after the weights were looked at once.
        assert device.waits is None or device.waits["cpu"] >= 3
    assert device.waits is None or device.waits == Counter({"cpu": 3})
    # The context of an empty history is in no page: such a call is not recorded.
    assert cache.stats["replays"] == ("context" not in changes)


@pytest.mark.parametrize("variant", ["research", "production"])
def test_hstu_ranking(device, variant):
    """M-FALCON in two micro-batches, whole and cached; what it waits for is scores."""
    mine = test_score.model(variant=variant, layers=1)
    theirs = there(mine)
    shown = ["i1", "i7", "i3"]
    with device.host():
        expected = score(mine, histories(), shown).values
    found = score(theirs, histories(), shown, micro_batch=2).values
    torch.testing.assert_close(found, expected, atol=CLOSE, rtol=0)
    cache = UserCache(theirs, 4096)
    for _ in range(2):
        if device.waits is not None:
            device.waits.clear()
        found = score(theirs, histories(), shown, cache=cache).values
        torch.testing.assert_close(found, expected, atol=CLOSE, rtol=0)
    assert device.waits is None or (set(device.waits) == {"cpu"} and device.waits["cpu"] <= 2)
    assert cache.stats["replays"] == 1
