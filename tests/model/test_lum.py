"""The model against a plain float64 one, and its promises: packing, no leak, queries, ANY."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pylum import ops
from tests.model.world import (
    ANY_ROW,
    ITEMS,
    Plain,
    answers,
    make_events,
    make_model,
    positions,
)
from tests.tolerance import MODEL

TOLERANCE = MODEL[torch.float32]


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() < TOLERANCE)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="all-fields"),
        pytest.param({"kv_heads": 1}, id="shared-kv"),
        pytest.param({"layers": 1, "heads": 1, "width": 10, "ffn": 1.0}, id="width-10"),
        pytest.param({"query_time": False, "calendar": ()}, id="no-clock"),
        pytest.param({"calendar": ("hour",)}, id="hour"),
    ],
)
def test_answers_and_gradients_equal_plain_float64(changes):
    model = make_model(**changes)
    events = make_events([5, 0, 1, 12])
    plain = Plain(model)
    model.item_encoder.features.standardise(model.item_encoder.columns(None))

    def loss(found, vectors):
        scores = found @ vectors.T / model.temperature
        return torch.nn.functional.cross_entropy(scores, events.items)

    found, expected = answers(model, events), plain.answers(events)
    assert close(found, expected)
    assert close(model.item_vectors(), plain.item_vectors())
    loss(found, model.item_vectors()).backward()
    loss(expected, plain.item_vectors()).backward()
    for name, p in model.named_parameters():
        exact = plain.weights[name].grad
        if exact is None:
            assert p.grad is None, name
            continue
        assert (p.grad - exact).norm() <= TOLERANCE * exact.norm().clamp_min(1e-3), name


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(0, 99))
def test_packed_equals_each_alone(lengths, seed):
    model = make_model()
    events = make_events([*lengths, 3], seed)
    packed = answers(model, events)
    for b in range(len(events)):
        rows = slice(int(events.offsets[b]), int(events.offsets[b + 1]))
        alone = answers(model, events.users(torch.tensor([b])))
        assert torch.equal(packed[rows], alone) or close(packed[rows], alone)


def test_one_nan_user_moves_no_other():
    model = make_model()
    events = make_events([6, 7, 8])
    before = answers(model, events)
    search = events.conditions["search"].clone()
    search[6:13, 1] = torch.nan
    search[6:13, 0] = 1.0
    after = answers(model, replace(events, conditions={**events.conditions, "search": search}))
    assert bool(after[6:13].isnan().any())
    assert torch.equal(before[:6], after[:6]) and torch.equal(before[13:], after[13:])


@pytest.mark.parametrize(
    "column", ["items", "scene", "price", "search", "rating", "dwell", "times"]
)
@pytest.mark.parametrize("k", [0, 4, 9])
def test_nothing_known_after_the_choice_moves_its_answer(column, k):
    model = make_model()
    events = make_events([10])
    before = answers(model, events)
    # The row's own item and outcomes, its condition and time only from the next row on.
    own = column in ("items", "rating", "dwell")
    at = torch.arange(10) >= (k if own else k + 1)

    def altered(values):
        values = values.clone()
        if values.dtype == torch.int64:
            bound = {"items": ITEMS, "scene": 5, "rating": 4}.get(column, 10**9)
            values[at] = values[at] + 10**5 if column == "times" else (values[at] + 1) % bound
        else:
            values[at] = torch.where(values[at].isnan(), 0.5, values[at] + 1)
        return values

    changed = events
    if column in ("items", "times"):
        changed = replace(events, **{column: altered(getattr(events, column))})
    elif column in events.conditions:
        changed = replace(
            events,
            conditions={**events.conditions, column: altered(events.conditions[column])},
        )
    else:
        changed = replace(
            events, outcomes={**events.outcomes, column: altered(events.outcomes[column])}
        )
    after = answers(model, changed)
    assert torch.equal(before[: k + 1], after[: k + 1])
    if k == 0:
        assert not torch.equal(before[1:], after[1:])


def ask(model, events, conditions, gaps, times, visible):
    """Answers of queries to one history, each seeing ``visible`` behaviours."""
    x = model.history_tokens(events)
    queries = model.query_tokens(conditions, gaps, times)
    mask = ops.Mask(num_targets=[len(queries)], visible=2 * visible)
    where = torch.cat([positions(events.offsets), visible])
    hidden = model.run(
        torch.cat([x, queries]), torch.tensor([0, len(x) + len(queries)]), where, mask
    )
    return model.answers(hidden[len(x) :])


def test_history_condition_equals_target_query():
    model = make_model()
    events = make_events([17])
    asked = ask(
        model, events, events.conditions, model.gaps(events), events.times, torch.arange(17)
    )
    assert close(asked, answers(model, events))


def test_grouped_queries_equal_each_alone_in_any_order():
    model = make_model()
    events = make_events([17])
    conditions = make_events([9], seed=5).conditions
    full = torch.full((9,), 17)
    gaps, times = torch.arange(9) * 1000 - 1, torch.arange(9) * 7200
    together = ask(model, events, conditions, gaps, times, full)
    order = torch.randperm(9)
    shuffled = ask(
        model, events, {n: c[order] for n, c in conditions.items()}, gaps[order], times[order], full
    )
    assert torch.equal(together[order], shuffled) or close(together[order], shuffled)
    for q in range(9):
        one = slice(q, q + 1)
        alone = ask(
            model,
            events,
            {n: c[one] for n, c in conditions.items()},
            gaps[one],
            times[one],
            full[one],
        )
        assert close(together[one], alone)


def test_rows_are_those_of_the_whole_pass():
    model = make_model()
    events = make_events([5, 30, 1])
    x, where = model.history_tokens(events), positions(events.offsets)
    whole = model.run(x, events.offsets * 2, where)
    rows = torch.tensor([0, 4, 10, 68, 70])
    assert close(model.run(x, events.offsets * 2, where, rows=rows), whole[rows])


def test_cached_equals_whole_pass():
    model = make_model()
    events = make_events([20, 7, 33])
    lengths = 2 * events.lengths
    x, where = model.history_tokens(events), positions(events.offsets)
    conditions = make_events([6], seed=5).conditions
    queries = model.query_tokens(conditions)
    num_targets = torch.tensor([1, 2, 3])
    owner = num_targets.cumsum(0) - num_targets

    # The whole pass: history and targets of each user in one sequence.
    parts, places, kept, offsets = [], [], [], [0]
    for b in range(3):
        rows = slice(int(2 * events.offsets[b]), int(2 * events.offsets[b + 1]))
        asked = slice(int(owner[b]), int(owner[b] + num_targets[b]))
        parts += [x[rows], queries[asked]]
        places += [where[rows], events.lengths[b].expand(int(num_targets[b]))]
        offsets.append(offsets[-1] + int(lengths[b] + num_targets[b]))
        kept += range(offsets[-1] - int(num_targets[b]), offsets[-1])
    mask = ops.Mask(num_targets=num_targets)
    whole = model.run(torch.cat(parts), torch.tensor(offsets), torch.cat(places), mask)
    expected = model.answers(whole[kept])

    with torch.inference_mode():
        pools = [ops.pages_like(torch.empty(1, 2, 8), torch.empty(1, 2, 8), 6) for _ in range(2)]
        table = torch.tensor([[4, 0], [2, 0], [1, 5]])

        def prefixes(held):
            return [ops.PagedPrefix(k, v, table, held) for k, v in pools]

        # History arrives in two parts, the second together with the targets.
        early = torch.tensor([10, 14, 0])
        first = torch.cat([x[a : a + n] for a, n in zip((0, 40, 54), early.tolist(), strict=True)])
        at = torch.cat([where[a : a + n] for a, n in zip((0, 40, 54), early.tolist(), strict=True)])
        model.run_cached(first, torch.tensor([0, 10, 24, 24]), at, prefixes(early))
        parts, places, offsets, kept = [], [], [0], []
        for b, a in enumerate((0, 40, 54)):
            rows = slice(a + int(early[b]), a + int(lengths[b]))
            asked = slice(int(owner[b]), int(owner[b] + num_targets[b]))
            parts += [x[rows], queries[asked]]
            places += [where[rows], events.lengths[b].expand(int(num_targets[b]))]
            offsets.append(offsets[-1] + len(parts[-2]) + len(parts[-1]))
            kept += range(offsets[-1] - int(num_targets[b]), offsets[-1])
        run = (torch.cat(parts), torch.tensor(offsets), torch.cat(places))
        both = model.answers(model.run_cached(*run, prefixes(lengths), mask)[kept])
        assert close(both, expected)
        # Targets alone, twice: asking writes nothing.
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), num_targets.cumsum(0)])
        where = events.lengths.repeat_interleave(num_targets)
        for _ in range(2):
            alone = model.run_cached(queries, offsets, where, prefixes(lengths), mask)
            assert close(model.answers(alone), expected)


def test_a_missing_field_is_any():
    model = make_model()
    spelled = {
        "scene": torch.full((2,), ANY_ROW),
        "price": torch.full((2,), torch.nan),
        "search": torch.full((2, 3), torch.nan),
    }
    unknown = torch.full((2,), -1)
    assert torch.equal(
        model.query_tokens({}, count=2), model.query_tokens(spelled, unknown, unknown)
    )
    with pytest.raises(ValueError, match="count must be given"):
        model.query_tokens({})


def test_empty_batch():
    model = make_model()
    assert answers(model, make_events([0, 0])).shape == (0, 12)


def test_answers_and_items_have_unit_length():
    model = make_model(tie=False)
    for vectors in (answers(model, make_events([9])), model.item_vectors()):
        assert torch.allclose(vectors.norm(dim=1), torch.ones(len(vectors)), atol=1e-6)
    rows = torch.tensor([3, 0, 3])
    assert close(model.item_vectors(rows), model.item_vectors()[rows])
