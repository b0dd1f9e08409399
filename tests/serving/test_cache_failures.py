"""Calls that fail, are cancelled or find no room: the cache answers for what it was given."""

import copy

import pytest
import torch

from pylum import UserCache, generate
from pylum.cache import answering
from tests.serving.test_cache import close
from tests.serving.worlds import SCENES, event, history, model

ASK = {"scene": SCENES}
LATER = 1_700_100_000


def later(count, time=LATER):
    return [event(40 + n, time + n) for n in range(count)]


def held(cache, user):
    return generate(model(), [user], ASK, cache=cache)


def whole(user, events):
    return generate(model(), {user: events}, ASK)


def fail(*args, **kwargs):
    raise KeyboardInterrupt


def test_interrupted_pass_promises_nothing(monkeypatch):
    cache = UserCache(model(), 4096)
    generate(model(), {"u": history(20)}, ASK, cache=cache)
    with monkeypatch.context() as patch:
        patch.setattr(type(model()), "run_cached", fail)
        with pytest.raises(KeyboardInterrupt):
            generate(model(), {"u": history(40)}, ASK, cache=cache)
    out = generate(model(), {"u": history(40)}, ASK, cache=cache)
    assert out.stats["tokens_reused"] == 0
    close(out, whole("u", history(40)))


def test_what_failed_to_be_appended_can_be_appended_again(monkeypatch):
    cache = UserCache(model(), 4096)
    generate(model(), {"u": history(20), "v": history(5)}, ASK, cache=cache)
    with monkeypatch.context() as patch:
        patch.setattr(type(model()), "run_cached", fail)
        with pytest.raises(KeyboardInterrupt):
            cache.append(["u", "v"], [later(3), later(1)])
    close(held(cache, "u"), whole("u", history(20)))
    assert not cache.append(["u", "v"], [later(3), later(1)])
    close(held(cache, "u"), whole("u", history(20) + later(3)))
    close(held(cache, "v"), whole("v", history(5) + later(1)))


@pytest.mark.parametrize("host_tokens", [0, 256])
def test_appended_without_room_is_not_forgotten(host_tokens):
    """Two users fill the device, and grow beyond it together."""
    begin = {"a": history(31, 1), "b": history(31, 2)}
    cache = UserCache(model(), 128, host_tokens=host_tokens)
    generate(model(), begin, ASK, cache=cache)
    assert not cache.append(["a", "b"], [later(10), later(10)])
    assert cache.stats["bypassed"] == 2
    close(generate(model(), ["a", "b"], ASK, cache=cache), generate(
        model(), {user: events + later(10) for user, events in begin.items()}, ASK
    ))  # fmt: skip
    close(held(cache, "a"), whole("a", begin["a"] + later(10)))


def test_a_late_event_without_room_is_said_to_be_lost(tmp_path):
    """Pages hold a history that is no more, and there is no room for the new one."""
    begin = {"a": history(31, 1), "b": history(31, 2)}
    cache = UserCache(model(), 128)
    generate(model(), begin, ASK, cache=cache)
    early = later(10, begin["a"][0]["time"] - 100)
    assert cache.append(["a", "b"], [early, later(10)]) == ["a"]
    with pytest.raises(ValueError, match=r"histories must be passed for users .* got 'a'"):
        held(cache, "a")
    cache.save(tmp_path / "cache")
    loaded = UserCache.load(tmp_path / "cache", model())
    for kept in (cache, loaded):
        close(held(kept, "b"), whole("b", begin["b"] + later(10)))
        close(
            generate(model(), {"a": early + begin["a"]}, ASK, cache=kept),
            whole("a", early + begin["a"]),
        )


def test_an_error_after_the_pass_changes_no_history(monkeypatch):
    cache = UserCache(model(), 4096)
    generate(model(), {"u": history(20)}, ASK, cache=cache)
    answer = answering.answer

    def broken(*args):
        answer(*args)
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(answering, "answer", broken)
        with pytest.raises(RuntimeError, match="out of memory"):
            cache.append(["u"], [later(3)])
    assert cache.events(["u"]).total == 20


def test_another_dtype_is_an_error():
    made = copy.deepcopy(model())
    cache = UserCache(made, 4096)
    generate(made, {"u": history(20)}, ASK, cache=cache)
    made.to(torch.bfloat16)
    with pytest.raises(ValueError, match="cache must be of the dtype of its model"):
        generate(made, {"u": history(20)}, ASK, cache=cache)
