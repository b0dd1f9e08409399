"""What generate lists: scores and their order, what is excluded, candidates."""

import numpy as np
import pytest
import torch

from pylum import ANY, Ragged, generate
from pylum.generation import limits
from tests.serving.worlds import ITEMS, SCENES, data, history, model


def test_scores_are_cosines_and_order_is_exact():
    out = generate(model(), data(), {"scene": SCENES}, k=7)
    vectors = model().item_vectors().detach()
    for q in range(len(out)):
        scores = vectors @ out.embeddings[q]
        torch.testing.assert_close(scores[out.rows[q]], out.scores[q], atol=1e-6, rtol=0)
        left = scores.clone()
        owner = int(torch.searchsorted(out.offsets, q, right=True)) - 1
        events = data().events
        left[events.items[events.offsets[owner] : events.offsets[owner + 1]]] = -2
        left[0] = -2
        assert set(left.topk(7).indices.tolist()) == set(out.rows[q].tolist())
        assert [data().vocabs.items.values([r])[0] for r in out.rows[q]] == out.items[q].tolist()


def test_history_is_excluded_beyond_the_window():
    """Promise 5: everything passed, not only what the model sees."""
    narrow = model(max_length=8)
    seen = [e["item"] for e in history(30)]
    out = generate(narrow, {"u": history(30)}, k=ITEMS)
    assert out.stats["exclude"] == "history"
    found = [item for item in out.items[0] if item is not None]
    assert len(found) == ITEMS - 30
    assert not set(found) & set(seen)
    assert (out.rows[0, ITEMS - 30 :] == -1).all()
    assert out.scores[0, ITEMS - 30 :].isneginf().all()
    kept = generate(narrow, {"u": history(30)}, k=ITEMS, exclude="none")
    assert None not in kept.items[0]


@pytest.mark.parametrize(
    ("exclude", "gone"),
    [
        pytest.param([["i3", "i4"], ["i5"]], [{"i3", "i4"}] * 2 + [{"i5"}] * 2, id="by-user"),
        pytest.param([["i3"], [], ["i5"], []], [{"i3"}, set(), {"i5"}, set()], id="by-question"),
        pytest.param([["nope"], []], [set()] * 4, id="unknown"),
    ],
)
def test_exclude_given(exclude, gone):
    histories = {"a": history(5), "b": []}
    out = generate(model(), histories, {"scene": ["home", "cart"]}, k=ITEMS, exclude=exclude)
    everything = {f"i{i}" for i in range(ITEMS)}
    for q in range(4):
        assert set(out.items[q]) - {None} == everything - gone[q]


def test_repeats_change_the_default_and_say_so(monkeypatch):
    monkeypatch.setattr(limits, "REPEATS", -1.0)
    with pytest.warns(UserWarning, match="exclude='none'"):
        out = generate(model(), {"u": history(5)}, k=ITEMS)
    assert out.stats["exclude"] == "none"
    assert None not in out.items[0]


@pytest.mark.parametrize(
    ("candidates", "allowed"),
    [
        pytest.param(["i7", "i2", "i7"], [{"i7", "i2"}] * 3, id="shared-with-duplicate"),
        pytest.param(np.array(["i7"]), [{"i7"}] * 3, id="array"),
        pytest.param([["i1", "i2"], ["i3"]], [{"i1", "i2"}] * 2 + [{"i3"}], id="by-user"),
        pytest.param(
            [["i1"], ["i2"], ["i3", "i4"]], [{"i1"}, {"i2"}, {"i3", "i4"}], id="by-question"
        ),
        pytest.param(Ragged.from_lists([["i1"], []]), [{"i1"}] * 2 + [set()], id="ragged"),
        pytest.param(["unknown", "i2"], [{"i2"}] * 3, id="unknown"),
        pytest.param(["unknown"], [set()] * 3, id="none-left"),
        pytest.param([], [set()] * 3, id="empty"),
    ],
)
def test_candidates(candidates, allowed):
    """Promise 6."""
    out = generate(
        model(),
        {"a": [], "b": []},
        {"scene": Ragged(["home", "cart", ANY], torch.tensor([0, 2, 3]))},
        k=3,
        candidates=candidates,
    )
    free = generate(
        model(),
        {"a": [], "b": []},
        {"scene": Ragged(["home", "cart", ANY], torch.tensor([0, 2, 3]))},
        k=ITEMS,
    )
    for q in range(3):
        order = [item for item in free.items[q] if item in allowed[q]]
        assert out.items[q].tolist() == order + [None] * (3 - len(order))
        assert out.scores[q, len(order) :].isneginf().all()
    assert out.stats["unknown_candidates"] == ("unknown" in list(candidates))


def test_limits_in_chunks(monkeypatch):
    arguments = {"candidates": [[f"i{i}" for i in range(40)]] * len(data()), "k": 5}
    whole = generate(model(), data(), {"scene": SCENES}, **arguments)
    monkeypatch.setattr(limits, "CHUNK_LIMITS", 100)
    chunked = generate(model(), data(), {"scene": SCENES}, **arguments)
    assert chunked.items.tolist() == whole.items.tolist()
    assert torch.equal(chunked.scores, whole.scores)


def test_ties_go_to_the_lower_row():
    flat = model(dim=1)
    out = generate(flat, {"u": []}, k=ITEMS)
    for sign in (1.0, -1.0):
        rows = out.rows[0][out.scores[0] == sign]
        assert rows.tolist() == sorted(rows.tolist())
    assert set(out.scores[0].tolist()) <= {1.0, -1.0}


def test_k_zero_gives_embeddings_only():
    out = generate(model(), data(), k=0)
    assert out.items.shape == out.scores.shape == (len(data()), 0)
    assert out.embeddings.shape == (len(data()), 16)
    assert len(out.to_arrow()) == 0
