"""HSTU against a plain float64 one, and its promises: packing, no leak, time, candidates."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pylum.model.hstu_batch import Asked, make_batch
from pylum.ragged import lengths_to_offsets
from tests.model.hstu_world import MEAN, SCALE, PlainHSTU, make_hstu
from tests.model.world import ITEMS, make_events
from tests.tolerance import MODEL

TOLERANCE = MODEL[torch.float32]
PRODUCTION = {"variant": "production"}
CONTEXT = {"context": ("search", "scene")}
WINDOW = {"window": 5, "min_full": 3}
MASKS = [
    pytest.param({}, id="research"),
    pytest.param(PRODUCTION, id="production"),
    pytest.param({**PRODUCTION, "window": 5}, id="window"),
    pytest.param({**PRODUCTION, **WINDOW}, id="min-full"),
    pytest.param({**PRODUCTION, **CONTEXT}, id="context"),
    pytest.param({**PRODUCTION, **CONTEXT, **WINDOW}, id="context-and-masks"),
]
# A prefix of a history is what it is alone.
STEADY = [case for case in MASKS if "min_full" not in case.values[0]]
VARIANTS = [
    pytest.param({}, id="research"),
    pytest.param({"time": False}, id="research-without-time"),
    pytest.param({"variant": "production"}, id="production"),
    pytest.param({"variant": "production", "window": 6}, id="production-window"),
    pytest.param({**PRODUCTION, "window": 6, "min_full": 4}, id="production-min-full"),
    pytest.param({**PRODUCTION, **CONTEXT}, id="production-context"),
    pytest.param({**PRODUCTION, **CONTEXT, **WINDOW}, id="production-context-and-masks"),
    pytest.param({"variant": "production", "time": False}, id="production-without-time"),
    pytest.param({"layers": 1, "heads": 1}, id="one-layer"),
    pytest.param({"project": False, "dim": 16}, id="no-projections"),
]


def close(a, b):
    return bool((a - b).abs().max() < TOLERANCE)


def run(model, events, asked=None, item_tokens=None):
    batch = make_batch(model, events, asked, item_tokens=item_tokens)
    hidden = model.run(batch.x, batch.offsets, batch.positions, batch.clock, batch.mask)
    return batch, hidden


def ask(model, events, counts, **options):
    """Answers of targets: of each history as many as ``counts`` says."""
    asked = Asked(lengths_to_offsets(torch.tensor(counts)), **options)
    batch, hidden = run(model, events, asked)
    return hidden[batch.targets]


def gradients_agree(model, plain, loss, expected):
    loss.backward()
    expected.backward()
    for name, p in model.named_parameters():
        exact = plain.weights[name].grad
        if exact is None:
            assert p.grad is None or not p.grad.any(), name
            continue
        assert (p.grad - exact).norm() <= TOLERANCE * exact.norm().clamp_min(1e-3), name


@pytest.mark.parametrize("changes", VARIANTS)
def test_retrieval_and_its_gradients_equal_plain_float64(changes):
    model = make_hstu(**changes)
    events = make_events([5, 0, 1, 12])
    plain = PlainHSTU(model)
    batch, hidden = run(model, events)
    found = model.answers(batch.at_choices(hidden))
    users = [events.users(torch.tensor([b])) for b in range(4)]
    expected = torch.cat([plain.answer(user)[: user.total] for user in users])
    assert close(found, expected)

    def loss(found, vectors):
        return torch.nn.functional.cross_entropy(found @ vectors.T / 0.05, events.items)

    gradients_agree(
        model,
        plain,
        loss(found, model.item_vectors()),
        loss(expected, plain.item_vectors()),
    )


@pytest.mark.parametrize("changes", VARIANTS)
def test_ranking_and_its_gradients_equal_plain_float64(changes):
    model = make_hstu(task="ranking", **changes)
    events = make_events([5, 0, 1, 12])
    plain = PlainHSTU(model)
    batch, hidden = run(model, events)
    found = model.tasks(batch.at_choices(hidden))
    parts = []
    for b in (0, 2, 3):
        user = events.users(torch.tensor([b]))
        rows = plain.hidden(*plain.sequence(user, None))[1::2]
        parts.append(rows @ plain.weights["tasks.weight"].T + plain.weights["tasks.bias"])
    expected = torch.cat(parts)
    assert close(found, expected)
    labels = model.tasks.labels(events)
    assert torch.equal(labels.isnan()[:, 0], events.outcomes["rating"] == 0)
    assert torch.equal(labels[:, 0] == 1, events.outcomes["rating"] >= 2)
    assert torch.equal(labels[:, 2].nan_to_num(-1), events.outcomes["dwell"].nan_to_num(-1))
    wanted = torch.zeros((), dtype=torch.float64)
    for n, row in enumerate(labels.double()):
        for logit, label in zip(expected[n, :2], row[:2], strict=True):
            if not label.isnan():
                wanted = wanted - (logit if label else -logit).sigmoid().log()
        if not row[2].isnan():
            wanted = wanted + (expected[n, 2] - (row[2] - MEAN) / SCALE) ** 2
    predicted = model.tasks.predictions(batch.at_choices(hidden))
    assert close(predicted[:, :2], expected[:, :2].sigmoid())
    assert close(predicted[:, 2], MEAN + SCALE * expected[:, 2])
    gradients_agree(model, plain, model.tasks.loss(batch.at_choices(hidden), labels), wanted)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=5),
    st.integers(0, 99),
    st.sampled_from([case.values[0] for case in MASKS]),
    st.sampled_from(["retrieval", "ranking"]),
)
def test_packed_equals_each_alone(lengths, seed, changes, task):
    model = make_hstu(**changes, task=task)
    events = make_events([*lengths, 3], seed)
    batch, packed = run(model, events)
    for b in range(len(events)):
        rows = slice(int(batch.offsets[b]), int(batch.offsets[b + 1]))
        _, alone = run(model, events.users(torch.tensor([b])))
        assert torch.equal(packed[rows], alone) or close(packed[rows], alone)


@pytest.mark.parametrize("changes", STEADY)
@pytest.mark.parametrize("time", [None, 2_000_000])
def test_a_question_is_the_last_row_of_its_prefix(changes, time):
    """All prefixes in one pass, each as if its history ended there; its user is known."""
    model = make_hstu(**changes)
    plain = PlainHSTU(model)
    events = make_events([9, 0, 4])
    counts = [10, 1, 5]
    visible = torch.cat([torch.arange(n) for n in counts])
    times = None if time is None else torch.full((16,), time)
    found = model.answers(ask(model, events, counts, visible=visible, times=times))
    whose = torch.repeat_interleave(torch.tensor(counts))
    for q in range(16):
        rows = torch.arange(int(visible[q])) + events.offsets[whose[q]]
        prefix = events.take(rows, torch.tensor([0, len(rows)]))
        of_user = None
        if events.lengths[whose[q]]:
            of_user = (events.conditions, int(events.offsets[whose[q]]))
        assert close(found[q], plain.answer(prefix, time, of_user)[-1])


@pytest.mark.parametrize("changes", MASKS)
@pytest.mark.parametrize("time", [None, 2_000_000])
def test_candidates_equal_each_scored_alone(changes, time):
    model = make_hstu(**changes, task="ranking")
    plain = PlainHSTU(model)
    events = make_events([7, 0, 3])
    counts = [4, 2, 1]
    shown = make_events([7], seed=5)
    if model.config.context:
        # The user without a history is one user, whatever he is shown.
        for column in shown.conditions.values():
            column[5] = column[4]
    choices, columns = model.choice_tokens(shown.items, shown.conditions), shown.conditions
    times = None if time is None else torch.full((7,), time)
    options = {"times": times, "choices": choices, "columns": columns}
    together = model.tasks(ask(model, events, counts, **options))
    whose = torch.repeat_interleave(torch.tensor(counts))
    for q in range(7):
        user = events.users(whose[q : q + 1])
        expected = plain.score(user, shown.items[q], shown.conditions, q, time)
        assert close(together[q], expected)
        alone = ask(
            model,
            user,
            [1],
            times=None if times is None else times[:1],
            choices=choices[q : q + 1],
            columns={name: column[q : q + 1] for name, column in columns.items()},
        )
        assert close(together[q], model.tasks(alone)[0])


@pytest.mark.parametrize("task", ["retrieval", "ranking"])
@pytest.mark.parametrize("changes", MASKS)
@pytest.mark.parametrize("k", [0, 4, 9])
def test_nothing_of_the_future_moves_a_row(task, changes, k):
    """The row of behaviour k reads its time; ranking also its item and conditions; any row what the
    user is at the first behaviour."""
    model = make_hstu(task=task, **changes)
    events = make_events([10])
    row = int(make_batch(model, events).at_choices(torch.arange(30)[:, None])[k])

    def moved(changed):
        return not torch.equal(run(model, changed)[1][: row + 1], before[: row + 1])

    _, before = run(model, events)
    at = torch.arange(10) >= k
    later = torch.arange(10) > k
    own = later if task == "ranking" else at
    told = own & (torch.arange(10) > 0) if model.config.context else own
    changes = {
        "outcomes": replace(
            events,
            outcomes={
                "rating": torch.where(at, 3, events.outcomes["rating"]),
                "dwell": torch.where(at, 9.0, events.outcomes["dwell"]),
            },
        ),
        "items": replace(events, items=torch.where(own, (events.items + 1) % ITEMS, events.items)),
        "scene": replace(
            events,
            conditions={
                **events.conditions,
                "scene": torch.where(told, 4, events.conditions["scene"]),
            },
        ),
        "times": replace(events, times=torch.where(later, events.times + 10**5, events.times)),
    }
    for name, changed in changes.items():
        assert not moved(changed), name
    if k < 9:
        assert not torch.equal(run(model, changes["items"])[1], before)


def test_one_nan_user_moves_no_other():
    model = make_hstu()
    events = make_events([6, 7, 8])
    _, before = run(model, events)
    search = events.conditions["search"].clone()
    search[6:13, 1] = torch.nan
    search[6:13, 0] = 1.0
    _, after = run(model, replace(events, conditions={**events.conditions, "search": search}))
    assert bool(after[6:13].isnan().any())
    assert torch.equal(before[:6], after[:6]) and torch.equal(before[13:], after[13:])
