"""The library on ``device="cuda"`` answers as it does on the CPU.

Three devices: a second device that only checks where tensors are; the same with the CUDA kernels on
the emulator; and a GPU where one is.
"""

import copy
import functools
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import pytest
import torch

import pylum
from pylum import ItemIndex, UserCache, generate, score
from pylum.cache import user_cache
from pylum.knowledge import query
from pylum.train.objective import Objective
from tests.cuda_emulator.emulated import Emulated, emulating
from tests.model.world import ITEMS, make_events, make_model
from tests.second_device import CUDA, SecondDevice
from tests.serving import test_hstu, test_score
from tests.serving.tape import Tape
from tests.serving.worlds import SCENES, data, event, history, item_table, model
from tests.tolerance import MODEL

CLOSE = MODEL[torch.float32]
ASK = {"scene": SCENES}
LENGTHS = [0, 3, 33, 70]

DEVICES = ["second", "emulated"]
if torch.cuda.is_available():
    DEVICES.append(pytest.param("gpu", marks=pytest.mark.cuda))


@dataclass
class Device:
    """What the library may do on a GPU.

    Args:
        host: a context in which ops on the CPU run on the CPU.
        waits: counts of a second device; None on a GPU.
        pages_are_of_cuda: whether pages are written by CUDA kernels.
    """

    host: Callable[[], AbstractContextManager[None]]
    waits: Counter[str] | None
    pages_are_of_cuda: bool


def tapes(device):
    return Tape if device.type == "cuda" else None


@pytest.fixture(scope="module", params=DEVICES)
def device(request):
    if request.param == "gpu":
        yield Device(nullcontext, None, True)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(user_cache, "graphs_of", tapes)
        if request.param == "second":
            with SecondDevice() as second:
                yield Device(nullcontext, second.waits, False)
            return
        emulated = Emulated(request.getfixturevalue("emulated_module"), pylum._C)
        with emulating(emulated), SecondDevice() as second:
            yield Device(emulated.resting, second.waits, True)
        assert emulated.calls, "no test of this module ran a CUDA kernel"


@functools.cache
def pair(**changes):
    """A model on the CPU and its copy on the device."""
    return model(**changes), there(model(**changes))


def there(made):
    return copy.deepcopy(made).to("cuda")


def histories():
    return {f"u{n}": history(n, seed=n) for n in LENGTHS}


def same(found, expected):
    torch.testing.assert_close(found.embeddings, expected.embeddings, atol=CLOSE, rtol=0)
    torch.testing.assert_close(found.scores, expected.scores, atol=CLOSE, rtol=0)
    assert found.users == expected.users


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


@pytest.mark.parametrize("overflow", ["rebuild", "sliding"])
def test_user_cache(device, overflow, tmp_path):
    if overflow == "sliding" and not device.pages_are_of_cuda:
        pytest.skip("sliding reads pages in the order of a GPU's kernels")
    mine, theirs = pair(window_step=8)
    more = [[event(n, 1_700_100_000 + n)] for n in range(len(LENGTHS))]

    def turns(made):
        cache = UserCache(made, 4096, overflow=overflow)
        cold = generate(made, histories(), ASK, cache=cache)
        warm = generate(made, list(histories()), ASK, cache=cache)
        assert not cache.append(list(histories()), more)
        return cache, [cold, warm, generate(made, list(histories()), ASK, cache=cache)]

    with device.host():
        _, expected = turns(mine)
    cache, found = turns(theirs)
    for mine_now, theirs_now in zip(expected, found, strict=True):
        same(theirs_now, mine_now)
        assert theirs_now.stats == mine_now.stats
    if device.pages_are_of_cuda:
        cache.save(tmp_path / "cache")
        loaded = UserCache.load(tmp_path / "cache", theirs)
        same(generate(theirs, list(histories()), ASK, cache=loaded), expected[-1])
        assert loaded.stats["tokens_reused"] == loaded.stats["tokens"]


def test_users_without_room_and_another_device(device):
    mine, theirs = pair()
    cache = UserCache(theirs, 256)
    with device.host():
        expected = generate(mine, histories(), ASK)
    same(generate(theirs, histories(), ASK, cache=cache), expected)
    assert cache.stats["bypassed"]
    with pytest.raises(ValueError, match="cache must be on the device of its model"):
        generate(mine, histories(), ASK, cache=cache)


def test_users_leave_for_the_host_and_come_back(device, tmp_path):
    """A device with room for one user answers as one with room for all, to the bit."""
    mine, theirs = pair()
    small, large = UserCache(theirs, 192, host_tokens=4096), UserCache(theirs, 4096)
    small._host._staged_pages = 2
    for _ in range(2):
        for user, events in histories().items():
            found, expected = (
                generate(theirs, {user: events}, ASK, cache=cache) for cache in (small, large)
            )
            assert torch.equal(found.embeddings, expected.embeddings)
            assert found.stats == expected.stats
    small.prefetch(["u33"])
    assert not small.append(["u33"], [[event(3, 1_700_100_000)]])
    whole = {"u33": [*histories()["u33"], event(3, 1_700_100_000)]}
    with device.host():
        expected = generate(mine, whole, ASK)
    same(generate(theirs, ["u33"], ASK, cache=small), expected)
    assert small.stats["resumes"] >= 3 and not small.stats["evictions"]
    if device.pages_are_of_cuda:
        small.save(tmp_path / "cache")
        loaded = UserCache.load(tmp_path / "cache", theirs, 192)
        assert loaded.stats["host_users"] == small.stats["host_users"] > 1
        for user, events in histories().items():
            whole.setdefault(user, events)
            with device.host():
                expected = generate(mine, {user: whole[user]}, ASK)
            same(generate(theirs, [user], ASK, cache=loaded), expected)
        assert loaded.stats["tokens_computed"] == 3 * len(whole)


def test_copies_wait_for_nothing(device):
    """The host queues what leaves and what comes back, and goes on."""
    _, theirs = pair()
    cache = UserCache(theirs, 192, host_tokens=4096)
    for user, events in histories().items():
        generate(theirs, {user: events}, ASK, cache=cache)
    if device.waits is None:
        pytest.skip("waits are counted without a GPU")
    device.waits.clear()
    cache.prefetch(["u33"])
    generate(theirs, {"u33": histories()["u33"]}, ASK, cache=cache)
    assert cache.stats["resumes"] == 1
    assert device.waits == Counter({"cpu": 3})


def test_grouped_is_alone_and_the_cache_changes_nothing(device):
    _, theirs = pair()
    grouped = generate(theirs, histories(), ASK)
    for scene, n in zip(SCENES, range(3), strict=True):
        alone = generate(theirs, histories(), {"scene": [scene]}, k=0)
        torch.testing.assert_close(alone.embeddings, grouped.embeddings[n::3], atol=CLOSE, rtol=0)
    cache = UserCache(theirs, 4096)
    for _ in range(2):
        same(generate(theirs, histories(), ASK, cache=cache), grouped)


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


def test_evaluate(device):
    mine, theirs = pair()
    test = data(users=4).split("loo-full")[2]
    with device.host():
        expected = pylum.evaluate(mine, test, samples=10)
    assert pylum.evaluate(theirs, test, samples=10).values == expected.values


@pytest.mark.parametrize("negatives", ["full", "in_batch", 7])
@pytest.mark.parametrize("changes", [{}, {"any_targets": True}], ids=["plain", "any"])
def test_loss_and_gradients(device, negatives, changes):
    events = make_events([6, 0, 11, 1])
    events = replace(events, targets=torch.arange(18) % 3 != 1)
    mine = make_model(id_dropout=0.0, any_dropout=0.0, **changes).train()
    theirs = there(mine)
    objective = Objective.of(negatives, events, ITEMS)
    # A GPU draws other numbers from one seed.
    drawn = negatives == "full" or device.waits is not None
    with device.host():
        torch.manual_seed(3)
        expected = objective.loss(mine, events)
        expected.backward()
    torch.manual_seed(3)
    loss = objective.loss(theirs, events.to(CUDA))
    loss.backward()
    assert loss.device == CUDA
    if drawn:
        torch.testing.assert_close(loss.detach().cpu(), expected.detach(), rtol=CLOSE, atol=0)
    grads = dict(theirs.named_parameters())
    for name, p in mine.named_parameters():
        assert (p.grad is None) == (grads[name].grad is None), name
        if p.grad is not None and drawn:
            error = (grads[name].grad.cpu() - p.grad).norm() / p.grad.norm().clamp_min(1e-3)
            assert error < CLOSE, name


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
