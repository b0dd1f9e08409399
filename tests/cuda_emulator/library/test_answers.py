"""What is asked of models on the device is answered as on the CPU."""

import pytest
import torch

import pylum
from pylum import ItemIndex, UserCache, generate
from pylum.knowledge import query
from tests.cuda_emulator.library.worlds import ASK, CLOSE, histories, pair, same, there
from tests.second_device import CUDA
from tests.serving.worlds import SCENES, data, item_table


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="all"),
        pytest.param({"candidates": [f"i{n}" for n in range(0, 50, 3)]}, id="shared"),
        pytest.param({"candidates": [["i1", "i2"], ["i3"], [], ["i9"]]}, id="own"),
        pytest.param({"k": 0}, id="embeddings"),
        pytest.param({"query_time": 1_800_000_000}, id="time"),
        pytest.param({"batch_tokens": 64}, id="batches"),
    ],
)
def test_generate(device, options):
    mine, theirs = pair()
    assert theirs.device == CUDA and theirs.user_encoder.cos.device == CUDA
    with device.host():
        expected = generate(mine, histories(), ASK, **options)
    same(generate(theirs, histories(), ASK, **options), expected)


def test_grouped_is_alone_and_the_cache_changes_nothing(device):
    _, theirs = pair()
    grouped = generate(theirs, histories(), ASK)
    for scene, n in zip(SCENES, range(3), strict=True):
        alone = generate(theirs, histories(), {"scene": [scene]}, k=0)
        torch.testing.assert_close(alone.embeddings, grouped.embeddings[n::3], atol=CLOSE, rtol=0)
    cache = UserCache(theirs, 4096)
    for _ in range(2):
        same(generate(theirs, histories(), ASK, cache=cache), grouped)


@pytest.mark.parametrize("at", ["end", "each"])
def test_query(device, at, tmp_path):
    mine, theirs = pair(max_length=16)
    few = data().histories(["u1", "u2"])
    with device.host():
        expected = query(mine, few, ASK, at=at)
    for out in (None, tmp_path / at) if at == "end" else (None,):
        found = query(theirs, few, ASK, at=at, out=out)
        torch.testing.assert_close(found.vectors, expected.vectors, atol=CLOSE, rtol=0)
        torch.testing.assert_close(found.item_vectors, expected.item_vectors, atol=CLOSE, rtol=0)


def test_item_index(device):
    mine, theirs = pair()
    queries = torch.nn.functional.normalize(torch.randn(6, mine.dim), dim=1)

    def best(made):
        index = ItemIndex(made, [f"i{n}" for n in range(30)])
        index.add(item_table(range(70, 74)))
        return index.topk(queries, 5, exclude=[["i1", "i2"]] * len(queries))

    with device.host():
        items, scores = best(mine)
    found, there = best(theirs)
    assert there.device.type == "cpu" and found.tolist() == items.tolist()
    torch.testing.assert_close(there, scores, atol=CLOSE, rtol=0)


def test_items_added_to_what_lies_elsewhere(device):
    """Knowledge is on the host, and an index stays where it was made."""
    mine, theirs = pair(max_length=16)
    more = item_table(range(70, 74))
    few = data().histories(["u1"])
    grown = query(theirs, few, ASK).with_items(theirs, more)
    with device.host():
        expected = query(mine, few, ASK).with_items(mine, more)
    torch.testing.assert_close(grown.item_vectors, expected.item_vectors, atol=CLOSE, rtol=0)
    moves = there(mine)
    index = ItemIndex(moves, ["i1", "i2"])
    moves.to("cpu")
    with device.host():
        index.add(more)
    assert index.vectors.device == CUDA
    queries = expected.item_vectors[-2:]
    assert index.topk(queries, 1)[0].tolist() == [["i72"], ["i73"]]


def test_evaluate(device):
    mine, theirs = pair()
    test = data(users=4).split("loo-full")[2]
    with device.host():
        expected = pylum.evaluate(mine, test, samples=10)
    assert pylum.evaluate(theirs, test, samples=10).values == expected.values
