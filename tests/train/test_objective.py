"""The loss against dense cross-entropy written out."""

from dataclasses import replace

import pytest
import torch

from pylum.data import ANY_ROW, OOV_ROW
from pylum.train.objective import UNIFORM_NEGATIVES, Objective, drop_conditions
from tests.model.world import ITEMS, answers, make_events, make_model
from tests.tolerance import MODEL

TOLERANCE = MODEL[torch.float32]


def make(**changes):
    model = make_model(id_dropout=0.0, any_dropout=0.0, **changes)
    return model.train(), make_events([6, 0, 11, 1])


def dense(model, found, items, catalogue, log_q=0.0):
    """Cross-entropy of ``items`` among the rows of ``catalogue``."""
    goals = torch.searchsorted(catalogue, items)
    return cross_entropy(found, model.item_vectors(catalogue), goals, model.temperature, log_q)


def cross_entropy(found, vectors, goals, temperature, log_q=0.0):
    logits = found @ vectors.T / temperature - log_q
    return torch.nn.functional.cross_entropy(logits, goals, reduction="sum")


@pytest.mark.parametrize("targets", [pytest.param(False, id="all"), pytest.param(True, id="some")])
def test_full_softmax(targets):
    model, events = make()
    sites = torch.arange(18) % 3 != 1 if targets else torch.ones(18, dtype=torch.bool)
    if targets:
        events = replace(events, targets=sites)
    objective = Objective.of("auto", events, ITEMS)
    assert objective.negatives == "full"
    loss = objective.loss(model, events)
    # What was never chosen is no negative.
    expected = dense(
        model, answers(model, events)[sites], events.items[sites], events.items.unique()
    )
    assert abs(loss - expected) < TOLERANCE * expected


def test_the_unknown_item_is_a_negative_where_items_have_no_features():
    model, events = make()
    events = replace(events, items=events.items.clamp(min=OOV_ROW + 1))
    rows = torch.cat([torch.tensor([OOV_ROW]), events.items.unique()])
    loss = Objective.of("full", events, ITEMS, features=False).loss(model, events)
    expected = dense(model, answers(model, events), events.items, rows)
    assert abs(loss - expected) < TOLERANCE * expected
    chosen = replace(events, items=events.items * (torch.arange(events.total) % 2))
    assert torch.equal(
        Objective.of("full", chosen, ITEMS, features=False).catalogue, chosen.items.unique()
    )


def test_gradients_of_full_softmax():
    model, events = make()
    Objective.of("full", events, ITEMS).loss(model, events).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    dense(model, answers(model, events), events.items, events.items.unique()).backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            error = (found[name] - p.grad).norm() / p.grad.norm().clamp_min(1e-3)
            assert error < TOLERANCE, name


def test_any_targets_are_asked_at_every_position():
    model, events = make(any_targets=True)
    loss = Objective.of("full", events, ITEMS).loss(model, events)
    asked = [answers(model, events)]
    # The answer under ANY at position k: the same history with the k-th condition made ANY.
    for k in range(events.total):
        conditions = {n: c.clone() for n, c in events.conditions.items()}
        conditions["scene"][k] = ANY_ROW
        conditions["price"][k] = torch.nan
        conditions["search"][k] = torch.nan
        altered = replace(events, conditions=conditions)
        gaps, times = model.gaps(events), events.times.clone()
        gaps[k] = times[k] = -1
        x = model.history_tokens(replace(altered, times=times), gaps=gaps)
        rank = torch.arange(events.total) - events.offsets[:-1].repeat_interleave(events.lengths)
        hidden = model.run(x, 2 * events.offsets, rank.repeat_interleave(2))
        asked.append(model.answers(hidden[2 * k : 2 * k + 1]))
    goals = torch.cat([events.items, events.items])
    expected = dense(model, torch.cat(asked), goals, events.items.unique())
    assert abs(loss - expected) < TOLERANCE * expected


def test_uniform_negatives_without_collisions():
    model, events = make()
    objective = Objective.of(7, events, ITEMS)
    torch.manual_seed(3)
    loss = objective.loss(model, events)
    torch.manual_seed(3)
    catalogue = events.items.unique()
    drawn = catalogue[torch.randint(len(catalogue), (7,))]
    found, vectors = answers(model, events), model.item_vectors()
    expected = 0.0
    for answer, goal in zip(found, events.items.tolist(), strict=True):
        rows = [goal] + [r for r in drawn.tolist() if r != goal]
        logits = vectors[rows] @ answer / model.temperature
        expected = expected - logits.log_softmax(0)[0]
    assert abs(loss - expected) < TOLERANCE * expected


def test_in_batch_corrects_by_the_probability_of_being_drawn():
    model, events = make()
    objective = Objective.of("in_batch", events, ITEMS)
    loss = objective.loss(model, events)
    # 4,096 uniform draws out of the few items that were chosen are all of them.
    rows = events.items.unique()
    counts = torch.bincount(events.items, minlength=ITEMS).double()
    missed = (1 - counts / 18) ** 18 * (1 - 1 / len(rows)) ** UNIFORM_NEGATIVES
    log_q = torch.log(1 - missed)[rows].float()
    expected = dense(model, answers(model, events), events.items, rows, log_q)
    assert abs(loss - expected) < TOLERANCE * expected


def test_rows_of_a_large_catalogue_are_the_same_loss():
    model, events = make()
    small = events.users(torch.tensor([3]))
    catalogue = events.items.unique()
    assert 4 * small.total < len(catalogue)
    torch.manual_seed(3)
    few = Objective.of(5, events, ITEMS).loss(model, small)
    torch.manual_seed(3)
    drawn = catalogue[torch.randint(len(catalogue), (5,))]
    goal = int(small.items[0])
    rows = [goal] + [r for r in drawn.tolist() if r != goal]
    logits = model.item_vectors()[rows] @ answers(model, small)[0] / model.temperature
    assert abs(few + logits.log_softmax(0)[0]) < TOLERANCE * abs(few)


@pytest.mark.parametrize("negatives", ["all", 0, -3, True])
def test_unknown_negatives(negatives):
    with pytest.raises(ValueError, match="negatives must be auto, full, in_batch or a positive"):
        Objective.of(negatives, make_events([3]), ITEMS)


def test_any_dropout_hides_each_field_on_its_own():
    model = make_model(any_dropout=0.3)
    events = make_events([4000])
    dropped, gaps = drop_conditions(model, events)
    known = model.gaps(events) >= 0
    hidden = {
        "scene": dropped.conditions["scene"] != events.conditions["scene"],
        "search": dropped.conditions["search"][:, 0].isnan()
        & ~events.conditions["search"][:, 0].isnan(),
        "gap": (gaps < 0) & known,
        "time": dropped.times < 0,
    }
    share = {
        "scene": (events.conditions["scene"] != ANY_ROW).float().mean(),
        "search": (~events.conditions["search"][:, 0].isnan()).float().mean(),
        "gap": 1.0,
        "time": 1.0,
    }
    for name, mask in hidden.items():
        assert abs(float(mask.float().mean() / share[name]) - 0.3) < 0.03, name
    both = (hidden["gap"] & hidden["time"]).float().mean()
    assert abs(float(both) - 0.09) < 0.02
    assert bool((dropped.conditions["scene"][hidden["scene"]] == ANY_ROW).all())
