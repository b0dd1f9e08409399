"""Users who wait in the host's memory: answers, counts and pages are those of a larger device."""

import random
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pylum import UserCache, generate, score
from tests.serving import test_hstu, test_score
from tests.serving.late_lanes import LateLanes
from tests.serving.worlds import SCENES, event, history, model
from tests.tolerance import MODEL

CLOSE = MODEL[torch.float32]
ASK = {"scene": SCENES}
PAGE = 64


def bfloat16():
    return model(kv_heads=1, query_time=False).bfloat16().eval()


MODELS = {
    "lum": (model, {}),
    "bfloat16": (bfloat16, {}),
    "sliding": (lambda: model(max_length=40, window_step=4), {"overflow": "sliding"}),
    "hstu": (lambda: test_hstu.model(variant="production", context=("scene",)), {}),
}


def ask(name, made, histories, cache):
    return generate(made, histories, None if name == "hstu" else ASK, cache=cache, k=3)


def sound(cache):
    """Every page and row is free or one user's, and nobody is in both places."""
    for pages, of in ((cache._pool, lambda e: e.pages), (cache._host, lambda e: e.rows)):
        used = [page for entry in cache._entries.values() for page in of(entry)]
        assert sorted([*pages._freed, *used]) == list(range(pages._used))
        assert pages.free + len(used) == pages.pages
    for entry in cache._entries.values():
        assert not (entry.pages and entry.rows)
        if entry.rows:
            assert len(entry.rows) == cache._pool.pages_of(entry.behaviours)


def interrupted(made, call, when):
    """Makes a call that is cancelled at the ``when``-th layer, if it gets so far."""
    layers = getattr(made, "layers", None) or made.user_encoder.blocks
    name = "forward" if hasattr(made, "layers") else "feed_forward"
    cls, layer = type(layers[0]), layers[min(when, len(layers) - 1)]
    before = getattr(cls, name)

    def cancel(self, *args, **kwargs):
        if self is layer:
            raise KeyboardInterrupt
        return before(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cls, name, cancel)
        with pytest.raises(KeyboardInterrupt):
            call()


def extended(mine, rng):
    last = mine[-1]["time"] if mine else 1_700_000_000
    return [event(rng.randrange(60), last + 1 + i) for i in range(rng.randrange(1, 20))]


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_any_interleaving_equals_a_device_with_room_for_all(name, seed):
    """To the bit, with copies that run as late as marks allow and pages that must not race."""
    rng = random.Random(seed)
    make, options = MODELS[name]
    made = make()
    small = UserCache(made, 8 * PAGE, host_tokens=64 * PAGE, **options)
    large = UserCache(made, 128 * PAGE, **options)
    late = LateLanes(small, seed)
    small._host._staged_pages = rng.choice([1, 2, 100])
    histories = {f"u{i}": history(rng.randrange(2, 60), seed=i) for i in range(8)}
    for _ in range(14):
        users = rng.sample(sorted(histories), rng.randrange(1, 3))
        kind = rng.choice(
            ["ask", "ask", "ask", "append", "edit", "delete", "cancel", "prefetch", "forget"]
        )
        if kind == "append":
            held = [user for user in users if user in large]
            new = [extended(histories[user], rng) for user in held]
            for cache in (small, large):
                assert not cache.append(held, new)
            histories |= {u: histories[u] + n for u, n in zip(held, new, strict=True)}
            continue
        if kind == "prefetch":
            small.prefetch(users)
            continue
        if kind == "forget":
            for cache in (small, large):
                cache.invalidate(users[:1])
            continue
        for user in users:
            mine = histories[user]
            if not mine:
                histories[user] = extended(mine, rng)
            elif kind == "edit":
                at = rng.randrange(len(mine))
                histories[user] = [*mine[:at], {**mine[at], "scene": "cart"}, *mine[at + 1 :]]
            elif kind == "delete" and len(mine) > 1:
                at = rng.randrange(len(mine))
                histories[user] = mine[:at] + mine[at + 1 :]
            elif kind == "cancel":
                histories[user] = mine + extended(mine, rng)
        chosen = {user: histories[user] for user in users}
        if kind == "cancel":
            layer = rng.randrange(2)
            for cache in (small, large):
                interrupted(made, partial(ask, name, made, chosen, cache), layer)
        found, expected = (ask(name, made, chosen, cache) for cache in (small, large))
        assert torch.equal(found.embeddings, expected.embeddings)
        assert found.stats == expected.stats
        sound(small)
    counts, theirs = small.stats, large.stats
    assert counts["evictions"] == counts["bypassed"] == 0 == theirs["evictions"]
    for count in ("users", "tokens", "tokens_computed", "tokens_reused", "hits", "slides"):
        assert counts[count] == theirs[count], count
    assert late.ran or not counts["offloads"]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_tiny_rooms_answer_all_the_same(seed):
    """Users who fit nowhere, are dropped from the host, or fill the device alone."""
    rng = random.Random(seed)
    cache = UserCache(model(), PAGE * rng.randrange(1, 4), host_tokens=PAGE * rng.randrange(4))
    late = LateLanes(cache, seed)
    cache._host._staged_pages = rng.choice([1, 100])
    for _ in range(6):
        chosen = {
            f"u{i}": history(rng.choice([0, 1, 31, 32, 33, 64, 80]), seed=i)
            for i in rng.sample(range(5), rng.randrange(1, 4))
        }
        if rng.random() < 0.3:
            cache.prefetch(chosen)
        found, expected = (generate(model(), chosen, ASK, cache=c, k=3) for c in (cache, None))
        torch.testing.assert_close(found.embeddings, expected.embeddings, atol=CLOSE, rtol=0)
        sound(cache)
    assert late.ran or not cache.stats["offloads"]


def filled(users=4, device=4, host=8, made=None, **options):
    """Users of two pages each, asked in their order."""
    made = made or model()
    cache = UserCache(made, device * PAGE, host_tokens=host * PAGE, **options)
    histories = {f"u{i}": history(64, seed=i) for i in range(users)}
    for user, mine in histories.items():
        generate(made, {user: mine}, ASK, cache=cache)
    return cache, histories


def test_the_longest_unused_leave_and_come_back_uncomputed():
    cache, histories = filled()
    counts = cache.stats
    assert counts["offloads"] == counts["host_users"] == 2 and counts["resumes"] == 0
    assert counts["host_pages"] == 4 and counts["host_tokens"] == 256
    assert counts["tokens"] == 512 and counts["pages"] == counts["max_pages"] == 4
    assert [bool(e.rows) for e in cache._entries.values()] == [True, True, False, False]
    out = generate(model(), {"u0": histories["u0"]}, ASK, cache=cache)
    assert out.stats["tokens_reused"] == 128 and out.stats["tokens_computed"] == 3
    assert cache.stats["resumes"] == 1 and cache.stats["offloads"] == 3
    assert [u for u, e in cache._entries.items() if e.rows] == ["u1", "u2"]
    generate(model(), ["u1", "u2"], ASK, cache=cache)
    assert [u for u, e in cache._entries.items() if e.rows] == ["u3", "u0"]
    assert cache.stats["evictions"] == 0


def test_a_full_host_drops_the_longest_unused():
    cache, histories = filled(users=5, host=4)
    assert cache.stats["evictions"] == 1 and "u0" not in cache
    # One who comes back leaves room behind: after the first, nobody is dropped for another.
    for user in ("u1", "u2", "u3", "u4") * 2:
        if user in cache:
            out = generate(model(), {user: histories[user]}, ASK, cache=cache)
            assert out.stats["tokens_reused"] == 128
    assert cache.stats["evictions"] == 2 and len(cache) == 3
    sound(cache)


def test_a_call_takes_as_many_users_at_once_as_fit_the_device():
    cache, histories = filled(users=7, host=16)
    counts = cache.stats
    found = generate(model(), histories, ASK, cache=cache)
    assert found.stats["tokens_computed"] == 7 * 3  # the questions alone
    assert cache.stats["bypassed"] == counts["bypassed"] == 0
    close = generate(model(), histories, ASK)
    torch.testing.assert_close(found.embeddings, close.embeddings, atol=CLOSE, rtol=0)


def test_changed_weights_empty_both():
    mine = model(layers=1, dim=8)
    cache, _ = filled(made=mine)
    with torch.no_grad():
        mine.user_encoder.norm.mul_(1.5)
    cache.prefetch(["u0"])
    assert len(cache) == cache.stats["host_pages"] == cache.stats["pages"] == 0
    sound(cache)


@pytest.mark.parametrize("name", ["lum", "bfloat16", "hstu"])
def test_save_and_load(name, tmp_path):
    make, _ = MODELS[name]
    made = make()
    cache = UserCache(made, 4 * PAGE, host_tokens=16 * PAGE)
    LateLanes(cache, 1)
    histories = {f"u{i}": history(n, seed=i) for i, n in enumerate([60, 33, 0, 50, 5, 61])}
    for user, mine in histories.items():
        ask(name, made, {user: mine}, cache)
    large = UserCache(made, 64 * PAGE)
    for user, mine in histories.items():
        ask(name, made, {user: mine}, large)
    assert cache.stats["host_users"] > 1
    cache.save(tmp_path / "cache")
    for device, host in ((None, None), (64 * PAGE, 0), (4 * PAGE, 3 * PAGE), (3 * PAGE, 0)):
        again = UserCache.load(tmp_path / "cache", made, device, host)
        sound(again)
        users = list(again._entries)
        assert users == list(cache._entries)[-len(users) :]
        assert len(users) == len(cache) or device is not None
        for user in reversed(users):
            expected = ask(name, made, {user: histories[user]}, large)
            found = ask(name, made, {user: histories[user]}, again)
            assert torch.equal(found.embeddings, expected.embeddings)
            assert found.stats == expected.stats


def test_candidates_and_conditions_are_never_written():
    made = test_score.model()
    cache = UserCache(made, 4 * PAGE, host_tokens=16 * PAGE)
    histories = {f"u{i}": history(50, seed=i) for i in range(4)}
    for _ in range(2):
        for user, mine in histories.items():
            found = score(made, {user: mine}, ["i1", "i5"], cache=cache)
            expected = score(made, {user: mine}, ["i1", "i5"])
            torch.testing.assert_close(found.values, expected.values, atol=CLOSE, rtol=0)
    assert cache.stats["resumes"] and cache.stats["tokens"] == 4 * 100


def test_errors():
    with pytest.raises(ValueError, match=r"host_tokens must be 0 .* got 63"):
        UserCache(model(), 640, host_tokens=63)
    with pytest.raises(ValueError, match=r"host_tokens must be .* got -5"):
        UserCache(model(), 640, host_tokens=-5)
    with pytest.raises(MemoryError, match="host_tokens must fit the host's memory"):
        UserCache(model(), 640, host_tokens=1 << 55)
