"""The CUDA kernel of embedding_bag in the emulator: the op's tests, and what only CUDA has."""

import pytest
import torch
from hypothesis import given, settings

from pylum.ops import embedding_bag
from tests.ops import test_embedding_bag as op
from tests.ops.test_embedding_bag import (  # noqa: F401
    test_a_bag_alone_is_bitwise_the_same,
    test_a_broken_row_moves_no_other_bag,
    test_batches_must_agree,
    test_compile_export_and_autocast,
    test_double_backward_is_an_error,
    test_errors_name_the_argument,
    test_opcheck,
    test_strided_rows_and_indices,
    test_tables_may_have_different_lookups,
)

pytestmark = pytest.mark.usefixtures("cuda")
test_ragged = settings(max_examples=8, deadline=None)(
    given(**op.test_ragged.hypothesis._given_kwargs)(op.test_ragged.hypothesis.inner_test)
)
SHAPES = [
    *(shape for shape in op.SHAPES if shape.id != "one-long"),
    pytest.param([1, 0, 300, 1, 2], [50, 7, 2], [65, 130, 17], id="one-long"),
]


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("dtypes", [[op.FLOAT], [op.HALF], [op.FLOAT, op.HALF]], ids=str)
@pytest.mark.parametrize(("lengths", "rows", "dims"), SHAPES)
def test_equals_reference(lengths, rows, dims, dtypes, mode):
    op.check(lengths, rows, dims, dtypes, mode)


def test_float16():
    tables, indices, offsets = op.make([3, 0, 9], [5, 6], [8, 16], [torch.float16])
    found = embedding_bag(tables, indices, offsets)
    single = [table.float() for table in tables]
    assert found.dtype == torch.float16
    torch.testing.assert_close(
        found.float(), op.plain(single, indices, offsets, "sum").half().float()
    )


def test_more_tables_than_one_launch_takes():
    tables, indices, offsets = op.make([2, 0, 1], [3] * 50, [4] * 50, [torch.float32])
    found = embedding_bag(tables, indices, offsets)
    torch.testing.assert_close(found, op.plain(tables, indices, offsets, "sum"))


def test_bad_indices_and_offsets_are_nan_and_noted(cuda):
    tables, (index,), (offsets,) = op.make([3, 2, 4, 1], [6], [8], [torch.float32])
    good = embedding_bag(tables, [index], [offsets])
    bad = index.clone()
    bad[4] = 6
    found = embedding_bag(tables, [bad], [offsets])
    assert cuda.take_errors() == 4
    assert found[1].isnan().all() and torch.equal(found[[0, 2, 3]], good[[0, 2, 3]])
    for change, broken in (({4: 11}, [3]), ({2: 2}, [1]), ({0: -1}, [0]), ({2: 1 << 40}, [1, 2])):
        moved = offsets.clone()
        for at, value in change.items():
            moved[at] = value
        found = embedding_bag(tables, [index], [moved])
        assert cuda.take_errors() == 2
        assert found[broken].isnan().all()


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_blocks_in_either_order(both_orders, mode):
    tables, indices, offsets = op.make([3, 0, 90, 7, 1], [6, 50], [8, 5], [torch.float32])
    tables = [table.requires_grad_() for table in tables]

    def call():
        out = embedding_bag(tables, indices, offsets, mode=mode)
        return [out.detach(), *torch.autograd.grad(out, tables, torch.ones_like(out))]

    both_orders(call)
