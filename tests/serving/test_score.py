"""M-FALCON: candidates together, alone, cached, in micro-batches."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pylum import HSTU, HSTUConfig, Ragged, Task, UserCache, score
from tests.serving.worlds import ITEMS, data, event, history
from tests.serving.worlds import model as lum
from tests.tolerance import MODEL

CLOSE = MODEL[torch.float32]
TASKS = (Task("liked", "rating", (4, 5)), Task("loved", "rating", (5,)))


@functools.cache
def model(**changes) -> HSTU:
    """Random weights, large enough that histories, conditions and times matter."""
    sizes = {"dim": 16, "width": 32, "heads": 2, "layers": 2, "max_length": 64, **changes}
    torch.manual_seed(1)
    made = HSTU(
        HSTUConfig(task="ranking", tasks=TASKS, **sizes), data().schema, data().vocabs, data().items
    )
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
        for table in made.places.parameters():
            table.normal_(std=0.5)
    return made.eval()


VARIANTS = [
    pytest.param({}, id="research"),
    pytest.param({"time": False}, id="without-time"),
    pytest.param({"variant": "production"}, id="production"),
    pytest.param({"variant": "production", "window": 9}, id="window"),
    pytest.param({"variant": "production", "window": 9, "context": ("scene",)}, id="context"),
]
MIN_FULL = {"variant": "production", "window": 9, "min_full": 6, "context": ("scene",)}


def close(a: Ragged, b: Ragged) -> None:
    torch.testing.assert_close(a.values, b.values, atol=CLOSE, rtol=0)
    assert torch.equal(a.offsets, b.offsets)


@pytest.mark.parametrize("changes", [*VARIANTS, pytest.param(MIN_FULL, id="min-full")])
@pytest.mark.parametrize("query_time", [None, 1_800_000_000])
def test_together_equals_one_by_one(changes, query_time):
    histories = {"u": history(40), "v": history(3, seed=2), "new": []}
    candidates = [["i1", "i7", "i3"], ["i2"], ["i5", "i1"]]
    scenes = ["home", "cart", None]
    own = Ragged(scenes, torch.arange(4))
    options = {"conditions": {"scene": own}, "query_time": query_time}
    together = score(model(**changes), histories, candidates, **options)
    assert together.values.shape == (6, 2) and together.values.dtype == torch.float32
    assert bool(((together.values > 0) & (together.values < 1)).all())
    assert float(together.values.std(0).min()) > 0.01
    for b, (user, events) in enumerate(histories.items()):
        for c, item in enumerate(candidates[b]):
            alone = score(
                model(**changes),
                {user: events},
                [item],
                {"scene": [scenes[b]]},
                query_time=query_time,
            )
            assert float((together[b][c] - alone.values[0]).abs().max()) < CLOSE


@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 63, 64])
def test_cold_warm_and_uncached_agree(changes, length):
    made = model(**changes)
    cache, context = UserCache(made, 4096), made.config.context_tokens
    ask = ({"u": history(length)}, [f"i{n}" for n in range(9)])
    plain = score(made, *ask)
    close(score(made, *ask, cache=cache), plain)
    before = cache.stats
    assert before["tokens_reused"] == 0
    assert before["tokens_computed"] == context + 2 * length + 1 + 9
    close(score(made, *ask, cache=cache), plain)
    after = cache.stats
    kept = context if length else 0
    assert after["tokens_reused"] == kept + 2 * length
    # The action that passed last is computed each time: it reads the time of the question.
    assert after["tokens_computed"] - before["tokens_computed"] == context - kept + 1 + 9
    later = 1_900_000_000
    close(score(made, *ask, query_time=later, cache=cache), score(made, *ask, query_time=later))
    close(score(made, *ask, cache=cache), plain)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_sequence_of_requests_equals_uncached(data):
    """Appends, edits, deletions and evictions, in a cache that is too small for all."""
    made = model(**data.draw(st.sampled_from([case.values[0] for case in VARIANTS])))
    cache = UserCache(made, data.draw(st.sampled_from([64, 192, 100_000])))
    events = {f"u{i}": history(data.draw(st.integers(0, 70)), seed=i) for i in range(3)}
    for _ in range(4):
        user = data.draw(st.sampled_from(sorted(events)))
        mine = events[user]
        kind = data.draw(st.sampled_from(["append", "edit", "delete", "add"]))
        last = mine[-1]["time"] if mine else 1_700_000_000
        if kind in ("append", "add"):
            new = [event(data.draw(st.integers(0, 59)), last + 1 + i, rating=5) for i in range(3)]
            mine = mine + new
            if kind == "add" and user in cache:
                cache.append([user], [new])
        elif mine and kind == "edit":
            at = data.draw(st.integers(0, len(mine) - 1))
            mine = [*mine[:at], {**mine[at], "scene": "cart", "rating": 1}, *mine[at + 1 :]]
        elif mine:
            at = data.draw(st.integers(0, len(mine) - 1))
            mine = mine[:at] + mine[at + 1 :]
        events[user] = mine
        chosen = {u: events[u] for u in events if data.draw(st.booleans())}
        shown = [
            [f"i{n}" for n in data.draw(st.lists(st.integers(0, 70), max_size=5))] for _ in chosen
        ]
        if not chosen:
            continue
        time = data.draw(st.sampled_from([None, 1_950_000_000]))
        micro = data.draw(st.sampled_from([2, 100]))
        found = score(made, chosen, shown, query_time=time, cache=cache, micro_batch=micro)
        close(found, score(made, chosen, shown, query_time=time))


def test_candidates_are_never_written():
    made = model()
    cache = UserCache(made, 4096)
    score(made, {"u": history(40)}, ["i1"], cache=cache)
    pages = cache._entries["u"].pages
    kept = 2 * 40

    def held():
        prefixes = cache._pool.prefixes([pages], torch.tensor([kept]))
        from pylum.ops import gather_pages

        return [x.clone() for p in prefixes for x in gather_pages(p)[:2]]

    before = held()
    score(made, {"u": history(40)}, [f"i{n}" for n in range(ITEMS)] * 4, cache=cache)
    assert all(torch.equal(a, b) for a, b in zip(before, held(), strict=True))
    assert cache.stats["tokens"] == kept


@pytest.mark.parametrize(
    ("changes", "cached"),
    [
        pytest.param({}, False, id="uncached"),
        pytest.param({}, True, id="cached"),
        pytest.param(MIN_FULL, False, id="min-full"),
    ],
)
def test_micro_batches_change_nothing(changes, cached):
    made = model(**changes)
    histories = {"u": history(40), "v": history(9), "w": []}
    shown = [[f"i{n}" for n in range(17)], ["i3"], []]
    whole = score(made, histories, shown)
    cache = UserCache(made, 4096) if cached else None
    close(score(made, histories, shown, micro_batch=5, cache=cache), whole)
    close(score(made, histories, shown, batch_tokens=30, cache=cache), whole)


def test_shapes_and_kinds_of_candidates():
    made = model()
    histories = {"u": history(4), "v": history(9)}
    one = score(made, histories, ["i1", "i2"])
    assert one.offsets.tolist() == [0, 2, 4]
    close(score(made, histories, Ragged(["i1", "i2", "i1", "i2"], torch.tensor([0, 2, 4]))), one)
    unknown = score(made, histories, ["never", "i2"])
    assert bool(unknown.values.isfinite().all())
    assert torch.allclose(unknown.values[1::2], one.values[1::2])
    assert score(made, histories, [[], []]).values.shape == (0, 2)
    close(
        score(made, histories, ["i1", "i2"], {"scene": ["home"]}),
        score(
            made,
            histories,
            ["i1", "i2"],
            {"scene": Ragged(["home"] * 4, torch.tensor([0, 2, 4]))},
        ),
    )


def test_a_cached_user_needs_no_history_and_survives_a_save(tmp_path):
    made = model()
    cache = UserCache(made, 4096)
    first = score(made, {"u": history(30)}, ["i1", "i2"], cache=cache)
    close(score(made, ["u"], ["i1", "i2"], cache=cache), first)
    cache.save(tmp_path / "cache")
    loaded = UserCache.load(tmp_path / "cache", made)
    close(score(made, ["u"], ["i1", "i2"], cache=loaded), first)
    assert loaded.stats["tokens_reused"] == 60


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": "m"}, TypeError, "model must be a pylum.HSTU, got str"),
        ({"candidates": [["i1"]]}, ValueError, "candidates must have a row for each of 2 users"),
        ({"micro_batch": 0}, ValueError, "micro_batch must be at least 1"),
        ({"batch_tokens": 2.5}, TypeError, "batch_tokens must be an integer"),
        ({"query_time": 5}, ValueError, "query_time must not precede the history"),
        (
            {"conditions": {"scene": ["home"] * 3}},
            ValueError,
            "conditions must be one for each user",
        ),
        ({"histories": 3}, TypeError, "histories must be"),
        ({"cache": 3}, TypeError, "cache must be a UserCache"),
    ],
)
def test_errors_name_the_argument(arguments, error, message):
    full = {
        "model": model(),
        "histories": {"u": history(4), "v": history(9)},
        "candidates": ["i1", "i2"],
        **arguments,
    }
    with pytest.raises(error, match=message):
        score(**full)


def test_a_user_without_history_has_one_context():
    made = model(variant="production", context=("scene",))
    home, cart = (score(made, {"u": []}, ["i1"], {"scene": [s]}).values for s in ("home", "cart"))
    assert float((home - cart).abs().min()) > 1e-3
    both = {"scene": Ragged(["home", "cart"], torch.tensor([0, 2]))}
    with pytest.raises(ValueError, match="conditions must have one value of 'scene'"):
        score(made, {"u": []}, ["i1", "i1"], both)
    # With a history, that is what the user is; a candidate's own value is not read.
    alike = score(made, {"u": history(3)}, ["i1", "i1"], both).values
    assert torch.equal(alike[0], alike[1])


def test_models_are_not_mixed_up():
    with pytest.raises(TypeError, match=r"model must be a pylum\.HSTU, got LUM"):
        score(lum(), {"u": history(4)}, ["i1"])
    with pytest.raises(ValueError, match="overflow must be 'rebuild' for an HSTU"):
        UserCache(model(), 4096, overflow="sliding")
    with pytest.raises(ValueError, match=r"for ranking: use pylum\.score"):
        model().generate({"u": history(4)})
