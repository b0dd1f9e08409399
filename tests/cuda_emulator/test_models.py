"""The library on ``device="cuda"`` answers as it does on the CPU.

Three devices: a second device that only checks where tensors are; the same with the CUDA kernels on
the emulator; and a GPU where one is.
"""

import copy
import functools
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

import pylum
from pylum import ItemIndex, UserCache, generate
from pylum.data import Interactions
from pylum.knowledge import query
from pylum.train.objective import Objective
from pylum.train.ranking import RankingObjective
from tests.cuda_emulator.emulated import Emulated, emulating
from tests.model import hstu_world
from tests.model.world import ITEMS, make_events, make_model
from tests.second_device import CUDA, SecondDevice
from tests.serving import test_hstu
from tests.serving.worlds import SCENES, data, event, history, item_table, model
from tests.tolerance import MODEL

CLOSE = MODEL[torch.float32]
ASK = {"scene": SCENES}
LENGTHS = [0, 3, 33, 64, 70]

DEVICES = ["second", "emulated"]
if torch.cuda.is_available():
    DEVICES.append(pytest.param("gpu", marks=pytest.mark.cuda))


@pytest.fixture(scope="module", params=DEVICES)
def device(request):
    """What the library may do on a GPU; its ``waits`` are None on one."""
    if request.param == "gpu":
        yield type("Gpu", (), {"waits": None, "pages_are_of_cuda": True})()
        return
    kernels = nullcontext()
    if request.param == "emulated":
        kernels = emulating(Emulated(request.getfixturevalue("emulated_module"), pylum._C))
    with kernels as running, SecondDevice() as second:
        second.pages_are_of_cuda = running is not None
        yield second
    assert running is None or running.calls, "no test of this module ran a CUDA kernel"


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
        pytest.param({"candidates": [["i1", "i2"], ["i3"], [], ["i9"], ["i4"]]}, id="own"),
        pytest.param({"k": 0}, id="embeddings"),
        pytest.param({"query_time": 1_800_000_000}, id="time"),
        pytest.param({"batch_tokens": 64}, id="batches"),
    ],
)
def test_generate(device, options):
    mine, theirs = pair()
    assert theirs.device == CUDA and theirs.user_encoder.cos.device == CUDA
    same(generate(theirs, histories(), ASK, **options), generate(mine, histories(), ASK, **options))


@pytest.mark.parametrize("overflow", ["rebuild", "sliding"])
def test_user_cache(device, overflow, tmp_path):
    if overflow == "sliding" and not device.pages_are_of_cuda:
        pytest.skip("sliding reads pages in the order of a GPU's kernels")
    mine, theirs = pair(window_step=8)
    caches = [UserCache(made, 4096, overflow=overflow) for made in (mine, theirs)]
    more = [[event(n, 1_700_100_000 + n)] for n in range(len(LENGTHS))]
    for turn in range(3):
        answers = []
        for made, cache in zip((mine, theirs), caches, strict=True):
            if turn == 2:
                assert not cache.append(list(histories()), more)
            given = histories() if turn < 2 else list(histories())
            answers.append(generate(made, given, ASK, cache=cache))
        same(answers[1], answers[0])
        assert answers[1].stats == answers[0].stats
    if device.pages_are_of_cuda:
        caches[1].save(tmp_path / "cache")
        loaded = UserCache.load(tmp_path / "cache", theirs)
        same(generate(theirs, list(histories()), ASK, cache=loaded), answers[0])
        assert loaded.stats["tokens_reused"] == loaded.stats["tokens"]


def test_users_without_room_and_another_device(device):
    mine, theirs = pair()
    cache = UserCache(theirs, 256)
    same(generate(theirs, histories(), ASK, cache=cache), generate(mine, histories(), ASK))
    assert cache.stats["bypassed"]
    with pytest.raises(ValueError, match="cache must be on the device of its model"):
        generate(mine, histories(), ASK, cache=cache)


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


@pytest.mark.parametrize("at", ["end", "each"])
def test_query(device, at, tmp_path):
    mine, theirs = pair(max_length=16)
    few = data().histories(["u1", "u2", "u3"])
    expected = query(mine, few, ASK, at=at)
    for out in (None, tmp_path / at):
        found = query(theirs, few, ASK, at=at, out=out)
        torch.testing.assert_close(found.vectors, expected.vectors, atol=CLOSE, rtol=0)
        torch.testing.assert_close(found.item_vectors, expected.item_vectors, atol=CLOSE, rtol=0)


def test_item_index(device):
    mine, theirs = pair()
    found = []
    for made in (mine, theirs):
        index = ItemIndex(made, [f"i{n}" for n in range(30)])
        index.add(item_table(range(70, 74)))
        queries = generate(made, histories(), ASK, k=0)
        found.append(index.topk(queries, 5, exclude=[["i1", "i2"]] * len(queries)))
    assert found[1][1].device.type == "cpu"
    torch.testing.assert_close(found[1][1], found[0][1], atol=CLOSE, rtol=0)


def test_evaluate(device):
    mine, theirs = pair()
    test = data().split("loo-full")[2]
    reports = [pylum.evaluate(made, test, samples=10) for made in (mine, theirs)]
    assert reports[1].values["LUM"]["HR@10"].value == reports[0].values["LUM"]["HR@10"].value


@pytest.mark.parametrize("negatives", ["full", "in_batch", 7])
@pytest.mark.parametrize("changes", [{}, {"any_targets": True}], ids=["plain", "any"])
def test_loss_and_gradients(device, negatives, changes):
    events = make_events([6, 0, 11, 1])
    events = replace(events, targets=torch.arange(18) % 3 != 1)
    mine = make_model(id_dropout=0.0, any_dropout=0.0, **changes).train()
    theirs = there(mine)
    objective = Objective.of(negatives, events, ITEMS)
    losses = []
    for made in (mine, theirs):
        torch.manual_seed(3)
        losses.append(objective.loss(made, events.to(made.device)))
        losses[-1].backward()
    if negatives == "full" or device.waits is not None:
        torch.testing.assert_close(losses[1].detach().cpu(), losses[0].detach(), rtol=CLOSE, atol=0)
        assert losses[1].device == CUDA
    grads = dict(theirs.named_parameters())
    for name, p in mine.named_parameters():
        assert (p.grad is None) == (grads[name].grad is None), name
        if p.grad is None or not (negatives == "full" or device.waits is not None):
            continue
        error = (grads[name].grad.cpu() - p.grad).norm() / p.grad.norm().clamp_min(1e-3)
        assert error < 10 * CLOSE, name


def test_hstu_retrieval(device):
    mine = test_hstu.model()
    theirs = there(mine)
    expected = generate(mine, histories())
    same(generate(theirs, histories()), expected)
    cache = UserCache(theirs, 4096)
    for _ in range(2):
        same(generate(theirs, histories(), cache=cache), expected)
