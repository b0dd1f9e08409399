"""The promises of generate, each a test."""

import copy
import inspect

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pylum
from pylum import ANY, Histories, Ragged, generate
from pylum.data import ItemTable, Schema, Vocabs
from tests.serving.worlds import SCENES, data, event, history, model
from tests.tolerance import MODEL

CLOSE = MODEL[torch.float32]


def assert_same_answers(a, b):
    torch.testing.assert_close(a, b, atol=CLOSE, rtol=0)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_grouped_equals_alone_in_any_order(data):
    """Promise 1: every condition takes the same position after the history."""
    users = data.draw(st.integers(1, 4))
    lengths = data.draw(st.lists(st.integers(0, 70), min_size=users, max_size=users))
    asked = data.draw(
        st.lists(
            st.lists(st.sampled_from([*SCENES, ANY]), max_size=4), min_size=users, max_size=users
        )
    )
    if all(isinstance(row, list) and not row for row in asked):
        asked[0] = [ANY]
    histories = {f"u{i}": history(n, seed=i) for i, n in enumerate(lengths)}
    flat = [scene for row in asked for scene in row]
    ragged = Ragged(flat, torch.tensor([0, *np.cumsum([len(row) for row in asked])]))
    grouped = generate(model(), histories, {"scene": ragged}, k=3)
    assert grouped.offsets.tolist() == ragged.offsets.tolist()
    assert [c["scene"] if isinstance(c, dict) else c for c in grouped.conditions] == flat
    q = 0
    for user, row in zip(histories, asked, strict=True):
        for scene in row:
            alone = generate(model(), {user: histories[user]}, {"scene": [scene]}, k=3)
            assert_same_answers(grouped.embeddings[q : q + 1], alone.embeddings)
            q += 1
    order = data.draw(st.permutations(range(len(asked[0]))))
    user = next(iter(histories))
    turned = generate(
        model(), {user: histories[user]}, {"scene": [asked[0][i] for i in order]}, k=0
    )
    assert_same_answers(turned.embeddings, grouped.embeddings[: len(order)][list(order)])


def test_conditions_matter():
    """What is promised to be equal elsewhere does differ where it should."""
    answers = generate(model(), {"u": history(9)}, {"scene": SCENES}, k=0).embeddings
    other = generate(model(), {"u": history(9, seed=5)}, {"scene": SCENES}, k=0).embeddings
    assert (answers @ answers.T - torch.eye(3)).abs().max() < 0.99
    assert (answers - other).abs().max() > 0.1
    torch.testing.assert_close(answers.norm(dim=1), torch.ones(3))


def test_packed_equals_alone():
    """Promise 2: users of a batch do not meet; batches do not matter."""
    together = generate(model(), data(), {"scene": SCENES}, k=5)
    small = generate(model(), data(), {"scene": SCENES}, k=5, batch_tokens=30)
    assert_same_answers(small.embeddings, together.embeddings)
    for b, user in enumerate(together.users):
        alone = generate(model(), data().histories([user]), {"scene": SCENES}, k=5)
        assert_same_answers(alone.embeddings, together.embeddings[3 * b : 3 * b + 3])
    parts = list(pylum.generate_batches(model(), data(), {"scene": SCENES}, k=5, batch_tokens=30))
    assert 1 < len(parts) <= len(together.users)
    assert [user for part in parts for user in part.users] == together.users
    assert_same_answers(torch.cat([part.embeddings for part in parts]), together.embeddings)


def test_many_conditions_of_one_user_are_asked_in_parts():
    scenes = [SCENES[i % 3] for i in range(100)]
    whole = generate(model(), {"u": history(9)}, {"scene": scenes})
    parts = generate(model(), {"u": history(9)}, {"scene": scenes}, batch_tokens=40)
    assert_same_answers(parts.embeddings, whole.embeddings)
    assert parts.stats["tokens_computed"] > whole.stats["tokens_computed"] == 18 + 100


def test_window_is_the_last_behaviours():
    long = history(100)
    short = generate(model(), {"u": long[-64:]}, query_time=1_800_000_000, exclude="none")
    full = generate(model(), {"u": long}, query_time=1_800_000_000, exclude="none")
    assert_same_answers(full.embeddings, short.embeddings)
    assert full.stats["behaviours_beyond_window"] == 36


def test_bfloat16_stays_within_its_bound():
    """Promise 2 in bfloat16: grouped, packed, cached and alone."""
    half = copy.deepcopy(model()).to(torch.bfloat16)
    bound = MODEL[torch.bfloat16]
    full = generate(model(), data(), {"scene": SCENES}, k=3)
    together = generate(half, data(), {"scene": SCENES}, k=3)
    cache = pylum.UserCache(half, 4096)
    generate(half, data(), {"scene": []}, cache=cache)
    cached = generate(half, data(), {"scene": SCENES}, k=3, cache=cache)
    assert cached.stats["tokens_reused"] > 0
    alone = torch.cat(
        [
            generate(half, data().histories([user]), {"scene": [scene]}, k=0).embeddings
            for user in data().users
            for scene in SCENES
        ]
    )
    assert together.embeddings.dtype == together.scores.dtype == torch.float32
    for other in (cached.embeddings, alone):
        torch.testing.assert_close(other, together.embeddings, atol=bound, rtol=0)
    cosine = torch.nn.functional.cosine_similarity(together.embeddings, full.embeddings)
    assert cosine.min() > 1 - bound


def test_unknown_user_and_empty_history():
    """Promise 7: there is no table of users."""
    out = generate(model(), {"nobody": []}, {"scene": ["home", "unheard"]}, k=3)
    assert out.items.shape == (2, 3)
    assert None not in out.items
    assert out.stats["unknown_conditions"] == 1
    never = generate(model(), data().histories(["u0", "never"]), k=3)
    assert_same_answers(never.embeddings[1:], generate(model(), {"x": []}, k=3).embeddings)


def test_unknown_items_are_oov_dropped_or_raised():
    base = 1_700_000_000
    known = [event(1, base), event(2, base + 20)]
    strange = [known[0], {"item": "new", "time": base + 10, "scene": "home"}, known[1]]
    oov = generate(model(), {"u": strange})
    assert oov.stats["unknown_items"] == 1
    dropped = generate(model(), {"u": strange}, on_unknown="drop")
    assert dropped.stats["unknown_items"] == 1
    assert_same_answers(dropped.embeddings, generate(model(), {"u": known}).embeddings)
    assert (oov.embeddings - dropped.embeddings).abs().max() > 1e-3
    with pytest.raises(ValueError, match="'new' of user 'u'"):
        generate(model(), {"u": strange}, on_unknown="raise")


def test_ids_come_back_as_they_went_in():
    out = generate(model(), {7: history(3), 8: []}, {"scene": ["home", ANY]}, k=2)
    assert out.users == [7, 8]
    assert out.conditions == ["home", ANY, "home", ANY]
    frame = out.to_pandas()
    assert list(frame.columns) == ["user", "condition", "rank", "item", "score"]
    assert frame["user"].tolist() == [7] * 4 + [8] * 4
    assert frame["rank"].tolist() == [1, 2] * 4
    assert frame["item"].tolist() == out.items.reshape(-1).tolist()
    assert frame["condition"].isna().tolist() == [False, False, True, True] * 2
    np.testing.assert_array_equal(frame["score"].to_numpy(), out.scores.reshape(-1).numpy())
    several = generate(model(), {7: []}, {"scene": ["home"], "hour": 3.0}, k=1).to_pandas()
    assert list(several.columns) == ["user", "scene", "hour", "rank", "item", "score"]


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), 3e38])
def test_a_broken_history_moves_no_other(broken):
    """Promise 8: bitwise, in the same batch."""
    bad = history(20, seed=3)
    for each in bad[5:]:
        each["hour"], each["text"] = broken, [1.0, broken, broken]
    good = history(20, seed=3)
    mixed = generate(model(), {"a": history(30), "b": bad, "c": history(7, 1)}, {"scene": SCENES})
    fine = generate(model(), {"a": history(30), "b": good, "c": history(7, 1)}, {"scene": SCENES})
    for q in (0, 1, 2, 6, 7, 8):
        assert torch.equal(mixed.embeddings[q], fine.embeddings[q])
        assert mixed.items[q].tolist() == fine.items[q].tolist()


def test_same_call_twice_is_bitwise_the_same():
    first = generate(model(), data(), {"scene": SCENES})
    again = generate(model(), data(), {"scene": SCENES})
    assert torch.equal(first.embeddings, again.embeddings)
    assert torch.equal(first.rows, again.rows)


def test_batches_can_be_stopped_and_gone_on_with():
    """Promise 9: what is done before an interruption is the caller's."""
    stream = pylum.generate_batches(model(), data(), k=2, batch_tokens=1)
    done = [next(stream) for _ in range(3)]
    stream.close()
    rest = data().users[sum(len(part.users) for part in done) :]
    more = generate(model(), data().histories(rest), k=2)
    whole = generate(model(), data(), k=2)
    assert_same_answers(
        torch.cat([*(part.embeddings for part in done), more.embeddings]), whole.embeddings
    )


def test_query_time():
    late = 1_700_000_000 + 86400 * 30
    clock = model(calendar=("hour", "weekday"))
    unknown = generate(clock, {"a": history(5), "b": []}, k=0)
    known = generate(clock, {"a": history(5), "b": []}, k=0, query_time=late)
    each = generate(clock, {"a": history(5), "b": []}, k=0, query_time=[late, late])
    stamp = generate(
        clock, {"a": history(5), "b": []}, k=0, query_time=pd.Timestamp(late, unit="s")
    )
    assert (unknown.embeddings - known.embeddings).abs().max() > 1e-3
    assert torch.equal(each.embeddings, known.embeddings)
    assert torch.equal(stamp.embeddings, known.embeddings)
    with pytest.raises(ValueError, match=r"query_time must not precede .* user 'a'"):
        pylum.generate_batches(clock, {"a": history(5)}, query_time=1_600_000_000)
    with pytest.raises(ValueError, match="query_time must be one time, 2 of users"):
        generate(clock, {"a": [], "b": []}, query_time=[1, 2, 3])


def test_zero_users_and_zero_conditions():
    nobody = generate(model(), {}, {"scene": ["home"]})
    assert nobody.items.shape == (0, 10)
    assert len(nobody.to_pandas()) == 0
    unasked = generate(model(), {"a": history(3), "b": []}, {"scene": []})
    assert unasked.embeddings.shape == (0, 16)
    assert unasked.offsets.tolist() == [0, 0, 0]


def test_training_mode_is_left_as_it_was():
    trained = model(dropout=0.5)
    expected = generate(trained, {"u": history(5)}).embeddings
    trained.train()
    try:
        assert torch.equal(generate(trained, {"u": history(5)}).embeddings, expected)
        assert trained.training
    finally:
        trained.eval()


def test_new_weights_make_new_answers():
    changed = model(layers=1)
    before = generate(changed, {"u": history(5)}, k=5)
    with torch.no_grad():
        changed.item_answer.weight.neg_()
    after = generate(changed, {"u": history(5)}, k=5, candidates=before.items[0].tolist())
    with torch.no_grad():
        changed.item_answer.weight.neg_()
    torch.testing.assert_close(after.scores.flip(1), -before.scores, atol=1e-6, rtol=0)


def test_a_model_made_in_inference_mode():
    with torch.inference_mode():
        made = pylum.LUM(model().config, data().schema, data().vocabs, data().items).eval()
        made.load_state_dict(model().state_dict())
    expected = generate(model(), {"u": history(5)})
    assert generate(made, {"u": history(5)}).items.tolist() == expected.items.tolist()
    assert made.fingerprint() == model().fingerprint()


def test_hashed_items_have_no_ids_to_answer_with():
    vocabs = Vocabs(pylum.Vocab(kind="hashed", buckets=16))
    hashed = pylum.LUM(pylum.LUMConfig(dim=8), Schema(), vocabs, ItemTable(len(vocabs.items)))
    events = {"u": [{"item": "anything", "time": 5}]}
    assert generate(hashed.eval(), events, k=0).embeddings.shape == (1, 8)
    with pytest.raises(ValueError, match="k must be 0 for a model whose items are hashed"):
        generate(hashed, events)
    assert pylum.query(hashed, events).items == []


def test_model_generate_is_the_same_function():
    """Promise 10."""
    assert pylum.LUM.generate is pylum.generate
    out = model().generate({"u": history(3)}, {"scene": ["home"]}, k=2)
    assert (
        out.items.tolist()
        == generate(model(), {"u": history(3)}, {"scene": ["home"]}, k=2).items.tolist()
    )
    names = list(inspect.signature(generate).parameters)
    assert names[:3] == ["model", "histories", "conditions"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        pytest.param({"k": -1}, ValueError, "k must be at least 0, got -1", id="k"),
        pytest.param({"k": 2.0}, TypeError, r"k must be an integer, got 2\.0", id="k-float"),
        pytest.param({"batch_tokens": 0}, ValueError, "batch_tokens must be", id="batch-tokens"),
        pytest.param(
            {"exclude": "seen"}, ValueError, "exclude must be .* got 'seen'", id="exclude"
        ),
        pytest.param({"exclude": 3}, ValueError, "exclude must be .* got 3", id="exclude-3"),
        pytest.param(
            {"exclude": [["i1"]] * 5}, ValueError, "exclude must have a row for each", id="rows"
        ),
        pytest.param(
            {"candidates": [["i1"]] * 5}, ValueError, "candidates must have a row", id="candidates"
        ),
        pytest.param(
            {"candidates": [3]}, TypeError, "candidates must be strings, got integers", id="type"
        ),
        pytest.param({"on_unknown": "skip"}, ValueError, "on_unknown must be", id="on-unknown"),
        pytest.param(
            {"conditions": {"scen": ["home"]}}, ValueError, "fields of the model", id="field"
        ),
        pytest.param({"histories": 3}, TypeError, "histories must be .* got int", id="histories"),
        pytest.param({"histories": ["u"]}, TypeError, "histories must be .* got list", id="list"),
        pytest.param(
            {"model": "m"},
            TypeError,
            "model must be a pylum.LUM or pylum.HSTU, got str",
            id="model",
        ),
    ],
)
def test_errors_name_the_argument(arguments, error, message):
    """Promise 10."""
    arguments = {"model": model(), "histories": {"u": history(3), "v": []}, **arguments}
    with pytest.raises(error, match=message):
        generate(**arguments)
    if "model" not in arguments or arguments["model"] is model():
        with pytest.raises(error, match=message):
            pylum.generate_batches(**arguments)


def test_histories_may_be_of_another_data_set():
    other = Histories.from_dicts({"u": history(9)}, data().schema)
    assert_same_answers(
        generate(model(), other).embeddings, generate(model(), {"u": history(9)}).embeddings
    )
