"""The CUDA kernels of residual_norm in the emulator: the op's tests, and what only CUDA has."""

import pytest
import torch

import pylum
from tests.ops import test_residual_norm as op
from tests.ops.test_residual_norm import (  # noqa: F401
    test_a_nan_row_stays_alone,
    test_autocast_takes_float32,
    test_dropout_has_its_rate_and_no_pattern,
    test_equals_reference,
    test_errors,
    test_gradients,
    test_opcheck_and_compile,
)

pytestmark = pytest.mark.usefixtures("cuda")


@pytest.mark.parametrize(("rows", "width"), op.SHAPES[2:])
def test_float16_equals_reference(rows, width):
    op.test_equals_reference(rows, width, True, 0.3, torch.float16)
    op.test_gradients(rows, width, "both", 0.3, torch.float16)


def test_few_warps_hold_wide_rows():
    op.test_gradients(3, 12_300, "both", 0.0, torch.float32)


def test_what_is_dropped_is_what_the_cpu_drops():
    branch = torch.ones(40, 33)
    found, _ = pylum.ops.residual_norm(branch, None, branch[0], dropout=0.4, seed=op.SEED)
    kept = op.kept_elements(40, 33, 0.4, op.SEED)
    assert torch.equal(found != 0, kept)


def test_blocks_in_either_order(both_orders):
    """The gradient of the weight is summed over rows in blocks."""
    branch, residual = (torch.randn(300, 33).requires_grad_() for _ in range(2))
    weight = torch.randn(33).requires_grad_()
    douts = torch.randn(2, 300, 33).unbind()

    def call():
        outs = pylum.ops.residual_norm(branch, residual, weight)
        grads = torch.autograd.grad(outs, (branch, residual, weight), douts)
        return [*(out.detach() for out in outs), *grads]

    both_orders(call)
