"""The CUDA kernels of swiglu in the emulator: the tests of the op, and what only CUDA has."""

import pytest
import torch

from pylum.ops import swiglu
from tests.ops import test_swiglu as op
from tests.ops.test_swiglu import (  # noqa: F401
    test_equals_reference,
    test_errors,
    test_extreme_gates,
    test_opcheck_and_compile,
)

pytestmark = pytest.mark.usefixtures("cuda")


@pytest.mark.parametrize(("rows", "width"), op.SHAPES)
def test_float16_equals_reference(rows, width):
    op.test_equals_reference(rows, width, torch.float16)


def test_blocks_in_either_order(both_orders):
    x = torch.randn(37, 2 * 65).requires_grad_()
    dout = torch.randn(37, 65)

    def call():
        out = swiglu(x)
        return [out.detach(), *torch.autograd.grad(out, x, dout)]

    both_orders(call)
