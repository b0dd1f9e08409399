"""The cache on the device, and users who leave it for the host."""

from collections import Counter

import pytest
import torch

from pylum import UserCache, generate
from tests.cuda_emulator.library.worlds import ASK, LENGTHS, histories, pair, same
from tests.serving.worlds import event


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


def test_saved_on_one_device_and_loaded_on_the_other(device, tmp_path):
    """Keys and values are saved in one order, which is no device's own."""
    if not device.pages_are_of_cuda:
        pytest.skip("pages are written in the host's order")
    mine, theirs = pair()
    few = {user: events for user, events in histories().items() if user != "u70"}
    cache = UserCache(theirs, 4096)
    expected = generate(theirs, few, ASK, cache=cache)
    cache.save(tmp_path / "cache")
    with device.host():
        here = UserCache.load(tmp_path / "cache", mine)
        same(generate(mine, list(few), ASK, cache=here), expected)
        assert here.stats["tokens_reused"] == here.stats["tokens"] == cache.stats["tokens"]
        here.save(tmp_path / "cache")
    again = UserCache.load(tmp_path / "cache", theirs)
    assert torch.equal(
        generate(theirs, list(few), ASK, cache=again).embeddings,
        generate(theirs, list(few), ASK, cache=cache).embeddings,
    )


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
