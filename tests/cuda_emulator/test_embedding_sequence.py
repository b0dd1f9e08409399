"""The CUDA kernel of embedding_sequence in the emulator: the op's tests, and what only CUDA has."""

import pytest
import torch

from pylum.ops import embedding_sequence
from tests.ops import test_embedding_sequence as op
from tests.ops.test_embedding_sequence import (  # noqa: F401
    test_a_row_gradient_depends_on_its_own_tokens_only,
    test_compile_export_and_autocast,
    test_double_backward_is_an_error,
    test_errors_name_the_argument,
    test_expanded_gradient,
    test_one_table_is_an_exact_copy,
    test_only_the_tables_that_need_a_gradient_get_one,
    test_opcheck,
    test_strided_rows_and_indices,
    test_sum_wants_one_dim,
)

pytestmark = pytest.mark.usefixtures("cuda")
# As those of the op, of fewer tokens.
SHAPES = [
    *op.SHAPES[:-2],
    pytest.param(35, [50, 7, 2], [65, 65, 65], id="unaligned"),
    pytest.param(90, [1000, 3], [128, 128], id="long-rows"),
]


@pytest.mark.parametrize("with_positions", [False, True], ids=["", "positions"])
@pytest.mark.parametrize("dtype", [None, op.FLOAT, op.HALF], ids=str)
@pytest.mark.parametrize("dtypes", [[op.FLOAT], [op.HALF], [op.FLOAT, op.HALF]], ids=str)
@pytest.mark.parametrize("combine", ["concat", "sum"])
@pytest.mark.parametrize(("tokens", "rows", "dims"), SHAPES)
def test_equals_reference(tokens, rows, dims, combine, dtypes, dtype, with_positions):
    op.test_equals_reference(tokens, rows, dims, combine, dtypes, dtype, with_positions)


@pytest.mark.parametrize("combine", ["concat", "sum"])
@pytest.mark.parametrize(("tokens", "rows", "dims"), SHAPES)
def test_float16_equals_plain(tokens, rows, dims, combine):
    dtypes = [torch.float16, torch.float32]
    tables, indices, _ = op.make(tokens, rows, dims, dtypes)
    found = embedding_sequence(tables, indices, dtype=torch.float16, combine=combine)
    exact = op.plain([t.float() for t in tables], indices, None, combine)
    assert found.dtype == torch.float16
    assert torch.equal(found, exact.half())


def test_more_tables_than_one_launch_takes():
    tables, indices, _ = op.make(5, [3] * 70, [4] * 70, [torch.float32])
    found = embedding_sequence(tables, indices)
    assert torch.equal(found, op.plain(tables, indices, None, "concat"))
    with pytest.raises(ValueError, match="tables must be at most 56 to be summed on cuda, got 70"):
        embedding_sequence(tables, indices, combine="sum")


@pytest.mark.parametrize("dim", [4, 5])
def test_a_bad_index_is_nan_and_noted(cuda, dim):
    tables, indices, _ = op.make(6, [7, 3], [dim, dim], [torch.float32])
    good = embedding_sequence(tables, indices)
    summed = embedding_sequence(tables, indices, combine="sum")
    assert cuda.take_errors() == 0
    indices[1][2], indices[1][4] = 3, -1
    found = embedding_sequence(tables, indices)
    assert cuda.take_errors() == 4
    kept = torch.ones_like(found, dtype=torch.bool)
    kept[[2, 4], dim:] = False
    assert torch.equal(found[kept], good[kept]) and found[~kept].isnan().all()
    found = embedding_sequence(tables, indices, combine="sum")
    assert found[[2, 4]].isnan().all()
    assert torch.equal(found[[0, 1, 3, 5]], summed[[0, 1, 3, 5]])
    assert cuda.take_errors() == 4


@pytest.mark.parametrize("combine", ["concat", "sum"])
def test_blocks_in_either_order(both_orders, combine):
    tables, indices, _ = op.make(70, [7, 3], [8, 8], [torch.float32])
    tables = [table.requires_grad_() for table in tables]

    def call():
        out = embedding_sequence(tables, indices, combine=combine)
        return [out.detach(), *torch.autograd.grad(out, tables, torch.ones_like(out))]

    both_orders(call)
