"""A caller whose new tensors are made elsewhere: data is read and packed on the host as ever."""

from contextlib import contextmanager

import pytest
import torch

import pylum
from pylum import ItemIndex, UserCache, generate, generate_batches, pretrain, query, score
from tests.serving import test_hstu, test_score
from tests.serving.worlds import SCENES, data, event, history, model
from tests.train.chains import make_data

ASK = {"scene": SCENES}
SMALL = pylum.LUMConfig(dim=16, layers=1, max_length=8)


@contextmanager
def elsewhere():
    """Tensors without a device hold no values: whoever needs them fails."""
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


def histories():
    return {f"u{n}": history(n, seed=n) for n in (0, 5, 33)}


def cached(tmp_path):
    cache = UserCache(model(), 128, host_tokens=256)
    generate(model(), histories(), ASK, cache=cache)
    assert not cache.append(["u5"], [[event(3, 1_800_000_000)]])
    cache.save(tmp_path / "cache")
    cache = UserCache.load(tmp_path / "cache", model())
    return generate(model(), list(histories()), ASK, cache=cache).embeddings


def batches(tmp_path):
    parts = list(generate_batches(model(), histories(), ASK, batch_tokens=32))
    assert len(parts) == 2
    return torch.cat([part.scores for part in parts])


def trained(tmp_path):
    train, valid, _ = make_data(users=12).split("loo-full")
    made = pretrain(SMALL, train, valid=valid, epochs=1, progress=False)
    made.save_pretrained(tmp_path / "model")
    return pylum.LUM.from_pretrained(tmp_path / "model").item_vectors().detach()


def evaluated(tmp_path):
    report = pylum.evaluate(model(), data().split("loo-full")[2], samples=5)
    return {who: {n: x.value for n, x in row.items()} for who, row in report.values.items()}


def known(tmp_path):
    knowledge = query(model(), data().histories(["u1"]), ASK)
    items, scores = ItemIndex(model(), ["i1", "i2"]).topk(knowledge.vectors[0], 2)
    assert set(items[0]) == {"i1", "i2"}
    return scores


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda _: generate(model(), histories(), ASK).scores, id="generate"),
        pytest.param(lambda _: generate(test_hstu.model(), histories()).scores, id="hstu"),
        pytest.param(lambda _: score(test_score.model(), histories(), ["i1"]).values, id="score"),
        pytest.param(batches, id="batches"),
        pytest.param(cached, id="cached"),
        pytest.param(trained, id="trained"),
        pytest.param(evaluated, id="evaluated"),
        pytest.param(known, id="known"),
    ],
)
def test_a_default_device_changes_no_number(call, tmp_path):
    for make in (model, test_hstu.model, test_score.model, data):
        make()
    expected = call(tmp_path)
    with elsewhere():
        found = call(tmp_path)
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


def test_queries_that_are_not_contiguous():
    index = ItemIndex(model(), ["i1", "i2", "i3"])
    queries = torch.randn(model().dim, 4).T
    assert index.topk(queries, 2)[0].tolist() == index.topk(queries.clone(
        memory_format=torch.contiguous_format
    ), 2)[0].tolist()  # fmt: skip
