"""The CUDA kernels of dot_interaction in the emulator: the op's tests, and what only CUDA has."""

import pytest
import torch

import pylum
from tests.ops import test_dot_interaction as op
from tests.ops.test_dot_interaction import (  # noqa: F401
    test_errors,
    test_nan_stays_in_its_row_and_pairs,
    test_opcheck_and_compile,
    test_order_is_row_by_row,
)

pytestmark = pytest.mark.usefixtures("cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("batch", "count", "dim"), [*op.SHAPES, pytest.param(2, 65, 33, id="tiles+1")]
)
def test_equals_reference(batch, count, dim, dtype):
    op.test_equals_reference(batch, count, dim, dtype)


def test_blocks_backwards_and_neighbours_change_nothing(emulated_module):
    vectors = torch.randn(5, 35, 24)
    results = []
    try:
        for backwards in (False, True):
            emulated_module.set_backwards(backwards)
            leaf = vectors.clone().requires_grad_()
            out = pylum.ops.dot_interaction(leaf)
            out.sum().backward()
            results.append((out.detach(), leaf.grad))
    finally:
        emulated_module.set_backwards(False)
    assert all(map(torch.equal, *results))
    assert torch.equal(pylum.ops.dot_interaction(vectors[3:4]), results[0][0][3:4])


def test_a_vector_of_nan_has_a_gradient_from_the_others():
    vectors = torch.randn(2, 5, 7)
    vectors[1, 2] = torch.nan
    leaf = vectors.requires_grad_()
    pylum.ops.dot_interaction(leaf).sum().backward()
    assert leaf.grad[0].isfinite().all() and leaf.grad[1, 2].isfinite().all()
    assert leaf.grad[1, [0, 1, 3, 4]].isnan().all()
