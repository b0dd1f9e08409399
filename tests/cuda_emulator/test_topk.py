"""The CUDA kernels of topk in the emulator: the tests of the op, and what only CUDA has."""

import pytest
import torch
from hypothesis import given, settings

import pylum
from pylum.ragged import Ragged
from tests.ops import test_topk as op
from tests.ops.test_topk import (  # noqa: F401
    test_all_excluded,
    test_another_querys_nan_moves_nothing,
    test_compile_and_export,
    test_errors,
    test_nan_and_infinity,
    test_opcheck,
    test_strided,
)

pytestmark = pytest.mark.usefixtures("cuda")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
test_any_shape = settings(max_examples=10, deadline=None)(
    given(**op.test_any_shape.hypothesis._given_kwargs)(op.test_any_shape.hypothesis.inner_test)
)
SHAPES = [
    *op.SHAPES[:-2],
    pytest.param(35, 150, 16, 7, id="two-chunks"),
    pytest.param(3, 2100, 8, 600, id="two-ranges-large-k"),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_queries", "num_items", "dim", "k"), SHAPES)
def test_equals_reference(num_queries, num_items, dim, k, dtype):
    op.test_equals_reference(num_queries, num_items, dim, k, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_queries", "num_items", "dim", "k"), SHAPES)
def test_exact_with_ties_lists(num_queries, num_items, dim, k, dtype):
    op.test_exact_with_ties_lists(num_queries, num_items, dim, k, dtype)


@pytest.mark.parametrize("order", op.ORDERS)
def test_order_of_scores(order):
    op.check_order(order, 2100, (1, 65, 300))


@pytest.mark.parametrize("dtype", DTYPES)
def test_result_is_the_querys_own(dtype, emulated_module):
    """Alone, among few or many, as candidates or from all, in any order of blocks: same bits."""
    queries, items = torch.randn(34, 48).to(dtype), torch.randn(2100, 48).to(dtype)
    exclude = op.lists(34, 2100, 300)
    expected = pylum.ops.topk(queries, items, 30, exclude=exclude)
    try:
        emulated_module.set_backwards(True)
        op.assert_same(pylum.ops.topk(queries, items, 30, exclude=exclude), expected)
    finally:
        emulated_module.set_backwards(False)
    for count in (1, 3):
        offsets = exclude.offsets[: count + 1]
        part = Ragged(exclude.values[: offsets[-1]], offsets)
        alone = pylum.ops.topk(queries[:count], items, 30, exclude=part)
        op.assert_same(alone, [x[:count] for x in expected])
        everything = Ragged(torch.randperm(2100).repeat(count), torch.arange(count + 1) * 2100)
        chosen = pylum.ops.topk(queries[:count], items, 30, exclude=part, candidates=everything)
        op.assert_same(chosen, [x[:count] for x in expected])


def test_more_exclusions_than_a_span_and_candidates_that_share_its_bits():
    queries, items = op.whole(2, 4500, 8)
    exclude = Ragged(
        torch.cat([torch.arange(0, 4500, 2), torch.arange(9)]), torch.tensor([0, 2250, 2259])
    )
    candidates = Ragged(torch.arange(4500).repeat(2), torch.tensor([0, 4500, 9000]))
    for kwargs in ({"exclude": exclude}, {"exclude": exclude, "candidates": candidates}):
        op.assert_same(
            pylum.ops.topk(queries, items, 20, **kwargs),
            pylum.reference.topk(queries, items, 20, **kwargs),
        )


@pytest.mark.parametrize("name", ["exclude", "candidates"])
def test_a_bad_list_is_nan_and_noted(cuda, name):
    queries, items = torch.randn(4, 8), torch.randn(90, 8)
    values, offsets = torch.arange(40), torch.arange(5) * 10
    good = pylum.ops.topk(queries, items, 5, **{name: Ragged(values, offsets)})
    for row in (-1, 90):
        values[13] = row
        scores, rows = pylum.ops.topk(queries, items, 5, **{name: Ragged(values, offsets)})
        assert cuda.take_errors() == 4
        assert scores[1].isnan().all() and (rows[1] == -1).all()
        keep = [0, 2, 3]
        op.assert_same((scores[keep], rows[keep]), [x[keep] for x in good])
    values[13] = 13
    for offsets, broken in (
        ([0, 10, 5, 30, 40], 1),
        ([0, 10, 20, 30, 39], 3),
        ([1, 10, 20, 30, 40], 0),
    ):
        lists = Ragged(values, torch.arange(5) * 10)
        lists.offsets.copy_(torch.tensor(offsets))
        scores, _ = pylum.ops.topk(queries, items, 5, **{name: lists})
        assert cuda.take_errors() == 2
        assert scores[broken].isnan().all()


def test_k_has_a_bound():
    with pytest.raises(ValueError, match="k must be at most 4096 on cuda, got 4097"):
        pylum.ops.topk(torch.randn(1, 2), torch.randn(3, 2), 4097)
    scores = torch.randperm(4200).float()
    found = pylum.ops.topk(torch.ones(1, 1), scores[:, None], 4096)
    assert torch.equal(found[0][0], torch.arange(4199.0, 103.0, -1))
