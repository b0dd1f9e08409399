"""Warm questions as CUDA graphs: what they wait for, and that they answer as their kernels do."""

import copy
from collections import Counter

import pytest
import torch

from pylum import UserCache, generate
from tests.cuda_emulator.library.worlds import ASK, histories, pair, there
from tests.serving.worlds import SCENES, history, model
from tests.tolerance import MODEL


def test_a_warm_question_waits_for_its_answers_only(device):
    """The host reads nothing back before the embeddings, scores and rows."""
    _, theirs = pair()
    cache = UserCache(theirs, 4096)
    generate(theirs, histories(), ASK, cache=cache)
    if device.waits is None:
        pytest.skip("waits are counted without a GPU")
    device.waits.clear()
    generate(theirs, histories(), ASK, cache=cache)
    # The fingerprint's version check reads no value: the weights have not changed.
    assert device.waits == Counter({"cpu": 3})
    device.waits.clear()
    generate(theirs, histories(), ASK, cache=cache)
    assert device.waits == Counter({"cpu": 3})
    assert cache.stats["recordings"] == 1 and cache.stats["replays"] == 2


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_graphs_answer_as_their_kernels_one_by_one(device, precision):
    """Every size, its padding, and pages that have moved to other places of the pool."""
    theirs = there(copy.deepcopy(model()).to(precision))
    close = MODEL[precision]
    graphs, plain = UserCache(theirs, 4096), UserCache(theirs, 4096, graphs=False)
    for cache in (graphs, plain):
        generate(theirs, histories(), ASK, cache=cache)
    calls = [
        (["u70"], {"scene": ["home"]}, None),
        (["u33", "u0", "u70"], {"scene": SCENES}, 1_800_000_000),
        (["u33", "u70"], {"scene": SCENES * 3}, None),
        (["u3", "u0", "u70"], {"scene": SCENES}, 1_900_000_000),
    ]
    for number, (users, asked, time) in enumerate([*calls, calls[0]]):
        if number == len(calls):
            for cache in (graphs, plain):
                cache.invalidate(["u70", "u3"])
                generate(theirs, {"u3": history(3, 3), "u70": history(70, 70)}, ASK, cache=cache)
        found, expected = (
            generate(theirs, users, asked, query_time=time, cache=cache)
            for cache in (graphs, plain)
        )
        torch.testing.assert_close(found.embeddings, expected.embeddings, atol=close, rtol=0)
        assert found.stats == expected.stats
    assert graphs.stats["replays"] == len(calls) + 1
    assert graphs.stats["recordings"] == 3 and not plain.stats["recordings"]
