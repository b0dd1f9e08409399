"""What is asked of models on the device is answered as on the CPU."""

import copy

import pytest
import torch

import pylum
from pylum import LUM, Interactions, ItemIndex, LUMConfig, Ragged, UserCache, generate, score
from pylum.knowledge import query
from tests.cuda_emulator.library.worlds import ASK, CLOSE, histories, pair, same, there
from tests.second_device import CUDA
from tests.serving import test_hstu, test_score
from tests.serving.worlds import SCENES, data, history, item_table, model
from tests.tolerance import MODEL

SHORT = {f"u{n}": history(n, seed=n) for n in (0, 5, 33)}


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


@pytest.mark.parametrize(
    ("make", "ask"),
    [
        pytest.param(
            model,
            lambda made, **more: generate(made, SHORT, ASK, k=0, **more).embeddings,
            id="lum",
        ),
        pytest.param(
            test_hstu.model,
            lambda made, **more: generate(made, SHORT, k=0, **more).embeddings,
            id="hstu",
        ),
        pytest.param(
            lambda: test_score.model(layers=1),
            lambda made, **more: score(made, SHORT, ["i1", "i2"], **more).values,
            id="ranking",
        ),
    ],
)
def test_float16(device, make, ask):
    """As in float32, whole and cached; the host has no kernels for it and says so."""
    with device.host():
        expected = ask(make())
        with pytest.raises(TypeError, match=r"must be float32 or bfloat16, got .* float16"):
            ask(copy.deepcopy(make()).half())
    if not device.pages_are_of_cuda:
        return
    theirs = there(copy.deepcopy(make()).half())
    cache = UserCache(theirs, 4096)
    for more in ({}, {"cache": cache}, {"cache": cache}):
        found = ask(theirs, **more)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, atol=MODEL[torch.float16], rtol=0)
    assert cache.stats["replays"] == 1


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


def numbered():
    return Interactions.from_arrays([1, 1, 2, 2], [10, 11, 12, 10], [1, 2, 3, 4])


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(lambda there: {"candidates": there([10, 11])}, id="shared"),
        pytest.param(
            lambda there: {"candidates": Ragged(there([10, 11]), there([0, 1, 2]))}, id="own"
        ),
        pytest.param(lambda there: {"candidates": [there([10, 12]), there([11])]}, id="lists"),
        pytest.param(
            lambda there: {"exclude": Ragged([10, 11, 12], there([0, 1, 3]))}, id="exclude"
        ),
        pytest.param(lambda there: {"query_time": there([7, 8])}, id="times"),
        pytest.param(lambda there: {"query_time": there(9)}, id="time"),
    ],
)
def test_arguments_on_the_device(device, options):
    """Ids and times are read on the host: who has them on the device need not copy them."""
    data = numbered()
    made = LUM(LUMConfig(dim=8, query_time=True), data.schema, data.vocabs, data.items).eval()
    theirs = there(made)
    with device.host():
        expected = generate(made, data.histories(), **options(torch.tensor))
    found = generate(theirs, data.histories(), **options(lambda x: torch.tensor(x).to("cuda")))
    same(found, expected)
    assert found.items.tolist() == expected.items.tolist()


def test_data_on_the_device(device):
    columns = [torch.tensor(x).to("cuda") for x in ([1, 1, 2, 2], [10, 11, 12, 10], [1, 2, 3, 4])]
    assert Interactions.from_arrays(*columns).fingerprint == numbered().fingerprint
