"""The cache changes how much is computed, never what is answered."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pylum
from pylum import ANY, UserCache, generate
from tests.serving.worlds import SCENES, data, event, history, model
from tests.tolerance import MODEL

CLOSE = MODEL[torch.float32]
ASK = {"scene": SCENES}


def close(a, b):
    torch.testing.assert_close(a.embeddings, b.embeddings, atol=CLOSE, rtol=0)
    assert a.users == b.users
    assert a.items.tolist() == b.items.tolist() or (
        torch.testing.assert_close(a.scores, b.scores, atol=CLOSE, rtol=0) is None
    )


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 63, 64])
def test_cold_warm_and_uncached_agree(length):
    """Promise 2, at lengths around a page of 32 behaviours."""
    cache = UserCache(model(), 4096)
    histories = {"u": history(length)}
    plain = generate(model(), histories, ASK)
    cold = generate(model(), histories, ASK, cache=cache)
    warm = generate(model(), histories, ASK, cache=cache)
    close(cold, plain)
    close(warm, plain)
    assert cold.stats["tokens_reused"] == 0
    assert cold.stats["tokens_computed"] == plain.stats["tokens_computed"] == 2 * length + 3
    assert warm.stats["tokens_reused"] == 2 * length
    assert warm.stats["tokens_computed"] == 3


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_sequence_of_calls_equals_uncached(data):
    """Appends, edits, deletions and evictions, in a cache that is too small for all."""
    cache = UserCache(model(), data.draw(st.sampled_from([64, 192, 100_000])))
    events = {f"u{i}": history(data.draw(st.integers(0, 50)), seed=i) for i in range(3)}
    for _ in range(4):
        user = data.draw(st.sampled_from(sorted(events)))
        mine = events[user]
        kind = data.draw(st.sampled_from(["append", "edit", "delete", "late"]))
        last = mine[-1]["time"] if mine else 1_700_000_000
        if kind == "append":
            mine = mine + [event(data.draw(st.integers(0, 59)), last + 1 + i) for i in range(3)]
        elif mine and kind == "edit":
            at = data.draw(st.integers(0, len(mine) - 1))
            mine = [*mine[:at], {**mine[at], "scene": "cart", "rating": 1}, *mine[at + 1 :]]
        elif mine and kind == "delete":
            at = data.draw(st.integers(0, len(mine) - 1))
            mine = mine[:at] + mine[at + 1 :]
        elif mine:
            at = data.draw(st.integers(0, len(mine) - 1))
            mine = [*mine, event(3, mine[at]["time"], "search")]
        events[user] = mine
        asked = data.draw(st.lists(st.sampled_from([*SCENES, ANY]), max_size=3))
        chosen = {u: events[u] for u in events if data.draw(st.booleans())}
        close(
            generate(model(), chosen, {"scene": asked}, cache=cache, k=3),
            generate(model(), chosen, {"scene": asked}, k=3),
        )
        stats = cache.stats
        assert stats["pages"] <= stats["max_pages"]
        assert stats["pages"] == sum(-(-e.behaviours // 32) for e in cache._entries.values())


def test_conditions_and_candidates_are_never_written():
    """Promise 3: whatever is asked, the pages stay bitwise the same."""
    cache = UserCache(model(), 4096)
    generate(model(), {"u": history(40)}, {"scene": []}, cache=cache)
    before = [(k.clone(), v.clone()) for k, v in cache._pool.layers]
    pages = list(cache._entries["u"].pages)
    alone = generate(model(), {"u": history(40)}, {"scene": ["cart"]}, cache=cache)
    many = generate(
        model(),
        {"u": history(40)},
        {"scene": [*SCENES * 30, "cart"]},
        candidates=["i1", "i2"],
        cache=cache,
    )
    after = generate(model(), {"u": history(40)}, {"scene": ["cart"]}, cache=cache)
    for (k, v), (k2, v2) in zip(before, cache._pool.layers, strict=True):
        assert torch.equal(k[pages].nan_to_num(), k2[pages].nan_to_num())
        assert torch.equal(v[pages].nan_to_num(), v2[pages].nan_to_num())
    assert torch.equal(alone.embeddings, after.embeddings)
    assert many.stats["tokens_computed"] == 91
    assert cache.stats["tokens"] == 80


def test_appending_computes_only_what_is_new():
    """Promise 4, by passing the full history."""
    cache = UserCache(model(), 4096)
    for length, computed in ((40, 40), (41, 1), (45, 4), (45, 0)):
        out = generate(model(), {"u": history(60)[:length]}, ASK, cache=cache)
        assert out.stats["tokens_computed"] == 2 * computed + 3
        close(out, generate(model(), {"u": history(60)[:length]}, ASK))


def test_append_by_itself():
    """Promise 4, by cache.append: then a call needs the user's name only."""
    cache = UserCache(model(), 4096)
    generate(model(), {"u": history(60)[:40], "v": history(5, 1)}, ASK, cache=cache)
    before = cache.stats["tokens_computed"]
    missing = cache.append(["u", "w"], [history(60)[40:50], [event(1, 5)]])
    assert missing == ["w"]
    assert "w" not in cache
    assert cache.stats["tokens_computed"] - before == 20
    by_name = generate(model(), ["v", "u"], ASK, cache=cache)
    assert by_name.stats["tokens_computed"] == 6
    full = {"v": history(5, 1), "u": history(60)[:50]}
    close(by_name, generate(model(), full, ASK))
    warm = generate(model(), full, ASK, cache=cache)
    assert warm.stats["tokens_computed"] == 6
    with pytest.raises(ValueError, match="cache does not hold, got 'w' and 0 more"):
        generate(model(), ["u", "w"], ASK, cache=cache)


def test_changes_recompute_from_the_first_changed_page():
    events = history(60)
    edited = [*events[:40], {**events[40], "hour": 0.5}, *events[41:]]
    deleted = events[:40] + events[41:]
    late = [*events, event(0, events[40]["time"], "cart")]
    for changed in (edited, deleted, late):
        cache = UserCache(model(), 4096)
        generate(model(), {"u": events}, ASK, cache=cache)
        out = generate(model(), {"u": changed}, ASK, cache=cache)
        assert out.stats["tokens_reused"] == 64
        close(out, generate(model(), {"u": changed}, ASK))
    cache = UserCache(model(), 4096)
    generate(model(), {"u": events}, ASK, cache=cache)
    cache.append(["u"], [[event(0, events[40]["time"], "cart")]])
    close(generate(model(), ["u"], ASK, cache=cache), generate(model(), {"u": late}, ASK))


def test_same_user_other_history():
    """The id finds pages, the hash proves them: another history under one id is no hit."""
    cache = UserCache(model(), 4096)
    generate(model(), {"u": history(40)}, ASK, cache=cache)
    out = generate(model(), {"u": history(40, seed=9)}, ASK, cache=cache)
    assert out.stats["tokens_reused"] == 0
    close(out, generate(model(), {"u": history(40, seed=9)}, ASK))


def test_window_moves():
    """Overflow rebuilds, so answers stay those without a cache; a step makes that rare."""
    stepping = model(max_length=40, window_step=10)
    cache = UserCache(stepping, 4096)
    computed = []
    for length in range(38, 64):
        out = generate(stepping, {"u": history(64)[:length]}, ASK, cache=cache)
        close(out, generate(stepping, {"u": history(64)[:length]}, ASK))
        computed.append(out.stats["tokens_computed"] - 3)
    assert computed[1:3] == [2, 2]
    assert computed[3] == 2 * 31
    assert sum(c > 2 for c in computed[1:]) == 3


def test_sliding_is_opt_in_cheap_and_labelled():
    """The window drops its oldest behaviours: nothing is recomputed, answers are near."""
    narrow = model(max_length=40)
    cache = UserCache(narrow, 4096, overflow="sliding")
    generate(narrow, {"u": history(64)[:40]}, ASK, cache=cache)
    exact = generate(narrow, {"u": history(64)[:41]}, ASK)
    near = generate(narrow, {"u": history(64)[:41]}, ASK, cache=cache)
    assert near.stats["approximate_users"] == 1
    assert exact.stats["approximate_users"] == 0
    assert near.stats["tokens_computed"] == 5
    cosine = (near.embeddings * exact.embeddings).sum(1)
    assert (cosine > 0.95).all()
    assert (cosine < 1 - 1e-6).all()
    for length in (44, 44, 60):
        near = generate(narrow, {"u": history(64)[:length]}, ASK, cache=cache)
    assert near.stats["tokens_computed"] == 2 * 16 + 3
    assert near.stats["approximate_users"] == 1
    assert cache.stats["slides"] == 3
    again = generate(narrow, {"u": history(40, 5)}, ASK, cache=cache)
    assert again.stats["approximate_users"] == again.stats["tokens_reused"] == 0
    close(again, generate(narrow, {"u": history(40, 5)}, ASK))


def test_sliding_one_layer_is_exact():
    """Keys and values of the first layer depend on their own token only."""
    shallow = model(max_length=40, layers=1, query_time=False)
    cache = UserCache(shallow, 4096, overflow="sliding")
    for length in (40, 43, 64):
        out = generate(shallow, {"u": history(64)[:length]}, ASK, cache=cache)
        close(out, generate(shallow, {"u": history(64)[:length]}, ASK))
    assert cache.stats["slides"] == 2


def test_eviction_takes_who_was_asked_longest_ago():
    cache = UserCache(model(), 64 * 4)
    for user in ("a", "b"):
        generate(model(), {user: history(64)}, ASK, cache=cache)
    generate(model(), {"a": history(64)}, ASK, cache=cache)
    generate(model(), {"c": history(20)}, ASK, cache=cache)
    assert "a" in cache and "c" in cache and "b" not in cache
    assert cache.stats["evictions"] == 1


def test_users_without_room_are_answered_all_the_same():
    cache = UserCache(model(), 64)
    histories = {"a": history(20), "b": history(64), "c": history(30, 1)}
    out = generate(model(), histories, ASK, cache=cache)
    close(out, generate(model(), histories, ASK))
    assert cache.stats["bypassed"] == 2
    assert len(cache) == 1


def test_a_user_twice_in_one_call():
    cache = UserCache(model(), 4096)
    twice = data().histories(["u0", "u1", "u0"])
    out = generate(model(), twice, ASK, cache=cache)
    close(out, generate(model(), twice, ASK))


def test_changed_weights_empty_it():
    mine = model(layers=1, dim=8)
    cache = UserCache(mine, 4096)
    generate(mine, {"u": history(40)}, ASK, cache=cache)
    with torch.no_grad():
        mine.user_encoder.norm.mul_(1.5)
        mine.answer.weight.add_(0.1)
    out = generate(mine, {"u": history(40)}, ASK, cache=cache)
    assert out.stats["tokens_reused"] == 0
    assert cache.stats["resets"] == 1
    close(out, generate(mine, {"u": history(40)}, ASK))
    with pytest.raises(ValueError, match="cache must be of this model"):
        generate(model(), {"u": history(40)}, ASK, cache=cache)


def test_a_broken_history_moves_no_other():
    """Promise 8, in shared pages that a broken user held before."""
    cache = UserCache(model(), 64 * 3)
    bad = [{**each, "text": [1.0, float("nan"), float("inf")]} for each in history(64)]
    generate(model(), {"bad": bad}, ASK, cache=cache)
    fresh = UserCache(model(), 64 * 3)
    for users in ({"a": history(40)}, {"a": history(41)}):
        dirty = generate(model(), users, ASK, cache=cache)
        clean = generate(model(), users, ASK, cache=fresh)
        assert torch.equal(dirty.embeddings, clean.embeddings)
        assert not dirty.embeddings.isnan().any()


def test_threads_take_turns():
    cache = UserCache(model(), 64 * 5)
    expected = {i: generate(model(), {f"u{i}": history(50, i)}, ASK) for i in range(4)}
    failures = []

    def work(number):
        for turn in range(6):
            i = (number + turn) % 4
            try:
                close(generate(model(), {f"u{i}": history(50, i)}, ASK, cache=cache), expected[i])
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_invalidate():
    cache = UserCache(model(), 4096)
    generate(model(), {"a": history(40), "b": history(5), 3: []}, ASK, cache=cache)
    cache.invalidate(["a", "nobody"])
    assert "a" not in cache and "b" in cache and 3 in cache
    assert cache.stats["pages"] == 1
    cache.invalidate()
    assert len(cache) == cache.stats["pages"] == 0


def test_save_and_load(tmp_path):
    cache = UserCache(model(), 64 * 8)
    histories = {"a": history(40), "b": history(70, 1), 3: history(5, 2), "empty": []}
    generate(model(), histories, ASK, cache=cache)
    cache.save(tmp_path / "cache")
    cache.save(tmp_path / "cache")
    again = UserCache.load(tmp_path / "cache", model())
    assert again.max_tokens == cache.max_tokens
    out = generate(model(), histories, ASK, cache=again)
    assert out.stats["tokens_computed"] == 12
    close(out, generate(model(), histories, ASK))
    close(generate(model(), ["b"], ASK, cache=again), generate(model(), {"b": history(70, 1)}, ASK))
    small = UserCache.load(tmp_path / "cache", model(), max_tokens=64 * 3)
    assert set(small._entries) == {"b", 3, "empty"}
    with pytest.raises(ValueError, match="cache is of another model"):
        UserCache.load(tmp_path / "cache", model(layers=1))
    target = next((tmp_path / "cache").glob("*.safetensors"))
    target.write_bytes(target.read_bytes()[:-1])
    with pytest.raises(ValueError, match="truncated or altered"):
        UserCache.load(tmp_path / "cache", model())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        pytest.param(
            lambda c: UserCache(model(), 63), ValueError, "max_tokens .* got 63", id="room"
        ),
        pytest.param(
            lambda c: UserCache(model(), 640, overflow="drop"),
            ValueError,
            "overflow must be 'rebuild' or 'sliding'",
            id="overflow",
        ),
        pytest.param(
            lambda c: UserCache(model(), 640, page=32), ValueError, "page must be 64", id="page"
        ),
        pytest.param(
            lambda c: c.append(["u", "u"], [[], []]),
            ValueError,
            "users must be distinct",
            id="twice",
        ),
        pytest.param(
            lambda c: c.append(["u"], []), ValueError, "events of 1 users, got 0", id="count"
        ),
        pytest.param(
            lambda c: c.append(["u"], {"u": []}), TypeError, "new must be a list", id="dict"
        ),
        pytest.param(
            lambda c: generate(model(), {}, cache=3),
            TypeError,
            "cache must be a UserCache",
            id="cache",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(UserCache(model(), 640))


def test_is_exported():
    assert pylum.UserCache is UserCache
