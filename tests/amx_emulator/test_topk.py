"""The kernels of topk for AMX: the tests of the op, in bfloat16."""

import pytest
import torch

import pylum
from tests.amx_emulator.emulated import Emulated, emulating
from tests.ops import test_topk as op

pytestmark = pytest.mark.usefixtures("amx")


@pytest.mark.parametrize(("num_queries", "num_items", "dim", "k"), op.SHAPES)
def test_equals_reference(num_queries, num_items, dim, k):
    op.test_equals_reference(num_queries, num_items, dim, k, torch.bfloat16)


@pytest.mark.parametrize(("num_queries", "num_items", "dim", "k"), op.SHAPES)
def test_exact_with_ties_lists(num_queries, num_items, dim, k):
    op.test_exact_with_ties_lists(num_queries, num_items, dim, k, torch.bfloat16)


def test_result_is_the_querys_own():
    op.test_result_is_the_querys_own(torch.bfloat16)


@pytest.mark.parametrize("dim", [1, 33])
def test_nan_and_infinity_stay_with_their_item_and_query(dim):
    items = torch.ones(70, dim)
    items[3], items[64, 0], items[65, 0] = torch.nan, torch.inf, -torch.inf
    queries = torch.ones(18, dim)
    queries[1], queries[17] = torch.nan, -1.0
    scores, rows = pylum.ops.topk(queries.bfloat16(), items.bfloat16(), 70)
    assert (rows[1] == -1).all()
    finite = [i for i in range(70) if i not in (3, 64, 65)]
    for query in (0, 16):
        assert rows[query].tolist() == [64, *finite, 65, -1]
    assert rows[17].tolist() == [65, *finite, 64, -1]
    assert scores[0, 1:-2].eq(dim).all()


def test_scores_have_the_bits_of_emulated_tiles(emulated_module):
    queries, items = torch.randn(40, 100).bfloat16(), torch.randn(500, 100).bfloat16()
    queries[3] *= 2.0**-120
    items[:50] *= 2.0**-10
    actual = pylum.ops.topk(queries, items, 500)
    with emulating(Emulated(emulated_module, pylum._C)):
        op.assert_same(actual, pylum.ops.topk(queries, items, 500))
