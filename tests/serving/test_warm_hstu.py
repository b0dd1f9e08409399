"""Warm questions to an HSTU as recordings: the next item, and candidates."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._pytree import tree_flatten

from pylum import UserCache, generate, score
from pylum.cache.pages.pool import Pool
from pylum.cache.warm import hstu, recording
from tests.serving import test_hstu, test_score
from tests.serving.tape import Noting, Tape
from tests.serving.test_warm import tapes  # noqa: F401
from tests.serving.worlds import event, history
from tests.tolerance import MODEL

CLOSE = MODEL[torch.float32]
VARIANTS = [
    pytest.param({}, id="research"),
    pytest.param({"time": False}, id="without-time"),
    pytest.param({"variant": "production"}, id="production"),
    pytest.param({"variant": "production", "window": 9, "context": ("scene",)}, id="masks"),
]
LATER = 1_900_000_000
drawn = settings(
    max_examples=4,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def both(made, everyone, ask):
    """A cache with recordings and one without, that hold everyone."""
    caches = UserCache(made, 10**4), UserCache(made, 10**4, graphs=False)
    for cache in caches:
        ask(everyone, cache)
    return caches


def agree(caches, ask):
    """Whether one call is answered alike; what it came to."""
    found, expected = (ask(cache) for cache in caches)
    torch.testing.assert_close(found, expected, atol=CLOSE, rtol=0)
    counts = ("tokens_computed", "tokens_reused")
    assert all(caches[0].stats[name] == caches[1].stats[name] for name in counts)
    return found


@pytest.mark.parametrize("changes", VARIANTS)
@drawn
@given(st.data())
def test_the_next_item(changes, data):
    made = test_hstu.model(**changes)
    least = 1 if "context" in changes else 0
    lengths = data.draw(st.lists(st.integers(least, 70), min_size=2, max_size=7))
    everyone = {f"u{i}": history(n, seed=i) for i, n in enumerate(lengths)}
    caches = both(made, everyone, lambda users, cache: generate(made, users, cache=cache))
    before = caches[0].stats["replays"]
    for number in range(3):
        users = data.draw(st.lists(st.sampled_from(sorted(everyone)), min_size=1, unique=True))
        time = data.draw(st.sampled_from([None, LATER]))
        agree(
            caches,
            lambda cache, users=users, time=time: (
                generate(made, users, query_time=time, cache=cache).embeddings
            ),
        )
        assert caches[0].stats["replays"] == before + number + 1
    assert not caches[1].stats["replays"]


@pytest.mark.parametrize("changes", VARIANTS)
@drawn
@given(st.data())
def test_candidates(changes, data):
    """The action that passed last is written again by each pass."""
    made = test_score.model(**changes)
    least = 1 if "context" in changes else 0
    lengths = data.draw(st.lists(st.integers(least, 70), min_size=2, max_size=5))
    everyone = {f"u{i}": history(n, seed=i) for i, n in enumerate(lengths)}
    caches = both(made, everyone, lambda users, cache: score(made, users, ["i1"], cache=cache))
    before = caches[0].stats["replays"]
    for number in range(3):
        users = data.draw(st.lists(st.sampled_from(sorted(everyone)), min_size=1, unique=True))
        shown = [[f"i{n}" for n in range(data.draw(st.integers(0, 11)))] for _ in users]
        shown[0].append("i12")
        time = data.draw(st.sampled_from([None, LATER]))
        agree(
            caches,
            lambda cache, users=users, shown=shown, time=time: (
                score(made, users, shown, query_time=time, cache=cache).values
            ),
        )
        assert caches[0].stats["replays"] == before + number + 1


def test_appended_behaviours_are_seen_by_the_next_replay(tapes):  # noqa: F811
    made = test_score.model()
    everyone = {"a": history(20, 1), "b": history(33, 2)}
    caches = both(made, everyone, lambda users, cache: score(made, users, ["i1"], cache=cache))
    before = agree(caches, lambda cache: score(made, ["a"], ["i2", "i5"], cache=cache).values)
    for cache in caches:
        assert not cache.append(["a"], [[event(3, 1_800_000_000, rating=5)]])
    after = agree(caches, lambda cache: score(made, ["a"], ["i2", "i5"], cache=cache).values)
    assert (before - after).abs().max() > CLOSE
    assert len(tapes) == 1 and caches[0].stats["replays"] == 2


def test_a_context_that_is_in_no_page_is_not_recorded(tapes):  # noqa: F811
    made = test_hstu.model(variant="production", context=("scene",))
    cache = UserCache(made, 4096)
    for _ in range(2):
        found = generate(made, {"new": [], "u": history(5)}, cache=cache)
    expected = generate(made, {"new": [], "u": history(5)})
    torch.testing.assert_close(found.embeddings, expected.embeddings, atol=CLOSE, rtol=0)
    assert not tapes


def test_one_request_records_nothing(tapes):  # noqa: F811
    """The passes of a request share a cache that is gone with it."""
    made = test_score.model()
    score(made, {"u": history(20)}, ["i1", "i2", "i3"], micro_batch=1)
    assert not tapes


@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("kind", [test_hstu, test_score])
def test_the_pass_reads_no_value_and_stays_on_its_device(kind, changes):
    """On a device whose tensors have shapes only: these decide everything, and nothing comes from
    the host or goes to it."""
    made = copy.deepcopy(kind.model(**changes)).to("meta")
    new = 3 if kind is test_score else 0
    size = recording.Size(5, 12, 3, new=new, keys=200 if made.places.reads_all_clocks else 0)
    with torch.no_grad():
        once = hstu.HSTURecording(made, Pool(made, 7), size, Tape())
        with Noting() as noting:
            out = once.work()
    assert out.shape == (12, len(made.config.tasks) or made.dim) and out.device.type == "meta"
    names = [func.overloadpacket.__name__ for func, *_ in noting.calls]
    assert names.count("prefix_attention") == made.config.layers
    for func, *values in noting.calls:
        for x in tree_flatten(values)[0]:
            assert not isinstance(x, torch.Tensor) or x.device.type == "meta", func
