"""topk against its reference."""

import pytest
import torch

import pylum
from tests.tolerance import assert_close

SHAPES = [
    pytest.param(0, 10, 4, 3, id="no-queries"),
    pytest.param(3, 0, 4, 3, id="no-items"),
    pytest.param(3, 10, 4, 0, id="k-0"),
    pytest.param(1, 1, 1, 1, id="ones"),
    pytest.param(4, 100, 15, 100, id="k-all"),
    pytest.param(4, 33, 17, 50, id="k-beyond"),
    pytest.param(7, 1000, 64, 10, id="plain"),
    pytest.param(7, 1000, 65, 10, id="unaligned"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_queries", "num_items", "dim", "k"), SHAPES)
def test_equals_reference(num_queries, num_items, dim, k, dtype):
    queries = torch.randn(num_queries, dim, dtype=dtype)
    items = torch.randn(num_items, dim, dtype=dtype)
    scores, rows = pylum.ops.topk(queries, items, k)
    expected, _ = pylum.reference.topk(queries, items, k)
    plain = torch.full_like(expected, -torch.inf)
    n = min(k, num_items)
    plain[:, :n] = (queries.float() @ items.float().T).sort(1, descending=True).values[:, :n]
    assert_close(scores, expected.double(), plain)
    exact = (queries.double() @ items.double().T).gather(1, rows[:, :n])
    assert_close(scores[:, :n], exact, plain[:, :n])
    assert (rows[:, n:] == -1).all()
