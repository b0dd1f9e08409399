"""Questions on a warm cache as recordings: the same answers, in sizes that calls are padded to."""

import copy
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._pytree import tree_flatten

from pylum import Ragged, UserCache, generate, ops
from pylum.cache import user_cache
from pylum.cache.pages.pool import Pool
from pylum.cache.warm import lum, questions, recording
from tests.serving.tape import Noting, Tape
from tests.serving.worlds import SCENES, event, history, model
from tests.tolerance import MODEL

CLOSE = MODEL[torch.float32]
ASK = {"scene": SCENES}


@pytest.fixture(autouse=True)
def tapes(monkeypatch):
    """The graphs made, on a CPU."""
    made = []

    def make():
        made.append(Tape())
        return made[-1]

    monkeypatch.setattr(user_cache, "graphs_of", lambda device: make)
    return made


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_answers_are_those_without_recordings(data):
    """To the bit on the CPU, where no kernel's result depends on the number of rows."""
    recorded, plain = UserCache(model(), 10**4), UserCache(model(), 10**4, graphs=False)
    everyone = {f"u{i}": history(data.draw(st.integers(0, 70)), seed=i) for i in range(5)}
    for cache in (recorded, plain):
        generate(model(), everyone, ASK, cache=cache)
    before = recorded.stats["replays"]
    for _ in range(4):
        users = data.draw(st.lists(st.sampled_from(sorted(everyone)), min_size=1, unique=True))
        own = [data.draw(st.lists(st.sampled_from(SCENES), max_size=9)) for _ in users]
        conditions = {"scene": Ragged.from_lists([["home"], *own[1:]])}
        time = data.draw(st.sampled_from([None, 1_900_000_000]))
        found, expected = (
            generate(model(), users, conditions, query_time=time, cache=cache)
            for cache in (recorded, plain)
        )
        torch.testing.assert_close(found.embeddings, expected.embeddings, atol=CLOSE, rtol=0)
        assert found.stats == expected.stats
    assert recorded.stats["replays"] == before + 4
    assert plain.stats["replays"] == plain.stats["recordings"] == 0


def filled(**changes):
    cache = UserCache(model(**changes), 10**4)
    histories = {f"u{i}": history(n, seed=i) for i, n in enumerate([70, 33, 0, 5])}
    generate(model(**changes), histories, ASK, cache=cache)
    return cache, histories


def test_padding_changes_no_bit_of_a_hidden_state():
    """The pass over the user encoder, with and without rows and histories that are too many."""
    cache, histories = filled()
    made, entries = model(), cache._entries
    tables = [entries[user].pages for user in histories]
    lengths = torch.tensor([2 * e.behaviours for e in entries.values()])
    counts = torch.tensor([3, 1, 2, 4])
    x = torch.randn(10, made.config.width)

    def hidden(x, counts, tables, lengths, width=0):
        prefixes = cache._pool.prefixes(tables, lengths)
        table = torch.nn.functional.pad(prefixes[0].table, (0, width))
        prefixes = [ops.PagedPrefix(p.k, p.v, table, p.lengths) for p in prefixes]
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        positions = (lengths // 2).repeat_interleave(counts)
        mask = ops.Mask(num_targets=counts)
        with torch.inference_mode():
            return made.user_encoder.ask(x, offsets, positions, prefixes, mask)

    alone = hidden(x, counts, tables, lengths)
    padded = hidden(
        torch.cat([x, torch.full((6, x.shape[1]), torch.nan)]),
        torch.cat([counts, torch.tensor([6, 0, 0])]),
        [*tables, [], [], []],
        torch.cat([lengths, torch.zeros(3, dtype=torch.int64)]),
        width=3,
    )
    assert torch.equal(padded[:10], alone)


def test_each_size_is_recorded_once(tapes):
    cache, histories = filled()
    assert not tapes and cache.stats["recordings"] == 0
    for count, made in ((1, 1), (2, 1), (8, 1), (9, 2), (12, 2), (13, 3), (5, 3)):
        generate(model(), ["u0"], {"scene": ["home"] * count}, cache=cache)
        assert len(tapes) == cache.stats["recordings"] == made
    assert cache.stats["replays"] == 7
    assert [*cache._warm._recordings] == [recording.Size(2, rows, 2) for rows in (8, 12, 16)]
    generate(model(), ["u0", "u1"], {"scene": ["home"]}, query_time=1_900_000_000, cache=cache)
    generate(model(), list(histories), {"scene": ["home"]}, cache=cache)
    assert len(tapes) == 5


def test_sizes():
    for count in range(1, 1200):
        size = recording.bucket(count)
        assert count <= size <= max(2, count * 3 // 2)
        assert recording.bucket(size) == size
    assert len({recording.bucket(n) for n in range(1, questions.LARGEST + 1)}) == 20


def test_what_appends_or_asks_nothing_is_not_recorded(tapes):
    cache, histories = filled()
    cache.append(["u0"], [[event(3, 1_800_000_000)]])
    generate(model(), {"u1": [*histories["u1"], event(3, 1_800_000_000)]}, ASK, cache=cache)
    generate(model(), ["u1"], {"scene": []}, cache=cache)
    assert not tapes
    generate(model(), ["u0", "u1"], {"scene": ["cart"] * (questions.LARGEST // 2 + 1)}, cache=cache)
    assert not tapes
    generate(model(), ["u1"], ASK, cache=cache)
    assert len(tapes) == 1


def test_no_more_sizes_than_there_is_room_for(tapes, monkeypatch):
    monkeypatch.setattr(questions, "RECORDINGS", 1)
    cache, _ = filled()
    generate(model(), ["u0"], {"scene": ["home"] * 3}, cache=cache)
    out = generate(model(), ["u0"], {"scene": ["home"] * 30}, cache=cache)
    assert len(tapes) == 1 and cache.stats["replays"] == 1
    expected = generate(model(), {"u0": history(70)}, {"scene": ["home"] * 30})
    torch.testing.assert_close(out.embeddings, expected.embeddings, atol=CLOSE, rtol=0)


def test_appended_pages_are_seen_by_the_next_replay(tapes):
    cache, histories = filled()
    generate(model(), ["u1"], ASK, cache=cache)
    new = [event(3, 1_800_000_000 + n) for n in range(4)]
    cache.append(["u1"], [new])
    found = generate(model(), ["u1"], ASK, cache=cache)
    expected = generate(model(), {"u1": histories["u1"] + new}, ASK)
    torch.testing.assert_close(found.embeddings, expected.embeddings, atol=CLOSE, rtol=0)
    assert len(tapes) == 1 and cache.stats["replays"] == 2


@pytest.mark.parametrize("moves", [False, True])
def test_changed_weights(tapes, moves):
    """Where a weight lies elsewhere the recording is made anew; its old values are read by none."""
    mine = copy.deepcopy(model())
    cache = UserCache(mine, 4096)
    histories = {"u": history(40)}
    for _ in range(2):
        generate(mine, histories, ASK, cache=cache)
    with torch.no_grad():
        if moves:
            mine.answer.weight = torch.nn.Parameter(mine.answer.weight * 1.5 + 0.1)
        else:
            mine.answer.weight.mul_(1.5).add_(0.1)
    expected = generate(mine, histories, ASK)
    for _ in range(2):
        found = generate(mine, histories, ASK, cache=cache)
        torch.testing.assert_close(found.embeddings, expected.embeddings, atol=CLOSE, rtol=0)
    assert cache.stats["resets"] == 1 and cache.stats["replays"] == 2
    assert len(tapes) == 1 + moves


def test_what_cannot_be_recorded_is_announced_and_answered(monkeypatch):
    cache, histories = filled()
    read = type(model()).answers

    def waits(self, hidden):
        assert float(hidden.sum()) < torch.inf
        return read(self, hidden)

    monkeypatch.setattr(type(model()), "answers", waits)
    expected = generate(model(), histories, ASK)
    with pytest.warns(UserWarning, match="without CUDA graphs, since one .* cannot be recorded"):
        found = generate(model(), histories, ASK, cache=cache)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = generate(model(), histories, ASK, cache=cache)
    for each in (found, again):
        torch.testing.assert_close(each.embeddings, expected.embeddings, atol=CLOSE, rtol=0)
    assert cache.stats["replays"] == 0


def test_an_interrupted_recording_is_made_again(monkeypatch, tapes):
    cache, histories = filled()

    def cancel(self, work):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Tape, "record", cancel)
        with pytest.raises(KeyboardInterrupt):
            generate(model(), histories, ASK, cache=cache)
    for _ in range(2):
        found = generate(model(), histories, ASK, cache=cache)
    expected = generate(model(), histories, ASK)
    torch.testing.assert_close(found.embeddings, expected.embeddings, atol=CLOSE, rtol=0)
    assert cache.stats["replays"] == 1 and len(tapes) == 2


def test_after_an_offload(tapes):
    """A user's pages lie elsewhere when he comes back: a recording reads them by the table."""
    cache = UserCache(model(), 4 * 64, host_tokens=4096)
    histories = {f"u{i}": history(40 + 8 * i, seed=i) for i in range(4)}
    for _ in range(3):
        for user, mine in histories.items():
            found = generate(model(), {user: mine}, ASK, cache=cache)
            expected = generate(model(), {user: mine}, ASK)
            torch.testing.assert_close(found.embeddings, expected.embeddings, atol=CLOSE, rtol=0)
    assert cache.stats["replays"] == 8 and len(tapes) == 1 and cache.stats["resumes"] > 4


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_pass_reads_no_value_and_stays_on_its_device(timed, dtype):
    """On a device whose tensors have shapes only: these decide everything, and nothing comes from
    the host or goes to it."""
    made = copy.deepcopy(model()).to(dtype).to("meta")
    with torch.no_grad():
        made_once = lum.LUMRecording(made, Pool(made, 7), recording.Size(5, 12, 3, timed), Tape())
        with Noting() as noting:
            out = made_once.work()
    assert out.shape == (12, made.dim) and out.device.type == "meta" and out.dtype == dtype
    names = [func.overloadpacket.__name__ for func, *_ in noting.calls]
    assert names.count("prefix_attention") == made.config.layers
    for func, *values in noting.calls:
        for x in tree_flatten(values)[0]:
            assert not isinstance(x, torch.Tensor) or x.device.type == "meta", func


@pytest.mark.parametrize(
    "work",
    [
        pytest.param(lambda x: x[x > 0], id="mask"),
        pytest.param(lambda x: x.nonzero(), id="nonzero"),
        pytest.param(lambda x: x * float(x.sum()), id="item"),
        pytest.param(lambda x: x.repeat_interleave(x.long()), id="repeat"),
        pytest.param(lambda x: x.masked_select(x > 0), id="select"),
    ],
)
def test_a_tape_refuses_what_a_graph_cannot_hold(work):
    with pytest.raises(RuntimeError, match="cannot be recorded"):
        Tape().record(lambda: work(torch.ones(3)))
