"""Warm questions as CUDA graphs: what they wait for, and what is promised of their bits."""

import copy
from collections import Counter

import pytest
import torch

from pylum import UserCache, generate, score
from tests.cuda_emulator.library.worlds import ASK, histories, pair, there
from tests.serving import test_hstu, test_score
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


def scenes(made, users, count, cache):
    return generate(made, users, {"scene": (SCENES * 4)[:count]}, cache=cache).embeddings


def next_items(made, users, count, cache):
    """``count`` users, those given first."""
    users = [*users, *(f"v{n}" for n in range(count - len(users)))]
    return generate(made, users, cache=cache).embeddings


def candidates(made, users, count, cache):
    shown = [[f"i{n}" for n in range(count)], *([f"i{n}"] for n in range(len(users) - 1))]
    return score(made, users, shown, cache=cache).values


@pytest.mark.parametrize(
    ("make", "ask"),
    [
        pytest.param(model, scenes, id="lum"),
        pytest.param(test_hstu.model, next_items, id="hstu"),
        pytest.param(lambda: test_hstu.model(variant="production"), next_items, id="production"),
        pytest.param(lambda: test_score.model(layers=1), candidates, id="ranking"),
    ],
)
def test_what_is_promised_of_bits(device, make, ask):
    """The promises of :mod:`pylum.cache.warm`, one by one."""
    theirs = there(make())
    everyone = {"a": history(14, 1), "b": history(5, 2)}
    if ask is next_items:
        everyone |= {f"v{n}": history(n // 3, n) for n in range(7)}
    graphs, plain = UserCache(theirs, 4096), UserCache(theirs, 4096, graphs=False)
    for cache in (graphs, plain):
        if ask is candidates:
            score(theirs, everyone, ["i1"], cache=cache)
        else:
            generate(theirs, everyone, ASK if ask is scenes else None, cache=cache)
    # Eight rows fill a size: the same kernels on the same shapes.
    full = ask(theirs, ["a"], 8, graphs)
    assert torch.equal(full, ask(theirs, ["a"], 8, plain))
    assert graphs.stats["replays"] == 1
    (recording,) = graphs._warm._recordings.values()
    tokens = recording.x.clone() if ask is candidates else None
    # Among calls of one size, whoever else is asked and however many rows are padding.
    fewer = ask(theirs, ["a"], 7, graphs)
    with torch.inference_mode():
        assert torch.equal(recording.work()[:7].cpu(), fewer)
        if tokens is not None:
            # Items have features: the tokens of seven are looked up by another product.
            assert (recording.x - tokens).abs().max() < MODEL[torch.float32]
            recording.x[:-1] = tokens[:-1]
            fewer = recording.work()[:7].cpu()
    rows = 1 if ask is next_items else 7
    assert torch.equal(fewer[:rows], full[:rows])
    if ask is next_items:
        assert torch.equal(ask(theirs, ["a", "b"], 8, graphs)[:1], full[:1])
    assert graphs.stats["recordings"] == 1
