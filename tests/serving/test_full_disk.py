"""A disk that is full: what was saved before stays whole, and nobody waits for an answer."""

import resource
import signal
import sqlite3
from contextlib import contextmanager

import pytest
import torch

import pylum
from pylum.serving import SqliteStore, read_log
from tests.serving.worlds import data, model

ASKED = {"scene": ["home", "search"]}


@contextmanager
def full(size=3000):
    """No file grows beyond ``size`` bytes."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@pytest.fixture(scope="module")
def knowledge():
    return pylum.query(model(), data(), ASKED, at="each")


def test_an_earlier_save_stays(tmp_path, knowledge):
    cache = pylum.UserCache(model(), 4096)
    pylum.generate(model(), data(), ASKED, k=0, cache=cache)
    saves = {
        "model": model().save_pretrained,
        "cache": cache.save,
        "knowledge": knowledge.save,
    }
    for name, save in saves.items():
        save(tmp_path / name)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for name, save in saves.items():
        with full(), pytest.raises(OSError):
            save(tmp_path / name)
        assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
        save(tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(saves)
    again = pylum.Knowledge.load(tmp_path / "knowledge")
    assert torch.equal(again.vectors, knowledge.vectors)


def test_a_checkpoint_stays(tmp_path):
    config = pylum.LUMConfig(dim=16, layers=1, max_length=16)
    train, run = data().split("loo-full")[0], {"epochs": 1, "progress": False}
    pylum.pretrain(config, train, checkpoint=tmp_path / "run", **run)
    before = (tmp_path / "run").read_bytes()
    with full(), pytest.raises(OSError, match="cannot be written"):
        pylum.pretrain(config, train, checkpoint=tmp_path / "run", **run)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [before]


def test_reads_are_answered_and_logged_later(tmp_path, knowledge):
    users = data().users
    cache = pylum.KnowledgeCache(knowledge, log=tmp_path / "log", log_rows=len(users))
    with full():
        found = [cache.read(users, time=2e9 + n) for n in range(3)]
    assert all(source == "offline" for served in found for source in served.sources)
    assert cache.stats["log_errors"] == 3
    cache.flush()
    assert len(read_log(tmp_path / "log", knowledge)) == 3 * len(users)


def test_what_memory_does_not_hold_is_said_to_be_lost(tmp_path, knowledge, caplog):
    users = data().users
    cache = pylum.KnowledgeCache(knowledge, log=tmp_path / "log", log_rows=len(users))
    with full():
        for n in range(9):
            cache.read(users, time=2e9 + n)
        with pytest.raises(OSError):
            cache.flush()
    assert f"{8 * len(users)} reads are lost" in caplog.text
    cache.flush()
    assert len(read_log(tmp_path / "log", knowledge)) == len(users)


def test_a_store_says_what_was_wrong(tmp_path, knowledge):
    cache = pylum.KnowledgeCache(knowledge, store=SqliteStore(tmp_path / "live.db"))
    with full(), pytest.raises(sqlite3.OperationalError, match=r"I/O|full"):
        cache.put(knowledge)
    assert cache.read(data().users[:1]).sources == ["offline"]
    cache.put(knowledge)
    assert cache.read(data().users[:1]).sources == ["live"]
