"""Copies between the device and the host: which, when, in what order, and those that fail."""

import random
import threading

import pytest
import torch

from pylum import UserCache, generate
from tests.serving.late_lanes import LateLanes
from tests.serving.test_offload import ASK, CLOSE, PAGE, filled, sound
from tests.serving.worlds import history, model


def test_only_what_is_reused_is_copied(monkeypatch):
    cache, histories = filled()
    loaded = []
    load = cache._host._load
    monkeypatch.setattr(
        cache._host, "_load", lambda rows, pages: (loaded.extend(rows), load(rows, pages))
    )
    changed = [*histories["u0"][:40], {**histories["u0"][40], "hour": 0.5}, *histories["u0"][41:]]
    out = generate(model(), {"u0": changed}, ASK, cache=cache)
    assert out.stats["tokens_reused"] == 64 and len(loaded) == 1
    loaded.clear()
    generate(model(), {"u1": history(64, seed=99)}, ASK, cache=cache)
    assert not loaded and cache.stats["host_users"] == 2


def test_prefetch_moves_before_the_call():
    cache, _ = filled()
    cache.prefetch(["u0", "nobody", "u0", "u2"])
    # Of those on the device u3 was of the last call, and u2 is wanted: there is no room.
    assert cache.stats["resumes"] == 0
    cache.prefetch(["u0", "u0"])
    assert [user for user, entry in cache._entries.items() if entry.rows] == ["u1", "u2"]
    counts = cache.stats
    assert counts["resumes"] == 1 and counts["offloads"] == 3
    out = generate(model(), ["u0"], ASK, cache=cache)
    assert out.stats["tokens_computed"] == 3
    assert all(cache.stats[name] == counts[name] for name in ("resumes", "offloads"))


def test_batches_prefetch_the_next(monkeypatch):
    cache, histories = filled(users=6, host=16)
    asked = []
    monkeypatch.setattr(cache, "prefetch", lambda users: asked.append(list(users)))
    found = generate(model(), histories, ASK, cache=cache, batch_tokens=2 * 131)
    assert asked == [["u2", "u3"], ["u4", "u5"]]
    close = generate(model(), histories, ASK)
    torch.testing.assert_close(found.embeddings, close.embeddings, atol=CLOSE, rtol=0)


def test_a_failed_copy_promises_nothing(monkeypatch):
    for name in ("_gather", "_store", "_load"):
        cache, histories = filled()

        def fail(*args):
            raise RuntimeError("out of memory")

        with monkeypatch.context() as patch:
            patch.setattr(cache._host, name, fail)
            with pytest.raises(RuntimeError, match="out of memory"):
                generate(model(), {"u0": histories["u0"]}, ASK, cache=cache)
        sound(cache)
        again = generate(model(), histories, ASK, cache=cache)
        expected = generate(model(), histories, ASK)
        torch.testing.assert_close(again.embeddings, expected.embeddings, atol=CLOSE, rtol=0)
        sound(cache)


def test_threads_take_turns():
    cache = UserCache(model(), 3 * PAGE, host_tokens=5 * PAGE)
    expected = {i: generate(model(), {f"u{i}": history(50, i)}, ASK) for i in range(5)}
    failures = []

    def work(number):
        rng = random.Random(number)
        try:
            for _ in range(12):
                i = rng.randrange(5)
                if rng.random() < 0.3:
                    cache.prefetch([f"u{rng.randrange(5)}"])
                out = generate(model(), {f"u{i}": history(50, i)}, ASK, cache=cache)
                torch.testing.assert_close(
                    out.embeddings, expected[i].embeddings, atol=CLOSE, rtol=0
                )
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    sound(cache)


@pytest.mark.parametrize("forgets", ["idle", "_gathered", "_loaded", "stored"])
def test_a_forgotten_mark_is_noticed(forgets, monkeypatch):
    """What the lanes of these tests are for: without an order of copies, they report it."""
    histories = {f"u{i}": history(64, seed=i) for i in range(5)}

    def turns(seed):
        cache = UserCache(model(), 4 * PAGE, host_tokens=12 * PAGE)
        LateLanes(cache, seed)
        host = cache._host
        if forgets == "idle":
            monkeypatch.setattr(host, "idle", lambda: None)
        elif forgets == "stored":
            come = host.come
            monkeypatch.setattr(host, "come", lambda rows, pages, stored: come(rows, pages))
        else:
            nothing = property(lambda _: [], lambda *_: None)
            monkeypatch.setattr(type(host), forgets, nothing, raising=False)
        for n in range(16):
            user = f"u{(n * 3 + n // 5) % 5}"
            cache.prefetch([f"u{n % 5}"])
            if n % 4 == 3:
                # Room on the device for who left last.
                cache.invalidate(list(cache._entries)[-1:])
                cache.prefetch([u for u, entry in cache._entries.items() if entry.rows][-1:])
            generate(model(), {user: histories[user]}, ASK, cache=cache)

    with pytest.raises(AssertionError, match="meet on"):
        for seed in range(3):
            turns(seed)


def test_slabs_and_runs():
    """Rows in several slabs, side by side and scattered."""
    cache = UserCache(model(), 6 * PAGE, host_tokens=10 * PAGE)
    host = cache._host
    whole = host._slabs[0]
    host._slab_pages, host._slabs = 4, [whole[:4], whole[4:8], whole[8:]]
    rows = [2, 3, 4, 5, 9, 0]
    runs = [(at, len(slab)) for at, slab in host._runs(rows)]
    assert runs == [(0, 2), (2, 2), (4, 1), (5, 1)]
    for slab in host._flat:
        slab.copy_(torch.rand(slab.shape))
    before = [slab.clone() for slab in host._flat]
    stored = host.leave([5, 4, 3, 2, 1, 0], rows)
    for slab in host._flat:
        slab.fill_(torch.nan)
    host.come(rows, [5, 4, 3, 2, 1, 0], [stored])
    assert all(torch.equal(a, b) for a, b in zip(before, host._flat, strict=True))
