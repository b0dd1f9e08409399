"""Knowledge as of moments equals encoding each prefix alone, and knows nothing of later."""

import dataclasses

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pylum
from pylum import ANY, Histories, Knowledge, generate, query
from pylum.knowledge import build
from pylum.knowledge.as_of import visible_before
from tests.serving.worlds import SCENES, data, history, item_table, model
from tests.tolerance import MODEL

CLOSE = MODEL[torch.float32]
ASK = {"scene": SCENES}


def alone(lum, events, time, delay=0, conditions=ASK):
    """Answers of a prefix passed by itself."""
    prefix = [each for each in events if each["time"] < time - delay]
    return generate(lum, {"u": prefix}, conditions, k=0, query_time=time).embeddings


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="window-holds-all"),
        pytest.param({"max_length": 7}, id="window-moves-with-each-prefix"),
        pytest.param({"max_length": 9, "window_step": 4}, id="window-moves-in-steps"),
    ],
)
@pytest.mark.parametrize("delay", [0, 61])
def test_each_equals_encoding_each_prefix_alone(changes, delay):
    lum = model(**changes)
    histories = {f"u{i}": history(n, seed=i) for i, n in enumerate([25, 0, 1, 8])}
    knowledge = query(lum, histories, ASK, at="each", delay=delay)
    assert knowledge.vectors.shape == (34, 3, 16)
    row = 0
    for user, events in histories.items():
        for each in events:
            expected = alone(lum, events, each["time"], delay)
            torch.testing.assert_close(knowledge.vectors[row], expected, atol=CLOSE, rtol=0)
            assert knowledge.users[row] == user
            assert knowledge.times[row] == each["time"]
            row += 1
    assert row == len(knowledge)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_table_equals_encoding_each_prefix_alone(data):
    lum = model(max_length=data.draw(st.sampled_from([5, 64])))
    histories = {f"u{i}": history(n, seed=i) for i, n in enumerate([12, 0, 3])}
    users = data.draw(st.lists(st.sampled_from(["u0", "u1", "u2", "new"]), max_size=6))
    times = [1_700_000_000 + data.draw(st.integers(-100, 1000)) for _ in users]
    table = {"user": pd.Series(users, dtype=object), "time": np.array(times, np.int64)}
    knowledge = query(lum, histories, ASK, at=table)
    assert knowledge.users == users
    for row, (user, time) in enumerate(zip(users, times, strict=True)):
        expected = alone(lum, histories.get(user, []), time)
        torch.testing.assert_close(knowledge.vectors[row], expected, atol=CLOSE, rtol=0)


def test_events_of_the_same_moment_do_not_see_each_other():
    events = history(4)
    events[2]["time"] = events[1]["time"]
    knowledge = query(model(), {"u": events}, at="each")
    assert knowledge.seen.tolist() == [0, 1, 1, 3]


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_visible_before(data):
    times = data.draw(
        st.lists(st.lists(st.integers(0, 20), max_size=8).map(sorted), min_size=1, max_size=4)
    )
    events = Histories.from_dicts(
        {u: [{"item": "i1", "time": t} for t in row] for u, row in enumerate(times)},
        pylum.data.Schema(),
    ).events
    users = torch.tensor(data.draw(st.lists(st.integers(-1, len(times) - 1), max_size=6))).long()
    when = torch.tensor([data.draw(st.integers(-1, 22)) for _ in users]).long()
    expected = [
        sum(t < int(w) for t in times[int(u)]) if u >= 0 else 0
        for u, w in zip(users, when, strict=True)
    ]
    assert visible_before(events, users, when).tolist() == expected


@pytest.mark.parametrize("max_length", [64, 10])
def test_altering_any_later_event_moves_nothing(max_length):
    """Bitwise: a question computes nothing from what it may not see."""
    lum = model(max_length=max_length)
    events = history(30)
    before = query(lum, {"u": events, "v": history(9, 1)}, ASK, at="each")
    for first in range(0, 30, 7):
        altered = events[:first] + [
            {**each, "item": "i0", "scene": "cart", "hour": float("nan"), "text": None, "rating": 1}
            for each in events[first:]
        ]
        after = query(lum, {"u": altered, "v": history(9, 1)}, ASK, at="each")
        # The event at `first` is itself not seen by the question at its time.
        assert torch.equal(after.vectors[: first + 1], before.vectors[: first + 1])
        assert torch.equal(after.vectors[30:], before.vectors[30:])
        if first < 29:
            assert not torch.equal(after.vectors[first + 1 : 30], before.vectors[first + 1 : 30])


def test_an_events_own_condition_is_not_seen():
    events = history(6)
    other = [*events[:5], {**events[5], "scene": "search", "hour": 1.0, "text": [9.0, 9.0, 9.0]}]
    a, b = (query(model(), {"u": e}, at="each").vectors for e in (events, other))
    assert torch.equal(a, b)


def test_end_is_after_all_events():
    knowledge = query(model(), data(), ASK)
    end = int(data().events.times.max()) + 1
    expected = generate(model(), data(), ASK, k=0, query_time=end).embeddings
    torch.testing.assert_close(knowledge.vectors.flatten(0, 1), expected, atol=CLOSE, rtol=0)
    assert knowledge.users == data().users
    assert knowledge.times.unique().tolist() == [end]
    assert knowledge.conditions == SCENES
    assert knowledge.fingerprint == model().fingerprint()
    assert knowledge.temperature == model().temperature
    torch.testing.assert_close(knowledge.item_vectors, model().item_vectors().detach()[1:])
    assert knowledge.items == data().vocabs.items.ids.to_pylist()


def test_conditions_of_the_table():
    events = history(9)
    time = events[5]["time"]
    table = pd.DataFrame({"user": ["u", "u"], "time": time, "scene": ["home", "search"]})
    own = query(model(), {"u": events}, at=table)
    assert own.vectors.shape == (2, 1, 16)
    for row, scene in enumerate(["home", "search"]):
        expected = alone(model(), events, time, conditions={"scene": [scene]})
        torch.testing.assert_close(own.vectors[row], expected, atol=CLOSE, rtol=0)
    both = query(model(), {"u": events}, {"hour": [1.0, 2.0]}, at=table)
    expected = alone(model(), events, time, conditions={"scene": "search", "hour": [1.0, 2.0]})
    torch.testing.assert_close(both.vectors[1], expected, atol=CLOSE, rtol=0)
    named = query(model(), {"u": events}, ASK, at=table.assign(item="i1", label=1))
    expected = alone(model(), events, time)
    for row in range(2):
        torch.testing.assert_close(named.vectors[row], expected, atol=CLOSE, rtol=0)


def test_batches_do_not_matter():
    whole = query(model(), data(), ASK, at="each")
    small = query(model(), data(), ASK, at="each", batch_tokens=50)
    torch.testing.assert_close(small.vectors, whole.vectors, atol=CLOSE, rtol=0)


def test_float16():
    half = query(model(), data(), ASK, dtype="float16")
    assert half.vectors.dtype == half.item_vectors.dtype == torch.float16
    torch.testing.assert_close(
        half.vectors.float(), query(model(), data(), ASK).vectors, atol=1e-3, rtol=0
    )


def same(a, b):
    for field in dataclasses.fields(Knowledge):
        mine, other = getattr(a, field.name), getattr(b, field.name)
        if isinstance(mine, torch.Tensor):
            assert torch.equal(mine, other), field.name
        else:
            assert mine == other, field.name


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_save_and_load(tmp_path, dtype):
    knowledge = query(model(), data(), {"scene": ["home", ANY]}, at="each", dtype=dtype, delay=5)
    knowledge.save(tmp_path / "k")
    same(Knowledge.load(tmp_path / "k"), knowledge)
    knowledge.save(tmp_path / "k")
    written = query(
        model(),
        data(),
        {"scene": ["home", ANY]},
        at="each",
        dtype=dtype,
        delay=5,
        out=tmp_path / "out.parquet",
    )
    same(written, knowledge)
    with pytest.raises(FileNotFoundError, match="_knowledge"):
        Knowledge.load(tmp_path / "none")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    with pytest.raises(ValueError, match="out must be new"):
        query(model(), data(), out=tmp_path / "mine")


def test_interrupted_work_is_resumed(tmp_path, monkeypatch):
    """Promise 9: finished parts are kept, no half file is left, and only the rest is computed."""

    monkeypatch.setattr(build, "PART_QUESTIONS", 60)
    arguments = {"at": "each", "batch_tokens": 80, "out": tmp_path / "k"}
    real, calls = build.answer_prefixes, []

    def counting(*given, **more):
        for index, answers in real(*given, **more):
            calls.append(len(index))
            if stop and len(calls) == stop:
                raise KeyboardInterrupt
            yield index, answers

    monkeypatch.setattr(build, "answer_prefixes", counting)
    stop = 0
    whole = query(model(), data(), ASK, at="each", batch_tokens=80)
    passes = len(calls)
    assert passes > 6
    calls.clear()
    stop = passes // 2
    with pytest.raises(KeyboardInterrupt):
        query(model(), data(), ASK, **arguments)
    files = {file.name for file in (tmp_path / "k").iterdir()}
    finished = sum(name.startswith("part-") for name in files)
    assert finished >= 1
    assert not [name for name in files if "tmp" in name]
    with pytest.raises(ValueError, match="not complete"):
        Knowledge.load(tmp_path / "k")
    with pytest.raises(ValueError, match="out holds another query, which differs in delay"):
        query(model(), data(), ASK, **arguments, delay=3)
    kept = (tmp_path / "k" / "part-00000.parquet").stat().st_mtime_ns
    done = sum(len(pq.read_table(f)) * 3 for f in (tmp_path / "k").glob("part-*.parquet"))
    calls.clear()
    stop = 0
    resumed = query(model(), data(), ASK, **arguments)
    assert sum(calls) == 3 * len(whole) - done
    assert (tmp_path / "k" / "part-00000.parquet").stat().st_mtime_ns == kept
    same(resumed, whole)
    calls.clear()
    query(model(), data(), ASK, **arguments)
    assert not calls
    query(model(), data(), ASK, **arguments, resume=False)
    assert sum(calls) == 3 * len(whole)
    other = query(model(), data(), ASK, **arguments, delay=3, resume=False)
    same(other, query(model(), data(), ASK, at="each", batch_tokens=80, delay=3))


def test_rows_never_come_from_later():
    knowledge = query(model(), data(), at="each")
    users = [*data().users, "nobody"]
    times = np.array([int(data().events.times.median())] * len(users))
    rows = knowledge.rows(users, times)
    for user, time, row in zip(users, times, rows, strict=True):
        mine = [
            i for i, u in enumerate(knowledge.users) if u == user and knowledge.times[i] <= time
        ]
        if not mine:
            assert row == -1
        else:
            assert knowledge.users[row] == user
            assert knowledge.times[row] == max(knowledge.times[i] for i in mine)
    last = knowledge.rows(users)
    assert last[-1] == -1
    assert (last[:-1] >= 0).all()


def test_new_items(tmp_path):
    knowledge = query(model(), data())
    grown = knowledge.with_items(model(), item_table([59, 60, 61]))
    assert grown.items == [*knowledge.items, "i60", "i61"]
    torch.testing.assert_close(grown.item_vectors[:60], knowledge.item_vectors, atol=1e-6, rtol=0)
    torch.testing.assert_close(grown.item_vectors.norm(dim=1), torch.ones(62))
    assert grown.item_rows(["i61", "i0", "x"])[[0, 2]].tolist() == [61, -1]
    with pytest.raises(ValueError, match="model must be the one of this knowledge"):
        knowledge.with_items(model(layers=1), item_table([60]))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        pytest.param({"at": "start"}, ValueError, "at must be 'end', 'each' or a table", id="at"),
        pytest.param({"at": {"user": ["u"]}}, ValueError, "'time' is not a column", id="no-time"),
        pytest.param(
            {"at": {"user": [1], "time": [1]}}, TypeError, "'user' must be str as in", id="type"
        ),
        pytest.param({"delay": -1}, ValueError, "delay must be a number of seconds", id="delay"),
        pytest.param(
            {"dtype": "int8"}, ValueError, "dtype must be one of float32, float16", id="dtype"
        ),
        pytest.param({"model": 3}, TypeError, "model must be a pylum.LUM", id="model"),
    ],
)
def test_errors(arguments, error, message):
    arguments = {"model": model(), "data": {"u": history(3)}, **arguments}
    with pytest.raises(error, match=message):
        query(**arguments)
