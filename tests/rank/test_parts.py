"""Pieces of the rankers against hand computation and loops."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from pylum.data import Vocab
from pylum.ragged import Ragged, lengths_to_offsets
from pylum.rank import Feature, Ranker, Schema
from pylum.rank.coding import Coded
from pylum.rank.din import ActivationUnit
from pylum.rank.ftrl import FTRL
from pylum.rank.quantiles import QUANTILES, quantile, quantile_bounds
from pylum.rank.settings import Settings
from pylum.rank.training import build
from tests.rank import worlds


def test_ftrl_by_hand():
    w = torch.nn.Parameter(torch.zeros(3))
    optimiser = FTRL([w], alpha=0.5, beta=1.0, l1=1.0, l2=0.5)
    gradients = [[3.0, 0.5, 0.0], [-1.0, 0.25, 0.0], [2.0, -4.0, 0.0]]
    z, n, expected = [0.0] * 3, [0.0] * 3, [0.0] * 3
    for gradient in gradients:
        w.grad = torch.tensor(gradient)
        optimiser.step()
        for i, g in enumerate(gradient):
            # Algorithm 1 of McMahan et al. 2013.
            sigma = ((n[i] + g * g) ** 0.5 - n[i] ** 0.5) / 0.5
            z[i] += g - sigma * expected[i]
            n[i] += g * g
            sign = 1 if z[i] > 0 else -1
            expected[i] = (
                0.0 if abs(z[i]) <= 1 else -(z[i] - sign) / ((1 + n[i] ** 0.5) / 0.5 + 0.5)
            )
        np.testing.assert_allclose(w.detach().numpy(), expected, rtol=1e-6)
    assert expected[0] != 0 and float(w.detach()[2]) == 0


def test_ftrl_keeps_a_warm_start():
    start = torch.tensor([0.7, -0.2, 0.0])
    w = torch.nn.Parameter(start.clone())
    optimiser = FTRL([w], alpha=0.1, l1=0.3)
    w.grad = torch.full((3,), 1e-6)
    optimiser.step()
    np.testing.assert_allclose(w.detach(), start, atol=1e-6)
    for bad in ({"alpha": 0.0}, {"l1": -1.0}):
        with pytest.raises(ValueError, match="alpha must be positive"):
            FTRL([w], **bad)


def test_l1_leaves_most_crosses_at_zero():
    ranker = Ranker("wide_deep", worlds.SCHEMA, buckets=1 << 12, epochs=2, ftrl_l1=4.0)
    wide = ranker.fit(worlds.rows(2000)).network.wide
    free = Ranker("wide_deep", worlds.SCHEMA, buckets=1 << 12, epochs=2, ftrl_l1=0.0)
    loose = free.fit(worlds.rows(2000)).network.wide
    assert 0 < int((wide != 0).sum()) < 0.5 * int((loose != 0).sum())


def test_quantiles_by_hand():
    values = np.arange(QUANTILES * 4, dtype=np.float64)
    bounds = quantile_bounds(values)
    found = quantile(values, bounds)
    # Four values in each of n parts; the i-th part is (i - 1) / (n - 1).
    np.testing.assert_allclose(found, np.repeat(np.arange(QUANTILES), 4) / (QUANTILES - 1))
    odd = quantile(np.array([-1e9, 1e9, np.inf, -np.inf, np.nan]), bounds)
    assert odd.tolist() == [0, 1, 1, 0, 0.5]
    constant = quantile_bounds(np.full(10, 3.0))
    assert quantile(np.array([2.0, 3.0, 4.0]), constant).tolist() == [0, 0.5, 1]
    assert quantile(np.array([1.0]), quantile_bounds(np.array([np.nan]))).tolist() == [1]


def test_activation_unit_against_a_loop():
    unit = ActivationUnit(3, (5,))
    behaviours, target = torch.randn(4, 6, 3), torch.randn(4, 3)
    lengths = torch.tensor([6, 1, 0, 3])
    present = torch.arange(6) < lengths[:, None]
    found = unit(behaviours, present, target)
    for row in range(4):
        total = torch.zeros(3)
        for b in behaviours[row, : lengths[row]]:
            t = target[row]
            total = total + unit.weigh(torch.cat([b, t, b - t, b * t])) * b
        torch.testing.assert_close(found[row], total)


def cross_data():
    schema = Schema((Feature("a"), Feature("b", "categories")), crosses=(("a", "b"),))
    rows = {"a": [1, 1, 2, 2] * 8, "b": [[5, 6, 5], [6], [], [6]] * 8, "label": [0, 1, 1, 0] * 8}
    return schema, rows


def test_crosses_hold_each_pair_once():
    schema, rows = cross_data()
    ranker = Ranker("wide_deep", schema, buckets=1 << 20).fit(rows)
    coded = ranker.coder.encode(pa.table(rows))
    network = ranker.network
    number = network.crosses.index(("a", "b"))
    bag = network._cross(coded, number, ("a", "b"))
    assert bag.lengths.tolist()[:4] == [2, 1, 0, 1]
    first = {tuple(bag[n].tolist()) for n in range(4)}
    # (1, 6) is in the first two rows, (2, 6) is another pair; (a=1) alone is another still.
    assert set(bag[1].tolist()) < set(bag[0].tolist()) and len(first) == 4
    assert set(bag[3].tolist()).isdisjoint(bag[0].tolist())
    assert set(network._cross(coded, 0, ("a",))[0].tolist()).isdisjoint(bag[0].tolist())


def test_a_cross_is_learned_where_only_a_cross_can():
    random = np.random.default_rng(0)
    a, b = random.integers(0, 8, 4000), random.integers(0, 8, 4000)
    rows = {"a": a, "b": b, "label": (a ^ b) & 1}
    schema = lambda crosses: Schema((Feature("a"), Feature("b")), crosses=crosses)  # noqa: E731
    make = lambda crosses: Ranker(  # noqa: E731
        "wide_deep", schema(crosses), hidden=(1,), dim=1, epochs=2, buckets=1 << 12
    ).fit(rows)
    assert ((make((("a", "b"),)).predict(rows) > 0.5) == rows["label"]).mean() > 0.95
    assert ((make(()).predict(rows) > 0.5) == rows["label"]).mean() < 0.7


@pytest.mark.parametrize("name", ["din", "sim_rank"])
def test_the_rest_of_a_batch_never_matters(name):
    """A row's history beyond its length, however long its neighbours', is not there."""
    schema = Schema((Feature("i"), Feature("h", "sequence", "i")))
    network = build(name, schema, _vocabs(), Settings(initial_scale=1.0, found=3), 0).eval()
    lengths = torch.tensor([0, 2, 9])
    codes = torch.arange(11) % 10
    rows = Coded(
        torch.zeros(3, 0),
        {"i": torch.tensor([1, 2, 3])},
        {"h": Ragged(codes, lengths_to_offsets(lengths))},
    )
    together = network(rows, None)
    assert bool(together.isfinite().all())
    for n in range(3):
        alone = network(rows.take(torch.tensor([n])), None)
        torch.testing.assert_close(alone[0], together[n])


def test_sim_attends_only_what_it_finds():
    schema = Schema((Feature("i"), Feature("h", "sequence", "i")))
    network = build("sim_rank", schema, _vocabs(), Settings(initial_scale=1.0, found=2), 0).eval()
    behaviours, target = torch.randn(1, 6, 16), torch.randn(1, 16)
    present = torch.ones(1, 6, dtype=torch.bool)
    relevance = torch.tensor([[0.1, 0.9, 0.2, 0.8, -1.0, 0.0]])
    found = network._attended(behaviours, present, relevance, target)
    for place in range(6):
        moved = behaviours.clone()
        moved[0, place] += 1
        again = network._attended(moved, present, relevance, target)
        assert torch.equal(again, found) == (place not in (1, 3))
    # Every gradient reaches the search: through its own logit.
    one = Coded(
        torch.zeros(1, 0),
        {"i": torch.tensor([1])},
        {"h": Ragged(torch.tensor([2, 3]), torch.tensor([0, 2]))},
    )
    network.read(one).auxiliary[0].sum().backward()
    assert float(network.search_behaviour.weight.grad.abs().sum()) > 0


def _vocabs():
    return {"i": Vocab(list(range(10)))}
